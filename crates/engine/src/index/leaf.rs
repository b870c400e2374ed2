//! A leaf of the index in memory: its extents, combined, and what of them is not written yet.
//!
//! The extents of a leaf equal what a reader of the device would get by combining the bsets of the
//! node and what is touched since, except that holes and placeholders are left out. Stale extents
//! stay: the device still has them, and the return check (docs/internals/coherence.md) asks for
//! them.

use std::cell::{Cell, Ref, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use ubcache_env::local::Lock;
use ubcache_env::{IntervalSet, Nanos, Sector, SectorRange};
use ubcache_format::{Inode, JournalSeq, Key, MAX_EXTENT_SECTORS, Pointer};

use super::extent::{Extent, Position, push_holes};
use super::extents::Extents;
use super::unwritten::Touched;

/// The extents of a leaf.
#[derive(Default, Debug)]
pub(crate) struct Body {
    extents: Extents,
    /// Ranges changed since the last write of the node was started.
    touched: Touched,
    /// Dirty entries, stale ones included.
    dirty_entries: u32,
    /// Ranges where the node on the device has holes or placeholders, which are not among the
    /// extents.
    hollow: BTreeMap<Inode, IntervalSet>,
}

impl Body {
    /// A body with these extents, which are in order and disjoint; nothing is touched.
    pub fn from_extents(extents: Vec<Extent>) -> Body {
        let dirty_entries = extents.iter().filter(|extent| extent.dirty).count() as u32;
        Body { extents: Extents::from_ordered(extents), dirty_entries, ..Body::default() }
    }

    pub fn len(&self) -> usize {
        self.extents.len()
    }
    pub fn dirty_entries(&self) -> u32 {
        self.dirty_entries
    }
    pub fn touched_words(&self) -> u64 {
        self.touched.words()
    }
    pub fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// All extents in order.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        self.extents.iter()
    }

    /// The extents after a place, in order.
    #[inline]
    pub fn iter_after(&self, after: Position) -> impl Iterator<Item = Extent> + '_ {
        self.extents.iter_after(after)
    }

    /// The extents that overlap the range, uncut, in order.
    #[inline]
    pub fn overlapping(
        &self,
        inode: Inode,
        range: SectorRange,
    ) -> impl Iterator<Item = Extent> + '_ {
        self.extents.overlapping(inode, range)
    }

    /// The extent that holds a sector.
    #[inline]
    pub fn holding(&self, inode: Inode, sector: Sector) -> Option<Extent> {
        let found = self.extents.behind(self.extents.seek((inode, sector)))?;
        (found.inode == inode && found.range.start <= sector).then_some(found)
    }

    fn put(&mut self, extent: Extent) {
        self.dirty_entries += u32::from(extent.dirty);
        self.extents.insert(&extent);
    }

    fn take(&mut self, extent: &Extent) {
        self.extents.remove((extent.inode, extent.range.end));
        self.dirty_entries -= u32::from(extent.dirty);
    }

    /// Removes whatever lies in the range; what sticks out stays. `removed` gets each removed part.
    pub fn remove(&mut self, inode: Inode, range: SectorRange, mut removed: impl FnMut(Extent)) {
        loop {
            let gap = self.extents.seek((inode, range.start));
            let found = self.extents.behind(gap);
            let Some(old) = found.filter(|old| old.inode == inode && old.range.start < range.end)
            else {
                return;
            };
            self.extents.remove_at(gap);
            self.dirty_entries -= u32::from(old.dirty);
            let part = old.range.intersect(&range);
            if old.range.start < part.start {
                self.put(old.cut(SectorRange::from_bounds(old.range.start, part.start)));
            }
            if part.end < old.range.end {
                self.put(old.cut(SectorRange::from_bounds(part.end, old.range.end)));
            }
            removed(old.cut(part));
            if range.end <= old.range.end {
                return;
            }
        }
    }

    /// Puts an extent in the place of one that has the same range, which it gives, unless the new
    /// one has to be joined with a neighbour: then nothing happens.
    pub fn exchange(&mut self, new: &Extent, bucket_sectors: u32) -> Option<Extent> {
        let gap = self.extents.seek((new.inode, new.range.start));
        let old = self.extents.behind(gap)?;
        if old.inode != new.inode
            || old.range != new.range
            || self.extents.before(gap).is_some_and(|left| left.joins(new, bucket_sectors))
            || self
                .extents
                .second_behind(gap)
                .is_some_and(|right| new.joins(&right, bucket_sectors))
        {
            return None;
        }
        self.extents.exchange(gap, new);
        self.dirty_entries = self.dirty_entries - u32::from(old.dirty) + u32::from(new.dirty);
        Some(old)
    }

    /// Inserts an extent where there is none, joined with its neighbours where the format allows.
    pub fn insert(&mut self, mut new: Extent, bucket_sectors: u32) {
        let joins = |left: &Extent, right: &Extent| left.joins(right, bucket_sectors);
        // There is nothing in the range, so what is beside its start is beside all of it.
        let gap = self.extents.seek((new.inode, new.range.start));
        let left = self.extents.before(gap).filter(|left| joins(left, &new));
        if let Some(left) = left {
            new.range.start = left.range.start;
            new.pointer = left.pointer;
        }
        let right = self.extents.behind(gap).filter(|right| joins(&new, right));
        if let Some(right) = right {
            new.range.end = right.range.end;
        }
        if left.is_none() && right.is_none() {
            self.dirty_entries += u32::from(new.dirty);
            self.extents.insert_at(gap, &new);
            return;
        }
        left.iter().chain(&right).for_each(|old| self.take(old));
        self.put(new);
    }

    /// Notes that the device does not have the present state of the range.
    pub fn touch(&mut self, inode: Inode, range: SectorRange) {
        self.touched.note(inode, range);
    }

    /// Notes that the node on the device has a key without data there.
    pub fn note_hollow(&mut self, inode: Inode, range: SectorRange) {
        self.hollow.entry(inode).or_default().insert(range);
    }

    /// The keys that bring the device's node up to date: what the touched ranges hold now, and
    /// holes for the rest of them. Sorted, disjoint. Where a touched range lies inside of one older
    /// key, the upper rest of that key is repeated: the driver combines bsets in place, so what
    /// they combine to must not be longer than they are (docs/reference/format.md §5.6).
    pub fn pending(&mut self) -> Pending {
        let Body { extents, touched, hollow, .. } = self;
        let ranges = touched.in_order();
        let (mut keys, mut holes) = (Vec::with_capacity(ranges.len()), Vec::new());
        let mut gap = |keys: &mut Vec<Key>, inode, start, end| {
            if start < end {
                let range = SectorRange::from_bounds(start, end);
                push_holes(keys, inode, range);
                holes.push((inode, range));
            }
        };
        for (index, &(inode, range)) in ranges.iter().enumerate() {
            // Extents that hold the sectors beside the range are found on the way.
            let around =
                SectorRange::from_bounds(Sector(range.start.0.saturating_sub(1)), range.end + 1);
            let (mut left, mut right) = (None, None);
            let mut at = range.start;
            for extent in extents.overlapping(inode, around) {
                left = left.or((extent.range.start < range.start).then_some(extent));
                right = right.or((extent.range.end > range.end).then_some(extent));
                if extent.range.overlaps(&range) {
                    let part = extent.cut(range);
                    gap(&mut keys, inode, at, part.range.start);
                    at = part.range.end;
                    keys.push(part.key());
                }
            }
            gap(&mut keys, inode, at, range.end);
            let next = ranges.get(index + 1).filter(|(next_inode, _)| *next_inode == inode);
            let limit = next.map_or(Sector(u64::MAX), |(_, next)| next.start);
            push_split_rest(&mut keys, hollow.get(&inode), inode, range, (left, right), limit);
        }
        Pending { keys, holes }
    }

    /// Takes the note of what is touched away: a write of it, which was [`Body::pending`], is under
    /// way.
    pub fn take_pending(&mut self, holes: &[(Inode, SectorRange)]) -> Touched {
        let mut touched = std::mem::take(&mut self.touched);
        if !self.hollow.is_empty() {
            for (inode, range) in touched.in_order() {
                if let Some(hollow) = self.hollow.get_mut(inode) {
                    hollow.remove(*range);
                }
            }
        }
        holes.iter().for_each(|&(inode, hole)| self.note_hollow(inode, hole));
        touched
    }

    /// The same where everything is written anew.
    pub fn take_touched(&mut self) -> Touched {
        let holes = self.pending().holes;
        self.take_pending(&holes)
    }

    /// Puts it back: the write failed.
    pub fn restore_touched(&mut self, touched: Touched) {
        self.touched.merge(touched);
    }

    /// Drops the extents for which `drop` says so, without touching.
    pub fn drop_where(&mut self, mut drop: impl FnMut(&Extent) -> bool) {
        let mut dirty = 0;
        self.extents.retain(|extent| {
            let keep = !drop(extent);
            dirty += u32::from(keep && extent.dirty);
            keep
        });
        self.dirty_entries = dirty;
    }

    /// Cuts the leaf in two at a place; returns what lies after it.
    pub fn split_off(&mut self, at: Position) -> Body {
        let (inode, sector) = at;
        // An extent that straddles the place is cut, on both sides of it and in what is touched.
        let straddling = self
            .iter_after(at)
            .next()
            .filter(|extent| extent.inode == inode && extent.range.start < sector);
        if let Some(old) = straddling {
            self.take(&old);
            let (left, right) = old.range.split_at(sector);
            self.put(old.cut(left));
            self.put(old.cut(right));
        }
        let mut right = Body::default();
        right.extents = self.extents.split_after(at);
        right.dirty_entries = right.extents.dirty_entries() as u32;
        self.dirty_entries -= right.dirty_entries;
        right.touched = self.touched.split_off(at);
        right
    }

    /// Adds everything of a right neighbour.
    pub fn append(&mut self, mut right: Body) {
        self.extents.append(std::mem::take(&mut right.extents));
        self.dirty_entries += right.dirty_entries;
        self.touched.merge(std::mem::take(&mut right.touched));
    }
}

