//! A request about the configuration that is being carried out.

use tokio::sync::oneshot;

use crate::control::process::{ConfigChanges, ProcessAnswer, ProcessRequest};
use crate::log::STATE;

/// A request that is being carried out: the configuration is read, then changes are made.
pub(super) struct Pending {
    pub request: ProcessRequest,
    /// One who waits for the answer; none: SIGHUP.
    pub answer: Option<oneshot::Sender<ProcessAnswer>>,
    pub changes: ConfigChanges,
}

impl Pending {
    pub fn end(self, answer: ProcessAnswer) {
        match (self.answer, answer) {
            // The client may have gone.
            (Some(waiting), answer) => drop(waiting.send(answer)),
            (None, Err(why)) => {
                tracing::error!(target: STATE, "the configuration is not read again: {why}");
            }
            (None, Ok(_)) => {}
        }
    }
}
