//! Limits and sizes that are not on the device.

use ubcache_env::Nanos;

/// Memory that an extent of the index takes, in bytes, with its share of what surrounds it.
pub const EXTENT_MEMORY_BYTES: u64 = 24;
/// A node of a B-tree is half full at worst, nearly.
pub(crate) const TREE_SLACK: u64 = 2;

/// The speed at which generations rise, and the age that pointers may reach
/// (docs/internals/coherence.md §7). Ages are distances on the circle of 256 that the format has.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Generations {
    /// A bucket that is given up rises by this much. More than 1 leaves fewer generations before
    /// the circle is round, so that a simulator sees many turns of it.
    pub step: u8,
    /// Garbage collection writes a node anew where a pointer in it is older than this.
    pub rewrite_age: u8,
    /// A pointer this old keeps its bucket from being used again. The format allows 96
    /// (docs/reference/format.md §9.3); some distance is kept.
    pub age_max: u8,
}

impl Default for Generations {
    fn default() -> Generations {
        Generations { step: 1, rewrite_age: 10, age_max: 80 }
    }
}

/// Read-ahead of streams, where the backing device is remote.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct ReadAheadTuning {
    /// Sectors that a stream has to have before it is read ahead of.
    pub start_sectors: u64,
    /// Sectors of a piece, at first; a power of two.
    pub piece_sectors_min: u64,
    /// The same at most. More where the device is better at larger requests.
    pub piece_sectors_max: u64,
    /// Sectors that are read ahead of a stream at most.
    pub window_sectors_max: u64,
    /// Time of a request from which on the device is far enough away.
    pub latency_min: Nanos,
    /// Time after which what nobody came for is given up.
    pub unused_after: Nanos,
}

impl Default for ReadAheadTuning {
    fn default() -> ReadAheadTuning {
        ReadAheadTuning {
            start_sectors: 512,
            piece_sectors_min: 256,
            piece_sectors_max: 2048,
            window_sectors_max: 65_536,
            latency_min: Nanos::from_micros(500),
            unused_after: Nanos::from_secs(5),
        }
    }
}

/// Limits and sizes that are not on the device.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Extents of the index kept in memory, about [`EXTENT_MEMORY_BYTES`] each. Nodes that hold
    /// more are read again when they are needed. Where what is not written to its node yet is more
    /// than that, whoever brings a node in writes another.
    pub extents_in_memory_max: usize,
    /// A leaf is written when this many bytes of keys wait.
    pub leaf_write_bytes: u64,
    /// Puts fewer keys into a node than fit, so that small tests get deep trees. None: what fits.
    pub node_keys_max: Option<usize>,
    /// Serve before every bucket is counted, where that is safe.
    pub lazy_start: bool,
    /// Bytes of fills under way per volume; more misses are served without being cached.
    pub fill_bytes_max: u64,
    /// Unpublished copies per volume; more are not kept.
    pub unpublished_max: usize,
    /// The speed at which generations rise, and the age that pointers may reach.
    pub generations: Generations,
    /// Steps of a loop over buckets, records or leaves, of some ten nanoseconds each, after which
    /// other tasks get a turn.
    pub slice_steps: usize,
    /// Sectors of dirty data that a batch of writeback has at most.
    pub batch_sectors_max: u64,
    /// Read-ahead of streams.
    pub read_ahead: ReadAheadTuning,
    /// A write past the cache that has more sectors than this is split where a part of it is dirty
    /// (W2).
    pub split_above: u64,
    /// Sectors that a move copies at a time: writes over them wait meanwhile (A11).
    pub move_sectors: u64,
    /// Sectors that a move copies between two checkpoints, after which another run does not copy
    /// them again (A13).
    pub move_checkpoint_sectors: u64,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            extents_in_memory_max: 16 << 20,
            leaf_write_bytes: 4048,
            node_keys_max: None,
            lazy_start: true,
            fill_bytes_max: 64 << 20,
            unpublished_max: 16384,
            generations: Generations::default(),
            slice_steps: 16384,
            batch_sectors_max: 16384,
            read_ahead: ReadAheadTuning::default(),
            split_above: 2048,
            move_sectors: 2048,
            move_checkpoint_sectors: 256 << 11,
        }
    }
}
