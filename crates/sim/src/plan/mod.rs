//! Events of a run, as data.
//!
//! A plan is drawn from a seed ([`draw`]), printed as text lines and parsed back ([`text`]).
//! Everything in it is explicit, so that a plan can be edited by hand and cut by the shrinker. What
//! is left to the seed is the fine grain: who runs next, latencies, which sectors survive.

mod chains;
mod copies;
mod crowd;
mod death;
pub mod draw;
mod early;
mod faults;
mod flash;
mod fragments;
mod frontend;
mod generations;
mod handover;
mod hands;
mod larger;
mod lazy;
mod lossy;
mod many;
mod moves;
mod odd;
mod old_pointers;
mod pace;
mod partial;
mod remote;
mod replace;
mod scrub;
mod sizes;
mod smaller;
mod space;
mod starve;
mod stored;
mod sums;
mod targeted;
pub mod text;
mod tight;

pub use frontend::{Frontend, NbdShape, UblkShape, VhostShape};
pub use handover::DriverRun;
pub use hands::{Hand, HandAction, Remedy};
pub use lossy::LossyDisk;
pub use moves::MOVE;
pub use pace::Pace;
pub use remote::Remote;
pub use replace::LOSES;
pub use scrub::SCRUB;
pub use starve::Hammer;
pub use stored::Stored;
pub use sums::Sums;

use ubcache_env::{Nanos, Sector, SectorRange};
use ubcache_format::{
    Geometry, Replacement, SECTOR_BYTES, SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR, Superblock, Uuid,
};

use crate::disk::{Outage, Profile, Rates};
use crate::executor::Policy;
use crate::rng::mix;

/// See the module.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// Decides the fine grain of the run.
    pub seed: u64,
    /// Choice of the task that runs next.
    pub policy: Policy,
    /// A poll takes up to this much virtual time.
    pub poll_cost: Nanos,
    /// A timer fires up to this much late.
    pub timer_slop: Nanos,
    /// The power fails at the end, before the last check; otherwise the system stops in good order.
    pub last_crash: bool,
    /// The cache device and its format.
    pub cache: CacheShape,
    /// The way from clients to the volumes.
    pub frontend: Frontend,
    /// The volumes and their backing devices.
    pub volumes: Vec<VolumeShape>,
    /// Injected errors.
    pub faults: Vec<DiskFaults>,
    /// Disks whose failed flushes lose.
    pub lossy: Vec<LossyDisk>,
    /// Backing devices that are reached over the network.
    pub remotes: Vec<Remote>,
    /// Backing devices on an object store.
    pub stored: Vec<Stored>,
    /// Scarcity of memory for I/O.
    pub memory: Scarcity,
    /// Cost of loops.
    pub pace: Pace,
    /// Clients that never stop.
    pub hammers: Vec<Hammer>,
    /// The memory of writes changes while they are under way: a guest scribbles.
    pub scribble: bool,
    /// Memory that the system may use.
    pub sums: Sums,
    /// Requests of clients, each client in this order, the clients beside each other.
    pub ops: Vec<ClientOp>,
    /// Bytes of the memory that outlives the process; 0: there is none.
    pub kept_bytes: u32,
    /// Actions on the running system, in this order.
    pub controls: Vec<Control>,
    /// Actions on the disks while nothing runs, in this order.
    pub hands: Vec<Hand>,
}

/// The cache device.
#[derive(Clone, PartialEq, Debug)]
pub struct CacheShape {
    /// Sectors in a bucket.
    pub bucket_sectors: u32,
    /// Sectors in a block.
    pub block_sectors: u32,
    /// Buckets on the device.
    pub buckets: u32,
    /// Keys in a node of the index at most; 0: what fits.
    pub node_keys: u32,
    /// Extents of the index in memory at most.
    pub extents_in_memory: u32,
    /// Serve before the buckets are counted.
    pub lazy_start: bool,
    /// Volatile cache.
    pub volatile: bool,
    /// Discard does something.
    pub discard: bool,
    /// Latencies.
    pub profile: Profile,
    /// Generations that a bucket goes through before the first comes again: 256, or a part of that.
    pub generations: u32,
}

