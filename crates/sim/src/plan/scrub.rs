//! Scrubs beside clients: what is clean is compared with the backing device, and nothing may
//! differ. A scrub is so a check of the promise from inside, while everything is under way.

use ubcache_env::Nanos;

use super::{Control, ControlAction, Plan};
use crate::rng::Rng;

/// Name of the command that starts a scrub; its value is the rate.
pub const SCRUB: &str = "scrub";
/// One plan in this many scrubs its volumes.
const SHARE: (u64, u64) = (1, 5);

/// Adds scrubs to some of the plans, somewhere among the other actions.
pub(super) fn add_scrubs(plan: &mut Plan, rng: &mut Rng) {
    if plan.ops.is_empty() || !rng.chance(SHARE.0, SHARE.1) {
        return;
    }
    for _ in 0..rng.between(1, 6) {
        let volume = rng.below(plan.volumes.len() as u64) as u32;
        let value = rng.pick(&["0", "0", "4M", "64k"]);
        let action =
            ControlAction::Attribute { volume, name: SCRUB.to_owned(), value: value.to_owned() };
        let after_ops = rng.below(plan.ops.len() as u64 + 1);
        let at = plan.controls.partition_point(|control| control.after_ops <= after_ops);
        let delay = Nanos::from_micros(rng.scale(1, 3000));
        plan.controls.insert(at, Control { after_ops, delay, action });
    }
}
