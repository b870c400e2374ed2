//! Cache devices that become larger (A10).

use ubcache_env::Nanos;

use super::{AfterStart, Control, ControlAction, Plan};
use crate::rng::Rng;

/// Sectors of a bucket of which an element of the prio chain describes [`ENTRIES`].
const BUCKET: u32 = 16;
const ENTRIES: u32 = 2717;

/// Gives some of the plans a cache device that grows, and stops with power failures about them. The
/// chain of a few of these needs another bucket.
pub(super) fn grow(plan: &mut Plan, rng: &mut Rng) {
    let small = plan.volumes.iter().all(|volume| volume.head == 0 && volume.sectors <= 4096);
    let plain = !plan.has_faults() && !plan.has_driver() && plan.hands.is_empty();
    if !small || !plain || plan.ops.is_empty() || plan.cache.buckets >= ENTRIES {
        return;
    }
    if !rng.chance(1, 24) {
        return;
    }
    if rng.chance(1, 2) {
        (plan.cache.bucket_sectors, plan.cache.buckets) = (BUCKET, ENTRIES - rng.below(3) as u32);
    }
    for _ in 0..rng.between(1, 2) {
        let after_ops = rng.below(plan.ops.len() as u64);
        let buckets = rng.pick(&[1, 3, 64, 300]);
        let stop = match rng.below(3) {
            0 => AfterStart { check: true, again: None },
            1 => AfterStart::default(),
            _ => AfterStart { check: false, again: Some(Nanos::from_micros(rng.scale(1, 2_000))) },
        };
        let at = plan.controls.partition_point(|control| control.after_ops <= after_ops);
        let delay = Nanos::from_micros(rng.scale(1, 3_000));
        let actions = [ControlAction::GrowCache(buckets), ControlAction::Restart(stop)];
        let controls = actions.map(|action| Control { after_ops, delay, action });
        plan.controls.splice(at..at, controls);
    }
}
