//! Requests to the process that has the sets, not to one of them: its configuration files.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::refusal::{Kind, Refusal};
use crate::config_file::effective::Change;

/// A request to the process.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum ProcessRequest {
    /// The differences between the files and what is in effect.
    Diff,
    /// Puts into effect what can be while clients go on.
    Apply,
}

/// A set in an answer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SetChanges {
    /// Name of the set.
    pub name: String,
    /// Its file.
    pub file: String,
    /// `serving`, `not started: …`, `new`, `removed`, or what was done: `started`, `stopped`.
    pub state: String,
    /// The keys that differ.
    pub changes: Vec<Change>,
}

impl SetChanges {
    /// None of the changes could be made.
    pub(crate) fn refuse(&mut self, why: &str) {
        self.changes.iter_mut().for_each(|change| change.result = Some(why.to_owned()));
    }
}

/// The differences between the files and what is in effect, and what became of them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConfigChanges {
    /// The sets that differ.
    pub sets: Vec<SetChanges>,
    /// Faults of files, with their places. A set whose file has one goes on as it is.
    pub faults: Vec<String>,
}

/// Answer to a request.
pub type ProcessAnswer = Result<ConfigChanges, Refusal>;

/// A request with its way back.
#[derive(Debug)]
pub struct ProcessMessage {
    /// The request.
    pub request: ProcessRequest,
    /// Takes the answer.
    pub answer: oneshot::Sender<ProcessAnswer>,
}

/// The way to the process. Clones share it.
#[derive(Clone)]
pub struct ProcessMailbox(Arc<dyn Fn(ProcessMessage) + Send + Sync>);

impl fmt::Debug for ProcessMailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProcessMailbox")
    }
}

impl ProcessMailbox {
    /// A mailbox whose messages go there.
    pub fn new(send: impl Fn(ProcessMessage) + Send + Sync + 'static) -> ProcessMailbox {
        ProcessMailbox(Arc::new(send))
    }

    /// Sends a request; the answer comes when it is carried out.
    pub async fn send(&self, request: ProcessRequest) -> ProcessAnswer {
        let (answer, answered) = oneshot::channel();
        (self.0)(ProcessMessage { request, answer });
        answered
            .await
            .unwrap_or_else(|_| Err(Refusal::new(Kind::Busy, "the daemon is being stopped")))
    }
}
