//! The extents of a leaf: a sorted list of packed regions, of which most leaves have one.

use ubcache_env::{Sector, SectorRange};
use ubcache_format::Inode;

use super::extent::{Extent, FIRST, Position};
use super::packed_region::{Entry, Region, RegionId, Spot};

/// Extents in the order of (volume, end). No two end at the same place.
#[derive(Default, Debug)]
pub(super) struct Extents {
    /// In order.
    regions: Vec<Region>,
    len: usize,
}

/// A place between extents, good until the next change.
#[derive(Copy, Clone, Debug)]
pub(super) struct Gap {
    region: usize,
    /// With an entry behind it, if the region exists.
    spot: Spot,
}

const START: Spot = Spot { chunk: 0, at: 0 };

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

    /// Of extents that are in order.
    pub fn from_ordered(extents: Vec<Extent>) -> Extents {
        let mut all = Extents { regions: Vec::new(), len: extents.len() };
        let mut after = None;
        for (index, extent) in extents.iter().enumerate() {
            let position = (extent.inode, extent.range.end);
            assert!(
                after < Some(position),
                "no two extents end at the same place, and they are in order"
            );
            after = Some(position);
            let id = RegionId::of(position);
            if all.regions.last().is_none_or(|last| last.id != id) {
                all.regions.push(Region::new(id));
            }
            let region = all.regions.last_mut().expect("there is one now");
            region.push(Entry::pack(extent), extents.len() - 1 - index);
        }
        all.regions.iter_mut().for_each(Region::tidy);
        all
    }

    /// Before the first extent that ends after a place.
    #[inline]
    pub fn seek(&self, after: Position) -> Gap {
        let id = RegionId::of(after);
        let index = self.index(id);
        if let Some(region) = self.regions.get(index)
            && region.id == id
        {
            let spot = region.seek(after.1);
            if spot.chunk < region.chunks.len() {
                return Gap { region: index, spot };
            }
            return Gap { region: index + 1, spot: START };
        }
        Gap { region: index, spot: START }
    }

    /// The extent behind a gap.
    #[inline]
    pub fn behind(&self, gap: Gap) -> Option<Extent> {
        let region = self.regions.get(gap.region)?;
        region.entry(gap.spot).map(|entry| entry.unpack(region.id))
    }

    /// The gap before the extent before this one.
    #[inline]
    fn step_back(&self, gap: Gap) -> Option<Gap> {
        if let Some(region) = self.regions.get(gap.region)
            && let Some(spot) = region.before(gap.spot)
        {
            return Some(Gap { spot, ..gap });
        }
        let left = gap.region.checked_sub(1)?;
        let spot = self.regions[left].before(self.regions[left].end())?;
        Some(Gap { region: left, spot })
    }

    /// The extent before a gap.
    #[inline]
    pub fn before(&self, gap: Gap) -> Option<Extent> {
        self.behind(self.step_back(gap)?)
    }

    /// The extent behind the one that is behind a gap.
    #[inline]
    pub fn second_behind(&self, gap: Gap) -> Option<Extent> {
        let region = self.regions.get(gap.region)?;
        let spot = region.after(gap.spot);
        if spot.chunk < region.chunks.len() {
            return region.entry(spot).map(|entry| entry.unpack(region.id));
        }
        self.behind(Gap { region: gap.region + 1, spot: START })
    }

    /// Puts an extent in the place of the one behind a gap, which has the same range.
    pub fn exchange(&mut self, gap: Gap, extent: &Extent) {
        self.regions[gap.region].exchange(gap.spot, Entry::pack(extent));
    }

    /// Puts in an extent, which belongs there.
    pub fn insert_at(&mut self, gap: Gap, extent: &Extent) {
        let position = (extent.inode, extent.range.end);
        let place = |other: Extent| (other.inode, other.range.end);
        let fits = self.before(gap).is_none_or(|left| place(left) < position)
            && self.behind(gap).is_none_or(|right| position < place(right));
        assert!(fits, "no two extents end at the same place, and they are in order");
        let id = RegionId::of(position);
        let is_here = |index: usize| self.regions.get(index).is_some_and(|region| region.id == id);
        let (index, spot) = if is_here(gap.region) {
            (gap.region, gap.spot)
        } else if gap.region > 0 && is_here(gap.region - 1) {
            (gap.region - 1, self.regions[gap.region - 1].end())
        } else {
            self.regions.insert(gap.region, Region::new(id));
            (gap.region, START)
        };
        self.regions[index].insert(spot, Entry::pack(extent));
        self.len += 1;
    }

    /// Takes out the extent behind a gap.
    pub fn remove_at(&mut self, gap: Gap) {
        let region = &mut self.regions[gap.region];
        region.remove(gap.spot);
        if region.chunks.is_empty() {
            self.regions.remove(gap.region);
        }
        self.len -= 1;
    }

    /// Puts in an extent.
    pub fn insert(&mut self, extent: &Extent) {
        self.insert_at(self.seek((extent.inode, extent.range.end)), extent);
    }

    /// Takes out the extent that ends there.
    pub fn remove(&mut self, position: Position) {
        let gap = self.step_back(self.seek(position));
        let found = gap.filter(|&gap| {
            self.behind(gap).is_some_and(|extent| (extent.inode, extent.range.end) == position)
        });
        self.remove_at(found.expect("the extent is there"));
    }

    /// All of them in order.
    pub fn iter(&self) -> Iter<'_> {
        Iter {
            id: RegionId::of(FIRST),
            entries: [].iter(),
            chunks: [].iter(),
            regions: self.regions.iter(),
        }
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

    /// Those that overlap a range, uncut, in order.
    #[inline]
    pub fn overlapping(&self, inode: Inode, range: SectorRange) -> Overlapping<'_> {
        Overlapping { rest: self.iter_after((inode, range.start)), inode, end: range.end }
    }

    /// Keeps those for which `keep` says so. It is asked about each of them once, in order.
    pub fn retain(&mut self, mut keep: impl FnMut(&Extent) -> bool) {
        for region in &mut self.regions {
            let before = region.len();
            for chunk in &mut region.chunks {
                chunk.retain(|entry| keep(&entry.unpack(region.id)));
            }
            let dropped = before - region.len();
            if dropped > 0 {
                region.tidy();
                self.len -= dropped;
            }
        }
        self.regions.retain(|region| !region.chunks.is_empty());
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
        right.len = right.regions.iter().map(Region::len).sum();
        self.len -= right.len;
        right
    }

    /// Adds others, all of which come after those here.
    pub fn append(&mut self, right: Extents) {
        self.len += right.len;
        for next in right.regions {
            match self.regions.last_mut() {
                Some(last) if last.id == next.id => last.append(next),
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
    #[inline(never)]
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
            if !self.next_chunk() {
                return None;
            }
        }
    }
}

