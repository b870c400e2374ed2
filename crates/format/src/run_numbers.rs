//! Run numbers: members of a set with the same number are of the same run (docs/reference/format.md
//! §14).
//!
//! Each start and each clean stop gives a cache and its backing devices a new number. The cache
//! keeps one for each slot of the volume table, in the last sector of its superblock, which the
//! driver writes back as it was read; a backing device keeps its own in the padding of the first
//! sector. Both are bound to a field that the driver changes whenever it writes the superblock
//! (`seq` of the cache, `last_mount` of a backing device), so that work of the driver since then is
//! detected.
//!
//! ```text
//! first sector, cache:     144 │ stamp of seq    │
//! first sector, backing:   144 │ number         │ 152 stamp of number, last_mount, UUID │
//!                          160 │ attempt        │ 168 stamp of it and of the rest (A13) │
//! last sector, cache:     3584 │ "ubcruns1" │ csum │ n u16 │ flags u16 │ 28 zero │ n × (slot u32, number, next) │
//! ```

use crate::bytes::{array, put, u16_at, u32_at, u64_at};
use crate::checksum::crc64_we;
use crate::move_record::MoveRole;
use crate::superblock::{SUPERBLOCK_BYTES, Superblock};
use crate::units::Inode;

/// Offset of the stamp or the number in the first sector.
const FIRST_AT: usize = 144;
/// Offset of the number of an attempt to move the volume of a backing device.
const ATTEMPT_AT: usize = 160;
/// Offset of the table of a cache device: a sector, which is written as a whole or not at all.
pub const RUNS_AT: usize = SUPERBLOCK_BYTES - RUNS_BYTES;
/// Bytes of the table.
pub const RUNS_BYTES: usize = 512;
const NAME: [u8; 8] = *b"ubcruns1";
const HEAD: usize = 48;
const ENTRY: usize = 20;
const ENTRIES_MAX: usize = (RUNS_BYTES - HEAD) / ENTRY;
const ACCEPT_ANY: u16 = 1;
/// Flag in the word of the slot, which has 20 bits.
const DRIVER_SINCE: u32 = 1 << 31;

/// The number of a run of a set: how many there were before, and a random part, so that two runs
/// that begin with copies of the same members have different numbers.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct RunNumber(u64);

impl RunNumber {
    /// A number later than `others`.
    pub fn after(others: impl IntoIterator<Item = RunNumber>, random: u64) -> RunNumber {
        let newest = others.into_iter().map(RunNumber::count).max().unwrap_or(0);
        RunNumber(u64::from(newest.saturating_add(1)) << 32 | (random & 0xFFFF_FFFF))
    }

    /// Numbers count up; two of the same count are not of one run, unless they are equal.
    pub fn count(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn from_word(word: u64) -> Option<RunNumber> {
        (word >> 32 != 0).then_some(RunNumber(word))
    }
}

impl core::fmt::Display for RunNumber {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}-{:08x}", self.count(), self.0 as u32)
    }
}

/// The cache's record of the volume in a slot.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct RunEntry {
    /// The slot of the volume table.
    pub slot: Inode,
    /// The number that the backing device has; none if it has none.
    pub number: Option<RunNumber>,
    /// The number that it is given now: it has this one already, or still the other.
    pub next: Option<RunNumber>,
    /// The driver has run the set since: it may have written the backing device's superblock.
    pub driver_since: bool,
}

impl RunEntry {
    /// A record as ubcache leaves it.
    pub fn new(slot: Inode, number: Option<RunNumber>, next: Option<RunNumber>) -> RunEntry {
        RunEntry { slot, number, next, driver_since: false }
    }
}

/// The table of a cache device.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Runs {
    entries: Vec<RunEntry>,
    /// The table is new: volumes without a record are accepted as they are.
    accepts_any: bool,
}

impl Runs {
    /// The table of a set that was repaired: it has no records, and accepts every volume as it is.
    pub fn accepting_any() -> Runs {
        Runs { entries: Vec::new(), accepts_any: true }
    }

    /// The record of a volume.
    pub fn entry(&self, slot: Inode) -> Option<RunEntry> {
        self.entries.iter().copied().find(|entry| entry.slot == slot)
    }

    /// Sets the record of a volume. Returns false if there was no room.
    pub fn set(&mut self, entry: RunEntry) -> bool {
        self.remove(entry.slot);
        if self.entries.len() == ENTRIES_MAX {
            return false;
        }
        self.entries.push(entry);
        true
    }

    /// Forgets a volume.
    pub fn remove(&mut self, slot: Inode) {
        self.entries.retain(|entry| entry.slot != slot);
    }

    /// Forgets the volumes of all slots but these.
    pub fn retain(&mut self, live: impl Fn(Inode) -> bool) {
        self.entries.retain(|entry| live(entry.slot));
    }

    /// All numbers.
    pub fn numbers(&self) -> impl Iterator<Item = RunNumber> {
        self.entries.iter().flat_map(|entry| [entry.number, entry.next]).flatten()
    }
}

