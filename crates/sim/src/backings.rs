//! The backing devices of a run, one of which may move to another disk and back (A11).
//!
//! The cache device says which of the two disks counts: it has the run number of that one. So after
//! a crash, and of a state that a crash could leave, the disk is found without the engine.

use std::cell::Cell;
use std::ops::Deref;

use ubcache_env::Sector;
use ubcache_format::{SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR, Superblock};

use crate::disk::{SimDisk, Snapshot};

/// See the module. As a slice, the disks that count, by volume.
pub struct Backings {
    first: Vec<SimDisk>,
    /// The same, with the other disk of the volume that moves.
    second: Vec<SimDisk>,
    moving: Option<usize>,
    moved: Cell<bool>,
}

impl Backings {
    /// The disks by volume, and another one of a volume that moves.
    pub fn new(first: Vec<SimDisk>, other: Option<(usize, SimDisk)>) -> Backings {
        let mut second = first.clone();
        let moving = other.map(|(volume, disk)| {
            second[volume] = disk;
            volume
        });
        Backings { first, second, moving, moved: Cell::new(false) }
    }

    /// Disks in the order of [`Backings::all`], as these are of another run.
    pub fn like(&self, mut disks: Vec<SimDisk>) -> Backings {
        let other = self.moving.map(|volume| (volume, disks.pop().expect("it is the last")));
        let like = Backings::new(disks, other);
        like.moved.set(self.moved.get());
        like
    }

    /// All disks: those by volume, then the other one of the volume that moves.
    pub fn all(&self) -> impl Iterator<Item = &SimDisk> {
        self.first.iter().chain(self.moving.map(|volume| &self.second[volume]))
    }

    /// The volume that moves.
    pub fn moving(&self) -> Option<usize> {
        self.moving
    }

    /// True if the volume has the disk that it had first.
    pub fn is_first(&self, volume: usize) -> bool {
        self.moving != Some(volume) || !self.moved.get()
    }

    /// The disk that a volume does not have, of the two that it may have.
    pub fn other(&self, volume: usize) -> Option<&SimDisk> {
        let disks = if self.moved.get() { &self.first } else { &self.second };
        (self.moving == Some(volume)).then(|| &disks[volume])
    }

    /// The volume has moved.
    pub fn switch(&self) {
        self.moved.set(!self.moved.get());
    }

    /// Finds the disk that counts, as a crash has left them.
    pub fn settle(&self, cache: &SimDisk) {
        let Some(other) = self.moving.and_then(|volume| self.other(volume)) else { return };
        let cache = superblock(|sector, into| cache.peek_into(sector, into));
        let other = superblock(|sector, into| other.peek_into(sector, into));
        if counts(cache, other) {
            self.switch();
        }
    }

    /// The disks that count by what is seen of them and of the cache.
    pub fn seen(
        &self,
        cache: &Snapshot,
        mut view: impl FnMut(&SimDisk) -> Snapshot,
    ) -> Vec<Snapshot> {
        let mut seen: Vec<Snapshot> = self.iter().map(&mut view).collect();
        if let Some(volume) = self.moving
            && let Some(other) = self.other(volume)
        {
            let other = view(other);
            let cache = superblock(|sector, into| cache.peek(sector, into));
            if counts(cache, superblock(|sector, into| other.peek(sector, into))) {
                seen[volume] = other;
            }
        }
        seen
    }
}

impl From<Vec<SimDisk>> for Backings {
    /// No volume moves.
    fn from(disks: Vec<SimDisk>) -> Backings {
        Backings::new(disks, None)
    }
}

impl Deref for Backings {
    type Target = [SimDisk];

    fn deref(&self) -> &[SimDisk] {
        if self.moved.get() { &self.second } else { &self.first }
    }
}

/// True if the cache has the run number of that disk.
fn counts(cache: Option<Superblock>, disk: Option<Superblock>) -> bool {
    let number = disk.and_then(|disk| disk.run().number());
    let numbers = cache.map(|cache| cache.runs());
    number.is_some_and(|it| numbers.is_some_and(|runs| runs.numbers().any(|other| other == it)))
}

fn superblock(read: impl Fn(Sector, &mut [u8; 512])) -> Option<Superblock> {
    let mut bytes = vec![0; SUPERBLOCK_BYTES];
    for (index, into) in (0..).zip(bytes.chunks_exact_mut(512)) {
        read(SUPERBLOCK_SECTOR + index, into.try_into().expect("a sector"));
    }
    Superblock::parse(&bytes).ok()
}
