//! The leaves of the index, in order.
//!
//! Two lists side by side: where each leaf ends, as one number to search for, and the leaves.
//! Requests search all the time; leaves come and go with splits and merges, which write nodes to
//! the device anyway.

use std::cell::Cell;
use std::rc::Rc;

use super::extent::Position;
use super::leaf::Leaf;

#[derive(Default, Debug)]
pub(super) struct Leaves {
    ends: Vec<u128>,
    leaves: Vec<Rc<Leaf>>,
    /// Result of the latest search: steps of one request look for the same leaf.
    recent: Cell<usize>,
}

/// Ordered as positions are.
#[inline]
fn number((inode, sector): Position) -> u128 {
    u128::from(inode.0) << 64 | u128::from(sector.0)
}

impl Leaves {
    pub fn len(&self) -> usize {
        self.leaves.len()
    }

    /// Index of the first leaf that ends after a place.
    #[inline]
    fn index_after(&self, place: Position) -> usize {
        let place = number(place);
        let recent = self.recent.get();
        let ends_before = recent == 0 || self.ends.get(recent - 1).is_some_and(|&end| end <= place);
        if ends_before && self.ends.get(recent).is_some_and(|&end| end > place) {
            return recent;
        }
        let index = self.ends.partition_point(|&end| end <= place);
        self.recent.set(index);
        index
    }

    /// Those that end after a place.
    #[inline]
    pub fn after(&self, place: Position) -> &[Rc<Leaf>] {
        &self.leaves[self.index_after(place)..]
    }

    /// All of them.
    pub fn all(&self) -> &[Rc<Leaf>] {
        &self.leaves
    }

    /// Adds a leaf. Panics if one with the same end is in the list.
    pub fn insert(&mut self, leaf: Rc<Leaf>) {
        let end = number(leaf.end);
        let index = self.index_after(leaf.end);
        let taken = index.checked_sub(1).is_some_and(|left| self.ends[left] == end);
        assert!(!taken, "no two leaves end at the same place");
        self.ends.insert(index, end);
        self.leaves.insert(index, leaf);
    }

    pub fn remove(&mut self, leaf: &Leaf) {
        let index = self.ends.binary_search(&number(leaf.end));
        let index = index.ok().filter(|&index| self.leaves[index].id == leaf.id);
        let index = index.expect("the leaf is in the tree");
        self.ends.remove(index);
        self.leaves.remove(index);
    }
}
