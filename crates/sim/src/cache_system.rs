//! The cache engine as a [`System`].

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ubcache_engine::inspect::CopyState;
use ubcache_engine::{
    AttachOptions, CacheSet, CacheUse, CachedVolume, Choice, EngineError, Exported, FlashVolume,
    Generations, Held, MoveEnd, MoveNames, NotMoved, ReadAheadTuning, ServedVolume, SetOptions,
    Tuning,
};
use ubcache_env::{Buf, Env, KeptMemory, Nanos, Priority, Sector, SectorRange};
use ubcache_format::{
    CacheMode, DEFAULT_DATA_OFFSET, OwnPolicy, Replacement, SECTOR_BYTES, SUPERBLOCK_BYTES,
    SUPERBLOCK_SECTOR, Superblock, Uuid,
};

use crate::disk::{SimDisk, Snapshot};
use crate::driver;
use crate::executor::SimEnv;
use crate::inspect::check_disks;
use crate::lanes::{ClientVolume, LaneDisk, Letters};
use crate::memory_invariants::{check_remote_volume, check_set_view, check_volume};
use crate::oracle::Violation;
use crate::plan::{CacheShape, DriverRun, LOSES, MOVE, Plan, Remedy, SCRUB};
use crate::rng::{Rng, mix};
use crate::system::{Command, Layout, Setup, System};

/// One instance of the engine: a cache set with every volume of the plan attached.
pub struct CacheSystem {
    env: SimEnv,
    setup: Rc<Setup>,
    set: RefCell<CacheSet<SimEnv>>,
    /// Its cache device.
    cache: RefCell<SimDisk>,
    /// The set whose cache device was replaced.
    former: RefCell<Option<CacheSet<SimEnv>>>,
    /// Its volumes leave it, and are not attached to it any more.
    leaving: Cell<bool>,
    volumes: Vec<Rc<ServedVolume<SimEnv>>>,
    /// The volume after them, if the plan has one without a backing device.
    flash: Option<Rc<FlashVolume<SimEnv>>>,
    has_faults: bool,
}

fn uuid(seed: u64, name: &str) -> Uuid {
    let mut rng = Rng::fork(seed, name);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&rng.bits().to_be_bytes());
    bytes[8..].copy_from_slice(&rng.bits().to_be_bytes());
    Uuid(bytes)
}

/// The superblock of a disk as it is, if it can be read.
fn superblock_of(disk: &SimDisk) -> Option<Superblock> {
    let bytes =
        disk.peek(SectorRange::new(SUPERBLOCK_SECTOR, SUPERBLOCK_BYTES as u64 / SECTOR_BYTES));
    Superblock::parse(&bytes).ok()
}

/// The superblock of a cache device, of another set for each name.
fn new_cache(setup: &Setup, name: &str) -> Superblock {
    let Plan { seed, cache, .. } = &setup.plan;
    let replacement = match mix(*seed) % 6 {
        0 | 3 | 4 => Replacement::Lru,
        1 => Replacement::Fifo,
        _ => Replacement::Random,
    };
    let mut superblock = Superblock::new_cache(
        uuid(*seed, &format!("cache{name}")),
        uuid(*seed, &format!("set{name}")),
        cache.block_sectors,
        cache.bucket_sectors,
        cache.buckets,
        replacement,
        cache.discard,
    );
    // A policy of the driver's is as likely as one of the others.
    superblock.set_begins_with(match mix(*seed) % 6 {
        0 => OwnPolicy::Adaptive,
        4 => OwnPolicy::ScanResistant,
        _ => OwnPolicy::None,
    });
    superblock
}

/// The engine's word for an operator's choice.
fn choice(remedy: &Remedy) -> Choice {
    match remedy {
        Remedy::BelieveCache => Choice::BelieveCache,
        Remedy::DropClean => Choice::DropClean,
        Remedy::BelieveDisk | Remedy::PutBack => Choice::BelieveDisk,
    }
}

fn mode(name: &str) -> CacheMode {
    match name {
        "writeback" => CacheMode::Writeback,
        "writearound" => CacheMode::Writearound,
        "none" => CacheMode::None,
        _ => CacheMode::Writethrough,
    }
}

