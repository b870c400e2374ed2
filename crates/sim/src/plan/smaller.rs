//! Caches that become smaller while they are used (A12).

use ubcache_env::Nanos;

use super::{AfterStart, Control, ControlAction, Plan};
use crate::rng::Rng;

/// Sectors of a bucket of which an element of the prio chain describes [`ENTRIES`].
const BUCKET: u32 = 16;
const ENTRIES: u32 = 2717;

/// Gives some of the plans a cache that becomes smaller, once or more often, with power failures
/// and stops about it. The chain of a few of these needs a bucket less in the end.
pub(super) fn shrink(plan: &mut Plan, rng: &mut Rng) {
    let small = plan.volumes.iter().all(|volume| volume.head == 0 && volume.sectors <= 4096);
    let plain = !plan.has_faults() && !plan.has_driver() && plan.hands.is_empty();
    let resized = plan.buckets_max() != plan.cache.buckets;
    if !small || !plain || resized || plan.ops.is_empty() || plan.cache.buckets >= ENTRIES {
        return;
    }
    if !rng.chance(1, 24) {
        return;
    }
    let mut fewer = rng.pick(&[1, 3, 64, 300]);
    if rng.chance(1, 3) {
        (plan.cache.bucket_sectors, plan.cache.buckets) = (BUCKET, ENTRIES + rng.below(3) as u32);
        fewer = fewer.max(3);
    } else {
        plan.cache.buckets += 2 * fewer;
    }
    for _ in 0..rng.between(1, 3) {
        let after_ops = rng.below(plan.ops.len() as u64);
        let delay = Nanos::from_micros(rng.scale(1, 3_000));
        let mut put = |delay, action| {
            let at = plan.controls.partition_point(|control| control.after_ops <= after_ops);
            plan.controls.insert(at, Control { after_ops, delay, action });
        };
        let cancel = rng.chance(1, 6).then(|| Nanos::from_micros(rng.scale(1, 20_000)));
        put(delay, ControlAction::ShrinkCache(fewer, cancel));
        let start = AfterStart { check: rng.chance(1, 2), again: None };
        let soon = Nanos::from_micros(rng.scale(1, 30_000));
        match rng.below(4) {
            0 => put(soon, ControlAction::PowerFailure(start)),
            1 => put(soon, ControlAction::HostRestart(start)),
            2 => put(soon, ControlAction::Restart(start)),
            _ => {}
        }
    }
}
