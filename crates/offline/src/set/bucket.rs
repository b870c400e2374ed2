//! Buckets of the cache device, and their owners.

use ubcache_format::Generation;

/// Owner of a bucket: its use.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Owner {
    /// Nothing that counts points to it.
    Free,
    /// A part of the ring.
    Journal,
    /// An element of the prio chain.
    Prio,
    /// The volume table.
    Uuids,
    /// A node.
    Node,
    /// Data that the backing device has as well.
    Clean,
    /// Data, some of it the only copy.
    Dirty,
}

impl Owner {
    /// Assigns a bucket to another owner. Returns the present one if the two exclude each other.
    pub(crate) fn assign(&mut self, owner: Owner) -> Option<Owner> {
        match (*self, owner) {
            (Owner::Free, _) => *self = owner,
            (Owner::Clean, Owner::Clean | Owner::Dirty) => *self = owner,
            (Owner::Dirty, Owner::Clean | Owner::Dirty) => {}
            (former, _) => return Some(former),
        }
        None
    }

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Owner::Free => "free",
            Owner::Journal => "journal",
            Owner::Prio => "prio set",
            Owner::Uuids => "volume table",
            Owner::Node => "node",
            Owner::Clean => "clean data",
            Owner::Dirty => "dirty data",
        }
    }
}

/// State of one bucket, in 8 bytes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// The generation in the prio chain.
    pub stored: Generation,
    /// The generation after all pointers have raised it.
    pub generation: Generation,
    /// The priority in the prio chain.
    pub priority: u16,
    /// Its use.
    pub owner: Owner,
    /// The prio chain has its generation. If not, the generation of the newest pointer to it is
    /// taken.
    pub known: bool,
    /// A pointer to it was seen, live or not. Only of a bucket that is not `known`.
    pub named: bool,
}