impl CacheShape {
    /// Number of generations that the format has.
    pub const ALL_GENERATIONS: u32 = 256;

    /// Range of the journal.
    fn journal(&self) -> SectorRange {
        let CacheShape { bucket_sectors, block_sectors, buckets, discard, .. } = *self;
        let none = Uuid::default();
        let kind = Replacement::Lru;
        let superblock = Superblock::new_cache(
            none,
            none,
            block_sectors,
            bucket_sectors,
            buckets,
            kind,
            discard,
        );
        let bucket = u64::from(bucket_sectors);
        let first = Sector(u64::from(superblock.first_bucket) * bucket);
        SectorRange::new(first, u64::from(Geometry::default_journal_buckets(buckets)) * bucket)
    }
}

/// A volume and its backing device.
#[derive(Clone, PartialEq, Debug)]
pub struct VolumeShape {
    /// Size in sectors.
    pub sectors: u64,
    /// `writethrough`, `writeback`, `writearound`, `none`.
    pub mode: String,
    /// Groups of 8 sectors, of 1000, that hold data at first; the others hold zeroes.
    pub initial: u32,
    /// Volatile cache.
    pub volatile: bool,
    /// Discard does something.
    pub discard: bool,
    /// True if discarded sectors read differently every time until they are written (D2).
    pub noise: bool,
    /// Sectors of the volume before those of the plan: unused.
    pub head: u64,
    /// Sectors in a block of the device.
    pub block_sectors: u32,
    /// Latencies.
    pub profile: Profile,
    /// It has no backing device; the one that there is stays unused.
    pub flash: bool,
    /// Its backing device says that it is behind a network.
    pub distant: bool,
}

/// Errors of one disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskFaults {
    /// 0: the cache device; 1…: the backing device of volume 0….
    pub disk: usize,
    /// The zone.
    pub zone: Zone,
    /// Frequencies.
    pub rates: Rates,
    /// Most faults in all.
    pub budget: u32,
}

/// Frequency of I/Os for which there is no memory.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Scarcity {
    /// Requests for memory that are refused, in a million.
    pub rate: u32,
    /// Refusals at most.
    pub budget: u32,
}

/// A part of a disk.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Zone {
    /// Everything.
    All,
    /// The superblock.
    Superblock,
    /// The journal; of the cache device only.
    Journal,
    /// These sectors.
    Sectors(SectorRange),
}

/// One thing that a client does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientOp {
    /// The client.
    pub client: u32,
    /// The volume.
    pub volume: u32,
    /// The action.
    pub action: Action,
}

/// Action of a client.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "they say what they are")]
pub enum Action {
    Read(SectorRange),
    Write { range: SectorRange, fua: bool },
    Discard { range: SectorRange, fua: bool },
    Zeroes { range: SectorRange, fua: bool, unmap: bool },
    Flush,
    Prefetch(SectorRange),
    Status(SectorRange),
    Sleep(Nanos),
}

/// One thing that is done to the system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Control {
    /// When this many client operations have been started, or all of them are done, …
    pub after_ops: u64,
    /// … and this much later.
    pub delay: Nanos,
    /// The action.
    pub action: ControlAction,
}

