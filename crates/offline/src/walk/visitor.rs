//! [`Visitor`]: the caller of a walk, which is shown everything that the walk reads.

use ubcache_format::{
    BucketNr, Geometry, Inode, Key, ParsedNode, PrioEntry, Sector, Superblock, UuidEntry,
};

use crate::set::{Finding, Journal};

/// Receiver of everything that a walk reads, in the order in which it is read.
pub trait Visitor {
    /// The superblock of the cache device.
    fn superblock(&mut self, _superblock: &Superblock) {}
    /// The journal.
    fn journal(&mut self, _geometry: &Geometry, _journal: &Journal) {}
    /// An element of the prio chain.
    fn prio(&mut self, _element: &PrioElement<'_>) {}
    /// The volume table, and where it is.
    fn uuids(&mut self, _key: &Key, _slots: &[UuidEntry]) {}
    /// A node of the tree, level by level from the root, in order of keys.
    fn node(&mut self, _node: &NodeVisit<'_>) {}
    /// Returns true if [`node`](Visitor::node) has to be called for leaves, too. If not, most of
    /// them are read faster.
    fn sees_leaves(&self) -> bool {
        true
    }
    /// A finding.
    fn finding(&mut self, _finding: Finding) {}
}

/// A visitor that ignores everything.
impl Visitor for () {
    fn sees_leaves(&self) -> bool {
        false
    }
}

/// An element of the prio chain.
#[derive(Debug)]
pub struct PrioElement<'a> {
    /// Its bucket.
    pub bucket: BucketNr,
    /// Its number.
    pub seq: u64,
    /// Bucket of the next element; meaningless in the last.
    pub next: BucketNr,
    /// The bucket that its first entry is about.
    pub first: BucketNr,
    /// The entries, those past the last bucket left out.
    pub entries: &'a [PrioEntry],
}

/// A node as the walk meets it.
#[derive(Debug)]
pub struct NodeVisit<'a> {
    /// The shape of the set.
    pub geometry: &'a Geometry,
    /// The key that leads to it.
    pub key: &'a Key,
    /// 0 for leaves.
    pub level: u16,
    /// Its interval begins behind this key.
    pub after: (Inode, Sector),
    /// Its contents.
    pub node: &'a ParsedNode,
}