/// A backing device's record of its last run.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum BackingRun {
    /// No record: it was never in a set with run numbers.
    Never,
    /// A program without run numbers has written the superblock since it got this number.
    Void(RunNumber),
    /// The number.
    Number(RunNumber),
}

impl BackingRun {
    /// The number, if it counts.
    pub fn number(self) -> Option<RunNumber> {
        match self {
            BackingRun::Number(number) => Some(number),
            _ => None,
        }
    }
}

/// A cache and a backing device that are not of the same run.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Apart {
    /// The cache's record of the backing device.
    pub cache: Option<RunNumber>,
    /// The backing device's own record.
    pub backing: BackingRun,
    /// The older copy of the two.
    pub older: Older,
}

/// The older copy of two members.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Older {
    /// The cache device.
    Cache,
    /// The backing device.
    Backing,
    /// Both went on from the same state, each with another copy of the other.
    Neither,
}

impl core::fmt::Display for Apart {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self.older {
            Older::Cache => "the cache is an older copy",
            Older::Backing => "the disk is an older copy",
            Older::Neither => "each of them was used with a copy of the other",
        })?;
        match self.cache {
            Some(number) => write!(f, " (the cache has run {number} of the disk, ")?,
            None => write!(f, " (the cache has no run of the disk, ")?,
        }
        match self.backing {
            BackingRun::Number(number) => write!(f, "the disk is of run {number})"),
            BackingRun::Void(number) => {
                write!(f, "the Linux driver used the disk after its run {number})")
            }
            BackingRun::Never => write!(f, "the disk of none)"),
        }
    }
}

impl Superblock {
    /// Notes on a cache device that ubcache has written it, as it is now. To be called whenever
    /// `seq` has changed, and before that if the driver may have changed it.
    pub fn sign(&mut self) {
        let stamp = stamp_of_seq(self.seq);
        put(self.raw_mut(), FIRST_AT, &stamp.to_le_bytes());
    }

    /// Notes in the record of every volume of a cache device that is started that the driver has
    /// run the set since, if it has.
    pub fn note_driver(&mut self) {
        if !self.is_signed() {
            let mut runs = self.runs();
            runs.entries.iter_mut().for_each(|entry| entry.driver_since = true);
            self.set_runs(&runs);
        }
    }

    /// Returns true if ubcache, and not the driver, was the last to write this cache device.
    pub fn is_signed(&self) -> bool {
        u64_at(self.raw(), FIRST_AT) == stamp_of_seq(self.seq)
    }

    /// Table of runs of a cache device; empty if there is none.
    pub fn runs(&self) -> Runs {
        let Some(bytes) = self.raw().get(RUNS_AT..) else { return Runs::default() };
        let count = usize::from(u16_at(bytes, 16));
        if array::<8>(bytes, 0) != NAME
            || u64_at(bytes, 8) != crc64_we(&bytes[16..])
            || count > ENTRIES_MAX
        {
            return Runs::default();
        }
        let entry = |at| RunEntry {
            slot: Inode(u32_at(bytes, at) & !DRIVER_SINCE),
            driver_since: u32_at(bytes, at) & DRIVER_SINCE != 0,
            number: RunNumber::from_word(u64_at(bytes, at + 4)),
            next: RunNumber::from_word(u64_at(bytes, at + 12)),
        };
        Runs {
            entries: (0..count).map(|index| entry(HEAD + ENTRY * index)).collect(),
            accepts_any: u16_at(bytes, 18) & ACCEPT_ANY != 0,
        }
    }

    /// Sets the table of runs of a cache device.
    pub fn set_runs(&mut self, runs: &Runs) {
        let mut bytes = [0; RUNS_BYTES];
        put(&mut bytes, 0, &NAME);
        put(&mut bytes, 16, &(runs.entries.len() as u16).to_le_bytes());
        put(&mut bytes, 18, &(if runs.accepts_any { ACCEPT_ANY } else { 0 }).to_le_bytes());
        for (entry, at) in runs.entries.iter().zip((HEAD..).step_by(ENTRY)) {
            let word =
                |number: Option<RunNumber>| number.map_or(0, |number| number.0).to_le_bytes();
            let flag = if entry.driver_since { DRIVER_SINCE } else { 0 };
            put(&mut bytes, at, &(entry.slot.0 | flag).to_le_bytes());
            put(&mut bytes, at + 4, &word(entry.number));
            put(&mut bytes, at + 12, &word(entry.next));
        }
        let csum = crc64_we(&bytes[16..]);
        put(&mut bytes, 8, &csum.to_le_bytes());
        put(self.raw_mut(), RUNS_AT, &bytes);
    }