/// See [`Body::pending`].
pub(crate) struct Pending {
    pub keys: Vec<Key>,
    /// Touched ranges that hold nothing now.
    pub holes: Vec<(Inode, SectorRange)>,
}

/// The part, up to `limit`, behind a touched range of a key of the device that may lie around it.
/// `beside` are the extents that hold the sectors on both sides of the range, `hollow` is that of
/// the volume.
fn push_split_rest(
    keys: &mut Vec<Key>,
    hollow: Option<&IntervalSet>,
    inode: Inode,
    range: SectorRange,
    beside: (Option<Extent>, Option<Extent>),
    limit: Sector,
) {
    if range.start.0 == 0 {
        return;
    }
    match beside {
        (Some(left), Some(right)) => {
            let behind = SectorRange::new(range.end, 1);
            let is_one = left.dirty == right.dirty
                && left.pointer.advance(range.end - left.range.start) == right.cut(behind).pointer;
            if is_one {
                let rest = SectorRange::from_bounds(range.end, right.range.end.min(limit));
                keys.push(right.cut(rest).key());
            }
        }
        (None, None) => {
            let before = SectorRange::new(Sector(range.start.0 - 1), 1);
            let Some(hollow) = hollow.filter(|hollow| hollow.overlaps(before)) else { return };
            // No key is longer than this.
            let longest = SectorRange::new(range.end, MAX_EXTENT_SECTORS);
            let rest = hollow.overlapping(longest).next().filter(|rest| rest.start <= range.end);
            if let Some(rest) = rest {
                let end = rest.end.min(longest.end).min(limit);
                push_holes(keys, inode, SectorRange::from_bounds(range.end, end));
            }
        }
        _ => {}
    }
}

