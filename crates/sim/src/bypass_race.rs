//! The race of a bypass write with a read (docs/internals/coherence.md §3), run on the real engine
//! in three chapters.
//!
//! 1. [`late_write`]: the backing device takes five seconds for a write; a client reads while it is
//!    under way.
//! 2. [`power_loss`]: a write over a cached block is answered, with FUA, and the power fails.
//! 3. [`busy_reader`]: no delays; writes of 1 MiB go past the cache, a small read is repeated
//!    without end.
//!
//! With a [`Rules`] the engine can be one of the protocols of old. The tests and the example
//! `bypass_write_race` run the same chapters.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use ubcache_engine::Rules;
use ubcache_env::{Buf, Env, IoVec, Nanos, Priority, Sector, SectorRange, StreamId, Volume};

use crate::cache_system::CacheSystem;
use crate::disk::SimDisk;
use crate::executor::{SimEnv, SimWorld, WorldConfig, show_time};
use crate::plan::{CacheShape, Plan};
use crate::runner::{RunOptions, run_plan};
use crate::system::{Command, Setup, System};
use crate::{DiskConfig, Profile};

/// The block that the first two chapters are about.
const BLOCK: SectorRange = SectorRange { start: Sector(64), end: Sector(72) };
const READER: StreamId = StreamId(1);
const WRITER: StreamId = StreamId(2);

/// Record of a run.
#[derive(Clone, Debug, Default)]
pub struct RaceRun {
    /// One event a line, with its virtual time.
    pub lines: Vec<String>,
    /// The violation, if there was one.
    pub wrong: Option<String>,
}

struct Stage {
    world: SimWorld,
    setup: Rc<Setup>,
    run: RefCell<RaceRun>,
}

type Served = Rc<<CacheSystem as System>::Volume>;

impl Stage {
    fn new(rules: Rules, seed: u64, profile: Profile) -> Rc<Stage> {
        let world = SimWorld::new(WorldConfig { timer_slop: Nanos(0), ..WorldConfig::new(seed) });
        let plan: Plan = format!(
            "ubcache-plan 1\n\
             world seed={seed} policy=uniform poll-cost-ns=500 timer-slop-ns=0 last-crash=0\n\
             cache bucket=16 block=8 buckets=513 node-keys=0 extents=500 lazy=0 volatile=1 \
             discard=0 profile=fast\n\
             volume sectors=1024 mode=writearound initial=0 volatile=1 discard=0 block=8 \
             profile=fast\n"
        )
        .parse()
        .expect("it is a plan");
        let CacheShape { bucket_sectors, buckets, .. } = plan.cache;
        let disk = |name: &str, sectors: u64, profile| {
            SimDisk::new(
                &world,
                DiskConfig {
                    block_bytes: 4096,
                    discard: false,
                    profile,
                    ..DiskConfig::new(name, sectors)
                },
            )
        };
        let first_cache =
            disk("cache", u64::from(bucket_sectors) * u64::from(buckets), Profile::Fast);
        let backing =
            vec![disk("backing", CacheSystem::DATA_AT.0 + plan.volumes[0].sectors, profile)];
        let setup = Rc::new(Setup {
            plan,
            rules,
            header_rules: Default::default(),
            first_cache,
            spare: None,
            replaced: Cell::new(false),
            servers: BTreeMap::new(),
            kept: None,
            kept_aside: Cell::new(false),
            backing: backing.into(),
            word: Default::default(),
        });
        CacheSystem::prepare(&setup);
        Rc::new(Stage { world, setup, run: RefCell::default() })
    }

    fn say(&self, text: impl AsRef<str>) {
        let line = format!("{:>14}  {}", show_time(self.world.now().0), text.as_ref());
        self.run.borrow_mut().lines.push(line);
    }

    fn wrong(&self, text: String) {
        self.say(format!("WRONG: {text}"));
        self.run.borrow_mut().wrong.get_or_insert(text);
    }

    async fn open(&self, env: &SimEnv) -> (CacheSystem, Served) {
        let system =
            CacheSystem::start(env.clone(), self.setup.clone()).await.expect("no device fails");
        let volume = system.volumes().swap_remove(0);
        (system, volume)
    }

    async fn write(&self, volume: &Served, byte: u8, fua: bool) {
        let how = if fua { "with FUA " } else { "" };
        self.say(format!("write of {byte:02x} {how}begins"));
        let data = IoVec::from(Buf::from_bytes(&vec![byte; BLOCK.bytes() as usize]));
        volume.write(WRITER, BLOCK, data, fua).await.expect("no device fails");
        self.say(format!("write of {byte:02x} is answered"));
    }

    /// Reads the block and logs it.
    async fn read(&self, volume: &Served, when: &str) -> u8 {
        let data = volume.read(READER, BLOCK).await.expect("no device fails").to_buf();
        let byte = data.as_slice()[0];
        assert!(
            data.as_slice().iter().all(|other| *other == byte),
            "a write of one block is not cut"
        );
        self.say(format!(
            "read {when}: {byte:02x}   (on the backing device: {:02x})",
            self.on_disk()
        ));
        byte
    }

