//! Backing devices that are volumes on an object store.

use ubcache_env::Nanos;
use ubcache_format::SECTOR_BYTES;

use super::Plan;
use crate::rng::Rng;

/// A volume whose backing device is on an object store.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// The volume.
    pub volume: usize,
    /// Objects of written data in memory at most.
    pub objects: u32,
    /// Thousandths of requests that are refused for now.
    pub busy: u32,
    /// Thousandths of requests whose answer is lost.
    pub lost: u32,
    /// Thousandths of requests that are carried out late, and not answered.
    pub late: u32,
    /// The longest time for that.
    pub late_max: Nanos,
    /// Writers of earlier epochs go on beside the present one.
    pub old_writers: bool,
}

/// One plan in this many has such volumes.
const SHARE: (u64, u64) = (1, 16);

/// Puts some backing devices of some plans, or of all that can have them, on an object store.
pub(super) fn add_stored(plan: &mut Plan, rng: &mut Rng, always: bool) {
    let fits = plan.volumes.iter().all(|volume| {
        let bytes = volume.sectors * SECTOR_BYTES;
        volume.head == 0 && volume.sectors <= 4096 && bytes.is_multiple_of(4096)
    });
    let busy = !plan.hands.is_empty() || !plan.hammers.is_empty() || plan.kept_bytes > 0;
    let taken = plan.has_driver() || plan.replaces_cache() || !plan.remotes.is_empty();
    if plan.has_faults() || taken || busy || !fits || plan.ops.len() > 400 {
        return;
    }
    if !rng.chance(SHARE.0, SHARE.1) && !always {
        return;
    }
    for (volume, shape) in plan.volumes.iter_mut().enumerate() {
        if shape.flash || rng.chance(1, 4) {
            continue;
        }
        // An object store takes any sector, and its volumes have a volatile cache.
        (shape.block_sectors, shape.noise, shape.volatile) = (1, false, true);
        plan.stored.push(Stored {
            volume,
            objects: rng.pick(&[1, 4, 64]),
            busy: rng.pick(&[0, 10, 100]),
            lost: rng.pick(&[0, 10, 100]),
            late: rng.pick(&[0, 10, 100]),
            late_max: Nanos::from_millis(rng.pick(&[10, 1_000, 60_000])),
            old_writers: rng.chance(1, 2),
        });
    }
}