/// A leaf: where it is on the device, and its extents when they are in memory.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// Unique in the life of the process.
    pub id: u64,
    /// Everything in the leaf lies after this place ...
    pub low: Position,
    /// ... and not after this one.
    pub end: Position,
    /// The pointer of the key that leads here: place, generation, checksum seed.
    pub pointer: Pointer,
    /// Size of the node in sectors.
    pub sectors: u16,
    /// Held while the node is read, written or replaced.
    pub(super) io: Lock,
    pub(super) state: RefCell<LeafState>,
    /// Set by every use, cleared by the hand of the node cache.
    pub(super) referenced: Cell<bool>,
    /// It waits for the node writer.
    pub(super) queued: Cell<bool>,
    /// Tasks that gather several leaves; the node cache leaves these alone.
    pub(super) holds: Cell<u32>,
}

/// Keeps a leaf in memory.
#[derive(Debug)]
pub(crate) struct Hold(Rc<Leaf>);

impl Hold {
    pub fn new(leaf: &Rc<Leaf>) -> Hold {
        leaf.holds.set(leaf.holds.get() + 1);
        Hold(leaf.clone())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.set(self.0.holds.get() - 1);
    }
}

/// The part of a leaf that changes.
#[derive(Debug, Default)]
pub(super) struct LeafState {
    /// None: not in memory.
    pub body: Option<Body>,
    /// Random number of all bsets of the node.
    pub seq: u64,
    /// Bytes of the node that hold bsets.
    pub used_bytes: u64,
    /// The extents have been counted into the buckets.
    pub counted: bool,
    /// The oldest journal entry with a record that the node on the device lacks.
    pub pin: Option<JournalSeq>,
    /// The same for the records in a write that is under way.
    pub writing_pin: Option<JournalSeq>,
    /// When it was first touched since the last write.
    pub touched_at: Nanos,
    /// Replaced by other leaves: look the place up again.
    pub retired: bool,
    /// An upper bound for the words of the records in a write that is under way.
    pub writing_words: u64,
    /// Records of the journal that the body gets when it is loaded, oldest first: entry and key of
    /// what is replayed.
    pub replay: Vec<(u32, u32)>,
    /// Dirty entries, known also while the body is not in memory.
    pub dirty_entries: u32,
}

