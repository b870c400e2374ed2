//! The leaves and the interior nodes, and which leaves hold the journal.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::rc::Rc;

use ubcache_env::SectorRange;
use ubcache_format::{Inode, JournalSeq, Key, Pointer};

use super::extent::{FIRST, Position};
use super::leaf::{Body, Leaf, LeafState};
use super::leaves::Leaves;
use crate::journal::pins::EntryPins;

/// An interior node. Its children are the nodes of the level below that lie in its interval.
#[derive(Clone, Debug)]
pub(crate) struct Interior {
    pub pointer: Pointer,
    pub sectors: u16,
    pub seq: u64,
    pub used_bytes: u64,
    /// Pointers of its log that lead to no child any more: of nodes that were freed, and of the
    /// keys that freed them. A start looks at them, so they have an age like those of extents (G1).
    pub former: Vec<Pointer>,
}

impl Interior {
    pub fn key(&self, end: Position) -> Key {
        Key::node(end.0, end.1, self.sectors, self.pointer)
    }
}

#[derive(Debug)]
pub(crate) struct Tree {
    leaves: Leaves,
    /// Levels 1 and up.
    pub interior: Vec<BTreeMap<Position, Interior>>,
    /// Leaves with records that their node on the device lacks, by oldest such record.
    pinned: BTreeMap<(JournalSeq, u64), Rc<Leaf>>,
    /// Tells the journal of the oldest of them.
    pins: Rc<EntryPins>,
    next_id: u64,
    /// Extents in memory, for the limit of the node cache.
    pub loaded_extents: usize,
    /// Position of the node cache's clock hand.
    pub clock_hand: ClockHand,
}

/// The hand of the node cache.
#[derive(Debug, Copy, Clone)]
pub(crate) struct ClockHand(pub Position);

impl Default for ClockHand {
    fn default() -> Self {
        ClockHand(FIRST)
    }
}

impl Tree {
    /// An empty tree.
    pub fn new(pins: Rc<EntryPins>) -> Tree {
        Tree {
            leaves: Leaves::default(),
            interior: Vec::new(),
            pinned: BTreeMap::new(),
            pins,
            next_id: 0,
            loaded_extents: 0,
            clock_hand: ClockHand::default(),
        }
    }

    fn pins_changed(&self) {
        let oldest = self.pinned.first_key_value().map(|(&(seq, _), _)| seq);
        self.pins.set(oldest, self.pinned.len());
    }

    /// A leaf object; not in the tree yet.
    pub fn make_leaf(
        &mut self,
        low: Position,
        end: Position,
        pointer: Pointer,
        sectors: u16,
        state: LeafState,
    ) -> Rc<Leaf> {
        self.next_id += 1;
        Rc::new(Leaf {
            id: self.next_id,
            low,
            end,
            pointer,
            sectors,
            io: Default::default(),
            state: state.into(),
            referenced: true.into(),
            queued: false.into(),
            holds: 0.into(),
        })
    }

    pub fn insert_leaf(&mut self, leaf: Rc<Leaf>) {
        self.leaves.insert(leaf);
    }

    pub fn remove_leaf(&mut self, leaf: &Leaf) {
        self.leaves.remove(leaf);
    }

    pub fn leaf_count(&self) -> usize {
        self.leaves.len()
    }

    /// Level of the root; 0: the root is a leaf.
    pub fn root_level(&self) -> u16 {
        self.interior.len() as u16
    }

    /// The leaf that holds what starts at or after this place and ends after it.
    pub fn leaf_after(&self, after: Position) -> Option<&Rc<Leaf>> {
        self.leaves.after(after).first()
    }

    /// The leaves that a range of a volume touches, in order.
    #[inline]
    pub fn leaves_over(&self, inode: Inode, range: SectorRange) -> &[Rc<Leaf>] {
        if range.is_empty() {
            return &[];
        }
        let leaves = self.leaves.after((inode, range.start));
        let within = leaves.iter().take_while(|leaf| leaf.end < (inode, range.end)).count();
        &leaves[..leaves.len().min(within + 1)]
    }

    /// The leaf that all of a range of a volume belongs to, if there is one.
    #[inline]
    pub fn leaf_around(&self, inode: Inode, range: SectorRange) -> Option<&Rc<Leaf>> {
        self.leaves
            .after((inode, range.start))
            .first()
            .filter(|leaf| (inode, range.end) <= leaf.end)
    }

