//! Draws flash-only volumes: beside the volumes of a plan one that has no backing device.
//!
//! The operations of the other volumes stay as they were drawn. In some plans the volume is larger
//! than the cache and is written until there is no room (N6), and again after discards.

use ubcache_env::{Sector, SectorRange};

use super::{Action, ClientOp, Frontend, Plan, VolumeShape};
use crate::disk::Profile;
use crate::rng::Rng;

/// One plan in so many has such a volume, and of these one in so many has a full cache.
const SHARE: u64 = 7;
const FULL_SHARE: u64 = 3;
/// More clients than this are another matter.
const CLIENTS_MAX: u32 = 100;
/// A cache of more sectors takes too long to fill.
const FILLED_MAX: u64 = 16_384;
/// Sectors of a write that fills.
const FILL_SECTORS: u64 = 64;

/// Adds a flash-only volume to some of the plans.
pub(super) fn add_flash(plan: &mut Plan, rng: &mut Rng) {
    let special = plan.has_driver()
        || plan.replaces_cache()
        || !plan.hands.is_empty()
        || !plan.hammers.is_empty()
        || plan.clients() > CLIENTS_MAX
        || plan.ops.is_empty();
    if !rng.chance(1, SHARE) || special {
        return;
    }
    let cache = &plan.cache;
    let all = u64::from(cache.bucket_sectors) * u64::from(cache.buckets);
    // The status of a disk's request does not say that the volume is full.
    let says_full = !matches!(plan.frontend, Frontend::Vhost(_));
    let fills = all <= FILLED_MAX && rng.chance(1, FULL_SHARE) && says_full;
    let sectors = if fills { all * 5 / 4 / 256 * 256 } else { rng.pick(&[64, 256, 512]) };
    plan.volumes.push(VolumeShape {
        sectors,
        mode: "writeback".to_owned(),
        initial: 0,
        volatile: false,
        discard: true,
        noise: false,
        head: 0,
        block_sectors: cache.block_sectors,
        profile: Profile::Fast,
        flash: true,
        distant: false,
    });
    let volume = plan.volumes.len() as u32 - 1;
    let extra = if fills { fill(plan, rng, volume) } else { mirror(plan, rng, volume) };
    interleave(plan, extra);
}

/// For each operation, those that come right after it.
type Extra = Vec<Vec<ClientOp>>;

/// Some operations on other volumes are done on this one as well.
fn mirror(plan: &Plan, rng: &mut Rng, volume: u32) -> Extra {
    let block = plan.block_sectors(volume as usize);
    let sectors = plan.volumes[volume as usize].sectors;
    let mut mirrored = |op: &ClientOp| {
        let fits = |range: SectorRange| {
            let length = range.sectors().next_multiple_of(block).min(sectors);
            let start = (range.start.0 / block * block) % (sectors - length + 1);
            SectorRange::new(Sector(start / block * block), length)
        };
        let mut action = op.action.clone();
        match &mut action {
            Action::Sleep(_) => return Vec::new(),
            Action::Flush => {}
            Action::Read(range) | Action::Prefetch(range) | Action::Status(range) => {
                *range = fits(*range);
            }
            Action::Write { range, .. }
            | Action::Discard { range, .. }
            | Action::Zeroes { range, .. } => *range = fits(*range),
        }
        match rng.chance(1, 2) {
            true => vec![ClientOp { client: op.client, volume, action }],
            false => Vec::new(),
        }
    };
    plan.ops.iter().map(&mut mirrored).collect()
}

/// Writes all over the volume, with a few reads, overwrites and discards among it.
fn fill(plan: &Plan, rng: &mut Rng, volume: u32) -> Extra {
    let sectors = plan.volumes[volume as usize].sectors;
    let steps = sectors / FILL_SECTORS;
    let count = plan.ops.len() as u64;
    let mut at = 0;
    let mut step = |rng: &mut Rng, op: &ClientOp| {
        let mut next = |length: u64| {
            let start = at % (sectors - length + 1) / FILL_SECTORS * FILL_SECTORS;
            at += length;
            SectorRange::new(Sector(start), length)
        };
        let anywhere =
            |rng: &mut Rng| SectorRange::new(Sector(rng.below(steps) * FILL_SECTORS), FILL_SECTORS);
        let fua = rng.chance(1, 16);
        let action = match rng.below(16) {
            0 => Action::Read(anywhere(rng)),
            1 => Action::Discard { range: anywhere(rng), fua },
            2 => Action::Zeroes { range: anywhere(rng), fua, unmap: true },
            3 => Action::Flush,
            4..=6 => Action::Write { range: anywhere(rng), fua },
            _ => Action::Write { range: next(2 * FILL_SECTORS), fua },
        };
        ClientOp { client: op.client, volume, action }
    };
    // Once and a half round the volume, however few operations the plan has.
    let wanted = (sectors * 3 / 2 / (2 * FILL_SECTORS)).max(1) * 2;
    let each = wanted.div_ceil(count);
    plan.ops.iter().map(|op| (0..each).map(|_| step(rng, op)).collect()).collect()
}

/// Puts the operations between those of the plan. Controls come when they would have come.
fn interleave(plan: &mut Plan, extra: Extra) {
    let mut ops = Vec::new();
    let mut places = Vec::with_capacity(extra.len() + 1);
    for (op, more) in std::mem::take(&mut plan.ops).into_iter().zip(extra) {
        places.push(ops.len() as u64);
        ops.push(op);
        ops.extend(more);
    }
    places.push(ops.len() as u64);
    for control in &mut plan.controls {
        let at = (control.after_ops as usize).min(places.len() - 1);
        control.after_ops = places[at];
    }
    plan.ops = ops;
}

impl Plan {
    /// Returns true if writes to the flash-only volume may find no room.
    pub fn may_fill(&self) -> bool {
        use super::ControlAction::Outage;
        use crate::disk::Outage::{Full, Quota};
        let cache = u64::from(self.cache.bucket_sectors) * u64::from(self.cache.buckets);
        let flash = self.volumes.iter().filter(|volume| volume.flash);
        let large = flash.map(|volume| volume.sectors).sum::<u64>() * 4 > cache;
        large
            || self.controls.iter().any(|control| {
                matches!(control.action, Outage { disk: 0, outage: Full | Quota, .. })
            })
    }
}
