//! Requests of a volume by the path that they took, and what went past the cache and why.

use std::cell::Cell;

use ubcache_env::Nanos;

use super::histogram::{Histogram, Latencies, Taken};

/// Path of a client's request. Each request is counted on one of them, when it ends, with an error
/// or without.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Path {
    /// A read that found everything in the cache.
    Hit,
    /// A read with at least one sector that was not in the cache.
    Miss,
    /// A read that went past the cache, though the cache may have had its data.
    BypassRead,
    /// A write that ended in the cache: the backing device has it later.
    WritebackWrite,
    /// A write to the backing device, with a copy for the cache.
    WritethroughWrite,
    /// A write to the backing device only; writes of zeroes are among them.
    BypassWrite,
    /// A flush.
    Flush,
    /// A discard.
    Discard,
}

impl Path {
    /// All paths.
    pub const ALL: [Path; 8] = [
        Path::Hit,
        Path::Miss,
        Path::BypassRead,
        Path::WritebackWrite,
        Path::WritethroughWrite,
        Path::BypassWrite,
        Path::Flush,
        Path::Discard,
    ];

    /// Path in a word.
    pub fn word(self) -> &'static str {
        match self {
            Path::Hit => "hit",
            Path::Miss => "miss",
            Path::BypassRead => "bypass_read",
            Path::WritebackWrite => "writeback_write",
            Path::WritethroughWrite => "writethrough_write",
            Path::BypassWrite => "bypass_write",
            Path::Flush => "flush",
            Path::Discard => "discard",
        }
    }
}

/// Reason why a request goes past the cache.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum BypassReason {
    /// The volume is being detached.
    Detaching,
    /// Too many of the buckets are in use.
    CacheFull,
    /// Discards hold no data.
    Discard,
    /// The cache mode is none.
    ModeNone,
    /// The cache mode is writearound and the request is a write.
    Writearound,
    /// The request is not aligned to the block of the cache device.
    Unaligned,
    /// The run has reached the sequential cutoff.
    Sequential,
    /// The cache device is congested and the run is long enough to be shed.
    Congested,
    /// The request writes zeroes, which are not worth a place in the cache.
    Zeroes,
    /// The volume has no cache: it was detached, or the cache has failed.
    NoCache,
}

impl BypassReason {
    /// All reasons.
    pub const ALL: [BypassReason; 10] = [
        BypassReason::Detaching,
        BypassReason::CacheFull,
        BypassReason::Discard,
        BypassReason::ModeNone,
        BypassReason::Writearound,
        BypassReason::Unaligned,
        BypassReason::Sequential,
        BypassReason::Congested,
        BypassReason::Zeroes,
        BypassReason::NoCache,
    ];

    /// Reason in a word.
    pub fn word(self) -> &'static str {
        match self {
            BypassReason::Detaching => "detaching",
            BypassReason::CacheFull => "cache_full",
            BypassReason::Discard => "discard",
            BypassReason::ModeNone => "mode_none",
            BypassReason::Writearound => "writearound",
            BypassReason::Unaligned => "unaligned",
            BypassReason::Sequential => "sequential",
            BypassReason::Congested => "congested",
            BypassReason::Zeroes => "zeroes",
            BypassReason::NoCache => "no_cache",
        }
    }
}

/// Requests that went past the cache for one reason.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Bypassed {
    /// Reads.
    pub reads: u64,
    /// Bytes of these.
    pub read_bytes: u64,
    /// Writes and discards.
    pub writes: u64,
    /// Bytes of these.
    pub written_bytes: u64,
}

/// Requests that took one path.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PathStatus {
    /// Bytes of their ranges.
    pub bytes: u64,
    /// Times from their beginning to their end.
    pub latencies: Latencies,
}

/// Requests of a volume, by what became of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RequestStatus {
    /// Each path of [`Path::ALL`].
    pub paths: Vec<(Path, PathStatus)>,
    /// Each reason of [`BypassReason::ALL`].
    pub bypassed: Vec<(BypassReason, Bypassed)>,
    /// Background writeback: times from reading a run of dirty data to its write's completion.
    pub dirty_writeback: Latencies,
}

impl RequestStatus {
    /// Requests of a path.
    pub fn count(&self, path: Path) -> u64 {
        let found = self.paths.iter().find(|(other, _)| *other == path);
        found.map_or(0, |(_, status)| status.latencies.count())
    }
}

/// A path while it is counted.
#[derive(Debug, Default)]
struct PathCounts {
    bytes: Cell<u64>,
    latencies: Histogram,
}

/// Requests of a volume.
#[derive(Debug, Default)]
pub(crate) struct RequestCounts {
    paths: [PathCounts; Path::ALL.len()],
    bypassed: [Cell<Bypassed>; BypassReason::ALL.len()],
    dirty_writeback: Histogram,
}

impl RequestCounts {
    /// A request has ended.
    #[inline(always)]
    pub fn ended(&self, path: Path, bytes: u64, taken: Taken) {
        let counts = &self.paths[path as usize];
        counts.bytes.set(counts.bytes.get() + bytes);
        counts.latencies.record(taken);
    }

    /// A request that has ended had gone past the cache.
    #[cold]
    pub fn bypassed(&self, reason: BypassReason, path: Path, bytes: u64) {
        let counts = &self.bypassed[reason as usize];
        let mut bypassed = counts.get();
        if path == Path::BypassRead {
            bypassed.reads += 1;
            bypassed.read_bytes += bytes;
        } else {
            bypassed.writes += 1;
            bypassed.written_bytes += bytes;
        }
        counts.set(bypassed);
    }

    /// A run of dirty data has been written to the backing device.
    pub fn dirty_written(&self, took: Nanos) {
        self.dirty_writeback.record(Taken::new(took));
    }

    /// Requests of a path.
    pub fn count(&self, path: Path) -> u64 {
        self.paths[path as usize].latencies.count()
    }

    pub fn status(&self) -> RequestStatus {
        let path = |path: Path| {
            let counts = &self.paths[path as usize];
            let latencies = counts.latencies.latencies();
            (path, PathStatus { bytes: counts.bytes.get(), latencies })
        };
        let reason = |reason: BypassReason| (reason, self.bypassed[reason as usize].get());
        RequestStatus {
            paths: Path::ALL.map(path).to_vec(),
            bypassed: BypassReason::ALL.map(reason).to_vec(),
            dirty_writeback: self.dirty_writeback.latencies(),
        }
    }

    /// Goes on from what the volume before this one has counted.
    pub fn continue_from(&self, former: &RequestCounts) {
        for (counts, before) in self.paths.iter().zip(&former.paths) {
            counts.bytes.set(before.bytes.get());
            counts.latencies.continue_from(&before.latencies);
        }
        for (counts, before) in self.bypassed.iter().zip(&former.bypassed) {
            counts.set(before.get());
        }
        self.dirty_writeback.continue_from(&former.dirty_writeback);
    }
}
