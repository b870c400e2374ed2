//! Reads that are at the backing device while the same block becomes dirty and is discarded.
//!
//! A share of the seeds gets a plan of rounds of this. What a discard puts below dirty data is
//! nobody's to see before the dirty key goes: a read that missed, and is slow, must not return it.

use ubcache_env::{Nanos, Sector, SectorRange};

use super::{
    Action, AfterStart, ClientOp, Control, ControlAction, Frontend, Pace, Plan, Scarcity,
    VolumeShape,
};
use crate::disk::Profile;
use crate::rng::Rng;

/// One plan in this many.
const SHARE: (u64, u64) = (1, 48);
/// Size of the volume of such a plan in sectors.
const SECTORS: u64 = 256;
/// A dirty place, so that no write waits for the superblock of the volume.
const ELSEWHERE: u64 = SECTORS / 2;
/// Delay after the start of a round, in which that is settled.
const LATER: u64 = 100_000;

/// Makes it a plan of early reads, if its seed says so.
pub(super) fn read_early(plan: &mut Plan, rng: &mut Rng) {
    if !rng.chance(SHARE.0, SHARE.1) || !plan.hammers.is_empty() {
        return;
    }
    plan.frontend = Frontend::Direct;
    plan.memory = Scarcity::default();
    plan.pace = Pace::default();
    (plan.ops, plan.controls, plan.faults) = (Vec::new(), Vec::new(), Vec::new());
    plan.cache.profile = Profile::Fast;
    plan.volumes = vec![VolumeShape {
        sectors: SECTORS,
        mode: "writeback".to_owned(),
        initial: 1000,
        volatile: true,
        discard: true,
        noise: false,
        head: 0,
        block_sectors: plan.cache.block_sectors,
        profile: rng.pick(&[Profile::Slow, Profile::Slow, Profile::Jitter]),
        flash: false,
        distant: false,
    }];
    let rounds = rng.between(6, 12);
    for round in 0..rounds {
        let after_ops = plan.ops.len() as u64;
        for (name, value) in [("writeback_running", "0"), ("sequential_cutoff", "0")] {
            let (name, value) = (name.to_owned(), value.to_owned());
            let action = ControlAction::Attribute { volume: 0, name, value };
            plan.controls.push(Control { after_ops, delay: Nanos(0), action });
        }
        add_round(plan, round, rng);
        let after = AfterStart { check: rng.chance(1, 4), again: None };
        let action = match rng.below(3) {
            0 => ControlAction::PowerFailure(after),
            1 => ControlAction::HostRestart(after),
            _ => ControlAction::Restart(after),
        };
        let after_ops = plan.ops.len() as u64;
        plan.controls.push(Control { after_ops, delay: Nanos::from_micros(LATER), action });
    }
}

/// A block not used yet.
fn add_round(plan: &mut Plan, round: u64, rng: &mut Rng) {
    let block = plan.block_sectors(0);
    let range = SectorRange::new(Sector(round * block), block);
    let elsewhere = SectorRange::new(Sector(ELSEWHERE + round * block), block);
    let mut op = |client, action| plan.ops.push(ClientOp { client, volume: 0, action });
    let micros = |us: u64| Action::Sleep(Nanos::from_micros(us));
    op(3, Action::Write { range: elsewhere, fua: false });
    op(0, micros(LATER));
    op(0, Action::Read(range));
    op(1, micros(LATER + rng.scale(1, 2_000)));
    op(1, Action::Write { range, fua: rng.chance(1, 4) });
    op(1, Action::Discard { range, fua: false });
    op(2, micros(LATER + rng.scale(1_000, 20_000)));
    for _ in 0..10 {
        op(2, Action::Read(range));
        op(2, micros(rng.scale(100, 5_000)));
    }
    // All clients wait for the end of the round.
    (0..4).for_each(|client| op(client, micros(20_000_000)));
}
