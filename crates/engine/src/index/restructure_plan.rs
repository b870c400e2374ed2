//! Plan of a restructuring: the nodes it has written, and those that they replace.

use std::rc::Rc;

use ubcache_env::Sector;
use ubcache_env::local::Permit;
use ubcache_format::{BucketNr, Key, PackedKey, Pointer};

use super::extent::Position;
use super::leaf::Leaf;
use super::unwritten::Touched;

/// A node that was written and is not referred to yet.
#[derive(Clone, Debug)]
pub(super) struct NewNode {
    pub end: Position,
    pub pointer: Pointer,
    pub sectors: u16,
    pub seq: u64,
    pub used_bytes: u64,
}

impl NewNode {
    pub fn key(&self) -> Key {
        Key::node(self.end.0, self.end.1, self.sectors, self.pointer)
    }
}

/// Children of one level that take the place of others.
#[derive(Clone, Default, Debug)]
pub(super) struct Replacement {
    pub old: Vec<Key>,
    pub new: Vec<NewNode>,
}

/// A group of neighbouring leaves that is being replaced.
pub(super) struct Group {
    pub leaves: Vec<Rc<Leaf>>,
    pub touched: Vec<Touched>,
    pub replacement: Replacement,
    pub _io: Vec<Permit>,
}

/// Everything a restructuring has done to the device so far.
#[derive(Default)]
pub(super) struct Plan {
    /// Nodes are filled to the last byte instead of being split: few buckets are free (N4).
    pub packed: bool,
    /// Buckets to give back if this fails: nothing on the device names them then.
    pub taken: Vec<BucketNr>,
    /// Bsets to append to parents, once everything above is written.
    pub appends: Vec<(Sector, Vec<u8>)>,
    /// Interior nodes to which a bset is appended.
    pub grown: Vec<Grown>,
    /// Replacements by level, from 1.
    pub interior: Vec<Replacement>,
}

impl Plan {
    /// Interior nodes of `level` ≥ 1 are replaced.
    pub fn replace(&mut self, level: usize, replacement: &Replacement) {
        if self.interior.len() < level {
            self.interior.resize_with(level, Replacement::default);
        }
        let all = &mut self.interior[level - 1];
        all.old.extend(replacement.old.iter().cloned());
        all.new.extend(replacement.new.iter().cloned());
    }
}

/// An interior node to which a bset is appended.
pub(super) struct Grown {
    pub level: usize,
    pub end: Position,
    pub bytes: u64,
    /// Children that it names no more.
    pub freed: Vec<Pointer>,
}

/// The keys of nodes as they are on disk.
pub(super) fn packed_nodes(keys: &[Key]) -> Vec<PackedKey> {
    keys.iter().map(|key| key.packed().expect("a node has one place")).collect()
}
