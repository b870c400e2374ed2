//! What of a bucket is metadata; the rest is made zero.
//!
//! A bucket of metadata may have held user data before: behind the last key of a node, or of a journal that was never
//! full, that data is still there. What is kept:
//!
//! | structure | kept |
//! |---|---|
//! | node, journal | from each block that begins with the set's magic number (in a node: or has the seq of one that does) the header, and as many words as it says there are keys: all if the checksum is right, else those that can be a part of a key |
//! | prio set | all if the checksum is right, else its header |
//! | volume table | what is used of slots of which nearly all unused bytes are zero, as they are in every table |
//! | superblock | all if it has bcache's magic number or the set's UUID, else nothing |
//!
//! What the tools make of a damaged structure is the same before and after.

use ubcache_format::{
    BSET_HEADER_BYTES, Generation, Geometry, JOURNAL_HEADER_BYTES, PRIO_HEADER_BYTES, Pointer,
    SUPERBLOCK_MAGIC, Sector, UUID_ENTRY_BYTES, UUID_ENTRY_V0_BYTES, Uuid, crc64_we, crc64_we_seeded,
    parse_prio,
};

/// Bytes of a slot of the volume table that are used.
const SLOT_USED: usize = 72;

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..at + 8).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
    word.map_or(0, u64::from_le_bytes)
}

/// Of an area that begins at a sector of the device: all that is of nodes.
pub(crate) fn nodes(geometry: &Geometry, start: Sector, bytes: &mut [u8]) {
    let magic = geometry.bset_magic();
    let block = geometry.block_bytes().max(1) as usize;
    let seqs: Vec<u64> = bytes
        .chunks(block)
        .filter(|block| u64_at(block, 8) == magic)
        .map(|block| u64_at(block, 16))
        .filter(|seq| *seq != 0)
        .collect();
    let begins = |block: &[u8]| u64_at(block, 8) == magic || seqs.contains(&u64_at(block, 16));
    let right = |log: &[u8]| {
        let (csum, covered) = (u64_at(log, 0), log.get(8..).unwrap_or_default());
        let seed = |generation| Pointer { device: 0, offset: start, generation: Generation(generation) };
        csum == crc64_we(covered) || (0..=u8::MAX).any(|g| csum == crc64_we_seeded(seed(g).word(), covered))
    };
    keep_logs(bytes, block, BSET_HEADER_BYTES as usize, begins, right);
}

/// Of a bucket of the ring: all that is of journal entries.
pub(crate) fn journal(geometry: &Geometry, bytes: &mut [u8]) {
    let magic = geometry.journal_magic();
    let begins = |block: &[u8]| u64_at(block, 8) == magic;
    let right = |log: &[u8]| u64_at(log, 0) == crc64_we(log.get(8..).unwrap_or_default());
    keep_logs(bytes, geometry.block_bytes().max(1) as usize, JOURNAL_HEADER_BYTES as usize, begins, right);
}

/// Entries of a log have the number of their words at byte 28.
fn keep_logs(
    bytes: &mut [u8],
    block: usize,
    header: usize,
    begins: impl Fn(&[u8]) -> bool,
    right: impl Fn(&[u8]) -> bool,
) {
    let starts: Vec<usize> =
        (0..bytes.len()).step_by(block).filter(|at| bytes.get(*at..).is_some_and(&begins)).collect();
    let mut end = 0;
    for (index, &start) in starts.iter().enumerate() {
        if start < end {
            // A part of a log that is whole.
            continue;
        }
        if let Some(gap) = bytes.get_mut(end..start) {
            gap.fill(0);
        }
        let room = bytes.len() - start;
        let words = (u64_at(bytes, start + 24) >> 32) as usize;
        let claimed = words.saturating_mul(8).saturating_add(header);
        // A damaged number must not reach over what begins behind it.
        let next = starts.get(index + 1).map_or(room, |next| next - start);
        let whole = claimed <= room && bytes.get(start..start + claimed).is_some_and(&right);
        let used = if whole { claimed } else { claimed.min(next) };
        if let Some(log) = bytes.get_mut(start..start + used)
            && !whole
        {
            keep_keys(log.get_mut(header..).unwrap_or_default());
        }
        end = start + used;
    }
    if let Some(rest) = bytes.get_mut(end..) {
        rest.fill(0);
    }
}

