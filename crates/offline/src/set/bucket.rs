//! Buckets of the cache device, and their owners.

use ubcache_format::Generation;

/// What a bucket is used for.
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
    /// Gives a bucket to another owner; says who has it already, if somebody has.
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

/// What is known about one bucket, in 8 bytes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// The generation in the prio chain.
    pub stored: Generation,
    /// The generation after all pointers have raised it.
    pub generation: Generation,
    /// The priority in the prio chain.
    pub priority: u16,
    /// What it is used for.
    pub owner: Owner,
    /// Whether the prio chain says what its generation is. If not, that of the newest pointer to it is taken.
    pub known: bool,
    /// Of a bucket that is not `known`: whether a pointer was seen to it, live or not.
    pub named: bool,
}
