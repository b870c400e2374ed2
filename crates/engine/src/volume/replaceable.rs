//! The volume that clients hold: it stays when the one below it is replaced, by one of another set
//! or by the next one over the same backing device.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use slab::Slab;
use ubcache_env::local::{Lock, Permit};
use ubcache_env::{
    Env, MappedRead, ReadEnd, SectorRange, StreamEnd, StreamId, Volume, VolumeInfo, pass_on,
};
use ubcache_format::Uuid;

use super::CachedVolume;
use super::tickets::{Request, Requests};
use crate::request::read::mapped::Mapped;

/// See the module.
pub struct ServedVolume<E: Env> {
    current: RefCell<Rc<CachedVolume<E>>>,
    requests: Requests,
    /// Reads that lanes carry out (R7).
    mapped: RefCell<Slab<Mapped<E>>>,
    paused: Cell<bool>,
    pausing: Lock,
}

/// No request is under way. Dropped, those that wait go on.
#[must_use = "requests go on when this is dropped"]
pub struct Exchange<'a, E: Env> {
    served: &'a ServedVolume<E>,
    _one: Permit,
}

impl<E: Env> ServedVolume<E> {
    /// Serves this volume at first.
    pub fn new(volume: Rc<CachedVolume<E>>) -> ServedVolume<E> {
        ServedVolume {
            current: RefCell::new(volume),
            requests: Requests::default(),
            mapped: RefCell::default(),
            paused: Cell::new(false),
            pausing: Lock::default(),
        }
    }

    /// The volume that serves now.
    pub fn current(&self) -> Rc<CachedVolume<E>> {
        self.current.borrow().clone()
    }

    /// Keeps new requests waiting, and waits for those under way.
    pub async fn exchange(&self) -> Exchange<'_, E> {
        let one = self.pausing.lock().await;
        self.paused.set(true);
        let exchange = Exchange { served: self, _one: one };
        self.requests.end().await;
        exchange
    }

    /// Begins a request of the volume that serves now.
    async fn begin(&self) -> (Request<'_>, Rc<CachedVolume<E>>) {
        while self.paused.get() {
            self.requests.resumed.notified().await;
        }
        (self.requests.begin(), self.current())
    }
}

/// Two steps of a read that a lane carries out (R7). The request ends with the second one.
impl<E: Env> ServedVolume<E> {
    pub(crate) fn map_read(
        &self,
        set: Uuid,
        stream: StreamId,
        range: SectorRange,
    ) -> Option<MappedRead> {
        if self.paused.get() {
            return None;
        }
        let mapped = self.current.borrow().map_read(set, stream, range)?;
        self.requests.begin().put_aside();
        let at = mapped.at();
        Some(MappedRead { number: self.mapped.borrow_mut().insert(mapped), at })
    }

    pub(crate) fn end_read(&self, number: usize, end: ReadEnd) -> bool {
        let mapped = self.mapped.borrow_mut().remove(number);
        let _request = self.requests.begun_before();
        mapped.end(end)
    }
}

impl<E: Env> Exchange<'_, E> {
    /// Another volume serves from now on.
    pub fn replace(&self, volume: Rc<CachedVolume<E>>) {
        *self.served.current.borrow_mut() = volume;
    }
}

impl<E: Env> Drop for Exchange<'_, E> {
    fn drop(&mut self) {
        self.served.paused.set(false);
        self.served.requests.resumed.notify_all();
    }
}

/// A call of the volume that serves now.
macro_rules! current {
    ($served:expr, $call:ident($($argument:expr),*)) => {{
        let (_request, volume) = $served.begin().await;
        volume.$call($($argument),*).await
    }};
}

impl<E: Env> Volume for ServedVolume<E> {
    fn info(&self) -> VolumeInfo {
        self.current.borrow().info()
    }

    fn stream_ended(&self, stream: StreamId, end: StreamEnd) {
        self.current().stream_ended(stream, end);
    }

    pass_on!(current: read, read_into, write, write_foreign, write_bytes, discard, write_zeroes);
    pass_on!(current: flush, prefetch, block_status);
}