/// The backing devices, each with the number of its volume.
fn backing_of(setup: &Setup) -> impl Iterator<Item = (usize, &SimDisk)> {
    let disks = setup.plan.volumes.iter().zip(setup.backing.iter()).enumerate();
    disks.filter(|(_, (shape, _))| !shape.flash).map(|(index, (_, disk))| (index, disk))
}

/// A backing device as the engine gets it.
async fn device(
    env: &SimEnv,
    setup: &Setup,
    index: usize,
    disk: &SimDisk,
) -> Result<SimDisk, String> {
    if let Some(server) = setup.servers.get(&index) {
        return server.open(env).await;
    }
    match setup.plan.is_behind_header(index) && setup.backing.is_first(index) {
        true => disk.behind_header(setup.header_rules).await,
        false => Ok(disk.clone()),
    }
}

/// Label of the flash-only volume of a plan; it is the last one.
fn flash_label(plan: &Plan) -> Option<String> {
    let last = plan.volumes.len() - 1;
    plan.volumes[last].flash.then(|| format!("v{last}"))
}

/// Serves the flash-only volume of a plan; makes it at the first start.
async fn open_flash(
    set: &CacheSet<SimEnv>,
    plan: &Plan,
) -> Result<Option<Rc<FlashVolume<SimEnv>>>, EngineError> {
    let Some(label) = flash_label(plan) else { return Ok(None) };
    let sectors = plan.volumes[plan.volumes.len() - 1].sectors;
    let found = set.flash_volumes().into_iter().find(|slot| slot.label == label);
    let uuid = match found {
        Some(slot) => slot.uuid,
        None => set.create_flash(&label, sectors).await?,
    };
    set.open_flash(uuid, &label, false).map(Some)
}

fn options(setup: &Setup) -> SetOptions {
    let shape = &setup.plan.cache;
    let generations = match CacheShape::ALL_GENERATIONS / shape.generations {
        ..=1 => Generations::default(),
        step => {
            Generations { step: step as u8, rewrite_age: 2 * step as u8, ..Generations::default() }
        }
    };
    let standard = Tuning::default();
    SetOptions {
        tuning: Tuning {
            slice_steps: match setup.plan.pace.slice {
                0 => standard.slice_steps,
                slice => slice as usize,
            },
            fill_bytes_max: match setup.plan.sums.fill_bytes {
                0 => standard.fill_bytes_max,
                bytes => bytes,
            },
            unpublished_max: match setup.plan.sums.copies {
                0 => standard.unpublished_max,
                copies => copies as usize,
            },
            node_keys_max: (shape.node_keys > 0).then_some(shape.node_keys as usize),
            lazy_start: shape.lazy_start,
            extents_in_memory_max: shape.extents_in_memory as usize,
            generations,
            // Small, so that requests of plans exceed it.
            move_sectors: [8, 64, 256][mix(setup.plan.seed) as usize % 3],
            move_checkpoint_sectors: [8, 64][mix(!setup.plan.seed) as usize % 2],
            split_above: if mix(setup.plan.seed).is_multiple_of(3) {
                16
            } else {
                standard.split_above
            },
            // Several batches, in volumes that are small.
            // Small, so that short streams are read ahead of.
            read_ahead: ReadAheadTuning {
                start_sectors: 4,
                piece_sectors_min: 8,
                piece_sectors_max: 32,
                window_sectors_max: 256,
                latency_min: Nanos(0),
                unused_after: Nanos::from_millis(500),
            },
            batch_sectors_max: if mix(!setup.plan.seed).is_multiple_of(2) {
                32
            } else {
                standard.batch_sectors_max
            },
            ..standard
        },
        kept: setup.kept().map(|kept| -> Rc<dyn KeptMemory> { kept }),
        rules: setup.rules,
        ..SetOptions::default()
    }
}

/// Interval between two looks at an awaited state.
const LOOK_AGAIN: Nanos = Nanos::from_millis(1);

/// Rest of an outage of a backing device up to which the end of writeback is awaited. A run with
/// clients that never stop waits 20 s for everything.
const OUTAGE_ENDURED: Nanos = Nanos::from_secs(5);

