//! Content of a disk: the live image, and beside it the versions that each sector may fall back to.

use std::cell::Cell;
use std::rc::Rc;

use smallvec::SmallVec;
use ubcache_env::{SectorRange, Slice};

const PAGE_SECTORS: u64 = 8;
/// Versions of one sector at most: with more, a middle one is forgotten.
const VERSIONS_MAX: usize = 12;

type Map<T> = hashbrown::HashMap<u64, T, foldhash::fast::FixedState>;

/// Content of one sector.
#[derive(Clone)]
pub(super) enum SectorContent {
    Zero,
    /// A part of what was written.
    Data(Slice),
    /// Content before the write.
    Old(Rc<[u8; 512]>),
}

impl SectorContent {
    fn is(&self, sector: &[u8]) -> bool {
        match self {
            SectorContent::Zero => sector.iter().all(|byte| *byte == 0),
            SectorContent::Data(slice) => slice.as_slice() == sector,
            SectorContent::Old(bytes) => bytes[..] == *sector,
        }
    }

    pub(super) fn copy_into(&self, sector: &mut [u8]) {
        match self {
            SectorContent::Zero => sector.fill(0),
            SectorContent::Data(slice) => sector.copy_from_slice(slice.as_slice()),
            SectorContent::Old(bytes) => sector.copy_from_slice(&bytes[..]),
        }
    }
}

/// The live image, sparse by page. Nothing depends on the order of the map.
#[derive(Clone, Default)]
pub(super) struct Image {
    pages: Map<Box<[u8; 4096]>>,
}

impl Image {
    pub(super) fn read(&self, sector: u64, into: &mut [u8]) {
        let at = (sector % PAGE_SECTORS) as usize * 512;
        match self.pages.get(&(sector / PAGE_SECTORS)) {
            Some(page) => into.copy_from_slice(&page[at..at + 512]),
            None => into.fill(0),
        }
    }

    /// Any number of sectors, page by page.
    pub(super) fn read_run(&self, mut sector: u64, mut into: &mut [u8]) {
        while !into.is_empty() {
            let at = (sector % PAGE_SECTORS) as usize * 512;
            let (now, rest) = into.split_at_mut(into.len().min(4096 - at));
            match self.pages.get(&(sector / PAGE_SECTORS)) {
                Some(page) => now.copy_from_slice(&page[at..at + now.len()]),
                None => now.fill(0),
            }
            sector += now.len() as u64 / 512;
            into = rest;
        }
    }

    /// Returns true if something was written to each block of these sectors, as far as a file
    /// system knows.
    pub(super) fn has_room(&self, range: SectorRange) -> bool {
        Self::blocks(range).all(|block| self.pages.contains_key(&block))
    }

    /// Gives each block of these sectors its place; the content stays.
    pub(super) fn allocate(&mut self, range: SectorRange) {
        for block in Self::blocks(range) {
            self.pages.entry(block).or_insert_with(|| Box::new([0; 4096]));
        }
    }

    /// Frees the places of whole blocks that read as zeroes: they were discarded.
    pub(super) fn punch(&mut self, range: SectorRange) {
        for block in range.start.0.div_ceil(PAGE_SECTORS)..range.end.0 / PAGE_SECTORS {
            if self.pages.get(&block).is_some_and(|page| page.iter().all(|byte| *byte == 0)) {
                self.pages.remove(&block);
            }
        }
    }

    fn blocks(range: SectorRange) -> impl Iterator<Item = u64> {
        range.start.0 / PAGE_SECTORS..range.end.0.div_ceil(PAGE_SECTORS)
    }

    pub(super) fn write(&mut self, sector: u64, from: &[u8]) {
        let at = (sector % PAGE_SECTORS) as usize * 512;
        let page = self.pages.entry(sector / PAGE_SECTORS).or_insert_with(|| Box::new([0; 4096]));
        page[at..at + 512].copy_from_slice(from);
    }

    /// Everything from this sector on is zero.
    pub(super) fn cut(&mut self, sectors: u64) {
        self.pages.retain(|page, _| *page * PAGE_SECTORS < sectors);
        for sector in sectors..sectors.next_multiple_of(PAGE_SECTORS) {
            self.set(sector, &SectorContent::Zero);
        }
    }

    pub(super) fn set(&mut self, sector: u64, content: &SectorContent) {
        match content {
            SectorContent::Data(slice) => self.write(sector, slice.as_slice()),
            SectorContent::Old(bytes) => self.write(sector, &bytes[..]),
            SectorContent::Zero if self.pages.contains_key(&(sector / PAGE_SECTORS)) => {
                self.write(sector, &[0; 512])
            }
            SectorContent::Zero => {}
        }
    }

    pub(super) fn content(&self, sector: u64) -> SectorContent {
        if !self.pages.contains_key(&(sector / PAGE_SECTORS)) {
            return SectorContent::Zero;
        }
        let mut bytes = [0; 512];
        self.read(sector, &mut bytes);
        SectorContent::Old(Rc::new(bytes))
    }
}

/// A content that has landed in the volatile cache.
pub(super) struct Version {
    pub(super) content: SectorContent,
    /// When its write completed, by the clock of the disk; `u64::MAX` as long as it has not.
    pub(super) completed: Rc<Cell<u64>>,
    /// A failed flush has lost it: reads return it for a while, but no flush makes it durable any
    /// more.
    pub(super) lost: bool,
}

impl Version {
    /// Written, and not lost: the next flush covers it.
    fn waits_for_flush(&self) -> bool {
        !self.lost && self.completed.get() < u64::MAX
    }
}