    /// Number of a backing device's last run.
    pub fn run(&self) -> BackingRun {
        let word = u64_at(self.raw(), FIRST_AT);
        match RunNumber::from_word(word) {
            None => BackingRun::Never,
            Some(number) if u64_at(self.raw(), FIRST_AT + 8) == self.stamp_of_run(word) => {
                BackingRun::Number(number)
            }
            Some(number) => BackingRun::Void(number),
        }
    }

    /// Sets the number of a backing device's run, or removes it.
    pub fn set_run(&mut self, number: Option<RunNumber>) {
        let word = number.map_or(0, |number| number.0);
        let stamp = if number.is_some() { self.stamp_of_run(word) } else { 0 };
        put(self.raw_mut(), FIRST_AT, &word.to_le_bytes());
        put(self.raw_mut(), FIRST_AT + 8, &stamp.to_le_bytes());
    }

    /// The attempt to move the volume of a backing device that this superblock speaks of: as the
    /// disk that it is on, or as the one that it moves to. It counts as long as nothing else of the
    /// superblock has changed.
    pub fn attempt(&self, role: MoveRole) -> Option<u64> {
        let word = u64_at(self.raw(), ATTEMPT_AT);
        let stamp = u64_at(self.raw(), ATTEMPT_AT + 8);
        (word != 0 && stamp == self.stamp_of_attempt(role, word)).then_some(word)
    }

    /// Sets or removes that number. To be called when the rest of the superblock is as it is to be.
    pub fn set_attempt(&mut self, attempt: Option<(MoveRole, u64)>) {
        let (word, stamp) = match attempt {
            Some((role, word)) => (word, self.stamp_of_attempt(role, word)),
            None => (0, 0),
        };
        put(self.raw_mut(), ATTEMPT_AT, &word.to_le_bytes());
        put(self.raw_mut(), ATTEMPT_AT + 8, &stamp.to_le_bytes());
    }

    fn stamp_of_attempt(&self, role: MoveRole, word: u64) -> u64 {
        let role: u64 = match role {
            MoveRole::Target => 1,
            MoveRole::Left => 2,
        };
        let mut bytes = Vec::with_capacity(72);
        for word in [role, word, u64_at(self.raw(), FIRST_AT), self.flags, self.seq] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.last_mount.to_le_bytes());
        bytes.extend_from_slice(&self.uuid.0);
        bytes.extend_from_slice(&self.set_uuid.0);
        crc64_we(&bytes)
    }

    fn stamp_of_run(&self, word: u64) -> u64 {
        let mut bytes = [0; 28];
        put(&mut bytes, 0, &word.to_le_bytes());
        put(&mut bytes, 8, &self.last_mount.to_le_bytes());
        put(&mut bytes, 12, &self.uuid.0);
        crc64_we(&bytes)
    }
}

fn stamp_of_seq(seq: u64) -> u64 {
    let mut bytes = [0; 16];
    put(&mut bytes, 0, &NAME);
    put(&mut bytes, 8, &seq.to_le_bytes());
    crc64_we(&bytes)
}

/// Checks that a backing device in state clean or dirty is the one that the cache had last in this
/// slot, as far as the run numbers show.
pub fn compare_runs(cache: &Superblock, slot: Inode, backing: &Superblock) -> Result<(), Apart> {
    let (runs, run) = (cache.runs(), backing.run());
    let apart = |cache, older| Err(Apart { cache, backing: run, older });
    let Some(entry) = runs.entry(slot) else {
        return match run {
            BackingRun::Number(_) if !runs.accepts_any => apart(None, Older::Cache),
            // Never, or attached by the driver.
            _ => Ok(()),
        };
    };
    let known = entry.number.or(entry.next);
    let is_known = |number| entry.number == Some(number) || entry.next == Some(number);
    match run {
        BackingRun::Number(number) if is_known(number) => Ok(()),
        // The driver has run the backing device, but never this cache.
        BackingRun::Void(number)
            if is_known(number) && cache.is_signed() && !entry.driver_since =>
        {
            apart(known, Older::Cache)
        }
        BackingRun::Void(number) if is_known(number) => Ok(()),
        // It had no number, or a void one, when it was to get its next one.
        BackingRun::Void(_) | BackingRun::Never if entry.number.is_none() => Ok(()),
        BackingRun::Number(number) | BackingRun::Void(number) => {
            let newest = entry.number.max_by_count(entry.next);
            match newest.map_or(0, RunNumber::count).cmp(&number.count()) {
                core::cmp::Ordering::Less => apart(known, Older::Cache),
                core::cmp::Ordering::Equal => apart(known, Older::Neither),
                core::cmp::Ordering::Greater => apart(known, Older::Backing),
            }
        }
        BackingRun::Never => apart(known, Older::Backing),
    }
}

trait ByCount {
    fn max_by_count(self, other: Self) -> Self;
}

impl ByCount for Option<RunNumber> {
    fn max_by_count(self, other: Self) -> Self {
        [self, other].into_iter().flatten().max_by_key(|number| number.count())
    }
}

#[cfg(test)]
#[path = "run_numbers_tests.rs"]
mod tests;
