//! A part of the extents of a leaf, packed: 16 bytes each, sorted, in chunks.
//!
//! ```text
//! place 63                                   16│15        0│
//!      │        END, the low 48 bits           │  SECTORS  │
//! data  63                              9│8             1│0│
//!      │             OFFSET              │  GENERATION   │D│
//! ```
//!
//! Entries of one volume whose ends have the same upper bits form a region; that is the whole
//! volume, unless it is larger than 128 PiB. Beside the chunks is the last place of each, so that a
//! search touches one array of words and then one chunk.
//!
//! A chunk gets memory for a few entries at a time, so it does not matter much how full chunks are:
//! an index has millions of entries, but not millions of chunks with room for twice of what is in
//! them.

use ubcache_env::{Sector, SectorRange};
use ubcache_format::{Generation, Inode, Pointer};

use super::extent::{Extent, Position};

/// The most entries in a chunk. More make the upper search shorter and changes dearer.
pub(super) const CHUNK_MAX: usize = 128;
/// A chunk with fewer is joined with a neighbour, if both together have room to grow then.
const CHUNK_MIN: usize = CHUNK_MAX / 4;
/// By so many entries the memory of a chunk grows.
const STEP: usize = 8;
/// A chunk with more room than this gives memory back: enough to take out and put in a few.
const SLACK_MAX: usize = 2 * STEP;

pub(super) const END_BITS: u32 = 48;
const OFFSET_BITS: u32 = 55;

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub place: u64,
    data: u64,
}

impl Entry {
    #[inline]
    pub fn pack(extent: &Extent) -> Entry {
        let (offset, sectors) = (extent.pointer.offset.0, extent.range.sectors());
        // The format has 43 bits for it (docs/reference/format.md §4.1), and a bucket more does not
        // reach this.
        assert!(offset >> OFFSET_BITS == 0, "the offset {offset} is one that a pointer can have");
        assert!(sectors <= u64::from(u16::MAX), "{} is not too long for a key", extent.range);
        Entry {
            place: extent.range.end.0 << 16 | sectors,
            data: offset << 9
                | u64::from(extent.pointer.generation.0) << 1
                | u64::from(extent.dirty),
        }
    }

    #[inline]
    pub fn unpack(self, id: RegionId) -> Extent {
        let end = id.upper() | self.place >> 16;
        let start = end - (self.place & 0xFFFF);
        Extent {
            inode: id.inode(),
            range: SectorRange::from_bounds(Sector(start), Sector(end)),
            dirty: self.is_dirty(),
            pointer: Pointer {
                device: 0,
                offset: Sector(self.data >> 9),
                generation: Generation((self.data >> 1) as u8),
            },
        }
    }

    pub fn is_dirty(self) -> bool {
        self.data & 1 != 0
    }
}

/// A volume and the upper bits of the ends in it.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct RegionId(u64);

impl RegionId {
    #[inline]
    pub fn of((inode, end): Position) -> RegionId {
        RegionId(u64::from(inode.0) << 16 | end.0 >> END_BITS)
    }

    #[inline]
    pub fn inode(self) -> Inode {
        Inode((self.0 >> 16) as u32)
    }

    #[inline]
    fn upper(self) -> u64 {
        (self.0 & 0xFFFF) << END_BITS
    }
}

#[derive(Clone, Debug)]
pub(super) struct Region {
    pub id: RegionId,
    /// The place of the last entry of every chunk.
    pub lasts: Vec<u64>,
    /// None is empty.
    pub chunks: Vec<Vec<Entry>>,
}

/// A place between the entries of a region: before entry `at` of the chunk. Behind the last entry
/// it is before the first one of a chunk that does not exist.
#[derive(Copy, Clone, Debug)]
pub(super) struct Spot {
    pub chunk: usize,
    pub at: usize,
}

