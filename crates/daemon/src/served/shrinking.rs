//! A cache that is becoming smaller (A12).

use std::cell::RefCell;

use ubcache_engine::CacheShrink;
use ubcache_env::Nanos;
use ubcache_env::local::Event;

use super::shrink_report::ShrinkReport;
use super::world::World;
use crate::control::refusal::Refusal;

/// A cache that is becoming smaller.
pub(crate) struct Shrinking<W: World> {
    pub(super) bytes: u64,
    pub(super) engine: CacheShrink<W>,
    pub(super) began: Nanos,
    /// Words about the end, or the reason why it keeps its size.
    pub(super) result: RefCell<Option<Result<String, Refusal>>>,
    pub(super) ended: Event,
}

impl<W: World> Shrinking<W> {
    /// The part of the report that is about it.
    pub fn report(&self, now: Nanos) -> ShrinkReport {
        let progress = self.engine.progress();
        ShrinkReport {
            size_bytes: progress.after_bytes,
            total_bytes: progress.total_bytes,
            left_bytes: progress.left_bytes,
            seconds: now.since(self.began).0 / 1_000_000_000,
        }
    }
}
