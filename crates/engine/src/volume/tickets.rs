//! Tickets of what is under way in a volume. Each leaves when it is dropped.

use std::cell::Cell;

use ubcache_env::local::{Notified, Notify};

/// The requests that have begun, and those that may not begin yet.
#[derive(Default, Debug)]
pub(crate) struct Requests {
    begun: Cell<u64>,
    all_ended: Notify,
    pub resumed: Notify,
}

impl Requests {
    pub fn begin(&self) -> Request<'_> {
        self.begun.set(self.begun.get() + 1);
        Request { requests: self }
    }

    /// The ticket of a request that has begun, and whose ticket was put aside.
    pub fn begun_before(&self) -> Request<'_> {
        debug_assert!(self.begun.get() > 0, "no request is under way");
        Request { requests: self }
    }

    /// Waits until all have ended.
    pub async fn end(&self) {
        while self.begun.get() > 0 {
            self.all_ended.notified().await;
        }
    }
}

/// A request that has begun. Dropped, it has ended.
#[must_use = "the request ends when this is dropped"]
pub(crate) struct Request<'a> {
    requests: &'a Requests,
}

impl Request<'_> {
    /// Puts the ticket aside: the request goes on, until somebody who knows of it ends it
    /// ([`Requests::begun_before`]).
    pub fn put_aside(self) {
        std::mem::forget(self);
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let left = self.requests.begun.get() - 1;
        self.requests.begun.set(left);
        if left == 0 {
            self.requests.all_ended.notify_all();
        }
    }
}

/// The writes between the dirty mark and their dirty key.
#[derive(Default, Debug)]
pub(crate) struct DirtyWriters {
    begun: Cell<u64>,
    all_ended: Notify,
}

impl DirtyWriters {
    pub fn begin(&self) -> DirtyWriter<'_> {
        self.begun.set(self.begun.get() + 1);
        DirtyWriter { writers: self }
    }

    pub fn are_none(&self) -> bool {
        self.begun.get() == 0
    }

    /// Waits for the next moment at which there is none.
    pub fn all_end(&self) -> Notified<'_> {
        self.all_ended.notified()
    }
}

/// A write between the dirty mark and its dirty key. Dropped, it has ended.
#[must_use = "the superblock may be marked clean when this is dropped"]
pub(crate) struct DirtyWriter<'a> {
    writers: &'a DirtyWriters,
}

impl DirtyWriter<'_> {
    /// There is no other one.
    pub fn is_alone(&self) -> bool {
        self.writers.begun.get() == 1
    }
}

impl Drop for DirtyWriter<'_> {
    fn drop(&mut self) {
        let left = self.writers.begun.get() - 1;
        self.writers.begun.set(left);
        if left == 0 {
            self.writers.all_ended.notify_all();
        }
    }
}
