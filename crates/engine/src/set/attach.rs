//! Backing devices: which may be attached, what is written when one is.

use std::rc::Rc;

use ubcache_env::{Env, Witness};
use ubcache_format::{BackingState, Inode, MoveRole, Sector, Superblock, Uuid, UuidEntry};

use super::run_numbers::{Choice, check_run};
use super::{CacheSet, Set};
use crate::counted_device::CountedDevice;
use crate::errors::EngineError;
use crate::rules::Rule;
use crate::superblock::{read_superblock, write_superblock};
use crate::volume::{Attached, CachedVolume, Core};

/// No slot of the volume table.
const NO_SLOT: Inode = Inode(u32::MAX);

/// Use that a volume makes of the cache when it is attached.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum CacheUse {
    /// It is cached, also if it was detached before.
    #[default]
    Cached,
    /// It is cached, unless it was detached: then it stays so.
    UnlessDetached,
    /// It is not cached: its own cache is missing. A dirty one is refused.
    Uncached,
}

/// Options for attaching a backing device.
#[derive(Clone, Debug, Default)]
pub struct AttachOptions {
    /// Name of the export; the label of the device if empty.
    pub name: String,
    /// Refuse writes of clients.
    pub read_only: bool,
    /// Its use of the cache.
    pub cache: CacheUse,
    /// Member whose data counts if the cache and the device are not of one run; `None`: the device
    /// is refused.
    pub choice: Option<Choice>,
}

