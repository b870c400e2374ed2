//! Sockets with which another program goes on, in this process: what it takes to let go of them at
//! a moment when no byte is lost, and to take them up.
//!
//! A receive is ended early, and later ones end at once: what the peer sends stays in the kernel.
//! A send to a peer that does not read is ended early as well; what is left of it, and of later
//! ones, is kept. Dropped, a socket that was left is not shut down, and a listener that was left
//! does not remove its path.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use ubcache_env::IoVec;

use crate::reactor::HostEnv;
use crate::socket::{HostListener, HostSocket, ListenAddress};
use crate::sys;

/// State of a socket on its way to another program.
#[derive(Default, Debug)]
pub(crate) struct Handover {
    /// Numbers of the operations under way.
    receiving: Cell<Option<usize>>,
    sending: Cell<Option<usize>>,
    holds_input: Cell<bool>,
    keeps_output: Cell<bool>,
    unsent: RefCell<Vec<IoVec>>,
    left: Cell<bool>,
}

/// An operation is under way as long as this lives.
pub(crate) struct UnderWay<'a>(&'a Cell<Option<usize>>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

impl Handover {
    pub(crate) fn holds_input(&self) -> bool {
        self.holds_input.get()
    }

    pub(crate) fn keeps_output(&self) -> bool {
        self.keeps_output.get()
    }

    pub(crate) fn is_left(&self) -> bool {
        self.left.get()
    }

    pub(crate) fn receives(&self, key: Option<usize>) -> UnderWay<'_> {
        self.receiving.set(key);
        UnderWay(&self.receiving)
    }

    pub(crate) fn sends(&self, key: Option<usize>) -> UnderWay<'_> {
        self.sending.set(key);
        UnderWay(&self.sending)
    }

    pub(crate) fn keep(&self, data: IoVec) {
        self.unsent.borrow_mut().push(data);
    }
}

impl HostSocket {
    /// Takes up a socket that another program has left.
    pub fn inherited(env: &HostEnv, fd: OwnedFd) -> HostSocket {
        HostSocket::over(env, fd)
    }

    /// Ends a receive that waits, and lets later ones end at once, as if the stream were closed. No
    /// byte is lost: it was received, or is received when the socket is taken up.
    pub fn hold_input(&self) {
        self.handover.holds_input.set(true);
        if let Some(key) = self.handover.receiving.get() {
            self.core().interrupt(key);
        }
    }

    /// Ends a send that waits for the peer, and lets later ones end at once. What they did not send
    /// is kept.
    pub fn keep_output(&self) {
        self.handover.keeps_output.set(true);
        if let Some(key) = self.handover.sending.get() {
            self.core().interrupt(key);
        }
    }

    /// Takes the bytes that were not sent, in order; the socket receives and sends again.
    pub fn resume(&self) -> Vec<IoVec> {
        self.handover.holds_input.set(false);
        self.handover.keeps_output.set(false);
        self.handover.unsent.take()
    }

    /// A descriptor of the socket, for another program.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Leaves the socket to the one who has its descriptor: dropping it does not shut it down any
    /// more.
    pub fn leave(&self) {
        self.handover.left.set(true);
    }
}

impl HostListener {
    /// Takes up a listener that another program has left.
    pub fn inherited(env: &HostEnv, fd: OwnedFd, place: ListenAddress) -> HostListener {
        HostListener::new(env, fd, place)
    }

    /// Its address, for the program that takes it up.
    pub fn place(&self) -> &ListenAddress {
        &self.place
    }

    /// A descriptor of the listener, for another program.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Leaves the listener to the one who has its descriptor: dropping it does not remove its path
    /// any more.
    pub fn leave(&self) {
        self.left.set(true);
    }
}

/// Takes over a descriptor that the program before has left to this one, by its number; each one
/// once. An error if it is not open.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    // Standard input, output and error belong to the process.
    if number <= libc::STDERR_FILENO || taken.contains(&number) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    let fd = sys::take_passed(number)?;
    taken.insert(number);
    Ok(fd)
}
