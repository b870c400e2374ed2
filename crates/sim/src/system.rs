//! The system that the runner drives: the real engine or a fake system.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use ubcache_engine::{Held, Rules};
use ubcache_env::joined::HeaderRules;
use ubcache_env::{Buf, Nanos, Sector, SectorRange, Volume};

use crate::backings::Backings;
use crate::crash::SimKept;
use crate::disk::{SimDisk, Snapshot};
use crate::executor::SimEnv;
use crate::far::Far;
use crate::oracle::Violation;
use crate::plan::{DriverRun, Plan, Remedy};
use crate::rng::Rng;

/// The devices of a run and what it is about. Survives crashes.
pub struct Setup {
    /// Plan of the run.
    pub plan: Plan,
    /// The broken rule of the engine.
    pub rules: Rules,
    /// The broken rule of headers.
    pub header_rules: HeaderRules,
    /// The cache device at first.
    pub first_cache: SimDisk,
    /// The one that may replace it, in some plans.
    pub spare: Option<SimDisk>,
    /// It has.
    pub replaced: Cell<bool>,
    /// The backing devices, one for each volume.
    pub backing: Backings,
    /// Servers and stores with the backing devices that are reached over the network, by volume.
    pub servers: BTreeMap<usize, Far>,
    /// Memory that outlives the process, of the first cache device and of the spare one, if the
    /// plan has any.
    pub kept: Option<[Rc<SimKept>; 2]>,
    /// The next process does not use it.
    pub kept_aside: Cell<bool>,
    /// Message to the next start, and its answer.
    pub word: Word,
}

impl Setup {
    /// The cache device.
    pub fn cache(&self) -> &SimDisk {
        self.spare.as_ref().filter(|_| self.replaced.get()).unwrap_or(&self.first_cache)
    }

    /// Kept memory of an instance with the present cache device, if it uses one.
    pub fn kept(&self) -> Option<Rc<SimKept>> {
        let kept = self.kept.as_ref().filter(|_| !self.kept_aside.get())?;
        Some(kept[usize::from(self.replaced.get())].clone())
    }
}

/// A start that refuses a volume names it, and gets a choice in return.
#[derive(Default)]
pub struct Word {
    /// The volume that was refused because its devices are not what they were.
    pub refused: Cell<Option<usize>>,
    /// Remedies, by volume.
    pub remedies: RefCell<BTreeMap<usize, Remedy>>,
}

/// A command to a system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Sets an attribute of a volume.
    Attribute {
        /// The volume.
        volume: usize,
        /// Name of the attribute.
        name: String,
        /// The new value.
        value: String,
    },
    /// Gives a volume the size that its disk has.
    Resize(usize),
    /// Gives the set the size that its cache device has, from the next clean stop on.
    GrowCache,
    /// Gives the cache fewer buckets, and then cuts its device.
    ShrinkCache {
        /// So many fewer.
        fewer: u32,
        /// It is cancelled after this time.
        cancel: Option<Nanos>,
    },
    /// Starts a garbage collection and waits for its end.
    CollectGarbage,
    /// Evicts everything clean.
    EvictClean,
}

/// Device with the newest data of a part of a volume.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Holder {
    /// On the cache device, from this sector on.
    Cache(Sector),
    /// On the backing device of the volume, from this sector on.
    Backing(Sector),
    /// Nowhere: it reads as zeroes.
    Nobody,
}

/// A part of a volume.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct PlacedRange {
    /// Its sectors.
    pub range: SectorRange,
    /// The device that has it.
    pub place: Holder,
}

/// The parts of a volume that are known, in order.
pub type Layout = Vec<PlacedRange>;

/// Something that serves volumes over simulated disks: one instance between a start and a stop or
/// crash.
#[allow(async_fn_in_trait, reason = "one thread, never boxed, no Send bound wanted")]
pub trait System: Sized + 'static {
    /// Volumes that it serves.
    type Volume: Volume;

    /// First sector of a volume's data on a backing device.
    const DATA_AT: Sector;
    /// True if a stop that reports no error leaves everything durable.
    const FLUSHES_AT_STOP: bool;
    /// True if it loses no answered request when its process dies and its kept memory does not.
    const OUTLIVES_DEATH: bool = false;

    /// Prepares new devices, before the first start.
    fn prepare(setup: &Setup);

    /// Starts on devices that an earlier instance may have used.
    async fn start(env: SimEnv, setup: Rc<Setup>) -> Result<Self, String>;

    /// The volumes, in the order of the plan.
    fn volumes(&self) -> Vec<Rc<Self::Volume>>;

    /// Carries out the command. A system may ignore commands without a meaning for it.
    async fn control(&self, command: Command) -> Result<(), String>;

    /// Stops in good order.
    async fn stop(&self) -> Result<(), String>;

    /// Looks at the disks, which are as a crash has left them, or might: where each volume is by
    /// them, as far as that is known, or what is wrong.
    fn inspect(
        _setup: &Setup,
        _cache: &Snapshot,
        _backing: &[Snapshot],
    ) -> Result<Vec<Layout>, Violation> {
        Ok(Vec::new())
    }

    /// The Linux driver has the devices between two instances; see [`crate::driver`]. `write`
    /// begins and ends a write of a client, and says what it writes. Says what happened.
    fn driver_runs(
        _setup: &Setup,
        _run: &DriverRun,
        _rng: &mut Rng,
        _write: &mut dyn FnMut(u32, SectorRange) -> Buf,
    ) -> Option<String> {
        None
    }

    /// Names the invariant that the volumes break, of those about memory. Asked between any two
    /// steps.
    fn inspect_memory(&self, _setup: &Setup) -> Option<Violation> {
        None
    }

    /// Counts what it holds beside buffers for I/O. Asked after every poll.
    fn held(&self) -> Held {
        Held::default()
    }

    /// Faults inside, as far as the system itself can tell. Asked when no operation is under way.
    fn complaints(&self) -> Vec<String> {
        Vec::new()
    }
}