impl<E: Env> CacheSet<E> {
    /// Attaches a backing device and starts its volume (docs/reference/format.md §10.2). Also takes
    /// up a device that is not attached to any set; refuses one that has data in another cache.
    pub async fn attach(
        &self,
        backing: E::Device,
        options: AttachOptions,
    ) -> Result<Rc<CachedVolume<E>>, EngineError> {
        let set = &self.set;
        let _one = set.attach_lock.lock().await;
        if let Some(reason) = set.context.failure() {
            return Err(EngineError::Failed(reason));
        }
        let (env, rules) = (set.context.env.clone(), set.context.rules);
        let backing = Rc::new(CountedDevice::of_backing(env, backing, rules));
        let mut superblock = read_superblock(&backing).await?;
        // A13: what is written from now on is not in the log of that attempt.
        let attempt =
            superblock.attempt(MoveRole::Left).filter(|_| superblock.run().number().is_some());
        superblock.set_attempt(None);
        if superblock.is_cache() {
            return Err(EngineError::WrongKind { found: "cache", expected: "backing" });
        }
        if set.served().iter().any(|volume| volume.uuid() == superblock.uuid) {
            return Err(EngineError::AlreadyAttached(superblock.uuid));
        }
        if superblock.block_sectors < set.context.geometry.block_sectors {
            let (backing, cache) = (superblock.block_sectors, set.context.geometry.block_sectors);
            return Err(EngineError::BlockTooSmall { backing, cache });
        }
        let set_uuid = set.superblock.borrow().set_uuid;
        let state = superblock.state();
        let stays_detached = match options.cache {
            CacheUse::Cached => false,
            // The driver leaves a detached one like this; a new one names some set.
            CacheUse::UnlessDetached => {
                state == BackingState::None && superblock.set_uuid == Uuid::default()
            }
            CacheUse::Uncached => true,
        };
        if stays_detached {
            return set.serve_detached(backing, superblock, options).await;
        }
        let attached = matches!(state, BackingState::Clean | BackingState::Dirty);
        if attached && superblock.set_uuid != set_uuid {
            let state = if state == BackingState::Clean { "clean" } else { "dirty" };
            return Err(EngineError::OtherSet {
                found: superblock.set_uuid,
                expected: set_uuid,
                state,
            });
        }
        let slot = set.table.slot_of(superblock.uuid);
        if state == BackingState::Dirty && slot.is_none() {
            return Err(EngineError::DirtyElsewhere { uuid: superblock.uuid, set: set_uuid });
        }
        let mut choice = set.choice_between_runs(slot, &superblock, options.choice).await?;
        let mut witness = Witness::Unneeded;
        if attached && slot.is_some() && choice.is_none() {
            let seen = backing.witness().await;
            witness =
                seen.map_err(EngineError::io("comparing the disk with what was left of it"))?;
            choice = set.choice_by_witness(&witness, (slot, &superblock), options.choice).await?;
        }
        // A1: a write of an earlier instance may sit in the device's cache.
        if set.context.keeps(Rule::A1FlushAtAttach) {
            backing.flush().await.map_err(EngineError::io("flushing the backing device"))?;
        }
        // A13: of a run of the driver the log of a move knows nothing. The entry is about to
        // change.
        let entry = slot.and_then(|slot| set.superblock.borrow().runs().entry(Inode(slot as u32)));
        let driver_since = entry.is_none_or(|entry| entry.driver_since);
        let inode = match slot {
            Some(slot) if attached && matches!(choice, None | Some(Choice::BelieveCache)) => {
                let inode = Inode(slot as u32);
                if state == BackingState::Dirty {
                    set.context.env.mark("attached_dirty");
                }
                set.fit_to_size(inode, backing.limits().sectors).await?;
                if choice.is_some() {
                    set.context.env.mark("cache_believed");
                    set.drop_clean(inode, Sector(0)).await?;
                }
                if choice.is_some() && witness == Witness::Unneeded {
                    // Dirty data may be under a device that says clean. It says dirty before it is
                    // of one run with the cache.
                    superblock.set_state(BackingState::Dirty);
                    write_superblock(&backing, &superblock, "writing the backing superblock")
                        .await?;
                }
                set.announce_run(inode, &mut superblock).await.map_err(EngineError::of_cache)?;
                inode
            }
            _ => {
                // A2: it may have been written without the cache since: what is cached of it is
                // void.
                if choice.is_some() {
                    set.context.env.mark("disk_believed");
                }
                let inode =
                    set.take_slot(slot, &mut superblock).await.map_err(EngineError::of_cache)?;
                superblock.set_uuid = set_uuid;
                superblock.set_state(BackingState::Clean);
                set.context.env.mark("attached_anew");
                inode
            }
        };
        const WRITING: &str = "writing the backing superblock";
        if set.context.keeps(Rule::A1FlushAtAttach) {
            write_superblock(&backing, &superblock, WRITING).await?;
        }
        #[cfg(feature = "mutants")]
        if !set.context.keeps(Rule::A1FlushAtAttach) {
            crate::mutants::write_superblock_unflushed(&backing, &superblock, WRITING).await?;
        }
        set.confirm_run(inode, &superblock).await.map_err(EngineError::of_cache)?;
        let is_as_left = slot == Some(inode.0 as usize)
            && choice.is_none()
            && set.taken_over.get().is_none()
            && !driver_since;
        let volume = set.volume(backing, superblock, inode, options);
        if let Some(attempt) = attempt.filter(|_| is_as_left) {
            let none = set.no_move_regions(&volume);
            volume.backing.note_changes(attempt, none);
        }
        volume.note_witness(witness);
        set.volumes.borrow_mut().insert(inode, Rc::downgrade(&volume));
        volume.start();
        Ok(volume)
    }
}

impl<E: Env> CacheSet<E> {
    /// Checks, without changing anything, that cache and backing device are of one run, or that
    /// this choice between them can be kept (A5). With several backing devices, all of them should
    /// pass before the first one is attached.
    ///
    /// # Errors
    /// Those of [`CacheSet::attach`] that a choice can make go away, or fails with.
    pub async fn check_choice(
        &self,
        backing: &Superblock,
        choice: Option<Choice>,
    ) -> Result<(), EngineError> {
        let slot = self.set.table.slot_of(backing.uuid);
        self.set.choice_between_runs(slot, backing, choice).await.map(drop)
    }
}

impl<E: Env> Set<E> {
    /// A5: neither is a copy of an earlier state (`None`), or somebody has chosen which one counts,
    /// and that can be done.
    async fn choice_between_runs(
        &self,
        slot: Option<usize>,
        backing: &Superblock,
        given: Option<Choice>,
    ) -> Result<Option<Choice>, EngineError> {
        let apart = check_run(&self.superblock.borrow(), slot, backing);
        let choice = match apart {
            Err(error) if self.context.keeps(Rule::A5OneRun) => {
                self.context.env.mark("older_copy_refused");
                given.ok_or(error)?
            }
            _ => return Ok(None),
        };
        if choice == Choice::DropClean {
            self.nothing_dirty_to_drop(slot, backing.state()).await?;
        }
        Ok(Some(choice))
    }

