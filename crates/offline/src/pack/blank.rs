//! Erases everything of a bucket that is not metadata.
//!
//! A bucket of metadata may have held user data before: behind the last key of a node, or of a
//! journal that was never full, that data is still there. Kept are:
//!
//!
//! Tools report the same of a damaged structure before and after.

use ubcache_format::{
    BSET_HEADER_BYTES, Generation, Geometry, JOURNAL_HEADER_BYTES, PRIO_HEADER_BYTES, Pointer,
    SUPERBLOCK_MAGIC, Sector, UUID_ENTRY_BYTES, UUID_ENTRY_V0_BYTES, Uuid, crc64_we,
    crc64_we_seeded, parse_prio,
};

/// Bytes of a slot of the volume table that are used.
const SLOT_USED: usize = 72;

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..at + 8).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
    word.map_or(0, u64::from_le_bytes)
}

/// Keeps the nodes of an area that begins at a sector of the device.
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
        let seed =
            |generation| Pointer { device: 0, offset: start, generation: Generation(generation) };
        csum == crc64_we(covered)
            || (0..=u8::MAX).any(|g| csum == crc64_we_seeded(seed(g).word(), covered))
    };
    keep_logs(bytes, block, BSET_HEADER_BYTES as usize, begins, right);
}

/// Keeps the journal entries of a bucket of the ring.
pub(crate) fn journal(geometry: &Geometry, bytes: &mut [u8]) {
    let magic = geometry.journal_magic();
    let begins = |block: &[u8]| u64_at(block, 8) == magic;
    let right = |log: &[u8]| u64_at(log, 0) == crc64_we(log.get(8..).unwrap_or_default());
    keep_logs(
        bytes,
        geometry.block_bytes().max(1) as usize,
        JOURNAL_HEADER_BYTES as usize,
        begins,
        right,
    );
}