impl CacheSystem {
    /// Waits until a volume that leaves writeback has no dirty data, if its backing device takes it
    /// in time: what has no place to go stays dirty.
    async fn until_clean(&self, index: usize) -> Result<(), String> {
        let disk = &self.setup.backing[index];
        let leaves = || {
            let volume = self.volumes[index].current();
            volume.mode() != CacheMode::Writeback
                && self.set().status().failed.is_none()
                && volume.status().dirty_bytes > 0
        };
        let mut hurried: Option<Rc<CachedVolume<SimEnv>>> = None;
        while leaves() && disk.outage_left() <= OUTAGE_ENDURED {
            let volume = self.volumes[index].current();
            // A volume that was opened again meanwhile has the settings of a new one.
            if hurried.as_ref().is_none_or(|hurried| !Rc::ptr_eq(hurried, &volume)) {
                for name in ["writeback_percent", "writeback_delay"] {
                    volume.set_attribute(name, "0").map_err(|error| error.to_string())?;
                }
                hurried = Some(volume);
            }
            self.env.sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Waits until the copies that wait now have their keys (C2).
    async fn until_published(&self, volume: &CachedVolume<SimEnv>) -> Result<(), String> {
        let waiting = || {
            let copies = volume.inspect().copies;
            copies
                .into_iter()
                .filter(|copy| copy.state == CopyState::Unpublished)
                .collect::<Vec<_>>()
        };
        let before = waiting();
        while waiting().iter().any(|copy| before.contains(copy))
            && self.set().status().failed.is_none()
        {
            self.env.sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    fn set(&self) -> CacheSet<SimEnv> {
        self.set.borrow().clone()
    }

    /// Replaces the cache device by the spare one, as soon as no volume needs it (A8). With `loses`
    /// the first flush of each backing device for the new cache fails.
    async fn replace_cache(&self, loses: bool) -> Result<(), EngineError> {
        if self.setup.replaced.get() || self.setup.spare.is_none() || self.leaving.replace(true) {
            return Ok(());
        }
        let old = self.set();
        for served in &self.volumes {
            let volume = served.current();
            let left = loop {
                let detached = match volume.needs_no_cache() {
                    true => Ok(()),
                    false => old.detach(&volume).await,
                };
                // A detach may fail because the cache does, which is a way to leave it as well.
                if detached.is_err() && !volume.needs_no_cache() {
                    break detached;
                }
                match volume.leave_cache().await {
                    // An attach was under way.
                    Err(EngineError::AlreadyAttached(_)) => {}
                    left => break left,
                }
            };
            if let Err(error) = left {
                // Plans do not know if the device takes what is dirty.
                self.leaving.set(false);
                return if self.has_faults { Ok(()) } else { Err(error) };
            }
        }
        self.setup.replaced.set(true);
        let cache = self.setup.cache();
        cache.poke(SUPERBLOCK_SECTOR, &new_cache(&self.setup, "spare").encode());
        let opened = CacheSet::open(self.env.clone(), cache.clone(), options(&self.setup)).await;
        let set = match opened {
            Ok(set) => set,
            Err(_) if self.has_faults => return Ok(()),
            Err(error) => return Err(error),
        };
        *self.former.borrow_mut() = Some(self.set.replace(set.clone()));
        *self.cache.borrow_mut() = self.setup.cache().clone();
        for (served, backing) in self.volumes.iter().zip(self.setup.backing.iter()) {
            let exchange = served.exchange().await;
            let mut adopted = None;
            if loses {
                backing.fail_next_flush();
                adopted = set.adopt(&served.current()).await.ok();
            }
            let adopted = match adopted {
                Some(volume) => Ok(volume),
                None => set.adopt(&served.current()).await,
            };
            match adopted {
                Ok(volume) => exchange.replace(volume),
                Err(_) if self.has_faults => {}
                Err(error) => return Err(error),
            }
        }
        self.leaving.set(false);
        Ok(())
    }

    /// Moves a volume to the disk that it does not have (A11).
    async fn move_backing(&self, index: usize) -> Result<(), EngineError> {
        let Some(disk) = self.setup.backing.other(index) else { return Ok(()) };
        let (served, set) = (&self.volumes[index], self.set());
        let moving = set.begin_move(&served.current(), disk.clone(), MoveNames::default()).await?;
        moving.copy().await?;
        let exchange = served.exchange().await;
        match set.end_move(&moving).await {
            Ok(volume) => {
                self.setup.backing.switch();
                exchange.replace(volume);
                Ok(())
            }
            Err(NotMoved { error, volume }) => {
                volume.into_iter().for_each(|volume| exchange.replace(volume));
                Err(error)
            }
        }
    }

    /// Makes the cache smaller, and cuts its device (A12).
    async fn shrink_cache(&self, fewer: u32, cancel: Option<Nanos>) -> Result<(), String> {
        let (set, disk) = (self.set(), self.cache.borrow().clone());
        let status = set.status();
        let less = u64::from(fewer) * status.bucket_bytes;
        let shrunk = match set.begin_shrink(status.size_bytes.saturating_sub(less)).await {
            Ok(shrink) => {
                let shrink = Rc::new(shrink);
                if let Some(after) = cancel {
                    let (env, shrink) = (self.env.clone(), Rc::downgrade(&shrink));
                    self.env.spawn(Priority::Background, async move {
                        env.sleep(after).await;
                        shrink.upgrade().iter().for_each(|shrink| shrink.give_up());
                    });
                }
                shrink.run().await
            }
            Err(error) => Err(error),
        };
        match shrunk {
            Ok(resized) => disk.cut(resized.after),
            Err(
                EngineError::CacheTooSmall { .. }
                | EngineError::DoesNotFit { .. }
                | EngineError::Resizing
                | EngineError::ShrinkEnded(_)
                | EngineError::Stopping,
            ) => {}
            Err(error) => return Err(error.to_string()),
        }
        Ok(())
    }

    /// Ends a volume and attaches its backing device again.
    async fn reopen(&self, index: usize, value: &str) -> Result<(), EngineError> {
        let (served, set) = (&self.volumes[index], self.set());
        if value == "drained" {
            set.drain(&served.current()).await?;
        }
        let exchange = served.exchange().await;
        let released = set.release(&served.current(), value == "drained").await?;
        if let Some(error) = released {
            return Err(error);
        }
        let cache = if value == "stay" { CacheUse::UnlessDetached } else { CacheUse::Cached };
        let options = AttachOptions { name: format!("v{index}"), cache, ..Default::default() };
        let disk = device(&self.env, &self.setup, index, &self.setup.backing[index]).await;
        let volume = set.attach(disk.expect("its header was read before"), options).await?;
        exchange.replace(volume);
        Ok(())
    }
}

/// A11: of the two disks that a volume may have, the one that does not count is refused.
async fn refuse_other_disk(
    setup: &Setup,
    set: &CacheSet<SimEnv>,
    index: usize,
) -> Result<(), String> {
    let Some(other) = setup.backing.other(index) else { return Ok(()) };
    match set.attach(other.clone(), AttachOptions::default()).await {
        Ok(_) => Err(format!("volume {index} is taken from the disk that does not count")),
        Err(_) => Ok(()),
    }
}

/// Starts a scrub of this rate, unless one is under way.
fn start_scrub(volume: &CachedVolume<SimEnv>, rate: &str) -> Result<(), EngineError> {
    volume.set_attribute("scrub_rate", rate).expect("plans have good rates");
    volume.start_scrub().map(drop)
}

impl System for CacheSystem {
    type Volume = ClientVolume;
    const DATA_AT: Sector = DEFAULT_DATA_OFFSET;
    const FLUSHES_AT_STOP: bool = true;
    const OUTLIVES_DEATH: bool = true;

    fn prepare(setup: &Setup) {
        let Plan { seed, volumes, .. } = &setup.plan;
        setup.cache().poke(SUPERBLOCK_SECTOR, &new_cache(setup, "").encode());
        for (index, (shape, disk)) in volumes.iter().zip(setup.backing.iter()).enumerate() {
            if shape.flash {
                continue;
            }
            let name = format!("v{index}");
            let superblock = Superblock::new_backing(
                uuid(*seed, &name),
                Uuid::default(),
                setup.plan.block_sectors(index) as u32,
                DEFAULT_DATA_OFFSET,
                mode(&shape.mode),
                &name,
            );
            disk.poke(SUPERBLOCK_SECTOR, &superblock.encode());
            if setup.plan.is_behind_header(index) {
                disk.poke_header(superblock.uuid);
            }
        }
    }

    async fn start(env: SimEnv, setup: Rc<Setup>) -> Result<Self, String> {
        let mut options = options(&setup);
        // A daemon says beforehand which devices are coming; not in every plan.
        let superblocks: Vec<_> = setup.backing.iter().map(superblock_of).collect();
        if mix(setup.plan.seed).is_multiple_of(2) {
            let remedies = setup.word.remedies.borrow();
            let unchosen =
                superblocks.iter().enumerate().filter(|(index, _)| !remedies.contains_key(index));
            options.expected = unchosen.filter_map(|(_, superblock)| superblock.clone()).collect();
        }
        let set =
            CacheSet::open(env.clone(), setup.cache().clone(), options).await.map_err(|error| {
                if let EngineError::OlderCopy { uuid, .. } = &error {
                    let is_it = |superblock: &Option<Superblock>| {
                        superblock.as_ref().is_some_and(|it| it.uuid == *uuid)
                    };
                    setup.word.refused.set(superblocks.iter().position(is_it));
                }
                format!("opening the set: {error}")
            })?;
        // A policy that is changed while the set runs, at every start.
        if mix(setup.plan.seed).is_multiple_of(12) {
            for policy in ["lru", "scan-resistant", "adaptive", "two-queue"] {
                set.set_attribute("cache_replacement_policy", policy)
                    .map_err(|error| error.to_string())?;
            }
        }
        if setup.plan.shrinks_cache() {
            set.take_last_first();
        }
        let mut volumes = Vec::new();
        for (index, disk) in backing_of(&setup) {
            refuse_other_disk(&setup, &set, index).await?;
            let choice = setup.word.remedies.borrow().get(&index).map(choice);
            let options =
                AttachOptions { name: format!("v{index}"), choice, ..AttachOptions::default() };
            let volume = set.attach(device(&env, &setup, index, disk).await?, options).await;
            use EngineError::{BeyondEnd, DirtyElsewhere, OlderCopy, WouldLose};
            use EngineError::{Resized, WrittenElsewhere};
            if let Err(
                OlderCopy { .. }
                | WouldLose(_)
                | BeyondEnd { .. }
                | DirtyElsewhere { .. }
                | WrittenElsewhere { .. }
                | Resized { .. },
            ) = &volume
            {
                setup.word.refused.set(Some(index));
            }
            let volume = volume.map_err(|error| format!("attaching volume {index}: {error}"))?;
            volumes.push(Rc::new(ServedVolume::new(volume)));
        }
        let flash = open_flash(&set, &setup.plan).await.map_err(|error| error.to_string())?;
        Ok(CacheSystem {
            env,
            set: RefCell::new(set),
            cache: RefCell::new(setup.cache().clone()),
            former: RefCell::default(),
            leaving: Cell::new(false),
            volumes,
            flash,
            has_faults: setup.plan.has_faults(),
            setup,
        })
    }

    fn volumes(&self) -> Vec<Rc<Self::Volume>> {
        let cached = self.volumes.iter().map(|volume| Exported::Cached(volume.clone()));
        let flash = self.flash.iter().map(|volume| Exported::Flash(volume.clone()));
        let lane = (
            self.set().status().uuid,
            Rc::new(LaneDisk::new(self.env.clone(), self.cache.borrow().clone())),
        );
        let clients = cached.chain(flash).map(|volume| {
            let owner = Letters::new(self.env.clone(), volume, self.setup.plan.has_lanes());
            Rc::new(ClientVolume::new(self.env.clone(), Rc::new(owner), lane.clone()))
        });
        clients.collect()
    }

    async fn control(&self, command: Command) -> Result<(), String> {
        match command {
            Command::Attribute { volume, name, value } => {
                let index = volume;
                // The flash-only volume has no such attributes.
                let Some(served) = self.volumes.get(index) else { return Ok(()) };
                let (volume, set) = (&served.current(), self.set());
                let done = match name.as_str() {
                    "until-clean" => return self.until_clean(index).await,
                    "until-published" => return self.until_published(volume).await,
                    "detach" => set.detach(volume).await,
                    "attach" if self.leaving.get() || !set.has(volume) => Ok(()),
                    "attach" => set.attach_again(volume).await,
                    "drain" => set.drain(volume).await,
                    SCRUB => start_scrub(volume, &value),
                    "reopen" => self.reopen(index, &value).await,
                    MOVE => self.move_backing(index).await,
                    "replace-cache" => self.replace_cache(value == LOSES).await,
                    _ => {
                        return volume
                            .set_attribute(&name, &value)
                            .map_err(|error| error.to_string());
                    }
                };
                match done {
                    // Plans do not know what state the volume is in.
                    Ok(())
                    | Err(
                        EngineError::NotAttached
                        | EngineError::AlreadyAttached(_)
                        | EngineError::NotOfThisSet(_)
                        | EngineError::Removed(_)
                        | EngineError::Moving
                        | EngineError::CannotMove(_)
                        | EngineError::MoveEnded(MoveEnd::Cancelled | MoveEnd::Suspended)
                        | EngineError::Stopping,
                    ) => Ok(()),
                    Err(error) => Err(error.to_string()),
                }
            }
            Command::Resize(volume) => {
                let volume = self.volumes[volume].current();
                let resized = self.set().resize(&volume, true).await;
                resized.map(|_| ()).map_err(|error| error.to_string())
            }
            Command::GrowCache => match self.set().grow_at_stop().await {
                // Its superblock has them since a stop that a crash followed.
                Ok(_)
                | Err(
                    EngineError::NoMoreBuckets { .. }
                    | EngineError::Resizing
                    | EngineError::Stopping,
                ) => Ok(()),
                Err(error) => Err(error.to_string()),
            },
            Command::ShrinkCache { fewer, cancel } => self.shrink_cache(fewer, cancel).await,
            Command::CollectGarbage => match self.set().trigger_gc().await {
                // A pass over a full cache may find no bucket to merge leaves in.
                Ok(()) | Err(EngineError::NoSpace(_)) => Ok(()),
                Err(error) => Err(error.to_string()),
            },
            Command::EvictClean => {
                self.set().evict_all_clean().await.map_err(|error| error.to_string())
            }
        }
    }

    fn inspect(
        setup: &Setup,
        cache: &Snapshot,
        backing: &[Snapshot],
    ) -> Result<Vec<Layout>, Violation> {
        let flash = flash_label(&setup.plan);
        let backed = backing.len() - flash.iter().count();
        let own = !setup.plan.has_driver();
        check_disks(cache, &backing[..backed], flash.as_deref(), own)
    }

    fn driver_runs(
        setup: &Setup,
        run: &DriverRun,
        rng: &mut Rng,
        write: &mut dyn FnMut(u32, SectorRange) -> Buf,
    ) -> Option<String> {
        driver::run(setup, run, rng, write)
    }

    fn inspect_memory(&self, setup: &Setup) -> Option<Violation> {
        let volumes = self.volumes.iter().zip(setup.backing.iter());
        let (set, cache) = (self.set(), self.cache.borrow());
        let mut checks = volumes.enumerate().map(|(index, (served, backing))| {
            let volume = served.current();
            let cache = if set.has(&volume) { &*cache } else { &setup.first_cache };
            let check =
                if setup.servers.contains_key(&index) { check_remote_volume } else { check_volume };
            check(&volume.inspect(), cache, backing, Self::DATA_AT)
        });
        checks.find_map(|violation| violation).or_else(|| check_set_view(&self.set().inspect()))
    }

    fn held(&self) -> Held {
        self.set().held()
    }

    fn complaints(&self) -> Vec<String> {
        // Without faults the set does not fail, even if a volume could go on without it.
        let failure = self.set().status().failed.filter(|_| !self.has_faults);
        let failure = failure.map(|reason| format!("the set has failed: {reason}"));
        // Devices return what was written, so a difference is a broken promise.
        let differs = self.volumes.iter().filter_map(|served| {
            let status = served.current().status();
            let bytes = status.stats.scrub_differing_bytes;
            (bytes > 0).then(|| format!("a scrub of {} found {bytes} bytes", status.name))
        });
        failure.into_iter().chain(differs).collect()
    }

    async fn stop(&self) -> Result<(), String> {
        let former = self.former.borrow_mut().take();
        if let Some(former) = former {
            let needed = self.volumes.iter().any(|served| former.has(&served.current()));
            let ended = former.stop().await;
            if needed {
                ended.map_err(|error| error.to_string())?;
            }
        }
        self.set().stop().await.map_err(|error| error.to_string())
    }
}
