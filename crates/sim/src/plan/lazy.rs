//! Starts that serve before their leaves are counted.
//!
//! Such a start leaves records of the journal to their leaves. What can go wrong then goes wrong
//! before the last leaf is counted, and each volume gets a run number, a few writes, before the
//! first request of a client. So there is a volume that makes counting long: its keys are dirty, so
//! that no eviction takes them, with gaps, so that none joins another, and a leaf has four of them.
//! It comes first in the index, and what clients do is on the volume after it.

use ubcache_env::{Nanos, Sector, SectorRange};

use super::{Action, AfterStart, ClientOp, Control, ControlAction, Plan, VolumeShape};
use crate::disk::Profile;
use crate::rng::Rng;

/// Size of the volume that clients use, in sectors.
const SECTORS: u64 = 64;
/// The volume that takes long to count, and the other one.
const LONG: u32 = 0;
const USED: u32 = 1;
/// Operations of a round.
const ROUND: u64 = 48;

/// Fills a plan whose volume is the one that clients use.
pub(super) fn serve_early(plan: &mut Plan, rng: &mut Rng, ops_max: u64) {
    let cache = &mut plan.cache;
    (cache.lazy_start, cache.node_keys, cache.block_sectors) = (true, 4, 1);
    cache.profile = rng.pick(&[Profile::Slow, Profile::Slow, Profile::Jitter]);
    let used = &mut plan.volumes[0];
    (used.sectors, used.block_sectors) = (SECTORS, 1);
    let keys = rng.pick(&[32, 64, 64, 128]).min(ops_max / 4).max(1);
    let long = VolumeShape {
        sectors: (2 * keys).next_multiple_of(8),
        mode: "writeback".to_owned(),
        ..used.clone()
    };
    plan.volumes.insert(0, long);
    let mut script = Script { plan };
    script.plan.set(LONG, "writeback_running", "0");
    script.plan.set(LONG, "sequential_cutoff", "0");
    (0..keys).for_each(|key| {
        script.op(key as u32 % 3, LONG, Action::Write { range: one(2 * key), fua: false })
    });
    script.op(0, LONG, Action::Flush);
    for _ in 0..(ops_max.saturating_sub(keys) / ROUND).clamp(1, 10) {
        script.round(rng);
    }
}

fn one(sector: u64) -> SectorRange {
    SectorRange::new(Sector(sector), 1)
}

struct Script<'a> {
    plan: &'a mut Plan,
}

impl Script<'_> {
    fn op(&mut self, client: u32, volume: u32, action: Action) {
        self.plan.ops.push(ClientOp { client, volume, action });
    }

    fn sleep(&mut self, client: u32, span: Nanos) {
        self.op(client, USED, Action::Sleep(span));
    }

    /// Cached data is written twice while records wait for another leaf, which is read between the
    /// two writes.
    fn round(&mut self, rng: &mut Rng) {
        self.plan.set(LONG, "writeback_running", "0");
        self.plan.set(USED, "cache_mode", "writearound");
        // Content of the cache, and with the next read, of the backing device.
        self.op(0, USED, Action::Read(SectorRange::new(Sector(0), SECTORS)));
        self.sleep(0, Nanos::from_millis(500));
        // With the prio chain of this some buckets are promised to the next start.
        self.plan.control(1, ControlAction::EvictClean);
        // With gaps, so that there is a key for each, and a leaf for a few of them.
        (0..SECTORS).step_by(2).for_each(|sector| self.op(0, USED, Action::Read(one(sector))));
        self.op(0, USED, Action::Flush);
        self.sleep(0, Nanos::from_millis(500));
        let far = SECTORS / 2 + 2 * rng.below(SECTORS / 4);
        self.op(0, USED, Action::Write { range: one(far), fua: false });
        self.op(0, USED, Action::Flush);
        // All clients wait when the host restarts, and go on together after it. Below, a client
        // that is done waits for the power failure.
        let wait = Nanos::from_secs(20);
        (0..2).for_each(|client| self.sleep(client, wait));
        self.plan.control(1_000, ControlAction::HostRestart(AfterStart::default()));
        let same = one(2 * rng.below(SECTORS / 4));
        self.op(0, USED, Action::Write { range: same, fua: false });
        self.sleep(0, wait);
        self.sleep(1, Nanos::from_micros(rng.scale(10, 16_000)));
        self.op(1, USED, Action::Read(one(far)));
        self.op(1, USED, Action::Write { range: same, fua: false });
        self.sleep(1, wait);
        // When one of them waits again. The first write waits for its record, and when it is
        // answered there is nothing to see.
        let after_ops = self.plan.ops.len() as u64 - 1;
        let delay = Nanos::from_micros(rng.scale(1, 10_000));
        let action = ControlAction::PowerFailure(AfterStart::default());
        self.plan.controls.push(Control { after_ops, delay, action });
    }
}