/// Entries of a log have the number of their words at byte 28.
fn keep_logs(
    bytes: &mut [u8],
    block: usize,
    header: usize,
    begins: impl Fn(&[u8]) -> bool,
    right: impl Fn(&[u8]) -> bool,
) {
    let starts: Vec<usize> = (0..bytes.len())
        .step_by(block)
        .filter(|at| bytes.get(*at..).is_some_and(&begins))
        .collect();
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
        let possible =
            high >> 63 == 1 && pointers <= 6 && high >> 58 & 3 == 0 && high >> 37 & 0x7_FFFF == 0;
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

/// Keeps the prio set of the metadata area of a bucket.
pub(crate) fn prio(geometry: &Geometry, bytes: &mut [u8]) {
    if parse_prio(geometry, bytes).is_ok() {
        return;
    }
    let kept =
        if u64_at(bytes, 8) == geometry.prio_magic() { PRIO_HEADER_BYTES as usize } else { 0 };
    bytes.get_mut(kept..).unwrap_or_default().fill(0);
}

/// Keeps the volume table of the metadata area of a bucket. `version` is that of the newest journal
/// entry.
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

/// Returns true if the first block of a bucket looks like a volume table, which has no mark that
/// tells for certain.
pub(crate) fn seems_table(block: &[u8]) -> bool {
    let mut slots =
        block.chunks_exact(UUID_ENTRY_BYTES as usize).filter(|slot| !is_zero(slot)).peekable();
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

/// Keeps the superblock, or its remains.
pub(crate) fn superblock(geometry: Option<&Geometry>, bytes: &mut [u8]) {
    let set = geometry.is_some_and(|geometry| u64_at(bytes, 56) == geometry.set_magic);
    if bytes.get(24..40) != Some(SUPERBLOCK_MAGIC.as_slice()) && !set {
        bytes.fill(0);
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ubcache_format::{Inode, Key, SectorRange, encode_bset};

    const TEXT: &[u8] = b"what a user wrote, here and there. ";

    fn geometry() -> Geometry {
        Geometry {
            set_magic: 0x0706_0504_0302_0100,
            bucket_sectors: 32,
            block_sectors: 1,
            buckets: 1024,
            first_bucket: 1,
            journal_buckets: 8,
        }
    }

    /// A node of one bset of 60 keys, which takes three blocks, in a bucket that has text
    /// otherwise.
    fn node() -> (Vec<u8>, Vec<Key>, Sector) {
        let geometry = geometry();
        let start = Sector(32 * 100);
        let place = |number: u64| Pointer {
            device: 0,
            offset: Sector(6400 + number),
            generation: Generation(3),
        };
        let key = |n: u64| {
            Key::extent(
                Inode(1),
                SectorRange::new(Sector(16 + 8 * n), 8),
                n.is_multiple_of(2),
                place(8 * n),
            )
        };
        let keys: Vec<Key> = (0..60).map(key).collect();
        let seed = Pointer { device: 0, offset: start, generation: Generation(9) };
        let mut bytes = encode_bset(&geometry, seed, 77, &keys);
        assert_eq!(bytes.len(), 3 * 512);
        bytes.extend(TEXT.iter().cycle().take(geometry.node_bytes() as usize - bytes.len()));
        (bytes, keys, start)
    }

    fn has_text(bytes: &[u8]) -> bool {
        bytes.windows(16).any(|window| TEXT.windows(16).any(|text| text == window))
    }

    /// Counts the keys that are still there, byte for byte.
    fn kept(bytes: &[u8], keys: &[Key]) -> usize {
        let at = |number: usize| BSET_HEADER_BYTES as usize + 24 * number;
        let is = |number: usize, key: &Key| {
            Key::decode(&bytes[at(number)..]).is_ok_and(|(found, _)| found == *key)
        };
        keys.iter().enumerate().filter(|(number, key)| is(*number, key)).count()
    }

    #[test]
    fn packed_node_keeps_its_keys_and_nothing_after_them() {
        let (mut bytes, keys, start) = node();
        let before = bytes.clone();
        nodes(&geometry(), start, &mut bytes);
        let used = BSET_HEADER_BYTES as usize + 24 * keys.len();
        assert_eq!(bytes[..used], before[..used]);
        assert!(is_zero(&bytes[used..]));
    }

    #[test]
    fn damaged_key_leaves_the_other_keys() {
        let (mut bytes, keys, start) = node();
        bytes[BSET_HEADER_BYTES as usize + 24 * 10 + 7] ^= 0x80;
        nodes(&geometry(), start, &mut bytes);
        assert_eq!(kept(&bytes, &keys), keys.len() - 1);
        assert!(!has_text(&bytes));
    }

    /// Only the first block of a torn write came: the others have their former content.
    #[test]
    fn torn_node_keeps_only_written_bsets() {
        let (mut bytes, keys, start) = node();
        for (byte, text) in bytes[512..3 * 512].iter_mut().zip(TEXT.iter().cycle()) {
            *byte = *text;
        }
        nodes(&geometry(), start, &mut bytes);
        assert_eq!(kept(&bytes, &keys), (512 - BSET_HEADER_BYTES as usize) / 24);
        assert!(!has_text(&bytes));
    }

    /// A length that is too large must not reach over the text, nor over the bset behind it.
    #[test]
    fn damaged_length_ends_at_the_next_bset() {
        let (mut bytes, keys, start) = node();
        let whole = bytes[..3 * 512].to_vec();
        bytes[6 * 512..9 * 512].copy_from_slice(&whole);
        bytes[28..32].copy_from_slice(&1_000_000_u32.to_le_bytes());
        nodes(&geometry(), start, &mut bytes);
        assert_eq!((kept(&bytes, &keys), kept(&bytes[6 * 512..], &keys)), (keys.len(), keys.len()));
        assert!(!has_text(&bytes));
    }

    #[test]
    fn data_is_never_packed() {
        let geometry = geometry();
        let text: Vec<u8> =
            TEXT.iter().copied().cycle().take(geometry.bucket_bytes() as usize).collect();
        for blank in [
            &(|bytes: &mut [u8]| nodes(&geometry, Sector(320), bytes)) as &dyn Fn(&mut [u8]),
            &|bytes| journal(&geometry, bytes),
            &|bytes| prio(&geometry, bytes),
            &|bytes| table(0, bytes),
            &|bytes| table(1, bytes),
            &|bytes| superblock(Some(&geometry), bytes),
            &|bytes| superblock(None, bytes),
        ] {
            let mut bytes = text.clone();
            blank(&mut bytes);
            assert!(is_zero(&bytes));
        }
        assert!(!seems_table(&text[..4096]));
        assert!(!seems_table(&[0; 4096]));
    }
}
