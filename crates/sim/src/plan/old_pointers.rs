//! Old pointers that stay over many starts.
//!
//! A volume is cached once and evicted, and nothing happens to its leaves any more, so that they
//! keep their pointers. Beside it a volume gets dirty keys in a few leaves in each life of the set:
//! the nodes of those are replaced, and their buckets are given up and used again. A start puts the
//! buckets that are free in order, so nodes get the lowest ones again and again, and these are the
//! ones with the old pointers once the keys of the other volume fill what lies before them. A life
//! is too short for garbage collection.

use ubcache_env::{Nanos, Sector, SectorRange};

use super::draw::DrawOptions;
use super::{Action, AfterStart, ClientOp, ControlAction, Plan, VolumeShape};
use crate::disk::Profile;
use crate::rng::Rng;

/// One plan in this many.
const SHARE: (u64, u64) = (1, 64);
/// The volume that keeps old pointers, and the one whose nodes are replaced.
const OLD: u32 = 0;
const USED: u32 = 1;
/// Sectors of a block of the cache; a node has two, so that it is full soon.
const BLOCK: u64 = 8;
/// Sizes of the volumes, in blocks.
const OLD_BLOCKS: u64 = 64;
const USED_BLOCKS: u64 = 512;
/// By then every leaf is written to its node.
const WRITTEN: Nanos = Nanos::from_secs(40);

/// Makes it such a plan, if its seed says so.
pub(super) fn keep_old_pointers(plan: &mut Plan, rng: &mut Rng, options: DrawOptions) {
    if options.ops_max < 400 || !rng.chance(SHARE.0, SHARE.1) || !plan.hammers.is_empty() {
        return;
    }
    plan.clear_load();
    plan.hands = Vec::new();
    let cache = &mut plan.cache;
    (cache.bucket_sectors, cache.block_sectors) = (2 * BLOCK as u32, BLOCK as u32);
    (cache.node_keys, cache.generations, cache.extents_in_memory) = (4, 16, 50);
    cache.buckets = rng.pick(&[513, 513, 700]);
    cache.profile = Profile::Fast;
    let volume = |blocks, mode: &str| VolumeShape {
        sectors: blocks * BLOCK,
        mode: mode.to_owned(),
        initial: 1000,
        volatile: true,
        discard: false,
        noise: false,
        head: 0,
        block_sectors: BLOCK as u32,
        profile: Profile::Fast,
        flash: false,
        distant: false,
    };
    plan.volumes = vec![volume(OLD_BLOCKS, "writethrough"), volume(USED_BLOCKS, "writeback")];
    let mut script = Script { plan };
    script.plan.set(OLD, "sequential_cutoff", "0");
    script.plan.set(USED, "writeback_running", "0");
    script.op(USED, Action::Flush);
    for block in (0..OLD_BLOCKS).step_by(2) {
        script.op(OLD, Action::Read(blocks(block)));
    }
    script.rest();
    script.write_some(rng.between(60, 110), rng);
    script.rest();
    script.plan.control(0, ControlAction::EvictClean);
    for _ in 0..rng.between(8, 10) {
        script.start_again(rng, options);
        script.write_some(rng.between(8, 20), rng);
    }
}

fn blocks(block: u64) -> SectorRange {
    SectorRange::new(Sector(block * BLOCK), BLOCK)
}

struct Script<'a> {
    plan: &'a mut Plan,
}

impl Script<'_> {
    fn op(&mut self, volume: u32, action: Action) {
        self.plan.ops.push(ClientOp { client: 0, volume, action });
    }

    /// The operation after it begins when it is over.
    fn rest(&mut self) {
        self.op(USED, Action::Sleep(WRITTEN));
        self.op(USED, Action::Flush);
    }

    /// Dirty keys with gaps, so that there is a key for each.
    fn write_some(&mut self, count: u64, rng: &mut Rng) {
        for _ in 0..count {
            let range = blocks(2 * rng.below(USED_BLOCKS / 2));
            self.op(USED, Action::Write { range, fua: false });
        }
        self.op(USED, Action::Flush);
    }

    fn start_again(&mut self, rng: &mut Rng, options: DrawOptions) {
        let after = AfterStart { check: true, again: None };
        let action = match rng.below(4) {
            0 if options.crashes => ControlAction::PowerFailure(after),
            1 if options.crashes => ControlAction::HostRestart(after),
            _ => ControlAction::Restart(after),
        };
        self.plan.control(rng.scale(1, 200_000), action);
    }
}