/// The first entry of a chunk behind `word`, which lies between the last place before the chunk and
/// the last one in it.
///
/// It is looked for where it is if entries are evenly spread, and around there: a binary search
/// reads a line of memory for nearly every step, and of a large index most chunks are in no cache
/// of the processor.
#[inline]
fn search(entries: &[Entry], left: u64, last: u64, word: u64) -> usize {
    /// So many entries beside the guess are looked at one by one.
    const NEAR: usize = 8;
    let (whole, part) = ((last - left) >> 16, (word - left) >> 16);
    let guess = (part * entries.len() as u64 / whole.max(1)) as usize;
    let guess = guess.min(entries.len() - 1);
    let is_before = |entry: &Entry| entry.place <= word;
    if is_before(&entries[guess]) {
        let end = (guess + NEAR).min(entries.len());
        let near = entries[guess..end].iter().position(|entry| !is_before(entry));
        near.map_or_else(|| end + entries[end..].partition_point(is_before), |at| guess + at)
    } else {
        let start = guess.saturating_sub(NEAR);
        let near = entries[start..guess].iter().rposition(is_before);
        near.map_or_else(|| entries[..start].partition_point(is_before), |at| start + at + 1)
    }
}

impl Region {
    pub fn new(id: RegionId) -> Region {
        Region { id, lasts: Vec::new(), chunks: Vec::new() }
    }

    /// Before the first entry that ends after `end`, whose upper bits are those of the region.
    #[inline]
    pub fn seek(&self, end: Sector) -> Spot {
        let word = end.0 << 16 | 0xFFFF;
        let chunk = self.lasts.partition_point(|&last| last <= word);
        let Some(entries) = self.chunks.get(chunk) else { return Spot { chunk, at: 0 } };
        let left = chunk.checked_sub(1).map_or(0, |left| self.lasts[left]);
        Spot { chunk, at: search(entries, left, self.lasts[chunk], word) }
    }

    /// The spot of the entry before this one.
    #[inline]
    pub fn before(&self, spot: Spot) -> Option<Spot> {
        match spot.at.checked_sub(1) {
            Some(at) => Some(Spot { at, ..spot }),
            None => {
                let chunk = spot.chunk.checked_sub(1)?;
                Some(Spot { chunk, at: self.chunks[chunk].len() - 1 })
            }
        }
    }

    /// The spot behind the entry behind this one.
    #[inline]
    pub fn after(&self, spot: Spot) -> Spot {
        match spot.at + 1 < self.chunks[spot.chunk].len() {
            true => Spot { at: spot.at + 1, ..spot },
            false => Spot { chunk: spot.chunk + 1, at: 0 },
        }
    }

    /// The entry behind a spot.
    #[inline]
    pub fn entry(&self, spot: Spot) -> Option<Entry> {
        self.chunks.get(spot.chunk).map(|chunk| chunk[spot.at])
    }

    /// Behind the last entry.
    pub fn end(&self) -> Spot {
        Spot { chunk: self.chunks.len(), at: 0 }
    }

