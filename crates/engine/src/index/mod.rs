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
//! | [`packed_region`] | packed extents of one volume |
//! | [`extents`] | the sorted list of them |
//! | [`leaf`] | extents of one leaf, and what of them is not written yet |
//! | [`unwritten`] | which ranges of a leaf its node lacks |
//! | [`leaves`] | the sorted list of leaves |
//! | [`tree`] | leaves and interior nodes; which of them hold the journal |
//! | [`volume_counts`] | counts and ghosts of a volume |
//! | [`write_queue`] | leaves that have enough to write |
//! | [`read_tree`] | the interior nodes at start |
//! | [`count_leaves`] | loading every leaf once at start |
//! | [`node_cache`] | reading nodes; the node cache |
//! | [`lookup`] | what is cached of a range |
//! | [`scan`] | extents in order, a leaf at a time |
//! | [`change`] | inserting and removing, with the record and all counts |
//! | [`ghosts`] | which keys a crash may bring back |
//! | [`node_write`] | appending bsets to leaves |
//! | [`replay`] | records of the journal that leaves get at start |
//! | [`journal_reclaim`] | the task that writes old leaves so that the journal gets room |
//! | [`node_capacity`] | the number of keys that a node takes |
//! | [`new_nodes`] | writing fresh nodes |
//! | [`parent_update`] | having parents name them, up to the root |
//! | [`reclaim_passes`] | making room in the journal in as few passes as it takes |
//! | [`restructure_plan`] | what a restructuring has written, and what it replaces |
//! | [`restructure`] | rewriting, splitting and merging nodes |
//!
//! An [`Index`] uses journal and allocator and knows nothing above it: volumes, writeback and
//! garbage collection call it. A change is prepared (`prepare_change`), which may wait, and then
//! made (`replace`, `invalidate`) in the same step.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use ubcache_env::Env;
use ubcache_env::local::Lock;
use ubcache_format::{Inode, ReplayRange};

use crate::alloc::allocator::Allocator;
use crate::context::Context;
use crate::journal::Journal;
use crate::journal::pins::EntryPins;
use tree::Tree;
use volume_counts::InodeState;
use write_queue::NodeWriter;

mod change;
mod count_leaves;
pub(crate) mod extent;
mod extents;
pub(crate) mod ghosts;
mod journal_reclaim;
pub(crate) mod leaf;
mod leaves;
mod lookup;
mod new_nodes;
mod node_cache;
mod node_capacity;
mod node_write;
mod packed_region;
mod parent_update;
mod read_tree;
mod reclaim_passes;
mod replay;
mod restructure;
mod restructure_plan;
pub(crate) mod scan;
mod tree;
mod unwritten;
mod volume_counts;
mod write_queue;

/// See the module.
pub(crate) struct Index<E: Env> {
    context: Context<E>,
    journal: Rc<Journal<E>>,
    allocator: Rc<Allocator<E>>,
    tree: RefCell<Tree>,
    /// Held while nodes are replaced.
    structure: Lock,
    /// Held by the task that is the next to replace nodes when the journal and the allocator have
    /// room for it; not by one that makes room.
    replace_queue: Lock,
    /// The number of buckets freed until then, when the last of them waited for some in vain.
    in_vain_at: Cell<Option<u64>>,
    /// A leaf with more keys has to be split before it gets another (N4).
    leaf_keys_max: usize,
    node_writer: NodeWriter,
    /// By slot of the volume table, attached or not.
    inodes: RefCell<BTreeMap<Inode, InodeState>>,
    /// Records that leaves get when they are loaded.
    to_replay: RefCell<Option<Rc<ReplayRange>>>,
}

impl<E: Env> Index<E> {
    /// An index without nodes; [`Index::read_tree`] comes next. It tells the journal by `pins`
    /// which entries it needs.
    pub fn new(
        context: Context<E>,
        journal: Rc<Journal<E>>,
        allocator: Rc<Allocator<E>>,
        pins: Rc<EntryPins>,
    ) -> Index<E> {
        let leaf_keys_max = node_capacity::leaf_keys_max(
            &context.geometry,
            journal.step_records(),
            context.tuning.node_keys_max,
        );
        Index {
            context,
            journal,
            allocator,
            tree: RefCell::new(Tree::new(pins)),
            structure: Lock::default(),
            replace_queue: Lock::default(),
            in_vain_at: Cell::new(None),
            leaf_keys_max,
            node_writer: NodeWriter::default(),
            inodes: RefCell::default(),
            to_replay: RefCell::default(),
        }
    }

    /// Number of leaf nodes.
    pub fn leaf_count(&self) -> usize {
        self.tree.borrow().leaf_count()
    }

    /// Extents in memory.
    pub fn loaded_extents(&self) -> usize {
        self.tree.borrow().loaded_extents
    }

    /// Level of the root; 0: the root is a leaf.
    pub fn root_level(&self) -> u16 {
        self.tree.borrow().root_level()
    }

    /// Slots of the volume table with dirty data.
    pub fn dirty_inodes(&self) -> Vec<Inode> {
        let inodes = self.inodes.borrow();
        inodes
            .iter()
            .filter(|(_, state)| state.dirty_sectors > 0)
            .map(|(&inode, _)| inode)
            .collect()
    }

    /// Wakes the task that writes leaves, so that it looks if the set ends.
    pub fn wake_all(&self) {
        self.node_writer.wake();
    }
}
