//! Copies in the cache faster than the backing device can be flushed.
//!
//! A small share of the seeds gets a plan in which a few clients write through without a pause and
//! never flush, onto a backing device with a volatile cache that stalls, with room for few copies
//! that wait for a flush. The limit has to hold all the same (S2): what has no room is not kept.

use ubcache_env::{Sector, SectorRange};

use super::{Action, ClientOp, Plan, Sums};
use crate::disk::Profile;
use crate::rng::Rng;

/// One plan in this many.
const SHARE: (u64, u64) = (1, 128);
/// Writes of all clients.
const WRITES: u64 = 600;
/// Sectors from one write of a client to its next one: they are no stream.
const STEP: u64 = 41;

/// Makes it such a plan, if its seed says so.
pub(super) fn copy_fast(plan: &mut Plan, rng: &mut Rng) {
    if !rng.chance(SHARE.0, SHARE.1) {
        return;
    }
    plan.clear_load();
    plan.controls.clear();
    plan.hammers.clear();
    plan.sums = Sums { fill_bytes: 8192, copies: rng.pick(&[8, 16]) };
    plan.cache.bucket_sectors = 64;
    plan.cache.block_sectors = 1;
    plan.cache.profile = Profile::Fast;
    plan.volumes.truncate(1);
    let volume = &mut plan.volumes[0];
    (volume.sectors, volume.initial, volume.head, volume.block_sectors) = (65_536, 0, 0, 1);
    (volume.volatile, volume.profile) = (true, Profile::Stall);
    volume.mode = "writethrough".to_owned();
    let clients = rng.between(2, 6);
    for write in 0..WRITES {
        let range = SectorRange::new(Sector(write * STEP), 1);
        let action = Action::Write { range, fua: false };
        plan.ops.push(ClientOp { client: (write % clients) as u32, volume: 0, action });
    }
}
