//! Memory that the process may hold, as a sum.
//!
//! The shape of a plan bounds the buffers for I/O in use at a time; the world compares them with
//! the bound after every poll. Limits of the engine are so large that no plan would come near them.
//! So in some plans they are small, and the cache device is slow, so that fills wait for it.

use super::{ControlAction, Frontend, Plan};
use crate::disk::Profile;
use crate::rng::Rng;
use crate::runner::{CHECK_READS, CHECK_SECTORS};

/// A buffer takes whole pages, a sector in it at worst one of its own.
const PAGE_BYTES: u64 = 4096;
/// Memory that the engine allows for fills of a volume by default.
const FILL_BYTES: u64 = 64 << 20;
/// Sectors that writeback brings down at a time.
const WRITEBACK_SECTORS: u64 = 16384;
/// Nodes and journal buckets that tasks of a set hold, those of a volume, and those of a client's
/// request.
const BUCKETS_HELD: (u64, u64, u64) = (24, 8, 4);

/// Limits of the engine; 0: those of production.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Sums {
    /// Bytes of fills under way for a volume.
    pub fill_bytes: u64,
    /// Unpublished copies of a volume.
    pub copies: u32,
}

impl Plan {
    /// Bytes of buffers for I/O that an instance may hold.
    pub fn buffers_max(&self) -> u64 {
        let fills = if self.sums.fill_bytes == 0 { FILL_BYTES } else { self.sums.fill_bytes };
        let bucket = (u64::from(self.cache.bucket_sectors) * 512).next_multiple_of(PAGE_BYTES);
        let largest =
            self.ops.iter().filter_map(|op| op.action.range()).map(|range| range.sectors()).max();
        // Reads for a client, and for the check of everything.
        let checks =
            self.volumes.iter().map(|volume| volume.sectors / CHECK_READS + CHECK_SECTORS).max();
        let mut requests = u64::from(self.clients()) * largest.unwrap_or(0) + checks.unwrap_or(0);
        requests += self.hammers.iter().map(|hammer| hammer.range.sectors()).sum::<u64>();
        let mut streams = 0;
        if let Frontend::Nbd(shape) = &self.frontend {
            // Requests of connections that were cut go on beside those that are made again.
            requests *= 8;
            let connection = u64::from(shape.receive_bytes) + shape.inflight_bytes;
            streams = 2 * connection * u64::from(shape.connections) * self.volumes.len() as u64;
        }
        let mut sum = requests * PAGE_BYTES + streams;
        let (of_set, of_volume, of_client) = BUCKETS_HELD;
        let volumes = self.volumes.len() as u64;
        sum += (of_set + of_volume * volumes + of_client * u64::from(self.clients() + 1)) * bucket;
        for (index, volume) in (0..).zip(&self.volumes) {
            sum += fills;
            let set_to_writeback = |action: &ControlAction| {
                matches!(action,
                ControlAction::Attribute { volume, value, .. } if *volume == index
                    && value == "writeback")
            };
            let changes = self.controls.iter().any(|control| set_to_writeback(&control.action));
            if volume.mode == "writeback" || changes {
                sum += volume.sectors.min(WRITEBACK_SECTORS) * PAGE_BYTES;
            }
        }
        sum
    }
}

/// Gives some of the plans small limits.
pub(super) fn limit(plan: &mut Plan, rng: &mut Rng) {
    if !rng.chance(1, 8) {
        return;
    }
    plan.sums = Sums { fill_bytes: rng.pick(&[8192, 65_536]), copies: rng.pick(&[8, 64]) };
    if rng.chance(1, 2) {
        plan.cache.profile = Profile::Slow;
        for volume in &mut plan.volumes {
            volume.profile = Profile::Fast;
            volume.mode = "writearound".to_owned();
        }
    }
}
