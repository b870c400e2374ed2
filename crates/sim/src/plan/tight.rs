//! Early starts with a journal that is nearly full.
//!
//! The ring of the smallest cache has eight blocks. A start that serves before its leaves are
//! counted has a handful of free buckets, those that were promised to it, and in a deep tree it
//! takes as many to replace one leaf. So an index with many leaves is made, of dirty keys with
//! gaps, so that no eviction takes them and none joins another. Then again and again buckets are
//! promised, records come into leaves far apart, and the host goes down. When it is back, leaves
//! that are full have to be replaced before there is room in the ring, beside what attaching writes
//! there.

use ubcache_env::{Nanos, Sector, SectorRange};

use super::draw::DrawOptions;
use super::{Action, AfterStart, ClientOp, ControlAction, Plan};
use crate::disk::Profile;
use crate::rng::Rng;

/// One plan in this many.
const SHARE: (u64, u64) = (1, 64);
/// Keys of the volume, as many blocks of the cache, each with a gap after it.
const KEYS: u64 = 512;
const BLOCK: u64 = 8;
/// Clients, whose writes come at once.
const CLIENTS: u64 = 8;

/// Makes it such a plan, if its seed says so.
pub(super) fn tighten(plan: &mut Plan, rng: &mut Rng, options: DrawOptions) {
    if !options.crashes || !rng.chance(SHARE.0, SHARE.1) || !plan.hammers.is_empty() {
        return;
    }
    plan.clear_load();
    let cache = &mut plan.cache;
    (cache.bucket_sectors, cache.block_sectors) = (2 * BLOCK as u32, BLOCK as u32);
    (cache.node_keys, cache.lazy_start) = (8, true);
    cache.buckets = rng.pick(&[513, 513, 700]);
    cache.extents_in_memory = rng.pick(&[50, 1 << 20]);
    cache.profile = rng.pick(&[Profile::Slow, Profile::Slow, Profile::Jitter]);
    plan.volumes.truncate(2);
    let volume = &mut plan.volumes[0];
    (volume.sectors, volume.initial, volume.head) = (2 * KEYS * BLOCK, 500, 0);
    volume.mode = "writeback".to_owned();
    let off = |name: &str| ControlAction::Attribute {
        volume: 0,
        name: name.to_owned(),
        value: "0".to_owned(),
    };
    let mut script = Script { plan };
    script.plan.control(0, off("writeback_running"));
    script.plan.control(0, off("sequential_cutoff"));
    (0..KEYS).for_each(|key| script.write((key % CLIENTS) as u32, 2 * key, false));
    for _ in 0..(options.ops_max / 60).clamp(1, 6) {
        script.round(rng);
    }
}

struct Script<'a> {
    plan: &'a mut Plan,
}

impl Script<'_> {
    fn op(&mut self, client: u32, action: Action) {
        self.plan.ops.push(ClientOp { client, volume: 0, action });
    }

    fn write(&mut self, client: u32, block: u64, fua: bool) {
        let range = SectorRange::new(Sector(block * BLOCK), BLOCK);
        self.op(client, Action::Write { range, fua });
    }

    fn rest(&mut self, ms: u64) {
        (0..CLIENTS as u32)
            .for_each(|client| self.op(client, Action::Sleep(Nanos::from_millis(ms))));
    }

    fn round(&mut self, rng: &mut Rng) {
        self.rest(500);
        // The prio chain of this promises buckets to the next start.
        self.plan.control(1, ControlAction::EvictClean);
        self.rest(500);
        for _ in 0..rng.between(6, 16) {
            // Keys that are there already, so that no leaf is split.
            let block = 2 * rng.below(KEYS);
            match rng.below(8) {
                0 => self.op(0, Action::Flush),
                _ => self.write(rng.below(CLIENTS) as u32, block, rng.chance(1, 4)),
            }
        }
        let again = rng.chance(1, 3).then(|| Nanos::from_micros(rng.scale(1_000, 1_000_000)));
        let after = AfterStart { check: false, again };
        let action = match rng.chance(1, 2) {
            true => ControlAction::PowerFailure(after),
            false => ControlAction::HostRestart(after),
        };
        self.plan.control(rng.scale(1_000, 80_000), action);
    }
}
