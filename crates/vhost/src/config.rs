//! Configuration space and feature bits of the disk.

use ubcache_env::VolumeInfo;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Feature bit by which a monitor says that it knows protocol features.
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;
pub(crate) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
pub(crate) const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
pub(crate) const CONFIG_WCE: u64 = 1 << VIRTIO_BLK_F_CONFIG_WCE;

/// Place of the byte that switches writeback on and off.
pub(crate) const WRITEBACK_AT: usize = 32;
/// Bytes of the space; what is behind the fields is zero.
const SPACE_BYTES: usize = 256;

/// Pieces of memory of one request, at most: with header and status they fit QEMU's shortest ring.
const SEGMENTS_MAX: u32 = 126;
/// Ranges of one discard, or one request of zeroes, at most.
pub(crate) const RANGES_MAX: u32 = 64;
/// Sectors of one such range, at most: 1 GiB.
pub(crate) const RANGE_SECTORS_MAX: u32 = 2 << 20;

/// Names of features, for reports.
const NAMES: [(u32, &str); 13] = [
    (VIRTIO_BLK_F_SEG_MAX, "seg-max"),
    (VIRTIO_BLK_F_RO, "read-only"),
    (VIRTIO_BLK_F_BLK_SIZE, "block-size"),
    (VIRTIO_BLK_F_FLUSH, "flush"),
    (VIRTIO_BLK_F_TOPOLOGY, "topology"),
    (VIRTIO_BLK_F_CONFIG_WCE, "config-wce"),
    (VIRTIO_BLK_F_MQ, "multiqueue"),
    (VIRTIO_BLK_F_DISCARD, "discard"),
    (VIRTIO_BLK_F_WRITE_ZEROES, "write-zeroes"),
    (VIRTIO_RING_F_INDIRECT_DESC, "indirect-descriptors"),
    (VIRTIO_RING_F_EVENT_IDX, "event-index"),
    (PROTOCOL_FEATURES.ilog2(), "protocol-features"),
    (VIRTIO_F_VERSION_1, "version-1"),
];

/// The names of those features.
pub(crate) fn names(features: u64) -> Vec<&'static str> {
    let there = NAMES.iter().filter(|(bit, _)| features & 1 << bit != 0);
    there.map(|(_, name)| *name).collect()
}

/// Features that the disk offers.
pub(crate) fn offered(info: &VolumeInfo) -> u64 {
    let bits = [
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_CONFIG_WCE,
        VIRTIO_BLK_F_MQ,
        VIRTIO_BLK_F_DISCARD,
        VIRTIO_BLK_F_WRITE_ZEROES,
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
    ];
    let all = bits.iter().fold(PROTOCOL_FEATURES, |all, bit| all | 1 << bit);
    if info.read_only { all | 1 << VIRTIO_BLK_F_RO } else { all }
}

/// The configuration space: `struct virtio_blk_config` of the virtio standard.
pub(crate) fn space(
    info: &VolumeInfo,
    sectors: u64,
    queues: u16,
    writeback: bool,
) -> [u8; SPACE_BYTES] {
    let mut space = [0; SPACE_BYTES];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    let block = info.block_bytes.max(512);
    let preferred_blocks = (info.preferred_bytes / block).max(1);
    let alignment = block / 512;
    put(0, &sectors.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    put(20, &block.to_le_bytes());
    put(24, &[preferred_blocks.ilog2().min(7) as u8]);
    put(26, &(preferred_blocks.min(u32::from(u16::MAX)) as u16).to_le_bytes());
    put(WRITEBACK_AT, &[u8::from(writeback)]);
    put(34, &queues.to_le_bytes());
    put(36, &RANGE_SECTORS_MAX.to_le_bytes());
    put(40, &RANGES_MAX.to_le_bytes());
    put(44, &alignment.to_le_bytes());
    put(48, &RANGE_SECTORS_MAX.to_le_bytes());
    put(52, &RANGES_MAX.to_le_bytes());
    put(56, &[1]);
    space
}

/// A part of the space; zeroes behind its end.
pub(crate) fn part(space: &[u8], offset: u32, size: u32) -> Vec<u8> {
    let bytes = (0..u64::from(size)).map(|at| (u64::from(offset) + at) as usize);
    bytes.map(|at| space.get(at).copied().unwrap_or_default()).collect()
}