/// See [`Extents::overlapping`].
#[derive(Clone, Debug)]
pub(super) struct Overlapping<'a> {
    rest: Iter<'a>,
    inode: Inode,
    end: Sector,
}

impl Iterator for Overlapping<'_> {
    type Item = Extent;

    #[inline]
    fn next(&mut self) -> Option<Extent> {
        loop {
            // Entries behind the range stay, so the end is the end when asked again.
            if let Some(entry) = self.rest.entries.as_slice().first() {
                let extent = entry.unpack(self.rest.id);
                if extent.range.start >= self.end || extent.inode != self.inode {
                    return None;
                }
                self.rest.entries.next();
                return Some(extent);
            }
            if !self.rest.next_chunk() {
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

    use ubcache_format::{Generation, Pointer};

    use super::super::packed_region::{CHUNK_MAX, END_BITS};
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
                offset: Sector(if number.is_multiple_of(5) {
                    (1 << 43) - 1
                } else {
                    number * 1000
                }),
                generation: Generation((number * 37) as u8),
            },
        }
    }

    fn check(extents: &Extents, model: &Model) {
        let all: Vec<Extent> = extents.iter().collect();
        assert_eq!(all, model.values().copied().collect::<Vec<_>>());
        assert_eq!(extents.len(), model.len());
        assert!(Extents::from_ordered(all.clone()).iter().eq(all));
        assert_eq!(extents.dirty_entries(), model.values().filter(|extent| extent.dirty).count());
        for region in &extents.regions {
            assert!(!region.chunks.is_empty(), "no region is empty");
            let lasts: Vec<u64> =
                region.chunks.iter().map(|chunk| chunk[chunk.len() - 1].place).collect();
            assert_eq!(lasts, region.lasts);
            for chunk in &region.chunks {
                assert!(chunk.len() <= CHUNK_MAX);
            }
        }
    }

    fn probe(extents: &Extents, model: &Model, place: Position) {
        let mut after = model.range((Excluded(place), Unbounded)).map(|(_, &extent)| extent);
        let gap = extents.seek(place);
        assert_eq!(extents.behind(gap), after.clone().next());
        assert_eq!(
            extents.before(gap),
            model.range(..=place).next_back().map(|(_, &extent)| extent)
        );
        assert!(extents.iter_after(place).eq(&mut after));
        for len in [1, 5, 70_000] {
            let range = SectorRange::from_bounds(place.1, Sector(place.1.0.saturating_add(len)));
            let expected = model.range((Excluded(place), Unbounded)).map(|(_, &extent)| extent);
            // They overlap each other here, so this is not all that overlap the range.
            let expected = expected
                .take_while(|extent| extent.inode == place.0 && extent.range.start < range.end);
            let mut found = extents.overlapping(place.0, range);
            assert!(found.by_ref().eq(expected));
            assert_eq!(found.next(), None);
        }
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
            2 => (position(), 1u64..3, 1usize..300).prop_map(|(at, by, count)| Step::Ascend(at, by,
                count)),
            1 => (2u64..6).prop_map(Step::Thin),
            2 => position().prop_map(Step::Split),
            2 => (position(), 1usize..200).prop_map(|(at, count)| Step::Clear(at, count)),
        ]
    }

    proptest! {
        #[test]
        fn extents_agree_with_a_map(
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
                            model.range((Excluded(at), Unbounded)).take(count).map(|(&at, _)| at)
                                .collect();
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

    /// An extent takes the same memory, however the leaf came to be.
    #[test]
    fn an_extent_takes_the_stated_memory() {
        const COUNT: u64 = 20_000;
        let bytes = |extents: &Extents| memory(extents) as f64 / extents.len() as f64;
        let ascending = filled(0..COUNT);
        let loaded = Extents::from_ordered(ascending.iter().collect());
        for full in [ascending, loaded] {
            assert!(bytes(&full) < 17.0, "{}", bytes(&full));
        }
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
        let mut retained = filled(shuffled());
        retained.retain(|extent| (extent.range.end.0 / 8 - 1).is_multiple_of(20));
        for few in [thinned, retained] {
            assert_eq!(few.len() as u64, COUNT / 20);
            assert!(bytes(&few) < 32.0, "{}", bytes(&few));
        }
    }
}