/// Action on the running system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ControlAction {
    /// Sets an attribute of a volume, for instance `cache_mode`.
    Attribute {
        /// The volume.
        volume: u32,
        /// Name of the attribute.
        name: String,
        /// The new value.
        value: String,
    },
    /// Starts a garbage collection.
    CollectGarbage,
    /// Evicts everything clean.
    EvictClean,
    /// The cache device gets so many buckets more, which the set has after the next clean stop.
    GrowCache(u32),
    /// The cache gets so many buckets less, unless that is cancelled after this time; then its
    /// device is cut.
    ShrinkCache(u32, Option<Nanos>),
    /// Stops the system when the clients pause, and starts it again.
    Restart(AfterStart),
    /// The same, and between the two the Linux driver has the set.
    Driver(DriverRun, AfterStart),
    /// The power fails.
    PowerFailure(AfterStart),
    /// The host restarts; the devices keep their power.
    HostRestart(AfterStart),
    /// The process dies. If it has kept memory, its clients do not notice. Where a start is not
    /// done in time, the process dies again.
    ProcessDeath {
        /// The process after this one has no kept memory; the one after that finds what this one
        /// has left.
        aside: bool,
        /// The next start.
        after: AfterStart,
    },
    /// Reads of the range of a disk fail until it is written.
    Bad {
        /// The disk, as in [`DiskFaults::disk`].
        disk: usize,
        /// The sectors.
        range: SectorRange,
    },
    /// Every connection to an NBD server is cut.
    Disconnect {
        /// Volume of the server.
        volume: u32,
    },
    /// A disk fails altogether, for a while, or until the program is gone.
    Outage {
        /// The disk, as in [`DiskFaults::disk`].
        disk: usize,
        /// Kind of failure.
        outage: Outage,
        /// Duration; none: until the program is gone.
        span: Option<Nanos>,
    },
    /// For so long there is no memory for I/O at all.
    NoMemory(Nanos),
}

impl ControlAction {
    /// The volume that it is about.
    pub fn volume(&self) -> Option<u32> {
        match self {
            ControlAction::Attribute { volume, .. } | ControlAction::Disconnect { volume } => {
                Some(*volume)
            }
            _ => None,
        }
    }

    /// Returns true if an instance ends with it.
    pub fn ends_instance(&self) -> bool {
        use ControlAction::{Driver, HostRestart, PowerFailure, ProcessDeath, Restart};
        matches!(
            self,
            Restart(_) | PowerFailure(_) | HostRestart(_) | ProcessDeath { .. } | Driver(..)
        )
    }

    /// The disk that it breaks, as in [`DiskFaults::disk`].
    pub fn broken_disk(&self) -> Option<usize> {
        match self {
            ControlAction::Bad { disk, .. } | ControlAction::Outage { disk, .. } => Some(*disk),
            _ => None,
        }
    }
}

/// Actions when the system comes up again.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct AfterStart {
    /// Read everything, evict everything clean, read everything, before clients go on.
    pub check: bool,
    /// The power fails (again), this long after the start began, if it is still going on.
    pub again: Option<Nanos>,
}

impl Plan {
    /// The superblock of the volume's backing device is in a header, and not on its disk.
    pub fn is_behind_header(&self, volume: usize) -> bool {
        let writes = |hand: &&Hand| {
            matches!(hand.action, HandAction::Write { .. } | HandAction::RollBack(_))
                && hand.disk == volume + 1
        };
        self.hands.iter().any(|hand| writes(&hand))
    }

    /// The volume's backing device is reached over the network.
    pub fn is_remote(&self, volume: usize) -> bool {
        self.remotes.iter().any(|remote| remote.volume == volume)
            || self.stored.iter().any(|stored| stored.volume == volume)
    }

    /// Number of clients.
    pub fn clients(&self) -> u32 {
        self.ops.iter().map(|op| op.client + 1).max().unwrap_or(0)
    }

    /// Adds an action for when every operation so far has begun, and a moment later.
    fn control(&mut self, delay_us: u64, action: ControlAction) {
        let after_ops = self.ops.len() as u64;
        self.controls.push(Control { after_ops, delay: Nanos::from_micros(delay_us), action });
    }

    /// Adds the setting of an attribute at that moment.
    fn set(&mut self, volume: u32, name: &str, value: &str) {
        let (name, value) = (name.to_owned(), value.to_owned());
        self.control(0, ControlAction::Attribute { volume, name, value });
    }

