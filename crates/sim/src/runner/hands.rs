//! Other hands at the disks while nothing runs, and what the next start makes of it.
//!
//! An instance may refuse what it finds; then the operator does what the plan says. It may take it,
//! if all that it shows is explained: by the replies so far, or by the backing device alone, as it
//! is now. A start that refuses changes nothing of the volume that it refuses, so that the right
//! device can be put in its place again. What a copy of the cache has taken up before, by the
//! operator's choice or as it was detached, is of one run with the copy since then: the right cache
//! refuses that until the operator chooses once more, and then has what it had.

use std::collections::BTreeMap;

use ubcache_env::{Sector, SectorRange};
use ubcache_format::{BackingState, HEADER_SECTORS, SUPERBLOCK_SECTOR, Superblock};

use super::{Run, STUCK_AFTER, Step};
use crate::disk::Kept;
use crate::oracle::value::{Decoded, Value, decode, stamp};
use crate::plan::{Frontend, Hand, HandAction, Remedy};
use crate::system::{Command, System};

impl<S: System> Run<S> {
    /// An instance has ended: does what the plan has for this moment.
    pub(super) async fn other_hands(&self) -> Step {
        let end = self.ends.replace(self.ends.get() + 1);
        for hand in self.setup.plan.hands.iter().filter(|hand| hand.end == end) {
            let Hand { disk, action, .. } = *hand;
            match action {
                HandAction::Copy => {
                    self.note(format!("disk {disk}: a copy is kept"));
                    let copy = (self.disk(disk).keep(), self.starts.get());
                    self.kept.borrow_mut().insert(disk, copy);
                }
                HandAction::Swap(remedy) => {
                    let copy = self.kept.borrow_mut().remove(&disk);
                    // A copy since which nothing was served is no older.
                    if let Some((copy, starts)) = copy
                        && starts < self.starts.get()
                    {
                        self.swap(disk, &copy, remedy).await?;
                    }
                }
                HandAction::RollBack(remedy) => {
                    let copy = self.kept.borrow_mut().remove(&disk);
                    if let Some((copy, starts)) = copy
                        && starts < self.starts.get()
                    {
                        self.roll_back(disk, &copy, remedy).await?;
                    }
                }
                HandAction::Cut(sectors) => self.cut(disk, sectors).await?,
                HandAction::CutServed(sectors) => self.cut_served(disk, sectors).await?,
                HandAction::Write { first, sectors, remedy } => {
                    let range = SectorRange::new(Sector(first), sectors);
                    self.write_elsewhere(disk, range, remedy).await?;
                }
            }
        }
        Ok(())
    }

    async fn swap(&self, disk: usize, copy: &Kept, remedy: Remedy) -> Step {
        self.note(format!("disk {disk} is replaced by an older copy of itself ({remedy:?})"));
        let right = self.disk(disk).keep();
        self.disk(disk).put(copy);
        let mut given: BTreeMap<usize, Remedy> = BTreeMap::new();
        let contents: Vec<Option<Vec<Value>>> =
            (0..self.setup.backing.len()).map(|it| self.on_disk(it)).collect();
        loop {
            self.setup.word.remedies.replace(given.clone());
            let Some(volume) = self.try_start().await? else { break };
            if remedy == Remedy::PutBack || given.insert(volume, remedy).is_some() {
                self.setup.word.remedies.replace(BTreeMap::new());
                self.note(format!("disk {disk} is what it was again"));
                self.disk(disk).put(&right);
                let by_copy = if disk == 0 { volume } else { 0 };
                return self.take_back(by_copy, &given).await;
            }
        }
        self.setup.word.remedies.replace(BTreeMap::new());
        for (volume, contents) in (0..).zip(&contents) {
            let mut oracle = self.workload.oracle.borrow_mut();
            match given.get(&(volume as usize)) {
                // Taken without a word: nothing of it may be in the cache then.
                None if disk != volume as usize + 1 => {}
                Some(Remedy::BelieveCache) => oracle.believe_what_is_read(volume),
                _ => match contents {
                    Some(contents) => oracle.adopt(volume, Sector(0), contents),
                    None => oracle.believe_what_is_read(volume),
                },
            }
        }
        self.check().await?;
        self.stop().await
    }