    /// All leaves in order.
    pub fn leaves(&self) -> &[Rc<Leaf>] {
        self.leaves.all()
    }

    /// The leaves that end after a place, in order.
    pub fn leaves_after(&self, after: Position) -> &[Rc<Leaf>] {
        self.leaves.after(after)
    }

    /// The key positions of the children of a node at `level` ≥ 1, in order.
    pub fn children(&self, level: usize, low: Position, end: Position) -> Vec<(Position, Key)> {
        if level == 1 {
            let leaves = self.leaves.after(low).iter().take_while(|leaf| leaf.end <= end);
            leaves.map(|leaf| (leaf.end, leaf.key())).collect()
        } else {
            let range = (Excluded(low), Included(end));
            self.interior[level - 2].range(range).map(|(&end, node)| (end, node.key(end))).collect()
        }
    }

    /// The next node of `level` ≥ 1 that ends after a place, and where it ends.
    pub fn interior_after(&self, level: usize, after: Position) -> Option<(Position, &Interior)> {
        let nodes = self.interior.get(level - 1)?;
        nodes.range((Excluded(after), Unbounded)).next().map(|(&end, node)| (end, node))
    }

    /// The node of `level` ≥ 1 in whose interval a place lies, with the interval.
    pub fn parent(&self, level: usize, place: Position) -> (Position, Position) {
        let nodes = &self.interior[level - 1];
        let low = nodes.range(..place).next_back().map_or(FIRST, |(&end, _)| end);
        let (&end, _) = nodes.range(place..).next().expect("the rightmost node covers everything");
        (low, end)
    }

    /// Notes a record that the leaf's node lacks.
    pub fn pin(&mut self, leaf: &Rc<Leaf>, state: &mut LeafState, seq: JournalSeq) {
        if state.pin.is_none() {
            state.pin = Some(seq);
            if state.writing_pin.is_none() {
                self.pinned.insert((seq, leaf.id), leaf.clone());
                self.pins_changed();
            }
        }
    }

    /// A write of everything touched begins.
    pub fn write_begins(&mut self, state: &mut LeafState) {
        assert!(state.writing_pin.is_none(), "one write of a leaf at a time");
        state.writing_pin = state.pin.take();
        state.writing_words = state.body.as_ref().map_or(0, Body::touched_words);
    }

    /// It ended; on failure the pin goes back.
    pub fn write_ends(&mut self, leaf: &Rc<Leaf>, state: &mut LeafState, ok: bool) {
        state.writing_words = 0;
        let Some(seq) = state.writing_pin.take() else { return };
        if !ok {
            state.pin = Some(seq);
            return;
        }
        self.pinned.remove(&(seq, leaf.id));
        if let Some(seq) = state.pin {
            self.pinned.insert((seq, leaf.id), leaf.clone());
        }
        self.pins_changed();
    }

    /// The replacement of the leaf is written, and the next journal entry makes it part of the
    /// tree: that entry need not keep the records that the replacement holds.
    pub fn write_is_named(&mut self, leaf: &Rc<Leaf>, state: &mut LeafState) {
        self.write_ends(leaf, state, true);
    }

    /// Takes every pin of a leaf that is being replaced; says the oldest record that the
    /// replacement still lacks.
    pub fn unpin(&mut self, leaf: &Rc<Leaf>, state: &mut LeafState) -> Option<JournalSeq> {
        if let Some(seq) = state.writing_pin.take().or(state.pin) {
            self.pinned.remove(&(seq, leaf.id));
            self.pins_changed();
        }
        state.pin.take()
    }

    /// Returns true if a leaf lacks a record not younger than `seq`.
    pub fn has_leaves_pinned_up_to(&self, seq: JournalSeq) -> bool {
        self.pinned.range(..=(seq, u64::MAX)).next().is_some()
    }

    /// Leaves that lack a record not younger than `seq`, oldest first.
    pub fn leaves_pinned_up_to(&self, seq: JournalSeq, count: usize) -> Vec<Rc<Leaf>> {
        self.pinned.range(..=(seq, u64::MAX)).take(count).map(|(_, leaf)| leaf.clone()).collect()
    }
}
