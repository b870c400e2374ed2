//! A11: a volume moves to another backing device while it is served.
//!
//! ```text
//!  begin_move          the new device gets a record instead of a superblock; from now on writes go
//!      │               to both devices
//!    copy              everything else is copied, in parts
//!      │
//!   end_move           requests wait; the volume is flushed and ends; what is missing is copied
//!      │               new device: flush, superblock with another run number
//!      ├────────────── cache: that number counts, in one sector: the switch
//!      ▼               old device: a record instead of the superblock; the next volume begins
//! ```
//!
//! A13: an attempt that was interrupted goes on. The new device has a log of the regions that may
//! differ, and the superblock of the old one says as long as all its changes are in that log.
//!
//! Before the switch the old device is of the cache's run (A5), and the new one is not; after it,
//! the other way round. So a crash leaves one device that a start takes.

use std::rc::Rc;

use ubcache_env::{Env, Volume};
use ubcache_format::{
    MoveRecord, MoveRegions, MoveRole, SECTOR_BYTES, SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR,
    Superblock,
};

use super::attach::AttachOptions;
use super::move_copy::{BackingMove, MoveNames};
use super::{CacheSet, Set};
use crate::counted_device::{CountedDevice, Successor};
use crate::errors::{EngineError, MoveEnd};
use crate::mirror::Mirror;
use crate::move_log::MoveLog;
use crate::rules::Rule;
use crate::superblock::{write_move_record, write_superblock};
use crate::volume::CachedVolume;
use crate::volume::state::Attachment;

const RECORD: &str = "writing the record of the move to the new device";

/// The switch did not come about.
pub struct NotMoved<E: Env> {
    /// The reason.
    pub error: EngineError,
    /// The volume that goes on with the old device, if it is another one now.
    pub volume: Option<Rc<CachedVolume<E>>>,
}

impl<E: Env> CacheSet<E> {
    /// Begins to move a volume to a device without data that anybody needs: what is there is
    /// overwritten. Waits for requests under way; then clients go on. A device to which the volume
    /// was moving before is only given what has changed since, if that is known (A13).
    ///
    /// # Errors
    /// The volume is not attached to this set, or moves already; the device is too small, has
    /// larger blocks, or fails; the set has failed or is being stopped.
    pub async fn begin_move(
        &self,
        volume: &Rc<CachedVolume<E>>,
        device: E::Device,
        names: MoveNames,
    ) -> Result<BackingMove<E>, EngineError> {
        let set = &self.set;
        let _own = volume.lifecycle.attachment_turn().await;
        let _one = set.attach_lock.lock().await;
        self.may_switch(volume)?;
        if volume.backing.has_successor() {
            return Err(EngineError::Moving);
        }
        let (env, rules) = (set.context.env.clone(), set.context.rules);
        let new = Rc::new(CountedDevice::of_backing(env, device, rules));
        can_take(volume, &new)?;
        let attempt = set.context.env.random().max(1);
        let (number, regions) = set.regions_to_copy(volume, &new).await;
        let record = record(volume, MoveRole::Target, &names.old, attempt);
        let successor = Rc::new(Successor {
            mirror: Mirror::new(volume.all_keys(), set.context.tuning.move_sectors, &regions),
            log: MoveLog::new(record, regions),
            device: new,
        });
        successor.catch_up().await;
        successor.result()?;
        {
            // No write is under way that goes to the old device alone.
            let _paused = volume.pause().await;
            if volume.is_stopping() || set.context.is_ending() {
                return Err(EngineError::Stopping);
            }
            if let Some(number) = number {
                // A failed flush of the old device meanwhile leaves none.
                let changes = set.changes_since(volume, number).ok_or(EngineError::Moving)?;
                successor.may_differ(&changes);
                set.context.env.mark("move_goes_on");
            }
            volume.backing.begin_mirror(successor.clone());
        }
        let moving = BackingMove::new(volume.clone(), successor, names);
        let said = async {
            moving.successor.catch_up().await;
            moving.successor.result()?;
            volume.save_attempt(Some(attempt)).await
        };
        if let Err(error) = said.await {
            moving.give_up().await;
            return Err(error);
        }
        Ok(moving)
    }

