//! Events: due at a moment, in an order that is drawn.

use std::rc::Rc;

/// Receiver of events.
pub(crate) trait Sink {
    /// The event is due.
    fn fire(&self, token: u64);
    /// Returns true if a task still waits for the event; if none does, the event does not even move
    /// the clock.
    fn cares(&self, token: u64) -> bool;
}

pub(super) struct Event {
    pub(super) at: u64,
    pub(super) tie: u32,
    pub(super) order: u64,
    pub(super) token: u64,
    pub(super) sink: Rc<dyn Sink>,
}

impl Event {
    fn key(&self) -> (u64, u32, u64) {
        (self.at, self.tie, self.order)
    }
}
impl PartialEq for Event {
    fn eq(&self, other: &Event) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Event) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Event) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}
