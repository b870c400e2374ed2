//! Thousands of requests at the same time.
//!
//! A share of the seeds gets a plan in which each of very many clients has one request, and all
//! begin at once. Nothing may depend on how many there are: not the tasks in the background, of
//! which there is a bounded number.

use ubcache_env::{Nanos, Sector, SectorRange};

use super::{Action, AfterStart, ClientOp, Control, ControlAction, Plan};
use crate::executor::Policy;
use crate::rng::Rng;

/// One plan in this many.
const SHARE: (u64, u64) = (1, 64);
/// Size of the volume in sectors.
const SECTORS: u64 = 4096;
/// Clients that write, each its own part of the volume.
const WRITERS_MAX: u64 = 64;

/// Makes it a plan with very many requests at a time, if its seed says so.
pub(super) fn many(plan: &mut Plan, rng: &mut Rng) {
    if !rng.chance(SHARE.0, SHARE.1) {
        return;
    }
    plan.clear_load();
    plan.volumes.truncate(1);
    plan.volumes[0].sectors = SECTORS;
    plan.volumes[0].initial = 500;
    let block = plan.block_sectors(0);
    let clients = rng.pick(&[500, 1500, 4000, 10_000]);
    if clients > 4000 {
        // The others look at every task that could run, each time.
        plan.policy = rng.pick(&[Policy::Uniform, Policy::Fifo]);
    }
    let writers = rng.between(1, WRITERS_MAX);
    for client in 0..clients {
        let action = if client < writers {
            let start = SECTORS / WRITERS_MAX * client;
            let range = SectorRange::new(Sector(start), rng.between(1, 4) * block);
            Action::Write { range, fua: rng.chance(1, 8) }
        } else {
            let start = rng.below(SECTORS / block) * block;
            Action::Read(SectorRange::new(Sector(start), block))
        };
        plan.ops.push(ClientOp { client: client as u32, volume: 0, action });
    }
    let delay = Nanos::from_micros(rng.scale(10, 20_000));
    let action = match rng.below(4) {
        0 => ControlAction::EvictClean,
        1 => ControlAction::CollectGarbage,
        2 => ControlAction::PowerFailure(AfterStart { check: true, again: None }),
        _ => ControlAction::Restart(AfterStart::default()),
    };
    plan.controls.push(Control { after_ops: clients, delay, action });
}
