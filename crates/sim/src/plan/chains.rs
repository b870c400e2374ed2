//! Evictions behind a prio chain that is being written.
//!
//! A bucket that is given up after its entry was put into a chain waits for the next one (J2).
//! Mostly there is none: one task evicts and writes the chain. So here a full cache on a slow
//! device writes one chain after the other, while clients go on through a volume that does not fit,
//! and now and then everything clean is evicted beside that. Then the power fails, before the next
//! chain has it.

use ubcache_env::{Nanos, Sector, SectorRange};

use super::draw::DrawOptions;
use super::{Action, AfterStart, ClientOp, ControlAction, Frontend, Plan, Scarcity, VolumeShape};
use crate::disk::Profile;
use crate::rng::Rng;

/// One plan in this many.
const SHARE: (u64, u64) = (1, 64);
/// Sizes of the cache: sectors of a bucket, and buckets.
const BUCKET: u64 = 16;
const BUCKETS: u64 = 513;
/// Buckets that are left to be filled by small requests.
const SPARE: u64 = 60;
/// Sectors of a large and of a small request.
const LARGE: u64 = 64 * BUCKET;
const SMALL: u64 = 4 * BUCKET;
/// Operations of a round at most.
const ROUND: u64 = 116;

/// Makes it such a plan, if its seed says so.
pub(super) fn evict_behind(plan: &mut Plan, rng: &mut Rng, options: DrawOptions) {
    if !options.crashes || !rng.chance(SHARE.0, SHARE.1) || !plan.hammers.is_empty() {
        return;
    }
    let cache = &mut plan.cache;
    (cache.block_sectors, cache.bucket_sectors, cache.buckets) = (1, BUCKET as u32, BUCKETS as u32);
    (cache.node_keys, cache.volatile, cache.profile) = (0, true, Profile::Slow);
    plan.frontend = Frontend::Direct;
    plan.volumes = vec![VolumeShape {
        sectors: 2 * BUCKET * BUCKETS,
        mode: "writearound".to_owned(),
        initial: 1000,
        volatile: true,
        discard: true,
        noise: false,
        head: 0,
        block_sectors: 1,
        profile: Profile::Fast,
        flash: false,
        distant: false,
    }];
    (plan.faults, plan.memory) = (Vec::new(), Scarcity::default());
    (plan.ops, plan.controls) = (Vec::new(), Vec::new());
    let mut script = Script { plan, cursor: 0 };
    let off = ("sequential_cutoff".to_owned(), "0".to_owned());
    script.plan.control(0, ControlAction::Attribute { volume: 0, name: off.0, value: off.1 });
    for _ in 0..(options.ops_max / ROUND).clamp(1, 6) {
        script.round(rng);
    }
}

struct Script<'a> {
    plan: &'a mut Plan,
    /// First sector of the next request.
    cursor: u64,
}

impl Script<'_> {
    fn op(&mut self, client: u32, action: Action) {
        self.plan.ops.push(ClientOp { client, volume: 0, action });
    }

    fn read(&mut self, client: u32, sectors: u64) {
        let range = SectorRange::new(Sector(self.cursor), sectors);
        self.cursor = (self.cursor + sectors) % (2 * BUCKET * BUCKETS - LARGE);
        self.op(client, Action::Read(range));
    }

    /// Clients take buckets one after the other for a while.
    fn go_on(&mut self, requests: u64, rng: &mut Rng) {
        for request in 0..requests {
            let client = request as u32 % 3;
            self.op(client, Action::Sleep(Nanos::from_micros(rng.between(500, 6_000))));
            self.read(client, SMALL);
        }
    }

    fn round(&mut self, rng: &mut Rng) {
        (0..(BUCKETS - SPARE) * BUCKET / LARGE).for_each(|_| self.read(0, LARGE));
        (0..3).for_each(|client| self.op(client, Action::Sleep(Nanos::from_secs(2))));
        self.go_on(rng.between(12, 30), rng);
        self.plan.control(rng.between(1, 6_000), ControlAction::EvictClean);
        self.go_on(rng.between(6, 24), rng);
        let after = AfterStart { check: true, again: None };
        self.plan.control(rng.between(1, 12_000), ControlAction::PowerFailure(after));
    }
}
