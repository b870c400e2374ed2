//! Fills of a volume: misses on their way into the cache (R3).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use smallvec::SmallVec;
use ubcache_env::local::{Permit, Semaphore};
use ubcache_env::{SectorRange, Slice};

use crate::coherence::in_flight_table::Ticket;

/// A registered fill, and its share of the memory for fills.
pub(super) struct FillTicket {
    pub entry: Ticket,
    pub _memory: Permit,
}

/// The fills of one read.
pub(crate) type Fills = SmallVec<[Fill; 1]>;

/// A miss that was answered and is to be cached.
pub(crate) struct Fill {
    pub(super) range: SectorRange,
    pub(super) data: Slice,
    pub(super) ticket: FillTicket,
}

/// The memory that the fills of a volume share, their tasks, and the fills beyond these tasks.
pub(crate) struct FillQueue {
    pub(super) memory: Rc<Semaphore>,
    pub(super) tasks: Cell<usize>,
    /// Misses whose surroundings are being read.
    pub(super) around: Cell<usize>,
    pub(super) waiting: RefCell<VecDeque<Fills>>,
}

impl FillQueue {
    /// No fills; they may hold this much memory.
    pub fn new(bytes_max: u64) -> FillQueue {
        let memory = Rc::new(Semaphore::new(bytes_max));
        FillQueue { memory, tasks: Cell::new(0), around: Cell::new(0), waiting: RefCell::default() }
    }

    pub(super) fn next(&self) -> Option<Fills> {
        let mut waiting = self.waiting.borrow_mut();
        let next = waiting.pop_front();
        if next.is_none() && waiting.capacity() > 0 {
            // A burst leaves no memory behind.
            *waiting = VecDeque::new();
        }
        next
    }
}