/// Keeps what can be a key: the bits that are always 0 or 1 are.
fn keep_keys(words: &mut [u8]) {
    let mut at = 0;
    while at < words.len() {
        let high = u64_at(words, at);
        let pointers = (high >> 60 & 7) as usize;
        let possible = high >> 63 == 1 && pointers <= 6 && high >> 58 & 3 == 0 && high >> 37 & 0x7_FFFF == 0;
        let rest = (1..=1 + pointers).all(|word| u64_at(words, at + 8 * word) >> 63 == 0);
        if possible && rest {
            at += 8 * (2 + pointers);
        } else {
            let end = words.len().min(at + 8);
            words[at..end].fill(0);
            at = end;
        }
    }
}

/// Of the metadata area of a bucket: the prio set.
pub(crate) fn prio(geometry: &Geometry, bytes: &mut [u8]) {
    if parse_prio(geometry, bytes).is_ok() {
        return;
    }
    let kept = if u64_at(bytes, 8) == geometry.prio_magic() { PRIO_HEADER_BYTES as usize } else { 0 };
    bytes.get_mut(kept..).unwrap_or_default().fill(0);
}

/// Of the metadata area of a bucket: the volume table. `version` is that of the newest journal entry.
pub(crate) fn table(version: u32, bytes: &mut [u8]) {
    let size = if version == 0 { UUID_ENTRY_V0_BYTES } else { UUID_ENTRY_BYTES } as usize;
    let whole = bytes.len() / size * size;
    for slot in bytes.get_mut(..whole).unwrap_or_default().chunks_mut(size) {
        let unused = slot.get_mut(if version == 0 { 60 } else { SLOT_USED }..).unwrap_or_default();
        let fits = unused.iter().filter(|byte| **byte != 0).count() <= unused.len() / 8;
        unused.fill(0);
        if !fits {
            slot.fill(0);
        }
    }
    bytes.get_mut(whole..).unwrap_or_default().fill(0);
}

/// Whether the first block of a bucket seems to be of a volume table: nothing in it tells for certain.
pub(crate) fn seems_table(block: &[u8]) -> bool {
    let mut slots = block.chunks_exact(UUID_ENTRY_BYTES as usize).filter(|slot| !is_zero(slot)).peekable();
    slots.peek().is_some() && slots.all(seems_slot)
}

fn seems_slot(slot: &[u8]) -> bool {
    let uuid = slot.get(..16).unwrap_or_default();
    // Devices are given random UUIDs, which say so.
    let random = slot[6] >> 4 == 4 && slot[8] >> 6 == 2;
    let label = slot.get(16..48).unwrap_or_default();
    let text = label.iter().position(|byte| *byte == 0).unwrap_or(label.len());
    let named = std::str::from_utf8(&label[..text]).is_ok() && is_zero(&label[text..]);
    let flags = u64_at(slot, 56) >> 32;
    (random || uuid == Uuid::INVALIDATED.0)
        && named
        && flags <= 1
        && slot.get(SLOT_USED..).is_some_and(is_zero)
}

/// Of the place of the superblock: the superblock, or what is left of it.
pub(crate) fn superblock(geometry: Option<&Geometry>, bytes: &mut [u8]) {
    let set = geometry.is_some_and(|geometry| u64_at(bytes, 56) == geometry.set_magic);
    if bytes.get(24..40) != Some(SUPERBLOCK_MAGIC.as_slice()) && !set {
        bytes.fill(0);
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