    /// The right cache is there again, after a copy of it may have taken up the first volumes, so
    /// many, with these choices. All of them show what they did before the copy came.
    async fn take_back(&self, by_copy: usize, given: &BTreeMap<usize, Remedy>) -> Step {
        if by_copy == 0 {
            return Ok(());
        }
        let mut choices: BTreeMap<usize, Remedy> = BTreeMap::new();
        while let Some(volume) = self.try_start().await? {
            if volume >= by_copy || choices.contains_key(&volume) {
                let what = format!("volume {volume} is refused, which the copy did not touch");
                return Err(self.violation("the start failed", what));
            }
            let choice = match given.get(&volume) {
                // Neither the copy nor the right cache has anything dirty.
                None | Some(Remedy::DropClean) => Remedy::DropClean,
                // Nothing was written to the disk; what is dirty in the right cache still counts.
                Some(Remedy::BelieveDisk | Remedy::PutBack) => Remedy::BelieveCache,
                Some(Remedy::BelieveCache) => {
                    // The copy may have written its dirty data to the disk.
                    self.workload.oracle.borrow_mut().believe_what_is_read(volume as u32);
                    Remedy::BelieveCache
                }
            };
            choices.insert(volume, choice);
            self.setup.word.remedies.replace(choices.clone());
        }
        self.setup.word.remedies.replace(BTreeMap::new());
        self.check().await?;
        self.stop().await
    }

    /// Somebody else writes to a disk that can't say so. What the next start shows of it is what is
    /// on the disk, and over that dirty data of the cache.
    async fn write_elsewhere(&self, disk: usize, range: SectorRange, remedy: Remedy) -> Step {
        let volume = disk - 1;
        self.note(format!("disk {disk} is written by somebody else: {range} ({remedy:?})"));
        let right = self.disk(disk).keep();
        let mut bytes = [0; 512];
        for sector in range.start.0..range.end.0 {
            let at = S::DATA_AT + sector;
            self.disk(disk).peek_into(at, &mut bytes);
            let value = match decode(volume as u32, sector, &bytes) {
                Decoded::Value(value) if value == Value::ZERO => Value::INITIAL,
                _ => Value::ZERO,
            };
            stamp(volume as u32, sector, value, &mut bytes);
            self.disk(disk).poke(at, &bytes);
        }
        self.changed_elsewhere(disk, &right, remedy).await
    }

    /// A disk that can't say so has an older content again.
    async fn roll_back(&self, disk: usize, copy: &Kept, remedy: Remedy) -> Step {
        self.note(format!("disk {disk} has an older content behind its header ({remedy:?})"));
        let right = self.disk(disk).keep();
        let header = self.disk(disk).peek(SectorRange::new(Sector(0), HEADER_SECTORS));
        self.disk(disk).put(copy);
        self.disk(disk).poke(Sector(0), &header);
        self.changed_elsewhere(disk, &right, remedy).await
    }

    /// The content of a disk is not what its volume left there.
    async fn changed_elsewhere(&self, disk: usize, right: &Kept, remedy: Remedy) -> Step {
        let volume = disk - 1;
        let (contents, may_be_dirty) = (self.on_disk(volume), self.says_dirty(disk));
        let mut given: BTreeMap<usize, Remedy> = BTreeMap::new();
        while let Some(refused) = self.try_start().await? {
            if remedy == Remedy::PutBack || given.insert(refused, remedy).is_some() {
                self.setup.word.remedies.replace(BTreeMap::new());
                self.note(format!("disk {disk} is what it was again"));
                self.disk(disk).put(right);
                return Ok(());
            }
            self.setup.word.remedies.replace(given.clone());
        }
        self.setup.word.remedies.replace(BTreeMap::new());
        {
            let mut oracle = self.workload.oracle.borrow_mut();
            let disk_counts = given.contains_key(&volume) && remedy != Remedy::BelieveCache;
            match contents {
                Some(contents) if disk_counts || !may_be_dirty => {
                    oracle.adopt(volume as u32, Sector(0), &contents);
                }
                _ => oracle.believe_what_is_read(volume as u32),
            }
        }
        self.check().await?;
        self.stop().await
    }