/// Versions that a sector may fall back to: its durable content or any of these, oldest first. The
/// newest is the live content.
struct Unflushed {
    durable: SectorContent,
    versions: SmallVec<[Version; 1]>,
}

/// Every sector whose live content is not known to be durable.
///
/// Nothing depends on the order of the map.
#[derive(Default)]
pub(super) struct Versioned {
    sectors: Map<Unflushed>,
}

impl Versioned {
    /// Sectors that the next flush makes durable.
    pub(super) fn len(&self) -> usize {
        let to_do = |entry: &&Unflushed| entry.versions.iter().any(|version| !version.lost);
        self.sectors.values().filter(to_do).count()
    }

    pub(super) fn forget(&mut self, sector: u64) {
        self.sectors.remove(&sector);
    }

    /// Returns true if a sector has these bytes, whatever happens to it.
    pub(super) fn holds_only(&self, sector: u64, bytes: &[u8]) -> bool {
        self.sectors.get(&sector).is_none_or(|entry| {
            entry.durable.is(bytes)
                && entry.versions.iter().all(|version| version.content.is(bytes))
        })
    }

    /// Each sector, in order, and how many versions it has beside the durable content.
    pub(super) fn counts(&self) -> impl Iterator<Item = (u64, usize)> + use<> {
        let entries = self.sectors.iter().map(|(sector, entry)| (*sector, entry.versions.len()));
        let mut counts: Vec<(u64, usize)> = entries.collect();
        counts.sort_unstable();
        counts.into_iter()
    }

    /// Counts like [`Versioned::counts`], of the versions whose writes have completed, and that no
    /// failed flush has lost.
    pub(super) fn completed(&self) -> impl Iterator<Item = (u64, usize)> + use<> {
        let newest = |entry: &Unflushed| entry.versions.iter().rposition(Version::waits_for_flush);
        let entries = self.sectors.iter();
        let mut counts: Vec<(u64, usize)> =
            entries.filter_map(|(sector, entry)| Some((*sector, newest(entry)? + 1))).collect();
        counts.sort_unstable();
        counts.into_iter()
    }

    /// A failed flush has lost the newest completed version of a sector: `kept`, counted as by
    /// [`Versioned::content`], is durable instead. `late`: where nothing newer has landed, reads
    /// return the lost one until [`Versioned::loss_shows`]. Gives what reads return from now on, if
    /// that changes.
    pub(super) fn lose(&mut self, sector: u64, kept: usize, late: bool) -> Option<SectorContent> {
        let entry = self.sectors.get_mut(&sector)?;
        let newest = entry.versions.iter().rposition(Version::waits_for_flush)?;
        if let Some(at) = kept.checked_sub(1) {
            entry.durable = entry.versions[at].content.clone();
        }
        let lost = entry.versions[newest].content.clone();
        entry.versions.drain(..=newest);
        if !entry.versions.is_empty() {
            return None;
        }
        if late {
            entry.versions.push(Version {
                content: lost,
                completed: Rc::new(Cell::new(u64::MAX)),
                lost: true,
            });
            return None;
        }
        let durable = entry.durable.clone();
        self.sectors.remove(&sector);
        Some(durable)
    }

    /// Reads no longer return the versions of a sector that a failed flush has lost. Gives the
    /// content that they return now, if that changes.
    pub(super) fn loss_shows(&mut self, sector: u64) -> Option<SectorContent> {
        let entry = self.sectors.get_mut(&sector)?;
        let shows = entry.versions.last().is_some_and(|version| version.lost);
        entry.versions.retain(|version| !version.lost);
        let now = entry.versions.last().map_or(&entry.durable, |version| &version.content).clone();
        if entry.versions.is_empty() {
            self.sectors.remove(&sector);
        }
        shows.then_some(now)
    }

    /// A version of a sector; 0 is the durable content, the others are counted from the oldest.
    pub(super) fn content(&self, sector: u64, version: usize) -> SectorContent {
        let entry = &self.sectors[&sector];
        match version.checked_sub(1) {
            None => entry.durable.clone(),
            Some(at) => entry.versions[at].content.clone(),
        }
    }

    /// A new content has landed; `image` still has the old one.
    pub(super) fn landed(&mut self, sector: u64, version: Version, image: &Image) {
        let entry = self.sectors.entry(sector).or_insert_with(|| Unflushed {
            durable: image.content(sector),
            versions: SmallVec::new(),
        });
        if entry.versions.len() == VERSIONS_MAX {
            entry.versions.remove(VERSIONS_MAX / 2);
        }
        entry.versions.push(version);
    }

    /// A flush that was submitted at `before` has completed.
    pub(super) fn flushed(&mut self, before: u64) {
        self.sectors.retain(|_, entry| {
            if let Some(newest) =
                entry.versions.iter().rposition(|v| !v.lost && v.completed.get() < before)
            {
                entry.settle(newest);
            }
            !entry.versions.is_empty()
        });
    }

    /// The write that `completed` belongs to was FUA and is complete: its content of the sector is
    /// durable.
    pub(super) fn made_durable(&mut self, sector: u64, completed: &Rc<Cell<u64>>) {
        if let Some(entry) = self.sectors.get_mut(&sector)
            && let Some(at) =
                entry.versions.iter().position(|v| Rc::ptr_eq(&v.completed, completed))
        {
            entry.settle(at);
            if entry.versions.is_empty() {
                self.sectors.remove(&sector);
            }
        }
    }
}

impl Unflushed {
    fn settle(&mut self, at: usize) {
        self.durable = self.versions[at].content.clone();
        self.versions.drain(..=at);
    }
}
