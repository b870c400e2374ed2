//! Plans that aim at something: a share of the seeds gets one of these in place of the mix.
//!
//! Events that the mix reaches in one seed of thousands are the subject here: errors of one device,
//! the few milliseconds in which a generation or a record is not durable, writes that land over
//! each other. All of it happens on a few sectors, and again and again: a plan is a row of rounds,
//! most of which end in a crash.

use ubcache_env::{Nanos, Sector, SectorRange};

use super::draw::DrawOptions;
use super::{
    Action, AfterStart, ClientOp, ControlAction, DiskFaults, Frontend, Plan, VolumeShape, Zone,
};
use crate::disk::{Profile, Rates};
use crate::rng::Rng;

/// One plan in this many has a target.
const SHARE: (u64, u64) = (1, 4);
/// Size of the volume of such a plan in sectors.
const SECTORS: u64 = 64;

/// Target of a plan.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Target {
    /// The backing device fails: writes that land or not, flushes that make nothing durable.
    BackingErrors,
    /// The cache device fails: data that can't be read, a journal that can't be written.
    CacheErrors,
    /// Data goes to the backing device as soon as it is dirty, and the power fails.
    EarlyWriteback,
    /// A slow backing write, and dirty data over it that is written back meanwhile.
    WritesOverWrites,
    /// A clean key is evicted, its range is written, and the power fails.
    EvictedAndWritten,
    /// The host restarts with a journal entry on its way, and then the power fails.
    RestartThenPowerFailure,
    /// A start leaves records for when their leaf is read; meanwhile what is cached is written,
    /// again and again, and the power fails.
    LateReplay,
    /// Many flushes at the same time.
    Flushes,
    /// Dirty data everywhere: no bucket is free, and none can be given up.
    Full,
}

const TARGETS: [Target; 9] = [
    Target::BackingErrors,
    Target::CacheErrors,
    Target::EarlyWriteback,
    Target::WritesOverWrites,
    Target::EvictedAndWritten,
    Target::RestartThenPowerFailure,
    Target::LateReplay,
    Target::Flushes,
    Target::Full,
];

/// Makes the plan aim at something, if its seed says so.
pub(super) fn draw_targeted(plan: &mut Plan, options: DrawOptions) {
    let rng = &mut Rng::fork(plan.seed, "aim");
    if !options.crashes || !rng.chance(SHARE.0, SHARE.1) {
        return;
    }
    let target = rng.pick(&TARGETS);
    if !options.faults && matches!(target, Target::BackingErrors | Target::CacheErrors) {
        return;
    }
    let shape = VolumeShape {
        sectors: SECTORS,
        mode: "writeback".to_owned(),
        initial: 1000,
        volatile: true,
        discard: true,
        noise: false,
        head: 0,
        block_sectors: plan.cache.block_sectors,
        profile: Profile::Fast,
        flash: false,
        distant: false,
    };
    plan.frontend = Frontend::Direct;
    plan.volumes = vec![shape];
    plan.cache.volatile = true;
    plan.cache.profile = Profile::Fast;
    (plan.ops, plan.controls, plan.faults) = (Vec::new(), Vec::new(), Vec::new());
    let mut script = Script { plan, rng, ops_max: options.ops_max };
    match target {
        Target::BackingErrors => script.backing_errors(),
        Target::CacheErrors => script.cache_errors(),
        Target::EarlyWriteback => script.early_writeback(),
        Target::WritesOverWrites => script.writes_over_writes(),
        Target::EvictedAndWritten => script.evicted_and_written(),
        Target::RestartThenPowerFailure => script.restart_then_power_failure(),
        Target::LateReplay => super::lazy::serve_early(script.plan, script.rng, options.ops_max),
        Target::Flushes => script.flushes(),
        Target::Full => script.full(),
    }
}

struct Script<'a> {
    plan: &'a mut Plan,
    rng: &'a mut Rng,
    ops_max: u64,
}

