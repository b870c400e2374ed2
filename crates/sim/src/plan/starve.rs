//! Clients that never stop, and what has to end beside them.
//!
//! A share of the seeds gets a plan in which some clients write the same few blocks again and
//! again, for as long as anything else is under way. A detach, the end of writeback, publishing,
//! garbage collection, an eviction and a stop have to come to their end all the same, in bounded
//! virtual time.

use ubcache_env::{Nanos, Sector, SectorRange};

use super::{Action, AfterStart, ClientOp, Control, ControlAction, Plan, VolumeShape};
use crate::disk::Profile;
use crate::rng::Rng;

/// One plan in this many.
const SHARE: (u64, u64) = (1, 24);
/// Size of a volume of such a plan in sectors.
const SECTORS: u64 = 256;

/// A client that never stops: it writes a range, rests, writes it again. It flushes now and then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hammer {
    /// The volume.
    pub volume: u32,
    /// The range that it writes.
    pub range: SectorRange,
    /// Time from a reply to the next write.
    pub period: Nanos,
}

/// Makes it a plan with clients that never stop, if its seed says so.
pub(super) fn starve(plan: &mut Plan, rng: &mut Rng) {
    if !rng.chance(SHARE.0, SHARE.1) {
        return;
    }
    plan.clear_load();
    plan.cache.profile = rng.pick(&[Profile::Fast, Profile::Fast, Profile::Jitter]);
    let volumes = rng.between(1, 2);
    plan.volumes = (0..volumes).map(|_| volume(plan, rng)).collect();
    let block = plan.block_sectors(0);
    for _ in 0..rng.between(1, 3) {
        let start = rng.below(4) * block;
        let range = SectorRange::new(Sector(start), rng.between(1, 2) * block);
        plan.hammers.push(Hammer {
            volume: 0,
            range,
            period: Nanos::from_micros(rng.scale(200, 4_000)),
        });
    }
    for _ in 0..rng.between(20, 60) {
        let (client, volume) = (rng.below(2) as u32, rng.below(volumes) as u32);
        let start = rng.below(SECTORS / block) * block;
        let range =
            SectorRange::from_bounds(Sector(start), Sector((start + 4 * block).min(SECTORS)));
        let action = match rng.below(8) {
            0..=2 => Action::Write { range, fua: false },
            3..=5 => Action::Read(range),
            6 => Action::Flush,
            _ => Action::Sleep(Nanos::from_micros(rng.scale(10, 20_000))),
        };
        plan.ops.push(ClientOp { client, volume, action });
    }
    for _ in 0..rng.between(1, 3) {
        let volume = rng.below(volumes) as u32;
        add_what_ends(plan, volume, rng);
    }
}

fn volume(plan: &Plan, rng: &mut Rng) -> VolumeShape {
    VolumeShape {
        sectors: SECTORS,
        mode: "writeback".to_owned(),
        initial: 500,
        volatile: rng.chance(3, 4),
        discard: rng.chance(1, 2),
        noise: false,
        head: 0,
        block_sectors: plan.cache.block_sectors,
        profile: rng.pick(&[Profile::Fast, Profile::Slow, Profile::Slow]),
        flash: false,
        distant: false,
    }
}

/// Adds something that has to come to its end.
fn add_what_ends(plan: &mut Plan, volume: u32, rng: &mut Rng) {
    let after_ops = plan.controls.last().map_or(0, |control| control.after_ops).max(rng.below(30));
    let set = |name: &str, value: &str| ControlAction::Attribute {
        volume,
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let mode = rng.pick(&["writethrough", "writearound", "none"]);
    let actions = match rng.below(8) {
        0..=1 => vec![set("detach", "1"), set("attach", "1")],
        2..=4 => vec![
            set("writeback_percent", "0"),
            set("writeback_delay", "0"),
            set("cache_mode", mode),
            set("until-clean", "1"),
        ],
        5 => vec![
            set("cache_mode", mode),
            set("until-published", "1"),
            set("cache_mode", "writeback"),
        ],
        6 => vec![ControlAction::CollectGarbage, ControlAction::EvictClean],
        _ => vec![ControlAction::Restart(AfterStart::default())],
    };
    for action in actions {
        let delay = Nanos::from_micros(rng.scale(10, 30_000));
        plan.controls.push(Control { after_ops, delay, action });
    }
}
