//! Draws requests that are no multiples of the block (T5): parts of blocks, by several clients at
//! the same time.

use ubcache_env::{Sector, SectorRange};

use super::{Action, Plan};
use crate::rng::Rng;

/// Plans in which requests are cut, and those of them in which blocks become larger for it.
const SHARE: (u64, u64) = (1, 5);
const LARGER: (u64, u64) = (1, 2);
/// Sectors of a larger block.
const BLOCK: u32 = 8;
/// More clients than this are another matter.
const CLIENTS_MAX: u32 = 100;

/// Cuts requests of some plans at both ends.
pub(super) fn cut_requests(plan: &mut Plan, rng: &mut Rng) {
    // A failed flush that loses lets a sector fall, and a write of its neighbour may put it back:
    // T5 allows that, the oracle does not.
    let special = !plan.hammers.is_empty() || !plan.lossy.is_empty();
    if !rng.chance(SHARE.0, SHARE.1) || special || plan.clients() > CLIENTS_MAX {
        return;
    }
    if rng.chance(LARGER.0, LARGER.1) {
        for volume in &mut plan.volumes {
            let fits = |sectors: u64| sectors.is_multiple_of(u64::from(BLOCK));
            if fits(volume.sectors) && fits(volume.head) {
                volume.block_sectors = volume.block_sectors.max(BLOCK);
            }
        }
    }
    for at in 0..plan.ops.len() {
        let block = plan.block_sectors(plan.ops[at].volume as usize);
        if let Some(range) = plan.ops[at].action.range_mut()
            && block > 1
            && rng.chance(1, 2)
        {
            let (start, end) =
                (range.start + rng.below(block), range.end.0.saturating_sub(rng.below(block)));
            if start.0 < end {
                *range = SectorRange::from_bounds(start, Sector(end));
            }
        }
    }
}

impl Plan {
    /// Widens every request to whole blocks.
    pub fn round_to_blocks(&mut self) {
        for at in 0..self.ops.len() {
            let volume = self.ops[at].volume as usize;
            let (block, sectors) = (self.block_sectors(volume), self.volumes[volume].sectors);
            if let Some(range) = self.ops[at].action.range_mut() {
                let start = range.start.0 / block * block;
                let end = range.end.0.next_multiple_of(block).min(sectors);
                *range = SectorRange::from_bounds(Sector(start), Sector(end));
            }
        }
    }
}

impl Action {
    /// The sectors that it is about, to be changed.
    fn range_mut(&mut self) -> Option<&mut SectorRange> {
        match self {
            Action::Read(range) | Action::Prefetch(range) | Action::Status(range) => Some(range),
            Action::Write { range, .. }
            | Action::Discard { range, .. }
            | Action::Zeroes { range, .. } => Some(range),
            Action::Flush | Action::Sleep(_) => None,
        }
    }
}
