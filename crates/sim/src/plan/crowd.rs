//! Thousands of writes at the same time, in a small cache.
//!
//! A small share of the seeds gets a plan in which each of thousands of clients writes a block of
//! its own, all at once, in writeback mode: more than the cache holds, and far more keys than its
//! few free buckets could take in nodes. All data is dirty, or pinned by a write that waits for its
//! record, when the first leaf has to be split. Nothing may fail for that.

use ubcache_env::{Nanos, Sector, SectorRange};

use super::{Action, AfterStart, ClientOp, Control, ControlAction, Plan};
use crate::executor::Policy;
use crate::rng::Rng;

/// One plan in this many.
const SHARE: (u64, u64) = (1, 160);
/// Blocks of the volume.
const BLOCKS: u64 = 4096;
/// A factor without a common divisor with the number of blocks: no two clients that come close to
/// each other write close to each other, which would be a stream.
const STEP: u64 = 2_654_435_761;

/// Makes it such a plan, if its seed says so.
pub(super) fn crowd(plan: &mut Plan, rng: &mut Rng) {
    if !rng.chance(SHARE.0, SHARE.1) {
        return;
    }
    plan.clear_load();
    (plan.hammers, plan.scribble) = (Vec::new(), false);
    plan.policy = rng.pick(&[Policy::Uniform, Policy::Fifo]);
    plan.cache.bucket_sectors = 8;
    plan.cache.block_sectors = 1;
    plan.cache.buckets = 513;
    plan.cache.node_keys = rng.pick(&[8, 30, 30]);
    plan.cache.extents_in_memory = 1 << 20;
    plan.cache.lazy_start = false;
    plan.volumes.truncate(1);
    let volume = &mut plan.volumes[0];
    (volume.sectors, volume.initial, volume.head, volume.block_sectors) = (BLOCKS, 500, 0, 1);
    volume.mode = "writeback".to_owned();
    let clients = rng.pick(&[3000, 5000, 8000]);
    let first = rng.below(BLOCKS);
    let fua = rng.pick(&[0, 1, 8]);
    for client in 0..clients {
        let start = Sector((first + client * STEP) % BLOCKS);
        let range = SectorRange::new(start, 1);
        let action = match rng.below(64) {
            0 => Action::Read(range),
            1 => Action::Discard { range, fua: false },
            _ => Action::Write { range, fua: rng.chance(fua, 8) },
        };
        plan.ops.push(ClientOp { client: client as u32, volume: 0, action });
    }
    let delay = Nanos::from_micros(rng.scale(10, 200_000));
    let action = match rng.below(3) {
        0 => ControlAction::CollectGarbage,
        1 => ControlAction::PowerFailure(AfterStart { check: true, again: None }),
        _ => ControlAction::Restart(AfterStart::default()),
    };
    plan.controls.push(Control { after_ops: clients, delay, action });
}
