//! Memory that the process may hold, as a sum.
//!
//! The shape of a plan bounds the buffers for I/O in use at a time, and the entries that tables of
//! the engine may have; the world compares them with the bounds after every poll. Limits of the
//! engine are so large that no plan would come near them. So in some plans they are small, and the
//! cache device is slow, so that fills wait for it.

use std::collections::BTreeMap;

use ubcache_engine::{Held, Tuning};

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

/// Bytes of a key, in a node or in the journal, at least.
const KEY_BYTES: u64 = 16;
/// Leaves beyond the limit of the node cache: those that a request or a task uses, and tasks.
const LEAVES_USED: u64 = 4;
const TASKS: u64 = 16;
/// Extents that a step adds, before leaves are written to make room for more.
const STEP_EXTENTS: u64 = 64;
/// Fills that bring data to the cache device at a time.
const FILLS_IN_FLIGHT: u64 = 4096;
/// Ranges in the un-flushed set of a volume, and in its suspect one.
const UNFLUSHED: u64 = 4096;
/// Ghosts of a volume whose records are durable, until they are laid.
const GHOSTS: u64 = 4096;

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
        if let Some(number) = self.frontend.streams() {
            // Requests of connections that were cut go on beside those that are made again.
            requests *= 8;
            let stream = self.frontend.stream_bytes();
            streams = 2 * stream * u64::from(number) * self.volumes.len() as u64;
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

impl Plan {
    /// Entries that the tables of an instance may have.
    pub fn held_max(&self) -> Held {
        let standard = Tuning::default();
        let or = |limit: u64, standard| if limit == 0 { standard } else { limit };
        let Sums { fill_bytes, copies } = self.sums;
        let blocks = |sectors: u64| sectors / u64::from(self.cache.block_sectors) + 1;
        let volumes = self.volumes.len() as u64;
        let fill_bytes = or(fill_bytes, standard.fill_bytes_max);
        let shared = self.frontend != Frontend::Direct;
        // Each block of a request may be a part of its own.
        let mut largest = BTreeMap::new();
        for op in &self.ops {
            let here = op.action.range().map_or(1, |range| blocks(range.sectors()));
            let most = largest.entry(op.client).or_insert(here);
            *most = here.max(*most);
        }
        let hammers = self.hammers.iter().map(|hammer| blocks(hammer.range.sectors()));
        // A copy is in one bucket, and a request may cut one in two.
        let bucket_blocks = u64::from(self.cache.bucket_sectors / self.cache.block_sectors);
        let pieces = largest.values().map(|blocks| blocks / bucket_blocks + 3);
        let pieces = if shared { 8 } else { 1 } * (pieces.sum::<u64>() + self.hammers.len() as u64);
        let mut requests = largest.into_values().sum::<u64>() + hammers.sum::<u64>();
        let mut clients = u64::from(self.clients()) + self.hammers.len() as u64;
        if let Some(streams) = self.frontend.streams() {
            let cuts = self.controls.iter();
            let cuts =
                cuts.filter(|control| matches!(control.action, ControlAction::Disconnect { .. }));
            // Requests of connections that were cut go on beside those that are made again.
            requests *= 8;
            clients = 2 * u64::from(streams) * (1 + cuts.count() as u64);
        }
        let checks =
            self.volumes.iter().map(|volume| blocks(volume.sectors / CHECK_READS + CHECK_SECTORS));
        requests += checks.max().unwrap_or(0);
        let writebacks = self.volumes.iter();
        let writebacks = writebacks.map(|volume| blocks(volume.sectors.min(WRITEBACK_SECTORS)));
        let journal = self.cache.journal().sectors() * 512;
        let attached = self.controls.iter().filter(|control| {
            matches!(&control.action, ControlAction::Attribute { name, .. } if name == "attach")
        });
        let bucket = u64::from(self.cache.bucket_sectors) * 512;
        let leaf = or(u64::from(self.cache.node_keys), bucket / KEY_BYTES);
        Held {
            buckets: u64::from(self.buckets_max()),
            extents: u64::from(self.cache.extents_in_memory)
                + requests
                + (clients + TASKS) * (LEAVES_USED * leaf + STEP_EXTENTS),
            ghosts: (volumes + attached.count() as u64) * (2 * GHOSTS + journal / KEY_BYTES),
            in_flight: requests + volumes * (fill_bytes / PAGE_BYTES) + writebacks.sum::<u64>(),
            copies: volumes * or(u64::from(copies), standard.unpublished_max as u64)
                + pieces
                + volumes * 2 * blocks(fill_bytes / 512).min(FILLS_IN_FLIGHT),
            unflushed: 3 * volumes * (1 + UNFLUSHED),
            streams: volumes * (clients + 2),
        }
    }

    /// Says what an instance holds too much of.
    pub fn holds_too_much(&self, held: &Held, most: &Held) -> Option<String> {
        let kinds = held.kinds().into_iter().zip(most.kinds());
        let mut excess = kinds.filter(|(held, most)| held.count > most.count);
        excess.next().map(|(held, most)| {
            format!("an instance held {} {}, {} at most", held.count, held.name, most.count)
        })
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
