//! A cache that is replaced by another one while clients go on (A8), and volumes that end and come
//! back while others go on.

use ubcache_env::Nanos;

use super::{Control, ControlAction, LossyDisk, Plan};
use crate::disk::{FlushLoss, Outage};
use crate::rng::Rng;

/// Name of the command that replaces the cache: it waits until no volume needs the old one.
pub(super) const REPLACE: &str = "replace-cache";
/// Value of that command: the first flush of each backing device for the new cache fails.
pub const LOSES: &str = "loses";
/// One plan in this many replaces its cache, and one in this many of the others ends volumes.
const REPLACES: (u64, u64) = (1, 8);
const RELEASES: (u64, u64) = (1, 8);
/// One replacement in this many finds that a flush of a backing device fails.
const LOSES_SHARE: (u64, u64) = (1, 2);

/// Replaces the cache in some plans, and releases volumes in others.
pub(super) fn replace(plan: &mut Plan, rng: &mut Rng) {
    // No set can be made where the file system is full.
    let unfit = |action: &ControlAction| {
        matches!(action, ControlAction::Driver(..))
            || matches!(action, ControlAction::Outage { disk: 0, outage: Outage::Full, .. })
    };
    if plan.controls.iter().any(|control| unfit(&control.action))
        || !plan.hands.is_empty()
        || plan.ops.is_empty()
    {
        return;
    }
    if rng.chance(REPLACES.0, REPLACES.1) {
        let breaks = !plan.faults.is_empty() && rng.chance(1, 3);
        let mut actions = Vec::new();
        if breaks {
            let outage = rng.pick(&[Outage::Gone, Outage::Gone, Outage::Errors]);
            actions.push(ControlAction::Outage { disk: 0, outage, span: None });
        }
        let loses = rng.chance(LOSES_SHARE.0, LOSES_SHARE.1);
        if loses {
            lose_flushes(plan, rng);
        }
        actions.push(set(0, REPLACE, if loses { LOSES } else { "1" }));
        insert(plan, actions, rng);
    } else if !plan.has_faults() && rng.chance(RELEASES.0, RELEASES.1) {
        for _ in 0..rng.between(1, 3) {
            let volume = rng.below(plan.volumes.len() as u64) as u32;
            let actions = match rng.below(4) {
                0 => vec![set(volume, "drain", "1")],
                1 => vec![
                    set(volume, "detach", "1"),
                    set(volume, "reopen", "stay"),
                    set(volume, "attach", "1"),
                ],
                _ => vec![set(volume, "reopen", rng.pick(&["drained", "dirty"]))],
            };
            insert(plan, actions, rng);
        }
    }
}

/// Failed flushes of the backing devices lose something.
fn lose_flushes(plan: &mut Plan, rng: &mut Rng) {
    for disk in 1..=plan.volumes.len() {
        plan.volumes[disk - 1].volatile = true;
        if plan.lossy.iter().all(|lossy| lossy.disk != disk) {
            plan.lossy.push(LossyDisk { disk, loss: FlushLoss { late: rng.pick(&[0, 1000]) } });
        }
    }
}

fn set(volume: u32, name: &str, value: &str) -> ControlAction {
    ControlAction::Attribute { volume, name: name.to_owned(), value: value.to_owned() }
}

/// Puts actions somewhere among the others, one after the other.
fn insert(plan: &mut Plan, actions: Vec<ControlAction>, rng: &mut Rng) {
    let at = rng.below(plan.controls.len() as u64 + 1) as usize;
    let before = at.checked_sub(1).map_or(0, |at| plan.controls[at].after_ops);
    let ops = plan.ops.len() as u64;
    let after = plan.controls.get(at).map_or(ops, |control| control.after_ops);
    let after_ops = before + rng.below(after.saturating_sub(before) + 1);
    let added: Vec<Control> = actions
        .into_iter()
        .map(|action| {
            let delay = Nanos::from_micros(rng.scale(1, 30_000));
            Control { after_ops, delay, action }
        })
        .collect();
    plan.controls.splice(at..at, added);
}