    /// Takes everything out that was drawn to happen: for a plan with a load of its own.
    fn clear_load(&mut self) {
        self.frontend = Frontend::Direct;
        self.memory = Scarcity::default();
        self.pace = Pace::default();
        (self.ops, self.controls, self.faults) = (Vec::new(), Vec::new(), Vec::new());
    }

    /// Buckets that the cache has in the end.
    pub(crate) fn buckets_max(&self) -> u32 {
        let grown = |control: &Control| match control.action {
            ControlAction::GrowCache(buckets) => buckets,
            _ => 0,
        };
        self.cache.buckets + self.controls.iter().map(grown).sum::<u32>()
    }

    /// Returns true if clients are served by lanes. Those of plans with a scrub are not: a mutant
    /// of scrubs takes many of these plans to be found, each with writes that come at once.
    pub fn has_lanes(&self) -> bool {
        // Of its own: other things that are drawn from the seed alone come with and without.
        mix(self.seed ^ 0x1a9e).is_multiple_of(4) && !self.has_scrub()
    }

    /// Returns true if clean data is compared with a backing device.
    fn has_scrub(&self) -> bool {
        let scrubs = |action: &ControlAction| match action {
            ControlAction::Attribute { name, .. } => name == SCRUB,
            _ => false,
        };
        self.controls.iter().any(|control| scrubs(&control.action))
    }

    /// Returns true if the cache becomes smaller.
    pub(crate) fn shrinks_cache(&self) -> bool {
        self.controls.iter().any(|control| matches!(control.action, ControlAction::ShrinkCache(..)))
    }

    /// Returns true if the Linux driver has the set between two runs.
    pub fn has_driver(&self) -> bool {
        self.controls.iter().any(|control| matches!(control.action, ControlAction::Driver(..)))
    }

    /// Returns true if a device fails in some way that clients may see, or memory runs out.
    pub fn has_faults(&self) -> bool {
        let breaks = |action: &ControlAction| match action {
            // A cache that can't grow is no failure: clients must not notice.
            ControlAction::Outage { disk: 0, outage: Outage::Full, .. } => false,
            ControlAction::NoMemory(_) => true,
            ControlAction::Attribute { name, value, .. } => {
                name == replace::REPLACE && value == replace::LOSES
            }
            action => action.broken_disk().is_some(),
        };
        !self.faults.is_empty()
            || self.remotes.iter().any(Remote::is_scant)
            || self.memory.rate > 0
            || self.controls.iter().any(|control| breaks(&control.action))
    }

    /// Returns true if the cache device is replaced by another one at some time.
    pub fn replaces_cache(&self) -> bool {
        self.controls.iter().any(|control| match &control.action {
            ControlAction::Attribute { name, .. } => name == replace::REPLACE,
            _ => false,
        })
    }

    /// Sectors of the journal.
    pub fn journal_sectors(&self) -> u64 {
        self.cache.journal().sectors()
    }

    /// The sectors of a zone; none: all of them.
    pub fn zone_range(&self, zone: Zone) -> Option<SectorRange> {
        match zone {
            Zone::All => None,
            Zone::Superblock => {
                let sectors = SUPERBLOCK_BYTES as u64 / SECTOR_BYTES;
                Some(SectorRange::new(SUPERBLOCK_SECTOR, sectors))
            }
            Zone::Journal => Some(self.cache.journal()),
            Zone::Sectors(range) => Some(range),
        }
    }

    /// The smallest unit of requests to a volume, in sectors.
    pub fn block_sectors(&self, volume: usize) -> u64 {
        u64::from(self.volumes[volume].block_sectors.max(self.cache.block_sectors))
    }
}

impl Action {
    /// The sectors that it is about.
    pub fn range(&self) -> Option<SectorRange> {
        match self {
            Action::Read(range) | Action::Prefetch(range) | Action::Status(range) => Some(*range),
            Action::Write { range, .. }
            | Action::Discard { range, .. }
            | Action::Zeroes { range, .. } => Some(*range),
            Action::Flush | Action::Sleep(_) => None,
        }
    }
}
