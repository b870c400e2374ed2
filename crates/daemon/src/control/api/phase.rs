//! The life of the API, as its thread is told.

use std::time::Duration;

/// Phase of the API.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Open,
    /// New connections wait.
    Held,
    /// Responses that are under way are sent, for so long at most, and then it is over.
    Ending(Duration),
}