impl Script<'_> {
    fn rounds(&mut self, ops_a_round: u64) -> u64 {
        (self.ops_max / ops_a_round).clamp(1, 40)
    }

    fn op(&mut self, client: u32, action: Action) {
        self.plan.ops.push(ClientOp { client, volume: 0, action });
    }

    /// Writeback without pacing.
    fn hurry(&mut self) {
        self.plan.set(0, "writeback_percent", "0");
        self.plan.set(0, "writeback_delay", "0");
    }

    /// A few blocks somewhere in the first few.
    fn range(&mut self, blocks: u64) -> SectorRange {
        let block = u64::from(self.plan.cache.block_sectors);
        let start = self.rng.below(blocks.min(SECTORS / block)) * block;
        let end = (start + self.rng.between(1, 4) * block).min(SECTORS);
        SectorRange::from_bounds(Sector(start), Sector(end))
    }

    fn everything(&self) -> SectorRange {
        SectorRange::from_bounds(Sector(0), Sector(SECTORS))
    }

    fn sleep(&mut self, client: u32, us_max: u64) {
        let span = Nanos::from_micros(self.rng.scale(10, us_max));
        self.op(client, Action::Sleep(span));
    }

    fn write(&mut self, client: u32, blocks: u64) {
        let (range, fua) = (self.range(blocks), self.rng.chance(1, 10));
        self.op(client, Action::Write { range, fua });
    }

    fn read(&mut self, client: u32, blocks: u64) {
        let range = self.range(blocks);
        self.op(client, Action::Read(range));
    }

    /// The power fails or the host restarts; everything is read before the clients go on.
    fn crash(&mut self, delay_us_max: u64) {
        let delay = self.rng.scale(1, delay_us_max);
        let after = AfterStart { check: self.rng.chance(3, 4), again: None };
        let power = self.rng.chance(3, 4);
        self.plan.control(
            delay,
            if power {
                ControlAction::PowerFailure(after)
            } else {
                ControlAction::HostRestart(after)
            },
        );
    }

    fn faults(&mut self, disk: usize, rates: Rates, budget: u32) {
        self.plan.faults.push(DiskFaults { disk, zone: Zone::All, rates, budget });
    }

    fn backing_errors(&mut self) {
        let write = self.rng.pick(&[50_000, 200_000, 400_000]);
        let flush = self.rng.pick(&[0, 100_000, 300_000, 600_000]);
        self.faults(1, Rates { write, flush, ..Rates::default() }, 400);
        self.plan.volumes[0].profile = self.rng.pick(&[Profile::Fast, Profile::Jitter]);
        for _ in 0..self.rounds(30) {
            let mode = self.rng.pick(&["writeback", "writethrough", "writearound"]);
            self.plan.set(0, "cache_mode", mode);
            self.hurry();
            for _ in 0..self.rng.between(5, 40) {
                let client = self.rng.below(2) as u32;
                match self.rng.below(12) {
                    0..=3 => self.write(client, 4),
                    4..=7 => self.read(client, 4),
                    8..=9 => self.op(client, Action::Flush),
                    // Long enough for records to become durable, sometimes for a flush of our own.
                    _ => self.sleep(client, 1_000_000),
                }
            }
            match self.rng.below(3) {
                0 => self.plan.control(10, ControlAction::EvictClean),
                _ => self.crash(400_000),
            }
        }
    }

    fn cache_errors(&mut self) {
        if self.rng.chance(1, 2) {
            return self.journal_errors();
        }
        let read = self.rng.pick(&[0, 20_000, 300_000]);
        let write = self.rng.pick(&[0, 50_000, 300_000]);
        let flush = self.rng.pick(&[0, 0, 100_000]);
        let budget = self.rng.pick(&[3, 10, 60]);
        self.faults(0, Rates { read, write, flush, latent: 0 }, budget);
        if self.rng.chance(1, 2) {
            // Leaves come and go, so that they are read while reads fail.
            (self.plan.cache.node_keys, self.plan.cache.extents_in_memory) = (4, 10);
        }
        self.plan.volumes[0].profile =
            self.rng.pick(&[Profile::Fast, Profile::Slow, Profile::Jitter]);
        for _ in 0..self.rounds(30) {
            let mode = self.rng.pick(&["writeback", "writeback", "writearound"]);
            self.plan.set(0, "cache_mode", mode);
            let running = self.rng.pick(&["0", "1"]);
            self.plan.set(0, "writeback_running", running);
            self.hurry();
            let whole = self.everything();
            self.op(0, Action::Read(whole));
            self.sleep(0, 300_000);
            for _ in 0..self.rng.between(5, 30) {
                let client = self.rng.below(3) as u32;
                let blocks = self.rng.pick(&[4, 64]);
                match self.rng.below(12) {
                    0..=4 => self.write(client, blocks),
                    5..=8 => self.read(client, blocks),
                    9 => self.op(client, Action::Flush),
                    10 => {
                        let range = self.range(4);
                        self.op(client, Action::Zeroes { range, fua: false, unmap: false });
                    }
                    _ => self.sleep(client, 200_000),
                }
            }
            self.crash(100_000);
        }
    }

    /// One write over what is cached, whose removal may not become durable, and then a crash at
    /// once.
    fn journal_errors(&mut self) {
        let write = self.rng.pick(&[50_000, 100_000, 200_000]);
        self.faults(0, Rates { write, ..Rates::default() }, 200);
        for _ in 0..self.rounds(4) {
            self.plan.set(0, "cache_mode", "writearound");
            let whole = self.everything();
            self.op(0, Action::Read(whole));
            self.op(0, Action::Sleep(Nanos::from_millis(300)));
            self.op(0, Action::Flush);
            self.write(0, 8);
            self.crash(10_000);
        }
    }

    fn early_writeback(&mut self) {
        self.plan.cache.profile = self.rng.pick(&[Profile::Fast, Profile::Slow, Profile::Jitter]);
        for _ in 0..self.rounds(16) {
            self.hurry();
            let whole = self.everything();
            self.op(0, Action::Read(whole));
            // The copies become keys, with durable records: a client's flush hastens it.
            self.op(0, Action::Flush);
            self.op(0, Action::Sleep(Nanos::from_millis(300)));
            for _ in 0..self.rng.between(1, 6) {
                self.write(0, 12);
            }
            self.crash(60_000);
        }
    }

    fn writes_over_writes(&mut self) {
        let profile = self.rng.pick(&[Profile::Slow, Profile::LateWrites, Profile::LateWrites]);
        // Time from the submission of a write to its end.
        let long = if profile == Profile::LateWrites { 5_000_000 } else { 15_000 };
        self.plan.volumes[0].profile = profile;
        for _ in 0..self.rounds(10) {
            // Something else is dirty, so that no write waits for the superblock of the volume.
            self.plan.set(0, "writeback_running", "0");
            self.hurry();
            let far = SectorRange::new(Sector(SECTORS / 2), 8);
            self.op(2, Action::Write { range: far, fua: false });
            let begin = 3 * long;
            let same = self.range(2);
            for client in 0..4 {
                let apart = if client == 0 { 0 } else { self.rng.below(long / 4) };
                self.op(client, Action::Sleep(Nanos::from_micros(begin + apart)));
                match client {
                    0 => self.op(client, Action::Zeroes { range: same, fua: false, unmap: false }),
                    1 => self.op(client, Action::Write { range: same, fua: false }),
                    _ if self.rng.chance(1, 2) => self.write(client, 2),
                    _ => self.read(client, 2),
                }
            }
            self.plan.set(0, "writeback_running", "1");
            match self.rng.below(3) {
                0 => self.crash(6 * long),
                1 => self.plan.control(
                    3 * long,
                    ControlAction::Restart(AfterStart { check: true, again: None }),
                ),
                _ => self.plan.control(3 * long, ControlAction::EvictClean),
            }
        }
    }

    fn evicted_and_written(&mut self) {
        self.plan.cache.profile = self.rng.pick(&[Profile::Slow, Profile::Jitter, Profile::Stall]);
        for _ in 0..self.rounds(12) {
            self.plan.set(0, "cache_mode", "writearound");
            let whole = self.everything();
            self.op(0, Action::Read(whole));
            self.op(0, Action::Flush);
            self.op(0, Action::Sleep(Nanos::from_millis(500)));
            self.op(0, Action::Flush);
            self.plan.control(1, ControlAction::EvictClean);
            for _ in 0..self.rng.between(1, 6) {
                self.write(0, 8);
            }
            self.crash(20_000);
        }
    }

    fn restart_then_power_failure(&mut self) {
        self.plan.cache.profile = self.rng.pick(&[Profile::Slow, Profile::Jitter]);
        self.plan.cache.lazy_start = self.rng.chance(1, 4);
        for _ in 0..self.rounds(12) {
            let mode = self.rng.pick(&["writeback", "writearound"]);
            self.plan.set(0, "cache_mode", mode);
            self.plan.set(0, "writeback_running", "0");
            let fua = self.rng.chance(1, 2);
            for _ in 0..self.rng.between(1, 4) {
                let range = self.range(8);
                self.op(0, Action::Write { range, fua });
            }
            // The journal is written by itself after 100 ms, at once with FUA.
            let delay = if fua {
                self.rng.between(2_000, 45_000)
            } else {
                self.rng.between(95_000, 130_000)
            };
            self.plan.control(delay, ControlAction::HostRestart(AfterStart::default()));
            self.plan.set(0, "writeback_running", "0");
            if self.rng.chance(2, 3) {
                // The data that the first instance was still writing is read, and then it is
                // promised.
                let whole = self.everything();
                self.op(0, Action::Read(whole));
                self.op(0, Action::Flush);
            } else {
                (0..self.rng.between(1, 3)).for_each(|_| self.write(0, 8));
            }
            let delay = self.rng.scale(10, 40_000);
            let again =
                self.rng.chance(1, 3).then(|| Nanos::from_micros(self.rng.scale(10, 40_000)));
            self.plan
                .control(delay, ControlAction::PowerFailure(AfterStart { check: true, again }));
        }
    }

    fn flushes(&mut self) {
        self.plan.volumes[0].profile =
            self.rng.pick(&[Profile::Fast, Profile::Jitter, Profile::Slow]);
        let mode = self.rng.pick(&["writearound", "writethrough", "none"]);
        for _ in 0..self.rounds(24) {
            self.plan.set(0, "cache_mode", mode);
            for _ in 0..self.rng.between(6, 30) {
                let client = self.rng.below(5) as u32;
                match self.rng.below(10) {
                    0..=3 => self.write(client, 4),
                    4 => {
                        let range = self.range(4);
                        self.op(client, Action::Zeroes { range, fua: true, unmap: false });
                    }
                    5..=7 => self.op(client, Action::Flush),
                    8 => self.read(client, 4),
                    _ => self.sleep(client, 50_000),
                }
            }
            self.crash(30_000);
        }
    }

    fn full(&mut self) {
        const SECTORS: u64 = 4096;
        let shape = &mut self.plan.cache;
        (shape.bucket_sectors, shape.block_sectors, shape.buckets) = (8, 1, 513);
        let volume = &mut self.plan.volumes[0];
        (volume.sectors, volume.block_sectors) = (SECTORS, 1);
        volume.profile = self.rng.pick(&[Profile::Fast, Profile::Slow]);
        self.plan.set(0, "writeback_running", "0");
        let dirty = self.rng.between(22, 26);
        for at in 0..dirty {
            let range = SectorRange::new(Sector(at * 128), 128);
            self.op(at as u32 % 2, Action::Write { range, fua: false });
        }
        // Each of these leaves a little of two buckets, and takes a bucket and a half.
        for _ in 0..self.ops_max.saturating_sub(dirty).min(300) {
            let client = self.rng.below(5) as u32;
            let start = Sector(self.rng.below(dirty * 128 - 16));
            let range = SectorRange::new(start, self.rng.between(9, 14));
            match self.rng.below(16) {
                0 => self.op(client, Action::Zeroes { range, fua: false, unmap: false }),
                1 => self.op(client, Action::Read(range)),
                2 => self.sleep(client, 100_000),
                _ => self.op(client, Action::Write { range, fua: false }),
            }
            match self.rng.below(120) {
                0 => self.plan.set(0, "writeback_running", "1"),
                1 => self.plan.set(0, "cache_mode", "writearound"),
                2 => self.plan.control(1, ControlAction::CollectGarbage),
                3 => self.crash(100_000),
                _ => {}
            }
        }
    }
}
