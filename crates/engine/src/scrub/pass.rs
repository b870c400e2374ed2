//! A pass of the scrub over the extents of a volume.

use std::rc::Rc;

use ubcache_env::local::first;
use ubcache_env::{Env, Priority, Sector, SectorRange};
use ubcache_format::SECTOR_BYTES;

use crate::errors::EngineError;
use crate::events::VolumeChange;
use crate::index::extent::{Extent, Position};
use crate::stats::scrub::{ScrubState, ScrubStatus};
use crate::volume::CachedVolume;

/// Sectors that are compared at once: both sides of them are in memory.
const PIECE_SECTORS: u64 = 1024;

impl<E: Env> CachedVolume<E> {
    /// Starts a pass of the scrub. False: one is under way already.
    pub fn start_scrub(&self) -> Result<bool, EngineError> {
        if self.is_stopping() {
            return Err(EngineError::Stopping);
        }
        if !self.lifecycle.uses_cache() || self.context.failure().is_some() {
            return Err(EngineError::NotAttached);
        }
        let Some(me) = self.me.upgrade() else { return Err(EngineError::Stopping) };
        if self.scrub.is_running() {
            return Ok(false);
        }
        self.scrub.begin(self.context.env.now(), self.volume_info().sectors * SECTOR_BYTES);
        self.context.events.volume(self.uuid(), VolumeChange::ScrubStarts);
        let task = self.context.env.spawn(Priority::Background, me.scrub_volume());
        self.add_task(task);
        Ok(true)
    }

    /// Ends the pass that is under way, and waits for its end.
    pub async fn stop_scrub(&self) {
        self.scrub.stop();
        self.scrub.ends().await;
    }

    /// Waits until no pass is under way.
    pub async fn scrub_ends(&self) {
        self.scrub.ends().await;
    }

    /// The pass that is under way, or the last one.
    pub fn scrub_status(&self) -> ScrubStatus {
        self.scrub.status(self.context.env.now())
    }

    async fn scrub_volume(self: Rc<Self>) {
        let whole = self.scrub_extents().await;
        let state = if whole { ScrubState::Complete } else { ScrubState::Stopped };
        let now = self.context.env.now();
        self.scrub.end(now, state);
        self.context.env.mark(if whole { "scrub_complete" } else { "scrub_stopped" });
        self.context.events.volume(self.uuid(), VolumeChange::ScrubEnds(self.scrub.status(now)));
    }

    /// Goes over all extents. False: it was stopped.
    async fn scrub_extents(&self) -> bool {
        let mut from = Some((self.inode(), Sector(0)));
        while let Some(at) = from {
            let (extents, next) = self.extents_from(at).await;
            for extent in extents {
                if !self.scrub_extent(extent).await {
                    return false;
                }
            }
            if self.scrub_is_over() {
                return false;
            }
            from = next;
        }
        let size_bytes = self.volume_info().sectors * SECTOR_BYTES;
        self.scrub.note(|pass| pass.position_bytes = size_bytes);
        true
    }

    /// Clean extents of the leaf at this position, and the position of the next leaf.
    async fn extents_from(&self, at: Position) -> (Vec<Extent>, Option<Position>) {
        match self.index.extents_of_leaf(at).await {
            Ok((mut extents, next)) => {
                extents.retain(|extent| !extent.dirty);
                (extents, next)
            }
            Err(_) => {
                // Index nodes have checksums; the error is logged where it is found.
                let end = self.index.leaf_after(at).end;
                let range = SectorRange::from_bounds(at.1, end.1);
                if end.0 == self.inode() {
                    self.scrub.note(|pass| pass.unreadable_bytes += range.bytes());
                }
                (Vec::new(), (end.0 == self.inode()).then_some(end))
            }
        }
    }

    /// Compares an extent piece by piece. False: the pass is to stop.
    async fn scrub_extent(&self, extent: Extent) -> bool {
        let mut rest = extent.range;
        while !rest.is_empty() {
            if self.scrub_is_over() {
                return false;
            }
            let piece = SectorRange::new(rest.start, rest.sectors().min(PIECE_SECTORS));
            rest = SectorRange::from_bounds(piece.end, rest.end);
            let was_read = self.scrub_piece(extent.cut(piece)).await;
            let position = self.volume_range(piece).end.bytes();
            self.scrub.note(|pass| pass.position_bytes = position);
            if was_read {
                self.pace_scrub(piece.sectors()).await;
            }
        }
        true
    }

    /// Waits until the rate lets the next piece through. A rate that changes counts at once.
    async fn pace_scrub(&self, sectors: u64) {
        let mut sectors = sectors;
        loop {
            let woken = self.scrub.woken();
            let rate = self.settings().scrub_rate.div_ceil(SECTOR_BYTES);
            if rate == 0 || self.scrub_is_over() {
                return;
            }
            let now = self.context.env.now();
            let wait = self.scrub.limiter.borrow_mut().delay(now, sectors, rate);
            if wait.0 == 0 {
                return;
            }
            sectors = 0;
            first(woken, self.context.env.sleep(wait)).await;
        }
    }

    /// The pass has to end early.
    fn scrub_is_over(&self) -> bool {
        self.scrub.is_to_stop.get()
            || self.is_stopping()
            || !self.lifecycle.uses_cache()
            || self.context.failure().is_some()
    }
}
