//! Changing the index: one step that changes leaves, counts, ghosts and journal together.

use std::rc::Rc;

use smallvec::SmallVec;
use ubcache_env::{Env, SectorRange};
use ubcache_format::{Inode, JournalSeq, Key, Pointer, SECTOR_BYTES};

use super::Index;
use super::extent::{Extent, push_holes, removal_records};
use super::leaf::Leaf;
use crate::journal::reservation::Reservation;
use crate::rules::Rule;

impl<E: Env> Index<E> {
    /// Sectors that only the cache has.
    pub fn dirty_sectors(&self, inode: Inode) -> u64 {
        self.inodes.borrow().get(&inode).map_or(0, |state| state.dirty_sectors)
    }

    /// Ghosts of all slots that are in memory.
    pub fn ghosts_held(&self) -> usize {
        self.inodes.borrow().values().map(|state| state.ghosts.count()).sum()
    }

    /// The newest record that a FLUSH waits for.
    pub fn newest_dirty(&self, inode: Inode) -> JournalSeq {
        self.inodes.borrow().get(&inode).map_or(JournalSeq::default(), |state| state.newest_dirty)
    }

    /// Makes the range point to `new`, or to nothing, and records it. One step; the leaves over the
    /// range must be in memory (`prepare_change`), and the new place pinned by the caller. Takes a
    /// record, or as many as `removal_records` says.
    pub fn replace(
        &self,
        room: &mut Reservation<'_, E>,
        inode: Inode,
        range: SectorRange,
        new: Option<(Pointer, bool)>,
    ) -> JournalSeq {
        let mut record = |key: Key| {
            let range = key.range();
            let seq = room.append(key);
            self.replace_in_memory(inode, range, new, seq);
            seq
        };
        match new {
            Some((pointer, dirty)) => record(Key::extent(inode, range, dirty, pointer)),
            None => {
                let mut keys = Vec::with_capacity(1);
                push_holes(&mut keys, inode, range);
                keys.into_iter().map(record).last().unwrap_or_default()
            }
        }
    }

    /// The record exists already.
    fn replace_in_memory(
        &self,
        inode: Inode,
        range: SectorRange,
        new: Option<(Pointer, bool)>,
        seq: JournalSeq,
    ) {
        let around = self.tree.borrow().leaf_around(inode, range).cloned();
        if let Some(leaf) = around {
            return self.replace_in_leaf(&leaf, inode, range, new, seq);
        }
        self.context.env.mark("change_over_two_leaves");
        let leaves: SmallVec<[Rc<Leaf>; 2]> =
            self.tree.borrow().leaves_over(inode, range).iter().cloned().collect();
        for leaf in &leaves {
            self.replace_in_leaf(leaf, inode, range, new, seq);
        }
    }

