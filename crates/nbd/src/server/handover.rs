//! Connections with which another server goes on.
//!
//! From [`Handover::begin`] on a connection starts no request any more. When those that it has
//! started are answered it ends, with what another one needs to go on: the stream stays open.
//! Whoever begins lets the streams hold their input meanwhile, so that nobody waits for a client.

use std::cell::Cell;

use ubcache_env::local::{Either, Notify, first};

use super::contexts::{Context, Contexts};

/// A connection between two requests.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Parked {
    /// Name of the export.
    pub export: String,
    /// Structured replies were agreed on.
    pub structured: bool,
    /// Names of the metadata contexts that were chosen.
    pub contexts: Vec<String>,
    /// Bytes that were received and not carried out: requests, the last one maybe not complete.
    pub received: Vec<u8>,
    /// Bytes of replies that were not sent.
    pub unsent: Vec<u8>,
    /// A refused write of whose payload a part has come. Nothing was received behind it.
    pub refused: Option<Refused>,
}

/// A write that was refused, and whose payload has to pass before its reply.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Refused {
    /// Its cookie.
    pub cookie: u64,
    /// Number of the error.
    pub error: u32,
    /// Words for clients with structured replies.
    pub message: String,
    /// Bytes of the payload that are still to come.
    pub left: u32,
}

/// The moment at which connections end for another server; they share it.
#[derive(Default, Debug)]
pub struct Handover {
    begun: Cell<bool>,
    begins: Notify,
}

impl Handover {
    /// Begins.
    pub fn begin(&self) {
        self.begun.set(true);
        self.begins.notify_all();
    }

    /// Returns true if it has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// Waits for something, but not longer than until it begins; `false`: it has begun.
    pub(super) async fn unless_begun(&self, wait: impl Future<Output = ()>) -> bool {
        if self.begun.get() {
            return false;
        }
        matches!(first(wait, self.begins.notified()).await, Either::Left(()))
    }
}

/// The names of contexts, for another server.
pub(super) fn names(contexts: Contexts) -> Vec<String> {
    contexts.chosen().map(|context| context.name().to_owned()).collect()
}

/// Contexts by their names. Their numbers are those that the client knows.
pub(super) fn contexts(names: &[String]) -> Contexts {
    let mut contexts = Contexts::default();
    for context in Context::ALL {
        if names.iter().any(|name| name == context.name()) {
            contexts.choose(context);
        }
    }
    contexts
}
