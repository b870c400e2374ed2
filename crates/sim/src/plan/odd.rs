//! Draws oddities of devices and clients: discards that do not determine what is read, memory that
//! changes while it is written.

use super::Plan;
use crate::rng::Rng;

/// Makes some of the backing devices return noise where they discarded (D2).
pub(super) fn make_discards_vague(plan: &mut Plan, rng: &mut Rng) {
    for volume in &mut plan.volumes {
        volume.noise = volume.discard && rng.chance(1, 8);
    }
}

/// Lets the clients of some plans change the memory of a write under way (T0).
pub(super) fn make_writers_scribble(plan: &mut Plan, rng: &mut Rng) {
    plan.scribble = rng.chance(1, 12);
}