    /// Serves a backing device without a cache. What a cache has of it is not believed any more,
    /// durably, before the first request (A4).
    async fn serve_detached(
        self: &Rc<Self>,
        backing: Rc<CountedDevice<E>>,
        mut superblock: Superblock,
        options: AttachOptions,
    ) -> Result<Rc<CachedVolume<E>>, EngineError> {
        if superblock.state() == BackingState::Dirty {
            let set = self.superblock.borrow().set_uuid;
            return Err(EngineError::DirtyElsewhere { uuid: superblock.uuid, set });
        }
        backing.flush().await.map_err(EngineError::io("flushing the backing device"))?;
        if superblock.state() == BackingState::Clean {
            superblock.set_state(BackingState::Stale);
            write_superblock(&backing, &superblock, "writing the backing superblock").await?;
        }
        self.context.env.mark("served_without_cache");
        let volume = self.volume(backing, superblock, NO_SLOT, options);
        self.detached.borrow_mut().push(Rc::downgrade(&volume));
        volume.start();
        Ok(volume)
    }

    /// A volume with what it uses of this set.
    pub(super) fn volume(
        self: &Rc<Self>,
        backing: Rc<CountedDevice<E>>,
        superblock: Superblock,
        inode: Inode,
        options: AttachOptions,
    ) -> Rc<CachedVolume<E>> {
        let set = Rc::downgrade(self);
        let attached =
            move || set.upgrade().map_or(Attached::default(), |set| set.backing_of_all());
        let core = Core {
            context: self.context.clone(),
            journal: self.journal.clone(),
            allocator: self.allocator.clone(),
            index: self.index.clone(),
            gc: self.gc.clone(),
            congestion: self.congestion.clone(),
            attached: Box::new(attached),
        };
        CachedVolume::new(core, backing, superblock, inode, (options.name, options.read_only))
    }

    /// The attached volumes, and what their backing devices have together.
    fn backing_of_all(&self) -> Attached {
        let attached = self.attached();
        let sectors = attached.iter().map(|volume| volume.backing.limits().sectors).sum();
        Attached { volumes: attached.len() as u64, sectors, flash_dirty: self.flash_dirty() }
    }

    /// Checks that a slot can be given up without losing anything but copies.
    pub(super) async fn nothing_dirty_to_drop(
        &self,
        slot: Option<usize>,
        state: BackingState,
    ) -> Result<(), EngineError> {
        if state == BackingState::Dirty {
            let why = "the backing device says that it is dirty: without the dirty data of its \
                cache it is not whole";
            return Err(EngineError::WouldLose(why));
        }
        self.wait_until_counted().await?;
        let dirty = slot.map_or(0, |slot| self.index.dirty_sectors(Inode(slot as u32)));
        match dirty {
            0 => Ok(()),
            _ => Err(EngineError::WouldLose("the cache has dirty data of the backing device")),
        }
    }

    /// Declares the old slot of the device dead, if it has one, and gives it a new one, with a run
    /// number.
    pub(super) async fn take_slot(
        self: &Rc<Self>,
        old: Option<usize>,
        superblock: &mut Superblock,
    ) -> Result<Inode, EngineError> {
        #[cfg(feature = "mutants")]
        if let Some(slot) = old
            && !self.context.keeps(Rule::A2DropsClean)
        {
            return Ok(Inode(slot as u32));
        }
        let now = self.context.env.unix_seconds() as u32;
        let mut table = self.table.entries().clone();
        table.resize_with(self.context.geometry.uuid_slots() as usize, UuidEntry::default);
        if let Some(old) = old {
            table[old].uuid = Uuid::INVALIDATED;
            table[old].invalidated = now;
        }
        let free = table.iter().position(UuidEntry::is_free);
        let slot = free.ok_or(EngineError::NoSlot(self.context.geometry.uuid_slots()))?;
        // A crash after the table is written must not leave a slot that does not know the device's
        // number.
        self.announce_run(Inode(slot as u32), superblock).await?;
        table[slot] = UuidEntry {
            uuid: superblock.uuid,
            label: superblock.label,
            first_reg: now,
            last_reg: now,
            ..UuidEntry::default()
        };
        self.table.save(table).await?;
        Ok(Inode(slot as u32))
    }
}
