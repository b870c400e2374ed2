//! Look-ups: the cached parts of a range.

use std::rc::Rc;

use smallvec::SmallVec;
use ubcache_env::{Env, SectorRange};
use ubcache_format::{Inode, JournalSeq, Pointer, SECTOR_BYTES, bset_bytes_of_words};

use super::Index;
use super::extent::Extent;
use super::leaf::{Hold, Leaf, LeafState};
use super::unwritten::CHANGE_WORDS;
use crate::errors::EngineError;
use crate::journal::reservation::Reservation;
use crate::rules::Rule;

/// Work to do on a leaf before it takes another change.
enum Crowded {
    /// Split it: it has as many keys as one node takes.
    Keys,
    /// Replace it by fresh ones.
    Node,
    /// Write what its node lacks.
    Records,
}

impl<E: Env> Index<E> {
    /// A leaf over the range that is not in memory.
    pub(super) fn unloaded_leaf(&self, inode: Inode, range: SectorRange) -> Option<Rc<Leaf>> {
        let tree = self.tree.borrow();
        tree.leaves_over(inode, range)
            .iter()
            .find(|leaf| leaf.state.borrow().body.is_none())
            .cloned()
    }

    /// Returns true if every leaf over the range is in memory.
    pub fn is_loaded(&self, inode: Inode, range: SectorRange) -> bool {
        self.unloaded_leaf(inode, range).is_none()
    }

    /// Brings every leaf over the range into memory. True when it returns, and until the next
    /// await.
    pub async fn load_over(&self, inode: Inode, range: SectorRange) -> Result<(), EngineError> {
        self.hold_over(inode, range).await.map(drop)
    }

    /// Loads like [`Index::load_over`]; the leaves that had to be loaded stay as long as the holds.
    pub async fn hold_over(
        &self,
        inode: Inode,
        range: SectorRange,
    ) -> Result<Vec<Hold>, EngineError> {
        let mut holds = Vec::new();
        while let Some(leaf) = self.unloaded_leaf(inode, range) {
            holds.push(Hold::new(&leaf));
            self.load_leaf(&leaf).await?;
        }
        Ok(holds)
    }

    /// Loads like [`Index::load_over`], for a read of a client, which helps to keep the index to
    /// its limit.
    pub async fn load_for_read(&self, inode: Inode, range: SectorRange) -> Result<(), EngineError> {
        let mut holds = Vec::new();
        while let Some(leaf) = self.unloaded_leaf(inode, range) {
            holds.push(Hold::new(&leaf));
            self.load_leaf(&leaf).await?;
            if self.index_is_too_large() {
                // Not part of the future of a hit.
                Box::pin(self.write_and_forget()).await;
            }
        }
        Ok(())
    }

