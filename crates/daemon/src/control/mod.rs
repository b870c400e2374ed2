//! Control: the interface of an operator to a running daemon.
//!
//! | module | holds |
//! |---|---|
//! | `protocol` | requests, responses, the client's side |
//! | [`server`] | the daemon's side |

mod protocol;
pub mod server;

pub use protocol::*;
