//! Limits on a connection's requests in flight, and on their bytes of content.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::shares::Share;
use crate::stats::ConnectionStats;

/// A place where one task waits for a condition; without memory of its own.
#[derive(Debug, Default)]
pub(super) struct Signal {
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    /// The condition may have changed.
    pub(super) fn wake(&self) {
        let waker = self.waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits until the condition holds.
    pub(super) async fn until(&self, condition: impl Fn() -> bool) {
        poll_fn(|cx| {
            if condition() {
                return Poll::Ready(());
            }
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

/// Limits of a connection, and the requests and bytes in flight.
#[derive(Debug)]
pub(super) struct Limits {
    max_bytes: u64,
    max_requests: u32,
    bytes: Cell<u64>,
    requests: Cell<u32>,
    /// A request that has come waits for room.
    waiting: Cell<bool>,
    /// The payload of the newest request is still to come.
    receiving: Cell<bool>,
    room: Signal,
    /// Its share of the memory of all connections.
    memory: Rc<Share>,
    stats: Rc<ConnectionStats>,
}

impl Limits {
    pub(super) fn new(
        max_bytes: u64,
        max_requests: u32,
        memory: Rc<Share>,
        stats: Rc<ConnectionStats>,
    ) -> Limits {
        Limits {
            memory,
            max_bytes: max_bytes.max(1),
            max_requests: max_requests.max(1),
            bytes: Cell::new(0),
            requests: Cell::new(0),
            waiting: Cell::new(false),
            receiving: Cell::new(false),
            room: Signal::default(),
            stats,
        }
    }

    /// Waits for room for one request that holds `bytes` bytes. A request that is too long for the
    /// limit gets all of it. Only one task may wait.
    pub(super) async fn reserve(self: &Rc<Self>, bytes: u64) -> Reservation {
        let bytes = bytes.min(self.max_bytes);
        if !self.has_room(bytes) || !self.memory.try_claim(bytes) {
            self.waiting.set(true);
            self.room.until(|| self.has_room(bytes)).await;
            self.memory.claim(bytes).await;
            self.waiting.set(false);
        }
        self.set(self.requests.get() + 1, self.bytes.get() + bytes);
        Reservation { limits: self.clone(), bytes }
    }

    /// Room that is in use already, by replies that the server before has left. Nothing is waited
    /// for, and others may hold less until it is given back.
    pub(super) fn hold(self: &Rc<Self>, bytes: u64) -> Reservation {
        self.memory.take(bytes);
        self.set(self.requests.get() + 1, self.bytes.get() + bytes);
        Reservation { limits: self.clone(), bytes }
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.requests.get() < self.max_requests && self.bytes.get() + bytes <= self.max_bytes
    }

    /// Returns true if nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.requests.get() == 0
    }

    /// The payload of the newest request is to come, or has come.
    pub(super) fn set_receiving(&self, receiving: bool) {
        self.receiving.set(receiving);
    }

    /// A request that has come waits for its pace; `false`: no more.
    pub(super) fn set_waiting(&self, waiting: bool) {
        self.waiting.set(waiting);
    }

    /// Returns true if every request that has come as a whole is answered.
    pub(super) fn is_drained(&self) -> bool {
        !self.waiting.get() && self.requests.get() == u32::from(self.receiving.get())
    }

    fn set(&self, requests: u32, bytes: u64) {
        self.requests.set(requests);
        self.bytes.set(bytes);
        self.stats.update(|counts| {
            counts.inflight_requests = requests;
            counts.inflight_bytes = bytes;
        });
    }
}

/// The room of one request; given back when dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    limits: Rc<Limits>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.limits.set(self.limits.requests.get() - 1, self.limits.bytes.get() - self.bytes);
        self.limits.memory.release(self.bytes);
        self.limits.room.wake();
    }
}