    /// Refuses a volume whose backing device can't be replaced.
    fn may_switch(&self, volume: &Rc<CachedVolume<E>>) -> Result<(), EngineError> {
        let set = &self.set;
        self.is_own(volume)?;
        if let Some(reason) = set.context.failure() {
            return Err(EngineError::Failed(reason));
        }
        if volume.is_stopping() || set.context.is_ending() {
            return Err(EngineError::Stopping);
        }
        if !matches!(volume.lifecycle.attachment(), Attachment::Attached(_)) {
            return Err(EngineError::CannotMove(
                "the volume is detached, or about to be: the cache decides which of two disks \
                 counts, so attach it first",
            ));
        }
        if volume.run().is_none() {
            return Err(EngineError::CannotMove(
                "the cache has no room for the run number of this volume, by which it would know \
                 the new disk",
            ));
        }
        if !volume.coherence.suspects().is_empty() {
            return Err(EngineError::CannotMove(
                "a flush of the old disk failed, and what it has may change: restart the set, \
                 then move",
            ));
        }
        Ok(())
    }

    /// Ends a move whose copy is complete: switches to the new device. No request of the volume
    /// may be under way; another volume goes on instead of it, also after most errors.
    ///
    /// # Errors
    /// A device fails, the set has failed or is being stopped: the old device goes on.
    pub async fn end_move(
        &self,
        moving: &BackingMove<E>,
    ) -> Result<Rc<CachedVolume<E>>, NotMoved<E>> {
        let set = &self.set;
        let former = &moving.volume;
        let _own = former.lifecycle.attachment_turn().await;
        let _one = set.attach_lock.lock().await;
        if let Err(error) = self.may_switch(former) {
            if !matches!(error, EngineError::Stopping) {
                moving.give_up().await;
            }
            return Err(NotMoved { error, volume: None });
        }
        let paused = former.pause().await;
        let stopped = match former.stop().await {
            // The next volume owes it.
            Err(EngineError::LossUntold(_)) => Ok(()),
            stopped => stopped,
        };
        drop(paused);
        former.give_up_device().await;
        let is_flushed = stopped.is_ok();
        let switched = match stopped {
            Ok(()) => self.switch(moving).await,
            Err(error) => Err(error),
        };
        match switched {
            Ok(superblock) => {
                set.context.env.mark("volume_moved");
                former.backing.end_mirror();
                let left = record(former, MoveRole::Left, &moving.names.new, 0);
                // It is of an older run in any case. The error is one of the device's, and logged.
                // Clients wait, and the device may be one that answers no more.
                let marked = write_move_record(&former.backing, &left, "marking the old device");
                drop(former.backing.in_time(async { Ok(marked.await) }).await);
                let volume = self.next_volume(former, moving.successor.device.clone(), superblock);
                // It is no disk that a move has left.
                volume.save_soon();
                Ok(volume)
            }
            Err(error) => {
                set.context.env.mark("move_went_back");
                moving.successor.mirror.end(MoveEnd::Cancelled);
                let superblock = former.superblock();
                let volume = self.next_volume(former, former.backing.clone(), superblock);
                // After an error the next write tries again.
                drop(volume.backing.part().await);
                if !is_flushed {
                    volume.coherence.take_unflushed(&former.coherence);
                }
                Err(NotMoved { error, volume: Some(volume) })
            }
        }
    }

    /// The volume has ended, and nothing is written to the old device any more.
    async fn switch(&self, moving: &BackingMove<E>) -> Result<Superblock, EngineError> {
        let (set, new) = (&self.set, &moving.successor.device);
        moving.copy_missing(true).await;
        moving.successor.result()?;
        if let Some(reason) = set.context.failure() {
            return Err(EngineError::Failed(reason));
        }
        let mut superblock = moving.volume.superblock();
        superblock.last_mount = set.context.env.unix_seconds() as u32;
        superblock.set_run(Some(set.new_run(superblock.run().number())));
        // Until the cache says that this number counts, the disk is one that a move has left.
        superblock.set_attempt(Some((MoveRole::Target, moving.successor.log.attempt())));
        const WRITING: &str = "writing the superblock of the new device";
        if set.context.keeps(Rule::A11FlushedFirst) {
            // Clients wait. One that lands later is of no run that counts.
            let flushed = new.in_time(new.flush()).await;
            flushed.map_err(EngineError::io("flushing the new device"))?;
            let written =
                new.in_time(async { Ok(write_superblock(new, &superblock, WRITING).await) });
            written.await.map_err(EngineError::io(WRITING))??;
        }
        #[cfg(feature = "mutants")]
        if !set.context.keeps(Rule::A11FlushedFirst) {
            crate::mutants::write_superblock_unflushed(new, &superblock, WRITING).await?;
        }
        let inode = moving.volume.inode();
        if set.context.keeps(Rule::A11CacheDecides)
            && let Err(error) = set.confirm_run(inode, &superblock).await
        {
            // The cache may say either: the new device must not be one that fits.
            let record = record(&moving.volume, MoveRole::Target, &moving.names.old, 0);
            let former = moving.volume.superblock();
            let undone = new.in_time(async { Ok(write_move_record(new, &record, RECORD).await) });
            let undone = undone.await.map_err(EngineError::io(RECORD)).flatten();
            if undone.and(set.confirm_run(inode, &former).await).is_err() {
                let why = "it is not known which disk of a volume that was moved the cache takes";
                set.context.fail(format!("{why}: {error}"));
            }
            return Err(error);
        }
        Ok(superblock)
    }