    fn on_disk(&self) -> u8 {
        self.setup.backing[0].peek(BLOCK.shift(CacheSystem::DATA_AT.0 as i64))[0]
    }

    /// Reads, evicts, reads: both have to be what it must be.
    async fn must_be(&self, system: &CacheSystem, volume: &Served, byte: u8, when: &str) {
        let first = self.read(volume, when).await;
        if first != byte {
            self.wrong(format!("a read {when} returns {first:02x}, not {byte:02x}"));
        }
        system.control(Command::EvictClean).await.expect("no device fails");
        let second = self.read(volume, "when the clean copies have been evicted").await;
        if second != first {
            self.wrong(format!("the block turns from {first:02x} to {second:02x} without a write"));
        }
    }

    fn run(self: Rc<Stage>, main: impl Future<Output = ()> + 'static) -> RaceRun {
        self.world.run(main).expect("the run ends");
        self.world.end();
        self.run.take()
    }
}

/// A block of zeroes; writes take five seconds; the block is overwritten with ones and read one
/// second later, while the write is under way, and again when it has been answered for five
/// seconds: ones.
pub fn late_write(rules: Rules, seed: u64) -> RaceRun {
    let stage = Stage::new(rules, seed, Profile::LateWrites);
    let told = stage.clone();
    stage.clone().run(async move {
        let env = told.world.new_instance();
        let (system, volume) = told.open(&env).await;
        told.write(&volume, 0, false).await;
        let (inside, writer) = (told.clone(), volume.clone());
        env.spawn(Priority::Foreground, async move { inside.write(&writer, 1, false).await });
        env.sleep(Nanos::from_secs(1)).await;
        // Zeroes or ones, both are right: the write was not answered yet.
        told.read(&volume, "while the write is under way").await;
        env.sleep(Nanos::from_secs(9)).await;
        told.must_be(&system, &volume, 1, "after the write").await;
    })
}

/// A block of zeroes that is cached, durably; it is overwritten with ones, with FUA; when this is
/// answered the power fails. After the restart it is ones.
pub fn power_loss(rules: Rules, seed: u64) -> RaceRun {
    let stage = Stage::new(rules, seed, Profile::Fast);
    let told = stage.clone();
    stage.clone().run(async move {
        let env = told.world.new_instance();
        let (system, volume) = told.open(&env).await;
        told.write(&volume, 0, false).await;
        told.read(&volume, "once, so that it is cached").await;
        volume.flush(WRITER).await.expect("no device fails");
        env.sleep(Nanos::from_secs(20)).await;
        told.write(&volume, 1, true).await;
        told.world.kill(&env);
        drop((system, volume));
        for disk in std::iter::once(told.setup.cache()).chain(told.setup.backing.iter()) {
            disk.power_failure();
        }
        told.say("POWER FAILURE");
        let env = told.world.new_instance();
        let (system, volume) = told.open(&env).await;
        told.must_be(&system, &volume, 1, "after the restart").await;
    })
}

/// Writes of 1 MiB, long enough to go past the cache, and two readers: a small one whose misses are
/// cached, and a long one that goes past the cache as well. Whoever has seen a write, or was told
/// that it is done, must not see what was there before. The oracle judges.
pub fn busy_reader(rules: Rules, seed: u64) -> RaceRun {
    let mut plan = format!(
        "ubcache-plan 1\n\
         world seed={seed} policy=uniform poll-cost-ns=500 timer-slop-ns=0 last-crash=0\n\
         cache bucket=64 block=8 buckets=513 node-keys=0 extents=500 lazy=0 volatile=1 discard=0 \
         profile=fast\n\
         volume sectors=2048 mode=writethrough initial=1000 volatile=1 discard=0 block=8 \
         profile=fast\n\
         at 0 +0us set v0 sequential_cutoff 65536\n"
    );
    for _ in 0..30 {
        plan += "c0 v0 write 0+2048\nc1 v0 read 1024+8\nc1 v0 read 1024+8\nc1 v0 read 1024+8\nc2 \
            v0 read 0+2048\n";
    }
    let plan: Plan = plan.parse().expect("it is a plan");
    let outcome = run_plan::<CacheSystem>(&plan, RunOptions { rules, ..RunOptions::default() });
    let violation = outcome.violations.into_iter().next();
    let lines = match &violation {
        Some(violation) => shortened(&violation.report),
        None => vec![format!(
            "{} operations, {} device I/Os: nothing old was seen after something new",
            outcome.operations,
            outcome.cache.ios() + outcome.backing[0].ios()
        )],
    };
    RaceRun { lines, wrong: violation.map(|violation| violation.kind) }
}

/// Keeps what was read, what was allowed, and the last operations.
fn shortened(report: &str) -> Vec<String> {
    const ROWS: usize = 10;
    let (head, rows): (Vec<&str>, Vec<&str>) =
        report.lines().partition(|line| !line.starts_with("   "));
    let last = rows.len().saturating_sub(ROWS);
    head.into_iter().chain(rows[last..].iter().copied()).map(str::to_owned).collect()
}
