//! Requests that go past the cache (bcache's rules, docs/reference/attributes.md).
//!
//! | module | holds |
//! |---|---|
//! | here | the bypass of a volume: its history, and its share in the congestion of the cache |
//! | [`may_cache`] | the rules, in their order |
//! | [`sequential`] | runs of requests, by place and by stream |
//! | `run_lengths` | bytes in long runs, for advice |
//! | [`congestion`] | latencies of the cache device, which its volumes share |

use std::cell::RefCell;
use std::rc::Rc;

use congestion::Congestion;
use may_cache::{BypassInput, decide};
use run_lengths::RunLengths;
use sequential::SequentialDetector;
use ubcache_env::{Nanos, SectorRange, StreamId};

use crate::stats::requests::BypassReason;

pub mod congestion;
pub mod may_cache;
mod run_lengths;
pub mod sequential;

/// Limits that the administrator sets.
#[derive(Copy, Clone, Debug)]
pub(crate) struct BypassLimits {
    /// A run of this many bytes is sequential; 0: none is.
    pub sequential_cutoff: u64,
    /// Reads of the cache that take longer are slow; 0: they are not counted.
    pub congested_read_us: u64,
    /// The same for writes.
    pub congested_write_us: u64,
}

/// The bypass of a volume.
pub(crate) struct Bypass {
    history: RefCell<SequentialDetector>,
    lengths: RunLengths,
    congestion: Rc<Congestion>,
}

impl Bypass {
    /// An empty history, before a cache device of this congestion.
    pub fn new(congestion: Rc<Congestion>) -> Bypass {
        Bypass {
            history: RefCell::new(SequentialDetector::new()),
            lengths: RunLengths::default(),
            congestion,
        }
    }

    /// Decides about a request, which enters the history where the rules say so. `None`: it may be
    /// cached. `random` makes the jitter of the limit of congestion.
    #[inline]
    pub fn decide(
        &self,
        input: &BypassInput,
        (now, stream, range): (Nanos, StreamId, SectorRange),
        limits: BypassLimits,
        random: u32,
    ) -> Option<BypassReason> {
        let (read, write) = (limits.congested_read_us, limits.congested_write_us);
        let limit = self.congestion.limit(now, read, write, random);
        decide(input, limits.sequential_cutoff, limit, || {
            let run_sectors = self.history.borrow_mut().observe(now, stream, range);
            self.lengths.note(run_sectors, range);
            run_sectors
        })
    }

    /// Bytes of requests in runs of 1 MiB and more, by the length that a `sequential_cutoff` is
    /// compared with: pairs of a power of two, from which on it was, and bytes.
    pub fn bytes_by_run(&self) -> Vec<(u64, u64)> {
        self.lengths.bytes()
    }

    /// Takes note of an I/O of the cache device. `threshold_us` is the one of its direction.
    #[inline]
    pub fn cache_io_ended(&self, now: Nanos, took: Nanos, threshold_us: u64) {
        self.congestion.completed(now, took, threshold_us);
    }
}
