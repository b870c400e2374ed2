//! The extents of a leaf, packed: 16 bytes each, sorted, in chunks.
//!
//! ```text
//! place 63                                   16│15        0│
//!      │        END, the low 48 bits           │  SECTORS  │
//! data  63                              9│8             1│0│
//!      │             OFFSET              │  GENERATION   │D│
//! ```
//!
//! Entries of one volume whose ends have the same upper bits form a region; that is the whole
//! volume, unless it is larger than 128 PiB. A region is a list of chunks, and beside it the last
//! place of every chunk, so that a search touches one array of words and then one chunk.
//!
//! No chunk is empty, and no region. A chunk gets memory for a few entries at a time, so it does
//! not matter much how full chunks are: an index has millions of entries, but not millions of
//! chunks with room for twice of what is in them.

use ubcache_env::{Sector, SectorRange};
use ubcache_format::{Generation, Inode, Pointer};

use super::leaf::{Extent, Position};

/// The most entries in a chunk. More make the upper search shorter and changes dearer.
const CHUNK_MAX: usize = 128;
/// A chunk with fewer is joined with a neighbour, if both together have room to grow then.
const CHUNK_MIN: usize = CHUNK_MAX / 4;
/// By so many entries the memory of a chunk grows.
const STEP: usize = 8;
/// A chunk with more room than this gives memory back: enough to take out and put in a few.
const SLACK_MAX: usize = 2 * STEP;

const END_BITS: u32 = 48;
const OFFSET_BITS: u32 = 55;

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Entry {
    place: u64,
    data: u64,
}

impl Entry {
    #[inline]
    fn pack(extent: &Extent) -> Entry {
        let (offset, sectors) = (extent.pointer.offset.0, extent.range.sectors());
        // The format has 43 bits for it (docs/format.md §4.1), and a bucket more does not reach this.
        assert!(offset >> OFFSET_BITS == 0, "the offset {offset} is one that a pointer can have");
        assert!(sectors <= u64::from(u16::MAX), "{} is not too long for a key", extent.range);
        Entry {
            place: extent.range.end.0 << 16 | sectors,
            data: offset << 9 | u64::from(extent.pointer.generation.0) << 1 | u64::from(extent.dirty),
        }
    }

    #[inline]
    fn unpack(self, id: RegionId) -> Extent {
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

    fn is_dirty(self) -> bool {
        self.data & 1 != 0
    }
}

/// A volume and the upper bits of the ends in it.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct RegionId(u64);

impl RegionId {
    #[inline]
    fn of((inode, end): Position) -> RegionId {
        RegionId(u64::from(inode.0) << 16 | end.0 >> END_BITS)
    }

    #[inline]
    fn inode(self) -> Inode {
        Inode((self.0 >> 16) as u32)
    }

    #[inline]
    fn upper(self) -> u64 {
        (self.0 & 0xFFFF) << END_BITS
    }
}

#[derive(Clone, Debug)]
struct Region {
    id: RegionId,
    /// The place of the last entry of every chunk.
    lasts: Vec<u64>,
    chunks: Vec<Vec<Entry>>,
}

/// A place between the entries of a region: before entry `at` of the chunk. Behind the last entry it is before
/// the first one of a chunk that does not exist.
#[derive(Copy, Clone, Debug)]
struct Spot {
    chunk: usize,
    at: usize,
}

impl Region {
    fn new(id: RegionId) -> Region {
        Region { id, lasts: Vec::new(), chunks: Vec::new() }
    }

    /// Before the first entry that ends after `end`, whose upper bits are those of the region.
    #[inline]
    fn seek(&self, end: Sector) -> Spot {
        let word = end.0 << 16 | 0xFFFF;
        let chunk = self.lasts.partition_point(|&last| last <= word);
        let at = self.chunks.get(chunk).map_or(0, |chunk| chunk.partition_point(|entry| entry.place <= word));
        Spot { chunk, at }
    }

    /// The spot of the entry before this one.
    #[inline]
    fn before(&self, spot: Spot) -> Option<Spot> {
        match spot.at.checked_sub(1) {
            Some(at) => Some(Spot { at, ..spot }),
            None => {
                let chunk = spot.chunk.checked_sub(1)?;
                Some(Spot { chunk, at: self.chunks[chunk].len() - 1 })
            }
        }
    }

    fn entry(&self, spot: Spot) -> Entry {
        self.chunks[spot.chunk][spot.at]
    }

    /// The entry that ends at `end`, if it is the one before this spot.
    #[inline]
    fn ending(&self, end: Sector, spot: Spot) -> Option<Spot> {
        self.before(spot).filter(|&spot| self.entry(spot).place >> 16 == end.0 << 16 >> 16)
    }

