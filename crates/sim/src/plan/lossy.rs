//! Disks whose failed flushes lose what was not durable.

use super::{DiskFaults, Plan, Zone};
use crate::disk::{FlushLoss, Rates};
use crate::rng::Rng;

/// A disk whose failed flushes lose.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct LossyDisk {
    /// The disk, as in [`DiskFaults::disk`].
    pub disk: usize,
    /// Kind of loss.
    pub loss: FlushLoss,
}

/// One plan in this many has such disks.
const SHARE: (u64, u64) = (1, 6);

/// Lets flushes fail and lose in some of the plans.
pub(super) fn add_lossy_disks(plan: &mut Plan, rng: &mut Rng) {
    if !rng.chance(SHARE.0, SHARE.1) {
        return;
    }
    for disk in 0..=plan.volumes.len() {
        // After a failed flush of the cache device there is not much left to see.
        let chance = if disk == 0 { 1 } else { 3 };
        if !rng.chance(chance, 4) {
            continue;
        }
        let late = rng.pick(&[0, 500, 1000]);
        plan.lossy.push(LossyDisk { disk, loss: FlushLoss { late } });
        let most = if disk == 0 { 50_000 } else { 600_000 };
        let rates = Rates { flush: rng.scale(10_000, most) as u32, ..Rates::default() };
        let budget = rng.scale(1, 12) as u32;
        plan.faults.push(DiskFaults { disk, zone: Zone::All, rates, budget });
        match disk.checked_sub(1) {
            None => plan.cache.volatile = true,
            Some(volume) => plan.volumes[volume].volatile = true,
        }
    }
}
