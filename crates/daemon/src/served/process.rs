//! The process of a set: its own, or one that it shares with others, a thread for each.
//!
//! A set that shares its process has no part in the things of which there is one: signals, messages
//! to the service manager, sockets of the parent process, another program that goes on.

use std::path::PathBuf;
use std::rc::Rc;

use ubcache_host::PassedSocket;

use super::orders::Orders;
use super::systemd::{Message, Systemd};
use crate::control::mailbox::Mailroom;

/// The process of a set.
pub enum Process {
    /// Its own.
    Own,
    /// One that others have, too.
    Shared(SharedProcess),
}

/// The part of a process that one of its sets has.
pub struct SharedProcess {
    /// Orders for the set.
    pub orders: Orders,
    /// Sockets of the parent process that are for this set.
    pub passed: Vec<PassedSocket>,
    /// Requests of the control API of the process.
    pub mailroom: Mailroom,
    /// The control socket of the process.
    pub control: PathBuf,
    /// Takes what the set has to say to the service manager.
    pub notify: Rc<dyn Fn(Message)>,
}

impl Process {
    /// Returns true if it is the set's own.
    pub fn is_own(&self) -> bool {
        matches!(self, Process::Own)
    }

    /// The way to the service manager.
    pub fn systemd(&self) -> Systemd {
        match self {
            Process::Own => Systemd::connect(),
            Process::Shared(shared) => Systemd::by(shared.notify.clone()),
        }
    }
}