    fn has_room(&self, chunk: usize) -> bool {
        self.chunks.get(chunk).is_some_and(|entries| entries.len() < CHUNK_MAX)
    }

    fn insert(&mut self, spot: Spot, entry: Entry) {
        let Spot { mut chunk, mut at } = spot;
        if at == 0 && chunk > 0 && self.has_room(chunk - 1) {
            // Between two chunks it goes to the end of the left one: ascending inserts fill chunks.
            chunk -= 1;
            at = self.chunks[chunk].len();
        } else if !self.has_room(chunk) {
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

    fn remove(&mut self, spot: Spot) {
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
        let Some(left) = chunk.checked_sub(1).into_iter().chain([chunk]).find(|&left| fits(left)) else {
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

    /// Takes away what lies behind a spot.
    fn split_off(&mut self, spot: Spot) -> Region {
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
}

/// Extents in the order of (volume, end). No two end at the same place.
#[derive(Default, Debug)]
pub(super) struct Extents {
    /// In order.
    regions: Vec<Region>,
    len: usize,
}

impl Extents {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn dirty_entries(&self) -> usize {
        let entries = self.regions.iter().flat_map(|region| region.chunks.iter().flatten());
        entries.filter(|entry| entry.is_dirty()).count()
    }

    /// Index of the first region that is not before this one.
    #[inline]
    fn index(&self, id: RegionId) -> usize {
        // Most leaves have a single one.
        match self.regions.as_slice() {
            [only] => usize::from(only.id < id),
            regions => regions.partition_point(|region| region.id < id),
        }
    }

    /// Puts in an extent.
    pub fn insert(&mut self, extent: &Extent) {
        let id = RegionId::of((extent.inode, extent.range.end));
        let index = self.index(id);
        if self.regions.get(index).is_none_or(|region| region.id != id) {
            self.regions.insert(index, Region::new(id));
        }
        let region = &mut self.regions[index];
        let spot = region.seek(extent.range.end);
        let same = region.ending(extent.range.end, spot);
        assert!(same.is_none(), "no two extents end at the same place");
        region.insert(spot, Entry::pack(extent));
        self.len += 1;
    }

    /// Takes out the extent that ends there.
    pub fn remove(&mut self, position: Position) {
        let id = RegionId::of(position);
        let index = self.index(id);
        let region = self.regions.get_mut(index).filter(|region| region.id == id);
        let found =
            region.and_then(|region| Some((region.ending(position.1, region.seek(position.1))?, region)));
        let (spot, region) = found.expect("the extent is there");
        region.remove(spot);
        if region.chunks.is_empty() {
            self.regions.remove(index);
        }
        self.len -= 1;
    }

    /// The extent that ends at a place, and the first one that ends after it.
    pub fn beside(&self, place: Position) -> (Option<Extent>, Option<Extent>) {
        let id = RegionId::of(place);
        let index = self.index(id);
        let Some(region) = self.regions.get(index) else { return (None, None) };
        if region.id != id {
            return (None, region.chunks.first().map(|chunk| chunk[0].unpack(region.id)));
        }
        let spot = region.seek(place.1);
        let left = region.ending(place.1, spot).map(|spot| region.entry(spot).unpack(id));
        let right = match region.chunks.get(spot.chunk) {
            Some(chunk) => Some(chunk[spot.at].unpack(id)),
            None => self.regions.get(index + 1).map(|next| next.chunks[0][0].unpack(next.id)),
        };
        (left, right)
    }

    /// All of them in order.
    pub fn iter(&self) -> Iter<'_> {
        Iter { id: RegionId(0), entries: [].iter(), chunks: [].iter(), regions: self.regions.iter() }
    }

    /// Those that end after a place, in order.
    #[inline]
    pub fn iter_after(&self, after: Position) -> Iter<'_> {
        let id = RegionId::of(after);
        let mut regions = self.regions[self.index(id)..].iter();
        if let Some(region) = regions.as_slice().first()
            && region.id == id
        {
            regions.next();
            let spot = region.seek(after.1);
            let mut chunks = region.chunks[spot.chunk..].iter();
            let entries = chunks.next().map_or([].iter(), |chunk| chunk[spot.at..].iter());
            return Iter { id, entries, chunks, regions };
        }
        Iter { id, entries: [].iter(), chunks: [].iter(), regions }
    }

    /// Keeps those for which `keep` says so. It is asked about each of them once, in order.
    pub fn retain(&mut self, mut keep: impl FnMut(&Extent) -> bool) {
        let mut kept = Extents::default();
        for extent in self.iter().filter(|extent| keep(extent)) {
            kept.insert(&extent);
        }
        *self = kept;
    }

    /// Takes away those that end after a place.
    pub fn split_after(&mut self, after: Position) -> Extents {
        let id = RegionId::of(after);
        let index = self.index(id);
        let mut right = Extents::default();
        let mut whole = index;
        if let Some(region) = self.regions.get_mut(index)
            && region.id == id
        {
            let rest = region.split_off(region.seek(after.1));
            if !rest.chunks.is_empty() {
                right.regions.push(rest);
            }
            whole += usize::from(!region.chunks.is_empty());
            if region.chunks.is_empty() {
                self.regions.remove(index);
            }
        }
        right.regions.extend(self.regions.drain(whole..));
        right.len = right.regions.iter().flat_map(|region| &region.chunks).map(Vec::len).sum();
        self.len -= right.len;
        right
    }

    /// Adds others, all of which come after those here.
    pub fn append(&mut self, right: Extents) {
        self.len += right.len;
        for mut next in right.regions {
            match self.regions.last_mut() {
                Some(last) if last.id == next.id => {
                    let border = last.chunks.len();
                    last.chunks.append(&mut next.chunks);
                    last.lasts.append(&mut next.lasts);
                    last.join_small(border);
                }
                _ => self.regions.push(next),
            }
        }
    }
}

/// See [`Extents::iter_after`].
#[derive(Clone, Debug)]
pub(super) struct Iter<'a> {
    id: RegionId,
    entries: std::slice::Iter<'a, Entry>,
    chunks: std::slice::Iter<'a, Vec<Entry>>,
    regions: std::slice::Iter<'a, Region>,
}

impl Iter<'_> {
    /// To the next chunk. False: there is none.
    #[cold]
    fn next_chunk(&mut self) -> bool {
        loop {
            if let Some(chunk) = self.chunks.next() {
                self.entries = chunk.iter();
                return true;
            }
            let Some(region) = self.regions.next() else { return false };
            self.id = region.id;
            self.chunks = region.chunks.iter();
        }
    }
}

impl Iterator for Iter<'_> {
    type Item = Extent;

