//! Draws when the file system below a disk is full: a sparse file has no room for what was never
//! written.

use ubcache_env::Nanos;

use super::faults::add_control;
use super::{ControlAction, Plan};
use crate::disk::Outage;
use crate::rng::Rng;

/// Lets room for writes run out in some of the plans, for a while or for good.
pub(super) fn make_space_scarce(plan: &mut Plan, rng: &mut Rng) {
    if plan.ops.is_empty() || !rng.chance(1, 8) {
        return;
    }
    for _ in 0..rng.between(1, 2) {
        let disk =
            if rng.chance(3, 4) { 0 } else { rng.between(1, plan.volumes.len() as u64) as usize };
        let outage = if rng.chance(3, 4) { Outage::Full } else { Outage::Quota };
        let span = rng.chance(1, 2).then(|| Nanos::from_micros(rng.scale(1_000, 60_000_000)));
        add_control(plan, ControlAction::Outage { disk, outage, span }, rng);
    }
}
