//! Backing devices that are reached over the network.

use ubcache_env::Nanos;

use super::{Control, ControlAction, Plan};
use crate::rng::Rng;

/// A volume whose backing device is the export of an NBD server.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Remote {
    /// The volume.
    pub volume: usize,
    /// Connections at most.
    pub connections: u32,
    /// Longest time of bytes on their way.
    pub delay_max: Nanos,
    /// Memory of the client for writes that were not flushed.
    pub keep_bytes: u32,
    /// Requests of which one is the occasion for trouble.
    pub period: u32,
    /// Troubles at most: cut connections, hangs, restarts.
    pub budget: u32,
}

/// Memory that is enough for any plan.
const AMPLE: u32 = 64 << 20;

/// One plan in this many has such volumes.
const SHARE: (u64, u64) = (1, 8);

/// Puts some backing devices of some plans, or of all that can have them, behind servers.
pub(super) fn add_remotes(plan: &mut Plan, rng: &mut Rng, always: bool) {
    let fits = plan.volumes.iter().all(|volume| volume.head == 0 && volume.sectors <= 4096);
    let busy = !plan.hands.is_empty() || !plan.hammers.is_empty() || plan.kept_bytes > 0;
    if plan.has_faults() || plan.has_driver() || plan.replaces_cache() || busy || !fits {
        return;
    }
    let chosen = rng.chance(SHARE.0, SHARE.1) || always;
    if plan.ops.len() > 1000 || !chosen {
        return;
    }
    // A client that keeps too little has to fail a flush after a loss.
    let keep_bytes = rng.pick(&[AMPLE, AMPLE, AMPLE, 2048]);
    for (volume, shape) in plan.volumes.iter_mut().enumerate() {
        if shape.flash || rng.chance(1, 4) {
            continue;
        }
        // The server takes any sector.
        (shape.block_sectors, shape.noise) = (1, false);
        shape.volatile |= rng.chance(1, 2);
        plan.remotes.push(Remote {
            volume,
            connections: rng.pick(&[1, 1, 2, 4]),
            delay_max: Nanos::from_micros(rng.pick(&[0, 100, 5_000, 200_000])),
            keep_bytes,
            period: rng.pick(&[2, 10, 50]),
            budget: rng.between(0, 6) as u32,
        });
    }
}

/// Has backing devices of some plans say that they are behind a network: writeback has several
/// batches under way, and streams are read ahead.
pub(super) fn add_distance(plan: &mut Plan, rng: &mut Rng) {
    for volume in plan.volumes.iter_mut().filter(|volume| !volume.flash) {
        volume.distant = rng.chance(1, 3);
    }
    if rng.chance(1, 4) {
        let volume = rng.below(plan.volumes.len() as u64) as u32;
        if plan.volumes[volume as usize].flash {
            return;
        }
        let value = rng.pick(&["4k", "16k", "64k"]).to_owned();
        let action = ControlAction::Attribute { volume, name: "readahead".to_owned(), value };
        plan.controls.insert(0, Control { after_ops: 0, delay: Nanos(0), action });
    }
}

impl Remote {
    /// The client may lose what it can't keep.
    pub fn is_scant(&self) -> bool {
        self.keep_bytes < AMPLE
    }
}
