//! The index: bcache's btree.
//!
//! In memory it is flat: a sorted list of leaves, and per level above a map to the interior
//! nodes, which are always in memory (a hundredth of the leaves, or less). The tree shape exists
//! on the device only. Look-ups and changes are synchronous, they never see half of a change; what
//! they need from the device is loaded before.
//!
//! | module | holds |
//! |---|---|
//! | [`extent`] | an extent, and the order of keys |
//! | [`region`] | packed extents of one volume |
//! | [`extents`] | the sorted list of them |
//! | [`leaf`] | extents of one leaf, and what of them is not written yet |
//! | [`touched`] | which ranges of a leaf its node lacks |
//! | [`leaves`] | the sorted list of leaves |
//! | [`tree`] | leaves and interior nodes; which of them hold the journal |
//! | [`load`] | reading nodes; the node cache |
//! | [`lookup`] | what is cached of a range |
//! | [`change`] | inserting and removing, with the record and all counts |
//! | [`ghosts`] | which keys a crash may bring back |
//! | [`write`] | appending bsets to leaves |
//! | [`replay`] | records of the journal that leaves get at start |
//! | [`reclaim`] | the task that writes old leaves so that the journal gets room |
//! | [`restructure`] | rewriting, splitting and merging nodes |

pub(crate) mod change;
pub(crate) mod extent;
mod extents;
mod ghosts;
pub(crate) mod leaf;
mod leaves;
pub(crate) mod load;
pub(crate) mod lookup;
mod reclaim;
mod region;
mod replay;
pub(crate) mod restructure;
pub(crate) mod touched;
pub(crate) mod tree;
pub(crate) mod write;