    /// Adds an entry that comes after all others; `more` entries may follow.
    pub fn push(&mut self, entry: Entry, more: usize) {
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK_MAX) {
            self.chunks.push(Vec::with_capacity(CHUNK_MAX.min(more + 1)));
            self.lasts.push(0);
        }
        let last = self.chunks.len() - 1;
        self.chunks[last].push(entry);
        self.lasts[last] = entry.place;
    }

    fn has_space(&self, chunk: usize) -> bool {
        self.chunks.get(chunk).is_some_and(|entries| entries.len() < CHUNK_MAX)
    }

    /// Puts an entry in at a spot.
    pub fn insert(&mut self, spot: Spot, entry: Entry) {
        let Spot { mut chunk, mut at } = spot;
        if at == 0 && chunk > 0 && self.has_space(chunk - 1) {
            // Between two chunks it goes to the end of the left one: ascending inserts fill chunks.
            chunk -= 1;
            at = self.chunks[chunk].len();
        } else if !self.has_space(chunk) {
            if at == 0 {
                self.chunks.insert(chunk, Vec::new());
                self.lasts.insert(chunk, entry.place);
            } else {
                self.split(chunk);
                let left = self.chunks[chunk].len();
                if at > left {
                    chunk += 1;
                    at -= left;
                }
            }
        }
        let entries = &mut self.chunks[chunk];
        if entries.len() == entries.capacity() {
            entries.reserve_exact(STEP);
        }
        entries.insert(at, entry);
        if at + 1 == entries.len() {
            self.lasts[chunk] = entry.place;
        }
    }

    /// Puts an entry in the place of the one behind a spot, which has the same range.
    pub fn exchange(&mut self, spot: Spot, entry: Entry) {
        let old = &mut self.chunks[spot.chunk][spot.at];
        assert_eq!(old.place, entry.place, "the range stays");
        *old = entry;
    }

    /// Cuts a full chunk in two.
    fn split(&mut self, chunk: usize) {
        let left = &mut self.chunks[chunk];
        let middle = left.len() / 2;
        let mut right = Vec::with_capacity(left.len() - middle + STEP);
        right.extend_from_slice(&left[middle..]);
        left.truncate(middle);
        left.shrink_to(middle + STEP);
        let last = left[middle - 1].place;
        self.lasts.insert(chunk, last);
        self.chunks.insert(chunk + 1, right);
    }

    /// Takes the entry behind a spot out. The region may be empty then.
    pub fn remove(&mut self, spot: Spot) {
        let Spot { chunk, at } = spot;
        let entries = &mut self.chunks[chunk];
        entries.remove(at);
        let Some(last) = entries.last() else {
            self.chunks.remove(chunk);
            self.lasts.remove(chunk);
            return;
        };
        self.lasts[chunk] = last.place;
        if entries.capacity() - entries.len() > SLACK_MAX {
            entries.shrink_to(entries.len() + STEP);
        }
        if entries.len() < CHUNK_MIN {
            self.join_small(chunk);
        }
    }

    /// Joins a chunk with a neighbour, if that leaves room for what comes next.
    fn join_small(&mut self, chunk: usize) {
        let fits = |left: usize| {
            let both = self.chunks.get(left..left + 2);
            both.is_some_and(|both| both[0].len() + both[1].len() <= CHUNK_MAX * 3 / 4)
        };
        let Some(left) = chunk.checked_sub(1).into_iter().chain([chunk]).find(|&left| fits(left))
        else {
            return;
        };
        let right = self.chunks.remove(left + 1);
        self.lasts.remove(left);
        let entries = &mut self.chunks[left];
        if entries.capacity() < entries.len() + right.len() {
            entries.reserve_exact(right.len() + STEP);
        }
        entries.extend(right);
    }

    pub fn len(&self) -> usize {
        self.chunks.iter().map(Vec::len).sum()
    }

    /// Makes the chunks what they should be after entries were taken out of any of them.
    pub fn tidy(&mut self) {
        self.chunks.retain(|chunk| !chunk.is_empty());
        self.lasts = self.chunks.iter().map(|chunk| chunk[chunk.len() - 1].place).collect();
        for chunk in (0..self.chunks.len()).rev() {
            let entries = &mut self.chunks[chunk];
            if entries.capacity() - entries.len() > SLACK_MAX {
                entries.shrink_to(entries.len() + STEP);
            }
            if entries.len() < CHUNK_MIN {
                self.join_small(chunk);
            }
        }
    }

    /// Takes away what lies behind a spot.
    pub fn split_off(&mut self, spot: Spot) -> Region {
        let mut right = Region { id: self.id, lasts: Vec::new(), chunks: Vec::new() };
        if spot.at > 0 {
            let entries = &mut self.chunks[spot.chunk];
            right.chunks.push(entries[spot.at..].to_vec());
            right.lasts.push(self.lasts[spot.chunk]);
            entries.truncate(spot.at);
            entries.shrink_to_fit();
            self.lasts[spot.chunk] = entries[spot.at - 1].place;
        }
        let whole = spot.chunk + usize::from(spot.at > 0);
        right.chunks.extend(self.chunks.drain(whole..));
        right.lasts.extend(self.lasts.drain(whole..));
        self.chunks.shrink_to_fit();
        self.lasts.shrink_to_fit();
        right
    }

    /// Adds everything of a region whose entries come after all those here.
    pub fn append(&mut self, mut right: Region) {
        let border = self.chunks.len();
        self.chunks.append(&mut right.chunks);
        self.lasts.append(&mut right.lasts);
        self.join_small(border);
    }
}
