//! Requests for an upgrade, on their way from the control socket to the end of the daemon.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use ubcache_env::local::{Event, Notify};

/// A request for an upgrade that is under way.
pub(crate) struct Upgrade {
    pub program: PathBuf,
    /// Version of that program.
    pub version: String,
    /// The connection of the client that asked for it, for the program that answers.
    pub requester: OwnedFd,
    /// Set when there is an answer.
    answered: Event,
    refusal: RefCell<String>,
}

/// Requests for an upgrade: one at a time.
#[derive(Default)]
pub(crate) struct Upgrades {
    wanted: RefCell<Option<Rc<Upgrade>>>,
    comes: Notify,
}

impl Upgrades {
    /// Returns true if one is under way.
    pub fn is_under_way(&self) -> bool {
        self.wanted.borrow().is_some()
    }

    /// Has the daemon carry out an upgrade to the program; returns the reason if it does not.
    pub async fn carry_out(&self, program: PathBuf, version: String, requester: OwnedFd) -> String {
        let (answered, refusal) = (Event::default(), RefCell::default());
        let upgrade = Rc::new(Upgrade { program, version, requester, answered, refusal });
        *self.wanted.borrow_mut() = Some(upgrade.clone());
        self.comes.notify_all();
        upgrade.answered.wait().await;
        upgrade.refusal.take()
    }

    /// Waits for a request.
    pub async fn next(&self) -> Rc<Upgrade> {
        loop {
            if let Some(upgrade) = self.wanted.borrow().clone() {
                return upgrade;
            }
            self.comes.notified().await;
        }
    }

    /// The daemon goes on as it is.
    pub fn refuse(&self, why: &str) {
        if let Some(upgrade) = self.wanted.take() {
            *upgrade.refusal.borrow_mut() = why.to_owned();
            upgrade.answered.set();
        }
    }
}
