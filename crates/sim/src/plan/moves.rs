//! Volumes that move to another disk, and back, while clients go on (A11).

use ubcache_env::Nanos;

use super::draw::DrawOptions;
use super::{AfterStart, Control, ControlAction, DiskFaults, Plan, Zone};
use crate::disk::Rates;
use crate::rng::Rng;

/// Name of the command that moves a volume.
pub const MOVE: &str = "move";
/// One plan in this many of those that fit.
const SHARE: (u64, u64) = (1, 5);

impl Plan {
    /// The volume that moves.
    pub fn moves(&self) -> Option<usize> {
        let found = self.controls.iter().find(|control| is_move(&control.action));
        found.and_then(|control| control.action.volume()).map(|volume| volume as usize)
    }
}

/// Returns true for the command that moves a volume.
pub(in crate::plan) fn is_move(action: &ControlAction) -> bool {
    matches!(action, ControlAction::Attribute { name, .. } if name == MOVE)
}

/// A move that is interrupted once or twice, and goes on (A13).
fn interrupt(plan: &mut Plan, rng: &mut Rng, volume: u32) {
    // Nothing else happens, and much is written to the disk itself.
    plan.controls.clear();
    plan.volumes[volume as usize].mode =
        rng.pick(&["writethrough", "writearound", "writeback"]).to_owned();
    let all = plan.ops.len() as u64;
    let mut after_ops = rng.below(all / 2 + 1);
    let moves = |rng: &mut Rng, after_ops| {
        let (name, value) = (MOVE.to_owned(), "1".to_owned());
        let action = ControlAction::Attribute { volume, name, value };
        Control { after_ops, delay: Nanos::from_micros(rng.scale(1, 1_000)), action }
    };
    let mut controls = vec![moves(rng, after_ops)];
    for _ in 0..rng.between(1, 2) {
        after_ops += rng.below((all - after_ops) / 2 + 1);
        let after = AfterStart { check: rng.chance(1, 2), again: None };
        let action = match rng.below(6) {
            0 => ControlAction::Restart(after),
            1 => ControlAction::HostRestart(after),
            _ => ControlAction::PowerFailure(after),
        };
        let delay = Nanos::from_micros(rng.scale(1, 50_000));
        controls.push(Control { after_ops, delay, action });
        let ops_max = rng.pick(&[1, all - after_ops + 1]);
        after_ops += rng.below(ops_max);
        controls.push(moves(rng, after_ops));
    }
    for control in controls {
        let at = plan.controls.partition_point(|it| it.after_ops <= control.after_ops);
        plan.controls.insert(at, control);
    }
}

/// Moves a volume of some plans; the power fails about then in half of them.
pub(super) fn add_moves(plan: &mut Plan, rng: &mut Rng, options: DrawOptions) {
    let small = plan.volumes.iter().all(|volume| volume.head == 0 && volume.sectors <= 8192);
    let near = plan.remotes.is_empty() && plan.stored.is_empty();
    let alone = plan.hands.is_empty() && near && !plan.replaces_cache();
    if !small || !alone || plan.has_driver() || plan.ops.is_empty() {
        return;
    }
    let disks: Vec<u32> =
        (0..).zip(&plan.volumes).filter(|it| !it.1.flash).map(|it| it.0).collect();
    if disks.is_empty() || !rng.chance(SHARE.0, SHARE.1) {
        return;
    }
    let volume = rng.pick(&disks);
    let turns = &mut Rng::fork(plan.seed, "interrupted moves");
    if options.crashes && turns.chance(1, 2) {
        return interrupt(plan, turns, volume);
    }
    for _ in 0..rng.between(1, 3) {
        let after_ops = rng.below(plan.ops.len() as u64);
        let delay = Nanos::from_micros(rng.scale(1, 3_000));
        let (name, value) = (MOVE.to_owned(), "1".to_owned());
        let mut actions = vec![(delay, ControlAction::Attribute { volume, name, value })];
        if options.crashes && rng.chance(1, 2) {
            let after = AfterStart { check: rng.chance(1, 2), again: None };
            let delay = Nanos::from_micros(rng.scale(1, 200_000));
            let end = match rng.below(4) {
                0 => ControlAction::Restart(after),
                1 => ControlAction::HostRestart(after),
                _ => ControlAction::PowerFailure(after),
            };
            actions.push((delay, end));
        }
        let at = plan.controls.partition_point(|control| control.after_ops <= after_ops);
        let controls =
            actions.into_iter().map(|(delay, action)| Control { after_ops, delay, action });
        plan.controls.splice(at..at, controls.collect::<Vec<_>>());
    }
    // The other disk is behind those of the volumes.
    if !plan.faults.is_empty() && rng.chance(1, 2) {
        let (write, flush) = (rng.pick(&[0, 20_000, 200_000]), rng.pick(&[0, 200_000]));
        let rates = Rates { write, flush, ..Rates::default() };
        let disk = plan.volumes.len() + 1;
        plan.faults.push(DiskFaults { disk, zone: Zone::All, rates, budget: 2 });
    }
}