    /// Goes on with a volume that has ended, over this device.
    fn next_volume(
        &self,
        former: &Rc<CachedVolume<E>>,
        device: Rc<CountedDevice<E>>,
        superblock: Superblock,
    ) -> Rc<CachedVolume<E>> {
        let set = &self.set;
        let (info, inode) = (former.info(), former.inode());
        let options =
            AttachOptions { name: info.name, read_only: info.read_only, ..Default::default() };
        let volume = set.volume(device, superblock, inode, options);
        volume.keep_attributes_of(former);
        volume.coherence.take_losses(&former.coherence);
        volume.set_sectors(info.sectors);
        set.volumes.borrow_mut().insert(inode, Rc::downgrade(&volume));
        volume.start();
        volume
    }
}

impl<E: Env> Set<E> {
    /// Regions of a volume in the log of a move; none of them differs.
    pub(super) fn no_move_regions(&self, volume: &CachedVolume<E>) -> MoveRegions {
        MoveRegions::none(volume.all_keys().end.0, self.context.tuning.move_sectors)
    }

    /// A13: regions that an earlier attempt to move the volume to this device has not copied, and
    /// its number, by which it is known what has changed since. Without one: all.
    async fn regions_to_copy(
        &self,
        volume: &CachedVolume<E>,
        new: &CountedDevice<E>,
    ) -> (Option<u64>, MoveRegions) {
        let earlier = earlier_attempt(volume, new, &self.no_move_regions(volume)).await;
        match earlier.filter(|(number, _)| self.changes_since(volume, *number).is_some()) {
            Some((number, regions)) => (Some(number), regions),
            None => {
                let end = volume.all_keys().end.0;
                (None, MoveRegions::all(end, self.context.tuning.move_sectors))
            }
        }
    }

    fn changes_since(&self, volume: &CachedVolume<E>, attempt: u64) -> Option<MoveRegions> {
        let changes = volume.backing.changes_since(attempt)?;
        let mut regions = self.no_move_regions(volume);
        if !changes.are_like(&regions) {
            return None;
        }
        if self.context.keeps(Rule::A13ChangesCounted) {
            regions.merge(&changes);
        }
        Some(regions)
    }
}

/// Refuses a device that can't have the volume.
fn can_take<E: Env>(volume: &CachedVolume<E>, new: &CountedDevice<E>) -> Result<(), EngineError> {
    let (limits, whole) = (new.limits(), volume.all_keys());
    if limits.sectors < whole.end.0 {
        return Err(EngineError::TooSmall { found: limits.sectors, expected: whole.end.0 });
    }
    let told = volume.block_sectors() * SECTOR_BYTES;
    let superblock = u64::from(volume.superblock().block_sectors) * SECTOR_BYTES;
    if u64::from(limits.logical_block_bytes) > told.min(superblock) {
        return Err(EngineError::CannotMove(
            "its blocks are larger than those that clients of the volume may use",
        ));
    }
    Ok(())
}

/// The attempt to move the volume to this device that its log is of, and the regions that may
/// differ by the log. `none`: the regions that there are.
async fn earlier_attempt<E: Env>(
    volume: &CachedVolume<E>,
    new: &CountedDevice<E>,
    none: &MoveRegions,
) -> Option<(u64, MoveRegions)> {
    let sectors = SUPERBLOCK_BYTES as u64 / SECTOR_BYTES;
    let head = new.in_time(new.read(SUPERBLOCK_SECTOR, sectors)).await.ok()?;
    let record = MoveRecord::parse(head.as_slice())?;
    if record.role != MoveRole::Target || record.uuid != volume.uuid() || record.attempt == 0 {
        return None;
    }
    let regions = MoveRegions::parse(head.as_slice(), record.attempt, none)?;
    Some((record.attempt, regions))
}

fn record<E: Env>(
    volume: &CachedVolume<E>,
    role: MoveRole,
    other: &str,
    attempt: u64,
) -> MoveRecord {
    let time = volume.context.env.unix_seconds();
    MoveRecord { role, uuid: volume.uuid(), time, attempt, other: other.to_owned() }
}