    /// Waits until a change of the range can be made that takes so many records: the journal has
    /// room, the leaves are in memory. The room is to be used in this step: the leaves stay until
    /// the next await only. In a full cache it may be refused ([`EngineError::NoSpace`], N4).
    pub async fn prepare_change(
        &self,
        inode: Inode,
        range: SectorRange,
        records: usize,
    ) -> Result<Reservation<'_, E>, EngineError> {
        if let Some(room) = self.prepared(inode, range, records) {
            return Ok(room);
        }
        // Not part of the future of a write that need not wait.
        Box::pin(self.wait_for_change(inode, range, records, false)).await
    }

    /// Waits like [`Index::prepare_change`] for a change that is not refused because the cache is
    /// full, for it leaves a leaf no more keys than it had: keys go, as a whole, or turn clean.
    pub async fn prepare_removal(
        &self,
        inode: Inode,
        range: SectorRange,
        records: usize,
    ) -> Result<Reservation<'_, E>, EngineError> {
        if let Some(room) = self.prepared(inode, range, records) {
            return Ok(room);
        }
        Box::pin(self.wait_for_change(inode, range, records, true)).await
    }

    /// Room for a change that one leaf takes, if it can be made at once. None says nothing.
    fn prepared(
        &self,
        inode: Inode,
        range: SectorRange,
        records: usize,
    ) -> Option<Reservation<'_, E>> {
        {
            let tree = self.tree.borrow();
            let leaf = tree.leaf_around(inode, range)?;
            let state = leaf.state.borrow();
            if state.body.is_none() || self.crowded(leaf, &state, records).is_some() {
                return None;
            }
        }
        self.journal.try_reserve(records)
    }

    async fn wait_for_change(
        &self,
        inode: Inode,
        range: SectorRange,
        records: usize,
        removal: bool,
    ) -> Result<Reservation<'_, E>, EngineError> {
        let mut holds = Vec::new();
        let mut crowded = false;
        loop {
            // Nobody else's step comes between this and the change: there is an await only where it
            // is given back.
            let room = self.journal.reserve(records).await?;
            if let Some(leaf) = self.unloaded_leaf(inode, range) {
                drop(room);
                holds.push(Hold::new(&leaf));
                self.load_leaf(&leaf).await?;
                self.write_and_forget().await;
                continue;
            }
            // Writing and splitting takes buckets and entries: not too many at once.
            let Some((leaf, what)) = self.crowded_leaf(inode, range, records) else {
                return Ok(room);
            };
            let grows = matches!(what, Crowded::Keys) && !removal;
            if crowded && !grows {
                return Ok(room);
            }
            drop(room);
            let made_room = match what {
                Crowded::Keys | Crowded::Node => {
                    self.context.env.mark("overfull_leaf");
                    self.restructure(vec![vec![leaf]], false).await
                }
                Crowded::Records => {
                    self.context.env.mark("leaf_with_many_records");
                    self.write_leaf(&leaf, false).await
                }
            };
            match made_room {
                // N4: a leaf that could not be written in one node any more would have to be split
                // when the journal needs room, with buckets that nothing has kept for it.
                Err(EngineError::NoSpace(what))
                    if grows && self.context.keeps(Rule::N4LeafFitsNode) =>
                {
                    self.context.env.mark("change_refused_by_full_leaf");
                    return Err(EngineError::NoSpace(what));
                }
                // The records of one that is no larger may outgrow its node, which a reader that
                // replays can do without.
                Err(EngineError::NoSpace(_)) => crowded = true,
                done => done?,
            }
        }
    }

    /// A leaf over the range that has to be written before it takes another change: it holds far
    /// more than fits a node, or the records that its node lacks would not fit there any more. A
    /// reader that replays by inserting into nodes, as the driver does, needs that room: at that
    /// time it can hardly split a node.
    fn crowded_leaf(
        &self,
        inode: Inode,
        range: SectorRange,
        records: usize,
    ) -> Option<(Rc<Leaf>, Crowded)> {
        let tree = self.tree.borrow();
        tree.leaves_over(inode, range).iter().find_map(|leaf| {
            let crowded = self.crowded(leaf, &leaf.state.borrow(), records)?;
            Some((leaf.clone(), crowded))
        })
    }

    /// Decides on the work to do before a leaf takes so many records.
    fn crowded(&self, leaf: &Leaf, state: &LeafState, records: usize) -> Option<Crowded> {
        let body = state.body.as_ref()?;
        if body.len() > self.leaf_keys_max {
            return Some(Crowded::Keys);
        }
        // And what is left of the keys at the ends.
        let records = records as u64 + 2;
        let bytes = |words| bset_bytes_of_words(&self.context.geometry, words);
        let room = u64::from(leaf.sectors) * SECTOR_BYTES;
        let change = CHANGE_WORDS * records;
        let writing = if state.writing_words > 0 { bytes(state.writing_words) } else { 0 };
        if state.used_bytes + writing + bytes(body.touched_words() + change) <= room {
            return None;
        }
        // Only if it helps: nodes can be too small for this.
        let keys = body.len().div_ceil(self.nodes_for(body.len()));
        let fresh = bytes(keys as u64 * 3) + bytes(change);
        if fresh > room {
            None
        } else if body.is_touched() || writing > 0 {
            Some(Crowded::Records)
        } else {
            (state.used_bytes + bytes(0) > fresh).then_some(Crowded::Node)
        }
    }

    /// Calls `visit` with every extent over the range, cut to it, live or stale. The leaves must
    /// be in memory.
    pub fn each_extent(&self, inode: Inode, range: SectorRange, mut visit: impl FnMut(Extent)) {
        let tree = self.tree.borrow();
        for leaf in tree.leaves_over(inode, range) {
            let state = leaf.state.borrow();
            let body = state.body.as_ref().expect("load_over was called, and no await since");
            leaf.referenced.set(true);
            for extent in body.overlapping(inode, leaf.clip(inode, range)) {
                visit(extent.cut(range));
            }
        }
    }

    /// The live extents over the range, cut to it, in order. The leaves must be in memory.
    pub fn live_extents(&self, inode: Inode, range: SectorRange) -> SmallVec<[Extent; 2]> {
        let mut live = SmallVec::new();
        let buckets = self.allocator.buckets();
        self.each_extent(inode, range, |extent| {
            if buckets.is_live(extent.pointer) {
                live.push(extent);
            }
        });
        live
    }

    /// The range, and where a leaf over it is full all of each key over its ends: what takes these
    /// away, or turns them clean, as a whole adds no key (N4).
    pub fn with_whole_keys(&self, inode: Inode, range: SectorRange) -> SectorRange {
        let tree = self.tree.borrow();
        let mut whole = range;
        for leaf in tree.leaves_over(inode, range) {
            let state = leaf.state.borrow();
            let Some(body) = state.body.as_ref().filter(|body| body.len() > self.leaf_keys_max)
            else {
                continue;
            };
            for extent in body.overlapping(inode, leaf.clip(inode, range)) {
                let start = whole.start.min(extent.range.start);
                whole = SectorRange::from_bounds(start, whole.end.max(extent.range.end));
            }
        }
        whole
    }

    /// The range, and where a leaf over it is full only the whole keys in it: what takes these away
    /// adds no key (N4). It may be empty.
    pub fn within_whole_keys(&self, inode: Inode, range: SectorRange) -> SectorRange {
        let tree = self.tree.borrow();
        let (mut start, mut end) = (range.start, range.end);
        for leaf in tree.leaves_over(inode, range) {
            let state = leaf.state.borrow();
            let Some(body) = state.body.as_ref().filter(|body| body.len() > self.leaf_keys_max)
            else {
                continue;
            };
            for extent in body.overlapping(inode, leaf.clip(inode, range)) {
                if extent.range.start < range.start {
                    start = start.max(extent.range.end.min(range.end));
                }
                if extent.range.end > range.end {
                    end = end.min(extent.range.start.max(range.start));
                }
            }
        }
        SectorRange::from_bounds(start, end.max(start))
    }

    /// The first of the live extents over the range, no more than `most`, and the part of the range
    /// that has no others.
    pub fn first_live_extents(
        &self,
        inode: Inode,
        range: SectorRange,
        most: usize,
    ) -> (Vec<Extent>, SectorRange) {
        let (tree, buckets) = (self.tree.borrow(), self.allocator.buckets());
        let mut live = Vec::new();
        for leaf in tree.leaves_over(inode, range) {
            let state = leaf.state.borrow();
            let body = state.body.as_ref().expect("load_over was called, and no await since");
            let extents = body.overlapping(inode, leaf.clip(inode, range));
            for extent in extents.filter(|extent| buckets.is_live(extent.pointer)) {
                live.push(extent.cut(range));
                if live.len() == most {
                    let end = live.last().map_or(range.end, |extent| extent.range.end);
                    return (live, SectorRange::from_bounds(range.start, end));
                }
            }
        }
        (live, range)
    }

    /// Answers most reads in one search: a live extent that holds the whole range. `None` says
    /// nothing, also not that the leaves are in memory.
    pub fn live_extent_around(&self, inode: Inode, range: SectorRange) -> Option<Extent> {
        let tree = self.tree.borrow();
        let leaf = tree.leaf_around(inode, range)?;
        let state = leaf.state.borrow();
        let extent = state.body.as_ref()?.holding(inode, range.start)?;
        if extent.range.end < range.end || !self.allocator.buckets().is_live(extent.pointer) {
            return None;
        }
        leaf.referenced.set(true);
        Some(if extent.range == range { extent } else { extent.cut(range) })
    }

    /// Returns true if any of the range is dirty. The leaves must be in memory.
    pub fn has_dirty(&self, inode: Inode, range: SectorRange) -> bool {
        if self.dirty_sectors(inode) == 0 && self.allocator.buckets().is_counted() {
            return false;
        }
        self.live_extents(inode, range).iter().any(|extent| extent.dirty)
    }

    /// Returns true if any of the range is dirty, or could be: a leaf over it is not in memory.
    pub fn may_be_dirty(&self, inode: Inode, range: SectorRange) -> bool {
        !self.is_loaded(inode, range) || self.has_dirty(inode, range)
    }

    /// The return check: which record must be durable so that no crash can bring back a key over
    /// the range (docs/internals/coherence.md). What is in the index counts as well; call it after
    /// removing.
    pub(super) fn ghost_over(&self, inode: Inode, range: SectorRange) -> Option<JournalSeq> {
        let durable = self.journal.durable();
        let mut inodes = self.inodes.borrow_mut();
        inodes.entry(inode).or_default().ghosts.newest_over(range, durable)
    }

    /// Returns true if the index still says of the extent's whole range what the extent does.
    pub fn is_current(&self, extent: &Extent) -> bool {
        let mut at = extent.range.start;
        let mut same = true;
        self.each_extent(extent.inode, extent.range, |found| {
            let expected: Pointer = extent.pointer.advance(found.range.start - extent.range.start);
            same &=
                found.range.start == at && found.pointer == expected && found.dirty == extent.dirty;
            at = found.range.end;
        });
        same && at == extent.range.end && self.allocator.buckets().is_live(extent.pointer)
    }
}
