//! Run numbers (A5): by which a start knows a cache or a backing device that is a copy of an
//! earlier state.
//!
//! ```text
//!  at attach, before the first request          cache: number P, next N ─▶ backing: N ─▶ cache: number N
//!  at a clean stop, when all else is durable    the same, for all volumes at once
//! ```
//!
//! The cache says first which number comes next, and nothing is served before it says that this one
//! is in force. So a crash in between leaves the two with numbers that belong together, and no copy
//! of an earlier state has them.

use std::rc::Rc;

use ubcache_env::{Buf, Durability, Env};
use ubcache_format::{
    BackingState, Inode, RUNS_AT, RUNS_BYTES, RunEntry, RunNumber, Runs, SECTOR_BYTES,
    SUPERBLOCK_SECTOR, Superblock, UuidEntry, compare_runs,
};

use super::Set;
use crate::errors::EngineError;
use crate::rules::Rule;
use crate::volume::CachedVolume;

/// Member whose data counts where a cache and a backing device are not of one run: the operator has
/// to choose.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Choice {
    /// The backing device. Refused if the cache has dirty data of it, or it says itself that it is
    /// dirty.
    DropClean,
    /// The backing device; dirty data in the cache is given up.
    BelieveDisk,
    /// Dirty data in the cache, over what the backing device has; clean data in the cache is
    /// dropped.
    BelieveCache,
}

/// Checks by the superblocks that a backing device may be attached: it is the one that this cache
/// had in the slot last.
pub(crate) fn check_run(
    cache: &Superblock,
    slot: Option<usize>,
    backing: &Superblock,
) -> Result<(), EngineError> {
    let attached = matches!(backing.state(), BackingState::Clean | BackingState::Dirty);
    match slot {
        Some(slot) if attached => compare_runs(cache, Inode(slot as u32), backing)
            .map_err(|apart| EngineError::OlderCopy { uuid: backing.uuid, apart }),
        // Nothing that is cached would be believed.
        _ => Ok(()),
    }
}

impl<E: Env> Set<E> {
    /// A number that is later than all that the cache and the backing device know.
    pub(super) fn new_run(&self, backing: Option<RunNumber>) -> RunNumber {
        let runs = self.superblock.borrow().runs();
        RunNumber::after(runs.numbers().chain(backing), self.context.env.random())
    }

    /// Changes the table of the cache device, durably.
    async fn note_runs(self: &Rc<Self>, change: impl FnOnce(&mut Runs)) -> Result<(), EngineError> {
        let _one = self.superblock_lock.lock().await;
        let bytes = {
            let mut superblock = self.superblock.borrow_mut();
            let mut runs = superblock.runs();
            change(&mut runs);
            superblock.set_runs(&runs);
            superblock.encode()
        };
        // The sector alone where sectors can be written, so that nothing can tear.
        let (mut at, mut bytes) = (SUPERBLOCK_SECTOR, Buf::from_bytes(&bytes).freeze());
        if self.context.cache.limits().logical_block_bytes as usize <= RUNS_BYTES {
            at += RUNS_AT as u64 / SECTOR_BYTES;
            bytes = bytes.cut(RUNS_AT, RUNS_AT + RUNS_BYTES);
        }
        let written = self.context.cache.write(at, bytes.into(), Durability::Fua).await;
        written.map_err(EngineError::io("writing the run numbers of the cache superblock"))
    }

    /// Says in the table which number a backing device is given now, and puts it into this
    /// superblock of it, which is written next; then [`Set::confirm_run`] says that it has it. No
    /// number where the table is full.
    pub(super) async fn announce_run(
        self: &Rc<Self>,
        slot: Inode,
        superblock: &mut Superblock,
    ) -> Result<(), EngineError> {
        let number = superblock.run().number();
        let run = self.new_run(number);
        let mut room = true;
        if self.context.keeps(Rule::A5AnnouncedFirst) {
            let live: Vec<bool> = self.table.entries().iter().map(UuidEntry::is_live).collect();
            self.note_runs(|runs| {
                runs.retain(|slot| live.get(slot.0 as usize) == Some(&true));
                room = runs.set(RunEntry::new(slot, number, Some(run)));
            })
            .await?;
        }
        superblock.last_mount = self.context.env.unix_seconds() as u32;
        superblock.set_run(room.then_some(run));
        Ok(())
    }

    /// The backing device has its number, durably.
    pub(super) async fn confirm_run(
        self: &Rc<Self>,
        slot: Inode,
        superblock: &Superblock,
    ) -> Result<(), EngineError> {
        match superblock.run().number() {
            Some(run) => {
                let entry = RunEntry::new(slot, Some(run), None);
                self.note_runs(|runs| _ = runs.set(entry)).await
            }
            None => Ok(()),
        }
    }

    /// A clean stop, when everything is durable: gives all volumes that are attached a new number.
    pub(super) async fn end_run(self: &Rc<Self>) -> Result<(), EngineError> {
        let volumes: Vec<Rc<CachedVolume<E>>> =
            self.attached().into_iter().filter(|volume| volume.lifecycle.uses_cache()).collect();
        let known = |volume: &CachedVolume<E>| volume.run();
        let newest =
            volumes.iter().filter_map(|volume| known(volume)).max_by_key(|run| run.count());
        let run = self.new_run(newest);
        let change = |runs: &mut Runs, number: Option<RunNumber>, next| {
            for volume in &volumes {
                if let Some(known) = known(volume) {
                    runs.set(RunEntry::new(volume.inode(), number.or(Some(known)), next));
                }
            }
        };
        if newest.is_none() {
            return Ok(());
        }
        self.note_runs(|runs| change(runs, None, Some(run))).await?;
        for volume in &volumes {
            if known(volume).is_some() {
                volume.set_run(run);
                volume.write_backing_superblock().await?;
            }
        }
        self.note_runs(|runs| change(runs, Some(run), None)).await
    }
}
