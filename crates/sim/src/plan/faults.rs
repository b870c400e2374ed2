//! Draws what is wrong with the devices: errors here and there, sectors that can't be read, whole
//! devices that fail.

use ubcache_env::{Nanos, Sector, SectorRange};

use super::{Control, ControlAction, DiskFaults, Plan, Scarcity, Zone};
use crate::disk::{Outage, Rates};
use crate::rng::Rng;

/// Sectors before the data of a backing device.
const BACKING_HEAD: u64 = 16;

/// Breaks devices in some of the plans.
pub(super) fn add_faults(plan: &mut Plan, rng: &mut Rng) {
    if rng.chance(1, 4) {
        plan.faults = draw_faults(plan, rng);
    }
    if rng.chance(1, 12) {
        for _ in 0..rng.between(1, 4) {
            let disk = draw_disk(plan, rng);
            let sectors = disk_sectors(plan, disk);
            let start = Sector(rng.below(sectors));
            let end = Sector((start.0 + rng.scale(1, sectors / 4)).min(sectors));
            let range = match draw_zone(plan, disk, rng) {
                Zone::All => SectorRange::from_bounds(start, end),
                zone => plan.zone_range(zone).expect("not everything"),
            };
            add_control(plan, ControlAction::Bad { disk, range }, rng);
        }
    }
    if rng.chance(1, 12) {
        for _ in 0..rng.between(1, 2) {
            let disk = draw_disk(plan, rng);
            let outage =
                rng.pick(&[Outage::Errors, Outage::Errors, Outage::ReadOnly, Outage::Gone]);
            let passes = outage != Outage::Gone && rng.chance(3, 4);
            let span = passes.then(|| Nanos::from_micros(rng.scale(20, 5_000_000)));
            add_control(plan, ControlAction::Outage { disk, outage, span }, rng);
        }
    }
}

/// Lets memory for I/O run out in some of the plans.
pub(super) fn make_memory_scarce(plan: &mut Plan, rng: &mut Rng) {
    if rng.chance(1, 10) {
        plan.memory =
            Scarcity { rate: rng.scale(1_000, 200_000) as u32, budget: rng.scale(1, 300) as u32 };
    }
    if rng.chance(1, 12) {
        for _ in 0..rng.between(1, 3) {
            let span = Nanos::from_micros(rng.scale(20, 2_000_000));
            add_control(plan, ControlAction::NoMemory(span), rng);
        }
    }
}

fn draw_disk(plan: &Plan, rng: &mut Rng) -> usize {
    if rng.chance(1, 2) { 0 } else { rng.between(1, plan.volumes.len() as u64) as usize }
}

fn disk_sectors(plan: &Plan, disk: usize) -> u64 {
    match disk.checked_sub(1) {
        None => u64::from(plan.cache.bucket_sectors) * u64::from(plan.cache.buckets),
        Some(volume) => BACKING_HEAD + plan.volumes[volume].sectors,
    }
}

/// A part of a disk: the whole more often than not.
fn draw_zone(plan: &Plan, disk: usize, rng: &mut Rng) -> Zone {
    let sectors = disk_sectors(plan, disk);
    match rng.below(8) {
        0 => Zone::Superblock,
        1 if disk == 0 => Zone::Journal,
        1 | 2 => {
            let bucket = u64::from(plan.cache.bucket_sectors);
            let start = rng.below(sectors) / bucket * bucket;
            let length = rng.scale(1, 64) * bucket;
            Zone::Sectors(SectorRange::new(Sector(start), length.min(sectors - start)))
        }
        _ => Zone::All,
    }
}

fn draw_faults(plan: &Plan, rng: &mut Rng) -> Vec<DiskFaults> {
    let mut faults = Vec::new();
    let (rate_max, budget_max) = rng.pick(&[(64_000, 40), (300_000, 300)]);
    for disk in 0..=plan.volumes.len() {
        if rng.chance(1, 2) {
            continue;
        }
        let rate =
            |rng: &mut Rng| if rng.chance(1, 2) { rng.scale(1_000, rate_max) as u32 } else { 0 };
        let rates =
            Rates { read: rate(rng), write: rate(rng), flush: rate(rng), latent: rate(rng) / 4 };
        let zone = draw_zone(plan, disk, rng);
        faults.push(DiskFaults { disk, zone, rates, budget: rng.scale(1, budget_max) as u32 });
    }
    faults
}

/// Puts a control somewhere among the others.
pub(super) fn add_control(plan: &mut Plan, action: ControlAction, rng: &mut Rng) {
    let after_ops = rng.below(plan.ops.len() as u64);
    let delay = Nanos::from_micros(rng.scale(1, 3_000));
    let at = plan.controls.partition_point(|control| control.after_ops <= after_ops);
    plan.controls.insert(at, Control { after_ops, delay, action });
}
