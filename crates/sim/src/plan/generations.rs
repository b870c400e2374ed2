//! Generations that wrap: caches whose buckets have 16 or 32 generations instead of 256, and loads
//! under which they go round many times.
//!
//! A pointer that stays in the index while its bucket is used again looks newer than the bucket
//! once half of the circle lies between them (docs/reference/format.md §4.7). With 256 generations
//! that takes weeks. Here a load turns a small cache over and over, beside a volume that was cached
//! once and is not touched any more: its part of a deep tree goes cold.

use ubcache_env::{Nanos, Sector, SectorRange};

use super::draw::DrawOptions;
use super::{Action, AfterStart, ClientOp, ControlAction, Frontend, Plan, VolumeShape};
use crate::disk::Profile;
use crate::rng::Rng;

/// One plan in this many has few generations; one of these in this many turns the cache over.
const SHARE: (u64, u64) = (1, 4);
const TURNS: (u64, u64) = (1, 4);
/// Sizes of the volume that goes cold and of the one that turns the cache over, in sectors.
const COLD: u64 = 512;
const HOT: u64 = 8192;
/// A request to the latter, in sectors.
const REQUEST: u64 = 128;

/// Gives some plans few generations, and some of these a load that goes through them.
pub(super) fn wrap(plan: &mut Plan, options: DrawOptions) {
    let rng = &mut Rng::fork(plan.seed, "generations");
    if !rng.chance(SHARE.0, SHARE.1) {
        return;
    }
    plan.cache.generations = rng.pick(&[16, 16, 32]);
    if options.ops_max >= 400 && rng.chance(TURNS.0, TURNS.1) {
        turn_over(plan, rng, options);
    }
}

fn turn_over(plan: &mut Plan, rng: &mut Rng, options: DrawOptions) {
    let volume = |sectors, mode: &str| VolumeShape {
        sectors,
        mode: mode.to_owned(),
        initial: 1000,
        volatile: true,
        discard: false,
        noise: false,
        head: 0,
        block_sectors: 1,
        profile: Profile::Fast,
        flash: false,
        distant: false,
    };
    let cache = &mut plan.cache;
    (cache.block_sectors, cache.bucket_sectors, cache.buckets) = (1, 8, 513);
    cache.node_keys = rng.pick(&[4, 4, 30]);
    cache.profile = Profile::Fast;
    plan.frontend = Frontend::Direct;
    plan.volumes =
        vec![volume(COLD, "writethrough"), volume(HOT, rng.pick(&["writethrough", "writeback"]))];
    (plan.ops, plan.controls, plan.faults) = (Vec::new(), Vec::new(), Vec::new());
    let mut script = Script { plan, cursor: 0 };
    for volume in 0..2 {
        script.plan.set(volume, "sequential_cutoff", "0");
    }
    // Single sectors with gaps, so that there is a key for each: a deep tree.
    (0..COLD / 2).for_each(|at| script.op(0, Action::Read(SectorRange::new(Sector(2 * at), 1))));
    let writes = rng.pick(&[0, 0, 10, 60]);
    let rounds = rng.between(1, 4);
    let each = options.ops_max.max(600) / rounds;
    for _ in 0..rounds {
        for _ in 0..each {
            script.turn(rng.below(100) < writes, rng);
        }
        script.flush_dirty(rng);
        script.start_again(rng, options);
    }
}

struct Script<'a> {
    plan: &'a mut Plan,
    /// The next request to the hot volume.
    cursor: u64,
}

impl Script<'_> {
    fn op(&mut self, volume: u32, action: Action) {
        self.plan.ops.push(ClientOp { client: volume, volume, action });
    }

    /// The next part of the hot volume, which is larger than the cache.
    fn turn(&mut self, write: bool, rng: &mut Rng) {
        let range = SectorRange::new(Sector(self.cursor), REQUEST);
        self.cursor = (self.cursor + REQUEST) % HOT;
        self.op(1, if write { Action::Write { range, fua: false } } else { Action::Read(range) });
        if rng.chance(1, 40) {
            self.op(1, Action::Sleep(Nanos::from_millis(rng.scale(1, 2_000))));
        }
        if rng.chance(1, 200) {
            self.plan.control(1, ControlAction::CollectGarbage);
        }
    }

    /// Dirty data that a start must not lose.
    fn flush_dirty(&mut self, rng: &mut Rng) {
        self.plan.set(1, "cache_mode", "writeback");
        self.plan.set(1, "writeback_running", "0");
        for _ in 0..rng.between(1, 8) {
            let range = SectorRange::new(Sector(8 * rng.below(HOT / 8)), 8);
            self.op(1, Action::Write { range, fua: false });
        }
        self.op(1, Action::Flush);
    }

    fn start_again(&mut self, rng: &mut Rng, options: DrawOptions) {
        let after = AfterStart { check: true, again: None };
        let action = match rng.below(3) {
            1 if options.crashes => ControlAction::PowerFailure(after),
            2 if options.crashes => ControlAction::HostRestart(after),
            _ => ControlAction::Restart(after),
        };
        self.plan.control(rng.scale(1, 200_000), action);
        self.plan.set(1, "writeback_running", "1");
    }
}
