//! Large requests, large and small blocks, buckets and rings.
//!
//! A small share of the seeds gets a plan with a volume of many megabytes, or of gigabytes, and
//! requests of up to 32 MiB, over data that is in fragments of a block. Few operations: each of
//! them is thousands of the usual ones.

use ubcache_env::{Nanos, Sector, SectorRange};

use super::{Action, AfterStart, ClientOp, Control, ControlAction, Plan, Zone};
use crate::disk::Profile;
use crate::rng::Rng;

/// One plan in this many.
const SHARE: (u64, u64) = (1, 96);
/// The longest request in sectors: 32 MiB.
const LONGEST: u64 = 32 << 11;

/// The used part of a large volume is its end, or lies where the numbers of sectors come to need
/// more than 32 bits. Its device is sparse, and the rest is not looked at.
const VOLUME: u64 = 16 << 21;
const BEYOND_32_BITS: u64 = 1 << 32;

/// Makes it a plan with large requests, if its seed says so.
pub(super) fn sizes(plan: &mut Plan, rng: &mut Rng) {
    if !rng.chance(SHARE.0, SHARE.1) {
        return;
    }
    plan.clear_load();
    plan.volumes.truncate(1);
    let block = rng.pick(&[1, 8]);
    plan.cache.block_sectors = block;
    (plan.cache.bucket_sectors, plan.cache.buckets) =
        rng.pick(&[(64, 600), (64, 4096), (1024, 600), (1024, 2000), (64, 32_768)]);
    plan.cache.profile = Profile::Fast;
    let sectors = rng.pick(&[LONGEST, 2 * LONGEST]);
    let volume = &mut plan.volumes[0];
    (volume.sectors, volume.block_sectors, volume.initial) = (sectors, block, 100);
    volume.profile = rng.pick(&[Profile::Fast, Profile::Slow]);
    volume.head = rng.pick(&[0, VOLUME - sectors, BEYOND_32_BITS - sectors / 2]);
    let block = plan.block_sectors(0);
    for _ in 0..rng.between(2, 4) {
        add_fragments(plan, sectors, block, rng);
        for _ in 0..rng.between(1, 4) {
            let client = rng.below(3) as u32;
            let longest = rng.chance(1, 4);
            let length = if longest { LONGEST } else { rng.scale(1 << 11, LONGEST) };
            let length = length / block * block;
            let start = rng.below(sectors - length + 1) / block * block;
            let range = SectorRange::new(Sector(start), length);
            let action = match rng.below(8) {
                0..=1 => Action::Read(range),
                2..=3 => Action::Write { range, fua: false },
                4 => Action::Discard { range, fua: false },
                5 => Action::Zeroes { range, fua: false, unmap: false },
                6 => Action::Prefetch(range),
                _ => Action::Flush,
            };
            plan.ops.push(ClientOp { client, volume: 0, action });
        }
        let (after_ops, delay) =
            (plan.ops.len() as u64, Nanos::from_micros(rng.scale(10, 100_000)));
        let action = match rng.below(4) {
            0 => ControlAction::EvictClean,
            1 => ControlAction::PowerFailure(AfterStart::default()),
            2 => ControlAction::HostRestart(AfterStart::default()),
            _ => ControlAction::Restart(AfterStart::default()),
        };
        plan.controls.push(Control { after_ops, delay, action });
    }
}

/// Puts the volumes of some of the plans to the end of larger ones. What a plan breaks of a disk it
/// knows by its sectors.
pub(super) fn far(plan: &mut Plan, rng: &mut Rng) {
    let places = |control: &Control| {
        matches!(control.action, ControlAction::Driver(..) | ControlAction::Bad { .. })
    };
    let known = plan.faults.iter().any(|faults| matches!(faults.zone, Zone::Sectors(_)));
    if !rng.chance(1, 12) || known || plan.controls.iter().any(places) {
        return;
    }
    for volume in plan.volumes.iter_mut().filter(|volume| volume.head == 0) {
        volume.head = (VOLUME - volume.sectors) / 8 * 8;
    }
}

/// Every other block of a part of the volume, written or read one by one.
fn add_fragments(plan: &mut Plan, sectors: u64, block: u64, rng: &mut Rng) {
    let count = rng.between(20, 200);
    let first = rng.below(sectors / block - 2 * count) * block;
    let writes = rng.pick(&[0, 50, 100]);
    for index in 0..count {
        let range = SectorRange::new(Sector(first + 2 * index * block), block);
        let action = if rng.chance(writes, 100) {
            Action::Write { range, fua: false }
        } else {
            Action::Read(range)
        };
        plan.ops.push(ClientOp { client: rng.below(3) as u32, volume: 0, action });
    }
}