    #[inline]
    fn next(&mut self) -> Option<Extent> {
        loop {
            if let Some(entry) = self.entries.next() {
                return Some(entry.unpack(self.id));
            }
            if self.chunks.as_slice().is_empty() && self.regions.as_slice().is_empty() {
                return None;
            }
            if !self.next_chunk() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::Bound::{Excluded, Unbounded};

    use proptest::prelude::*;

    use super::*;

    type Model = BTreeMap<Position, Extent>;

    /// Ends on both sides of where regions meet, and in two volumes.
    fn position() -> impl Strategy<Value = Position> {
        let end = prop_oneof![
            6 => 100u64..700,
            1 => (1u64 << END_BITS) - 40..(1 << END_BITS) + 40,
            1 => (1u64 << 63) - 20..1 << 63,
        ];
        (1u32..3, end).prop_map(|(inode, end)| (Inode(inode), Sector(end)))
    }

    fn extent(end: Position, number: u64) -> Extent {
        // Every field with all its bits, now and then.
        let sectors = if number.is_multiple_of(7) { end.1.0.min(65535) } else { number % 5 + 1 };
        Extent {
            inode: end.0,
            range: SectorRange::from_bounds(Sector(end.1.0 - sectors), end.1),
            dirty: number % 3 == 1,
            pointer: Pointer {
                device: 0,
                offset: Sector(if number.is_multiple_of(5) { (1 << 43) - 1 } else { number * 1000 }),
                generation: Generation((number * 37) as u8),
            },
        }
    }

    fn check(extents: &Extents, model: &Model) {
        let all: Vec<Extent> = extents.iter().collect();
        assert_eq!(all, model.values().copied().collect::<Vec<_>>());
        assert_eq!(extents.len(), model.len());
        assert_eq!(extents.dirty_entries(), model.values().filter(|extent| extent.dirty).count());
        for region in &extents.regions {
            assert!(!region.chunks.is_empty(), "no region is empty");
            let lasts: Vec<u64> = region.chunks.iter().map(|chunk| chunk[chunk.len() - 1].place).collect();
            assert_eq!(lasts, region.lasts);
            for chunk in &region.chunks {
                assert!(chunk.len() <= CHUNK_MAX);
            }
        }
    }

    fn probe(extents: &Extents, model: &Model, place: Position) {
        let mut after = model.range((Excluded(place), Unbounded)).map(|(_, &extent)| extent);
        assert_eq!(extents.beside(place), (model.get(&place).copied(), after.clone().next()));
        assert!(extents.iter_after(place).eq(&mut after));
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// Puts in, or takes out what is there.
        Toggle(Position),
        /// Puts in so many, ascending by a distance.
        Ascend(Position, u64, usize),
        /// Takes out every one of which the end is no multiple of this.
        Thin(u64),
        /// Cuts in two and puts together again.
        Split(Position),
        /// Takes out so many after a place.
        Clear(Position, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            12 => position().prop_map(Step::Toggle),
            2 => (position(), 1u64..3, 1usize..300).prop_map(|(at, by, count)| Step::Ascend(at, by, count)),
            1 => (2u64..6).prop_map(Step::Thin),
            2 => position().prop_map(Step::Split),
            2 => (position(), 1usize..200).prop_map(|(at, count)| Step::Clear(at, count)),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(
            steps in prop::collection::vec(step(), 1..120),
            probes in prop::collection::vec(position(), 4),
        ) {
            let (mut extents, mut model) = (Extents::default(), Model::new());
            let mut number = 0;
            let put = |extents: &mut Extents, model: &mut Model, at: Position, number| {
                if model.insert(at, extent(at, number)).is_none() {
                    extents.insert(&extent(at, number));
                } else {
                    extents.remove(at);
                    model.remove(&at);
                }
            };
            for step in steps {
                number += 1;
                match step {
                    Step::Toggle(at) => put(&mut extents, &mut model, at, number),
                    Step::Ascend((inode, end), by, count) => {
                        for index in 0..count as u64 {
                            let at = (inode, Sector((end.0 + index * by).min((1 << 63) - 1)));
                            put(&mut extents, &mut model, at, number + index);
                        }
                    }
                    Step::Thin(by) => {
                        model.retain(|(_, end), _| end.0.is_multiple_of(by));
                        let mut asked = Vec::new();
                        let before: Vec<Extent> = extents.iter().collect();
                        extents.retain(|extent| {
                            asked.push(*extent);
                            extent.range.end.0.is_multiple_of(by)
                        });
                        prop_assert_eq!(asked, before);
                    }
                    Step::Split(at) => {
                        let right = extents.split_after(at);
                        let mut left_model = model.clone();
                        let mut right_model = left_model.split_off(&at);
                        if let Some(exact) = right_model.remove(&at) {
                            left_model.insert(at, exact);
                        }
                        check(&extents, &left_model);
                        check(&right, &right_model);
                        extents.append(right);
                    }
                    Step::Clear(at, count) => {
                        let doomed: Vec<Position> =
                            model.range((Excluded(at), Unbounded)).take(count).map(|(&at, _)| at).collect();
                        for at in doomed {
                            extents.remove(at);
                            model.remove(&at);
                        }
                    }
                }
                check(&extents, &model);
                for &place in &probes {
                    probe(&extents, &model, place);
                }
            }
        }
    }

    fn memory(extents: &Extents) -> usize {
        let region = |region: &Region| {
            let chunks: usize = region.chunks.iter().map(Vec::capacity).sum();
            chunks * size_of::<Entry>()
                + region.chunks.capacity() * size_of::<Vec<Entry>>()
                + region.lasts.capacity() * size_of::<u64>()
        };
        extents.regions.iter().map(region).sum()
    }

    fn filled(numbers: impl Iterator<Item = u64>) -> Extents {
        let mut extents = Extents::default();
        for number in numbers {
            extents.insert(&extent((Inode(1), Sector(8 * number + 8)), 1));
        }
        extents
    }

    /// What an extent costs, however the leaf came to be.
    #[test]
    fn memory_of_an_extent() {
        const COUNT: u64 = 20_000;
        let bytes = |extents: &Extents| memory(extents) as f64 / extents.len() as f64;
        let ascending = filled(0..COUNT);
        assert!(bytes(&ascending) < 17.0, "{}", bytes(&ascending));
        // 7919 is prime: every number comes once.
        let shuffled = || (0..COUNT).map(|number| number * 7919 % COUNT);
        assert!(bytes(&filled(shuffled())) < 19.0, "{}", bytes(&filled(shuffled())));
        // Two streams, one behind the other.
        let streams = filled((0..COUNT / 2).flat_map(|number| [number, COUNT / 2 + number]));
        assert!(bytes(&streams) < 17.5, "{}", bytes(&streams));
        let mut thinned = filled(shuffled());
        for number in shuffled().filter(|number| !number.is_multiple_of(20)) {
            thinned.remove((Inode(1), Sector(8 * number + 8)));
        }
        assert_eq!(thinned.len() as u64, COUNT / 20);
        assert!(bytes(&thinned) < 32.0, "{}", bytes(&thinned));
    }
}
