//! The veil of a disk whose data is being moved: sectors at its begin that no program takes for a
//! file system, a partition table or a superblock, and by which the next run knows the move.
//!
//! ```text
//!   0 name │ 16 UUID of the move │ 32 number of the sector │ 40 words for people, up to 512
//! ```

use ubcache_format::{SECTOR_BYTES, Uuid};

/// The name at the begin of each sector of a veil.
pub const VEIL_MAGIC: [u8; 16] = *b"ubcache is moved";
/// Bytes of the veil: the place before a superblock, and that of the superblock.
pub(super) const VEIL_BYTES: usize = 8192;
/// Bytes of a block, which is written at once.
pub(super) const BLOCK_BYTES: usize = 4096;

const WORDS: &[u8] =
    b"\nThe data of this disk is being moved by ubcache. Do not write to the disk: \
    run the command that began it (ubcache unmake --in-place, or ubcache convert) again.\n";

/// A sector of the veil.
pub(super) fn veil_sector(uuid: Uuid, number: u64) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR_BYTES as usize];
    bytes[..16].copy_from_slice(&VEIL_MAGIC);
    bytes[16..32].copy_from_slice(&uuid.0);
    bytes[32..40].copy_from_slice(&number.to_le_bytes());
    bytes[40..40 + WORDS.len()].copy_from_slice(WORDS);
    bytes
}

/// The veil over the first `bytes` bytes of a disk: its sectors, and zeroes behind them.
pub(super) fn veil(uuid: Uuid, bytes: usize) -> Vec<u8> {
    let sectors = VEIL_BYTES as u64 / SECTOR_BYTES;
    let mut veil: Vec<u8> = (0..sectors).flat_map(|number| veil_sector(uuid, number)).collect();
    veil.resize(bytes, 0);
    veil
}

/// Identity of the move that a disk is behind the veil of, from the first 8192 bytes of the disk.
pub fn veiled(head: &[u8]) -> Option<Uuid> {
    let sectors = head.chunks_exact(SECTOR_BYTES as usize).take(VEIL_BYTES / 512);
    let mut named = sectors.filter(|sector| sector.get(..16) == Some(&VEIL_MAGIC));
    Some(Uuid(named.next()?.get(16..32)?.try_into().ok()?))
}
