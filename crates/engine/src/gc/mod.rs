//! Garbage collection: in passes over the leaves, a leaf at a time, never stopping anybody.
//!
//! Space is known without it: live and dirty sectors of every bucket are counted exactly. A pass
//! finds the oldest pointers into each bucket, rewrites leaves that are full of old ones, merges
//! small neighbours, drops the keys of dead volumes, and moves what is left in sparse buckets
//! together.
//!
//! | module | holds |
//! |---|---|
//! | [`pointer_ages`] | how old pointers are; interior nodes |
//! | [`pass`] | the pass over the leaves |
//! | [`moving`] | moving live data out of sparse buckets |
//! | [`evacuate`] | nodes without pointers beyond the end of a smaller cache (A12) |

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ubcache_env::Env;
use ubcache_env::local::{Lock, Notify};
use ubcache_format::{Generation, JournalSeq};

use crate::alloc::allocator::Allocator;
use crate::context::Context;
use crate::index::Index;
use crate::journal::Journal;
use crate::volume_table::VolumeTable;

mod evacuate;
mod moving;
mod pass;
mod pointer_ages;

/// Ages of pointers that a pass found.
#[derive(Debug)]
struct Ages {
    /// The newest record when it was done.
    upto: JournalSeq,
    /// The oldest pointer into each bucket.
    oldest: Vec<Generation>,
}

type HasWritebacks = Box<dyn Fn() -> bool>;

/// Garbage collection of a set.
pub(crate) struct Gc<E: Env> {
    context: Context<E>,
    journal: Rc<Journal<E>>,
    allocator: Rc<Allocator<E>>,
    index: Rc<Index<E>>,
    table: Rc<VolumeTable<E>>,
    wake: Notify,
    requested: Cell<bool>,
    running: Lock,
    /// Bytes written to the cache device when the last pass began.
    began_at_bytes: Cell<u64>,
    /// Findings of a pass, until they hold for the device as well.
    ages: RefCell<Option<Ages>>,
    has_writebacks: RefCell<Option<HasWritebacks>>,
    /// Sectors of flash-only volumes that were overwritten or discarded since the last pass began:
    /// most are in buckets that other data keeps.
    loose: Cell<u64>,
    /// The next pass empties buckets that are fuller than it is worth elsewhere.
    compacts: Cell<bool>,
}

/// A pass is worth it for flash-only volumes when this part of the cache is loose.
const LOOSE_PART: u64 = 64;

impl<E: Env> Gc<E> {
    pub fn new(
        context: Context<E>,
        journal: Rc<Journal<E>>,
        allocator: Rc<Allocator<E>>,
        index: Rc<Index<E>>,
        table: Rc<VolumeTable<E>>,
    ) -> Gc<E> {
        Gc {
            context,
            journal,
            allocator,
            index,
            table,
            wake: Notify::default(),
            requested: Cell::new(false),
            running: Lock::default(),
            began_at_bytes: Cell::new(0),
            ages: RefCell::default(),
            has_writebacks: RefCell::default(),
            loose: Cell::new(0),
            compacts: Cell::new(false),
        }
    }

    /// Asks this, from now on, whether a volume is being written back.
    pub fn ask_for_writebacks(&self, ask: impl Fn() -> bool + 'static) {
        *self.has_writebacks.borrow_mut() = Some(Box::new(ask));
    }

    fn has_writebacks(&self) -> bool {
        self.has_writebacks.borrow().as_ref().is_some_and(|ask| ask())
    }

    /// A pass is due.
    pub fn request(&self) {
        self.requested.set(true);
        self.wake.notify_all();
    }

    /// So many sectors of a flash-only volume have no use any more.
    pub fn loosened(&self, sectors: u64) {
        self.loose.set(self.loose.get() + sectors);
    }

    /// Buckets are short for flash-only volumes: requests a pass that moves their data together, if
    /// enough has become loose since the last one.
    pub fn compact_if_worth(&self) {
        let geometry = &self.context.geometry;
        let buckets = self.allocator.buckets().end();
        let sectors = u64::from(buckets) * u64::from(geometry.bucket_sectors);
        if self.loose.get() > sectors / LOOSE_PART && !self.compacts.replace(true) {
            self.context.env.mark("flash_data_compacted");
            self.request();
        }
    }

    pub fn wake(&self) {
        self.wake.notify_all();
    }

    pub fn is_running(&self) -> bool {
        self.running.is_locked()
    }
}