    /// The superblock of a backing device says that the cache may have dirty data of it.
    fn says_dirty(&self, disk: usize) -> bool {
        let bytes = self.disk(disk).peek(SectorRange::new(SUPERBLOCK_SECTOR, 8));
        Superblock::parse(&bytes).is_ok_and(|it| it.state() == BackingState::Dirty)
    }

    async fn cut(&self, disk: usize, sectors: u64) -> Step {
        let volume = disk - 1;
        let whole = self.disk(disk).keep();
        let kept = self.setup.plan.volumes[volume].sectors.saturating_sub(sectors);
        self.note(format!("disk {disk} is {sectors} sectors shorter"));
        self.disk(disk).resize(S::DATA_AT.0 + kept);
        if self.try_start().await?.is_some() {
            self.note(format!("disk {disk} is what it was again"));
            self.disk(disk).put(&whole);
            return Ok(());
        }
        // Nothing is evicted meanwhile: that would hide what stays beyond the end.
        self.read_all().await?;
        self.stop().await?;
        self.note(format!("disk {disk} has its length again, with zeroes"));
        self.disk(disk).resize(self.disk(disk).config().sectors);
        let zeroes = vec![Value::ZERO; sectors as usize];
        self.workload.oracle.borrow_mut().adopt(volume as u32, Sector(kept), &zeroes);
        Ok(())
    }

    /// The same as [`Run::cut`] does, while the volume is served.
    async fn cut_served(&self, disk: usize, sectors: u64) -> Step {
        let volume = disk - 1;
        // Writeback might be under way beyond the end. Remote clients see another size when
        // they connect again, which those of the plan do not do now.
        if self.says_dirty(disk) || self.setup.plan.frontend != Frontend::Direct {
            return self.cut(disk, sectors).await;
        }
        let kept = self.setup.plan.volumes[volume].sectors.saturating_sub(sectors);
        if self.try_start().await?.is_some() {
            return Ok(());
        }
        // The cache has it then.
        self.read_all().await?;
        self.note(format!("disk {disk} is {sectors} sectors shorter, while it is served"));
        self.disk(disk).resize(S::DATA_AT.0 + kept);
        self.tell_of_size(volume).await?;
        self.read_all().await?;
        self.note(format!("disk {disk} has its length again, with zeroes, while it is served"));
        self.disk(disk).resize(self.disk(disk).config().sectors);
        let zeroes = vec![Value::ZERO; sectors as usize];
        self.workload.oracle.borrow_mut().adopt(volume as u32, Sector(kept), &zeroes);
        self.tell_of_size(volume).await?;
        self.check().await?;
        self.stop().await
    }

    async fn tell_of_size(&self, volume: usize) -> Step {
        let (_, system) = self.instance();
        let told = system.control(Command::Resize(volume));
        let told = self.patiently("the resize", told).await?;
        told.map_err(|error| self.violation("the resize failed", error))
    }

    /// Starts an instance; returns the refused volume, if there is one.
    async fn try_start(&self) -> Step<Option<usize>> {
        self.foreign.set(true);
        let started = self.start_for(STUCK_AFTER).await;
        self.foreign.set(false);
        match started? {
            Some(Ok(())) => Ok(None),
            Some(Err(error)) => match self.setup.word.refused.take() {
                Some(volume) => {
                    self.note(format!("refused: {error}"));
                    Ok(Some(volume))
                }
                None => Err(self.violation("the start failed", error)),
            },
            None => Err(self.violation("stuck", "the start does not end".to_owned())),
        }
    }

    /// Content that a backing device has by itself; none if a discard has left content that nobody
    /// wrote.
    fn on_disk(&self, volume: usize) -> Option<Vec<Value>> {
        let sectors = self.setup.plan.volumes[volume].sectors;
        let mut bytes = [0; 512];
        let read = |sector| {
            self.setup.backing[volume].peek_into(S::DATA_AT + sector, &mut bytes);
            match decode(volume as u32, sector, &bytes) {
                Decoded::Value(value) => Some(value),
                Decoded::Wrong(_) => None,
            }
        };
        (0..sectors).map(read).collect()
    }
}
