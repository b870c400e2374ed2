//! A connection that may still be there, for the one who ends silent ones.

use std::cell::Cell;
use std::rc::{Rc, Weak};

use ubcache_env::Stream;
use ubcache_host::HostSocket;
use ubcache_nbd::{ConnectionStats, Parked, Watch};
use ubcache_tls::Progress;

use crate::clients::{reason_to_end, reason_to_end_gone, reason_to_end_tls};

/// See the module.
pub(crate) struct Connection {
    pub(crate) id: u64,
    socket: Weak<HostSocket>,
    /// Present if it has to be encrypted: it can't be handed to another process.
    tls: Option<Rc<Progress>>,
    pub(crate) stats: Rc<ConnectionStats>,
    pub(crate) watch: Rc<Watch>,
    /// Looks in a row that have found the client gone.
    gone: Cell<u32>,
}

impl Connection {
    pub(crate) fn new(
        id: u64,
        socket: &Rc<HostSocket>,
        tls: Option<Rc<Progress>>,
        stats: Rc<ConnectionStats>,
        watch: Rc<Watch>,
    ) -> Connection {
        Connection { id, socket: Rc::downgrade(socket), tls, stats, watch, gone: Cell::new(0) }
    }

    /// Returns true if its socket is open.
    pub(crate) fn is_open(&self) -> bool {
        self.socket.strong_count() > 0
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    pub(crate) fn socket(&self) -> Option<Rc<HostSocket>> {
        self.socket.upgrade()
    }

    /// The name of the export that it has chosen.
    pub(crate) fn export(&self) -> Option<String> {
        self.stats.snapshot().export
    }

    pub(crate) fn close(&self) {
        if let Some(tls) = &self.tls {
            tls.set_closed();
        }
        self.watch.give_up();
        if let Some(socket) = self.socket.upgrade() {
            socket.close();
        }
    }

    /// Sends the client away if it keeps something from others.
    pub(crate) fn end_if_silent(&self, memory_is_short: bool) {
        if self.is_open()
            && let Some(reason) = self.reason_to_end(memory_is_short)
        {
            tracing::info!(client = self.id, reason, "a client is sent away");
            self.close();
        }
    }

    /// The reason to send the client away, if there is one.
    fn reason_to_end(&self, memory_is_short: bool) -> Option<&'static str> {
        let silent = self.tls.as_ref().map_or(0, |tls| tls.look());
        let socket = self.socket.upgrade();
        let gone = socket.is_some_and(|socket| socket.has_hung_up());
        self.gone.set(if gone { self.gone.get() + 1 } else { 0 });
        reason_to_end(self.watch.look(), memory_is_short)
            .or_else(|| reason_to_end_tls(silent))
            .or_else(|| reason_to_end_gone(self.gone.get()))
    }
}

/// The bytes of replies that the client did not read go with the connection; the socket is used
/// again.
pub(crate) fn take_unsent(socket: &HostSocket, parked: &mut Parked) {
    for unsent in socket.resume() {
        unsent.parts().iter().for_each(|part| parked.unsent.extend_from_slice(part.as_slice()));
    }
}