impl Leaf {
    pub fn key(&self) -> Key {
        Key::node(self.end.0, self.end.1, self.sectors, self.pointer)
    }

    /// Its extents, if they are in memory and the leaf has not been replaced.
    pub fn body(&self) -> Option<Ref<'_, Body>> {
        Ref::filter_map(self.state.borrow(), |state| state.body.as_ref()).ok()
    }

    /// Returns true if other leaves have replaced it: look the place up again.
    pub fn is_retired(&self) -> bool {
        self.state.borrow().retired
    }

    /// The part of a volume's range that belongs to this leaf.
    pub fn clip(&self, inode: Inode, range: SectorRange) -> SectorRange {
        let start = if self.low.0 == inode { range.start.max(self.low.1) } else { range.start };
        let end = if self.end.0 == inode { range.end.min(self.end.1) } else { range.end };
        SectorRange::from_bounds(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ubcache_format::Generation;

    const VOLUME: Inode = Inode(3);

    fn range(start: u64, len: u64) -> SectorRange {
        SectorRange::new(Sector(start), len)
    }
    fn place(at: u64, generation: u8) -> Pointer {
        Pointer { device: 0, offset: Sector(at), generation: Generation(generation) }
    }
    fn sectors(body: &Body) -> Vec<Option<(u64, u8, bool)>> {
        let mut all = vec![None; 100];
        for extent in body.iter() {
            for sector in extent.range.start.0..extent.range.end.0 {
                let pointer = extent.pointer.advance(sector - extent.range.start.0);
                assert!(all[sector as usize].is_none(), "extents do not overlap");
                all[sector as usize] = Some((pointer.offset.0, pointer.generation.0, extent.dirty));
            }
        }
        all
    }

    proptest! {
        /// Applying the pending keys to what the device had gives what memory has.
        #[test]
        fn pending_keys_complete_the_leaf_on_the_device(
            steps in prop::collection::vec((0u64..80, 1u64..20, 0u8..5, any::<bool>()), 1..40),
            split in 0u64..100,
        ) {
            let mut body = Body::default();
            let mut device: Vec<Vec<Key>> = Vec::new();
            let mut model: Vec<Option<(u64, u8, bool)>> = vec![None; 100];
            for (index, &(start, len, kind, dirty)) in steps.iter().enumerate() {
                let range = range(start, len);
                body.remove(VOLUME, range, |_| ());
                body.touch(VOLUME, range);
                model[start as usize..(start + len) as usize].fill(None);
                if kind > 0 {
                    let at = 1000 * (index as u64 + 1);
                    body.insert(
                        Extent { inode: VOLUME, range, dirty, pointer: place(at, kind) }, 1 << 20);
                    for n in 0..len {
                        model[(start + n) as usize] = Some((at + n, kind, dirty));
                    }
                }
                if kind == 4 {
                    let pending = body.pending();
                    body.take_pending(&pending.holes);
                    device.push(pending.keys);
                    // The driver combines bsets in the room that they have.
                    let combined = ubcache_format::combine_leaf(device.clone());
                    let words = |keys: &[Key]| keys.iter().map(Key::words).sum::<usize>();
                    let room = device.iter().map(|keys| words(keys)).sum::<usize>();
                    prop_assert!(words(&combined) <= room, "{combined:?}");
                    if dirty {
                        let mut loaded = Body::default();
                        for key in combined {
                            let Some(pointer) = key.pointer() else {
                                loaded.note_hollow(VOLUME, key.range());
                                continue;
                            };
                            loaded.put(Extent { inode: VOLUME, range: key.range(),
                                dirty: key.dirty, pointer });
                        }
                        body = loaded;
                    }
                }
            }
            prop_assert_eq!(&sectors(&body), &model);
            let mut right = body.split_off((VOLUME, Sector(split)));
            prop_assert!(body.iter().all(|extent| extent.range.end.0 <= split));
            prop_assert!(right.iter().all(|extent| extent.range.start.0 >= split));
            device.push(body.pending().keys);
            device.push(right.pending().keys);
            let mut combined = Body::default();
            for key in device.into_iter().flatten() {
                combined.remove(VOLUME, key.range(), |_| ());
                if let Some(pointer) = key.pointer() {
                    combined.insert(
                        Extent { inode: VOLUME, range: key.range(), dirty: key.dirty, pointer },
                            1 << 20);
                }
            }
            prop_assert_eq!(&sectors(&combined), &model);
            body.append(right);
            prop_assert_eq!(&sectors(&body), &model);
        }
    }
}