    /// The part of it that belongs to a leaf in memory.
    pub(super) fn replace_in_leaf(
        &self,
        leaf: &Rc<Leaf>,
        inode: Inode,
        range: SectorRange,
        new: Option<(Pointer, bool)>,
        seq: JournalSeq,
    ) {
        let mut tree = self.tree.borrow_mut();
        let mut buckets = self.allocator.buckets_mut();
        let mut inodes = self.inodes.borrow_mut();
        let known = inodes.entry(inode).or_default();
        let part = leaf.clip(inode, range);
        let mut state = leaf.state.borrow_mut();
        let body = state.body.as_mut().expect("prepare_change was called, and no await since");
        let before = body.len();
        let mut discarded = false;
        let mut gone = |old: Extent| {
            if buckets.is_live(old.pointer) {
                discarded |= old.dirty && new.is_none();
                buckets.remove_live(old.pointer, old.range.sectors(), old.dirty);
                if old.dirty {
                    known.dirty_sectors -= old.range.sectors();
                }
            }
            if buckets.may_return(old.pointer) {
                known.ghosts.note(old.range, seq);
                #[cfg(feature = "mutants")]
                if !self.context.keeps(Rule::W2LateReplayLeavesGhosts) {
                    known.ghosts.forget_newest(seq);
                }
            }
        };
        let extent = new.map(|(pointer, dirty)| {
            let pointer = pointer.advance(part.start - range.start);
            Extent { inode, range: part, dirty, pointer }
        });
        let exchanged =
            extent.and_then(|extent| body.exchange(&extent, self.context.geometry.bucket_sectors));
        match exchanged {
            Some(old) => gone(old),
            None => {
                let removed = match self.context.keeps(Rule::X1InsertKeepsTail) {
                    true => part,
                    false => body.overlapping(inode, part).last().map_or(part, |last| {
                        SectorRange::from_bounds(part.start, part.end.max(last.range.end))
                    }),
                };
                let mut cut = 0;
                body.remove(inode, removed, |old| {
                    cut += 1;
                    gone(old);
                });
                match body.len() + cut - before {
                    2 if cut == 1 => self.context.env.mark("key_split_by_change"),
                    1.. => self.context.env.mark("key_trimmed_by_change"),
                    0 => {}
                }
            }
        }
        if let Some(extent) = extent {
            buckets.note_pointer(extent.pointer);
            if buckets.is_live(extent.pointer) {
                buckets.add_live(extent.pointer, part.sectors(), extent.dirty);
                if extent.dirty {
                    known.dirty_sectors += part.sectors();
                }
            }
        }
        if let Some(extent) = extent.filter(|_| exchanged.is_none()) {
            let others = body.len();
            body.insert(extent, self.context.geometry.bucket_sectors);
            if body.len() <= others {
                self.context.env.mark("keys_joined");
            }
        }
        body.touch(inode, part);
        let (after, dirty_entries) = (body.len(), body.dirty_entries());
        let touched_bytes = body.touched_words() * 8;
        // Beyond the room of the node the driver would have to split it in its replay, which often
        // fails.
        let room = (u64::from(leaf.sectors) * SECTOR_BYTES).saturating_sub(state.used_bytes);
        let full = touched_bytes >= self.context.tuning.leaf_write_bytes.min(room);
        state.dirty_entries = dirty_entries;
        if state.pin.is_none() {
            state.touched_at = self.context.env.now();
        }
        tree.loaded_extents = tree.loaded_extents + after - before;
        tree.pin(leaf, &mut state, seq);
        drop(state);
        leaf.referenced.set(true);
        if full {
            self.node_writer.request(leaf);
        }
        // A FLUSH waits for both (F1).
        let removal = discarded && self.context.keeps(Rule::D1FlushWaitsForRemoval);
        if removal || new.is_some_and(|(_, dirty)| dirty) {
            known.newest_dirty = known.newest_dirty.max(seq);
        }
        let crowded = known.ghosts.above_high_water();
        drop((tree, buckets, inodes));
        if crowded {
            self.lay_ghosts(inode);
        }
    }

    fn lay_ghosts(&self, inode: Inode) {
        let durable = self.journal.durable();
        let many =
            self.inodes.borrow_mut().get_mut(&inode).is_some_and(|known| known.ghosts.lay(durable));
        if many {
            self.context.env.mark("ghosts_laid");
            self.journal.hurry();
        }
    }

    /// W2: removes every key over the range and says which record must be durable before the
    /// backing device may be written there. None: no crash can bring anything back (W3).
    /// The range must have no dirty part; the leaves must be in memory.
    pub fn invalidate(
        &self,
        room: &mut Reservation<'_, E>,
        inode: Inode,
        range: SectorRange,
    ) -> Option<JournalSeq> {
        let mut hull: Option<SectorRange> = None;
        {
            let buckets = self.allocator.buckets();
            self.each_extent(inode, range, |extent| {
                let live = buckets.is_live(extent.pointer);
                // I4: the decide step found nothing dirty, and there was no await since.
                assert!(
                    !(live && extent.dirty),
                    "dirty data is never invalidated: {:?}",
                    extent.range
                );
                let ghost = buckets.may_return(extent.pointer)
                    && self.context.keeps(Rule::W2CountsEvictions);
                if !live && ghost {
                    self.context.env.mark("return_check_evicted_key");
                }
                if live || ghost {
                    let low = hull.map_or(extent.range.start, |hull| hull.start);
                    hull = Some(SectorRange::from_bounds(low, extent.range.end));
                }
            });
        }
        let hull = hull.map(|hull| {
            let whole = self.with_whole_keys(inode, hull);
            if removal_records(whole) <= room.left() { whole } else { hull }
        });
        let removed = hull.map(|hull| self.replace(room, inode, hull, None));
        #[cfg(feature = "mutants")]
        if !self.context.keeps(Rule::W2AsksGhosts) {
            return removed;
        }
        let newest = self.ghost_over(inode, range);
        if removed.is_none() && newest.is_some() {
            self.context.env.mark("return_check_ghost");
        }
        newest
    }
}
