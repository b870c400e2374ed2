//! An orderly end from this side: requests in flight are answered, new ones are refused.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use super::replies::Outbox;

/// An end that connections with the same options share.
///
/// From [`Drain::begin`] on a connection refuses new requests with `NBD_ESHUTDOWN`. When all its
/// requests are answered it closes its stream (*Terminating the transmission phase*). Connections
/// that negotiate are not told: their streams are to be closed.
#[derive(Default, Debug)]
pub struct Drain {
    begun: Cell<bool>,
    outboxes: RefCell<Vec<Weak<Outbox>>>,
}

impl Drain {
    /// Begins. Requests that have come are carried out; those that come are refused.
    pub fn begin(&self) {
        self.begun.set(true);
        for outbox in self.outboxes.take().iter().filter_map(Weak::upgrade) {
            outbox.drain();
        }
    }

    /// Returns true if it has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// A connection that has it.
    pub(super) fn joins(&self, outbox: &Rc<Outbox>) {
        if self.begun.get() {
            return outbox.drain();
        }
        let mut outboxes = self.outboxes.borrow_mut();
        outboxes.retain(|known| known.strong_count() > 0);
        outboxes.push(Rc::downgrade(outbox));
    }
}
