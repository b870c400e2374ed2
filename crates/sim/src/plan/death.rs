//! Draws the deaths of processes: what clients of ublk or vhost-user do not notice, as the next
//! process goes on with their requests. So the data of every answered request has to be there.

use ubcache_env::Nanos;

use super::{Action, AfterStart, ControlAction, Plan};
use crate::disk::Profile;
use crate::rng::Rng;

/// One plan in so many has such deaths.
const SHARE: u64 = 6;

/// Gives some of the plans kept memory, and has the process die in them.
pub(super) fn add_deaths(plan: &mut Plan, rng: &mut Rng) {
    // A copy of the cache device that takes its place starts over with its memory.
    if !rng.chance(1, SHARE) || plan.ops.is_empty() || !plan.hands.is_empty() {
        return;
    }
    // Small ones are full before the ring is.
    plan.kept_bytes = rng.pick(&[6 << 10, 6 << 10, 8 << 10, 24 << 10, 1 << 20, 1 << 20]);
    if rng.chance(1, 2) {
        write_entries_often(plan, rng);
    }
    let death = |rng: &mut Rng| {
        let again = rng.chance(1, 3).then(|| Nanos::from_micros(rng.scale(10, 100_000)));
        let after = AfterStart { check: rng.chance(1, 2), again };
        ControlAction::ProcessDeath { aside: rng.chance(1, 8), after }
    };
    for control in &mut plan.controls {
        if matches!(control.action, ControlAction::HostRestart(_)) && rng.chance(1, 2) {
            control.action = death(rng);
        }
    }
    for _ in 0..rng.between(1, 5) {
        let action = death(rng);
        super::faults::add_control(plan, action, rng);
    }
}

/// A journal entry is under way at nearly every moment, and so when the process dies.
fn write_entries_often(plan: &mut Plan, rng: &mut Rng) {
    plan.cache.profile = rng.pick(&[Profile::Slow, Profile::Slow, Profile::Jitter]);
    for volume in &mut plan.volumes {
        "writeback".clone_into(&mut volume.mode);
    }
    for op in &mut plan.ops {
        if matches!(op.action, Action::Read(_)) && rng.chance(1, 3) {
            op.action = Action::Flush;
        }
    }
}

impl Plan {
    /// Returns true if the cache device may fail: then what it was given and had not made durable
    /// may be lost.
    pub fn cache_may_fail(&self) -> bool {
        self.faults.iter().any(|faults| faults.disk == 0)
            || self.lossy.iter().any(|lossy| lossy.disk == 0)
            || self.controls.iter().any(|control| control.action.broken_disk() == Some(0))
    }
}
