//! Control: the interface of an operator to a running daemon, HTTP and JSON over a unix socket.
//!
//! ```text
//!   commands, curl ──▶ api (a thread of its own) ──▶ mailbox ──▶ the set's thread
//!                           │ registry: which set has that volume
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`request`] | requests to a set |
//! | [`refusal`] | refused requests, with their status codes |
//! | [`sockets`] | control sockets: where they are, how they are made |
//! | [`names`] | names by which a set is found |
//! | [`process`] | requests to the process: its configuration files |
//! | [`registry`] | the sets of this process, by their names |
//! | [`mod@mailbox`] | the way of a request to the set's thread, and of the answer back |
//! | [`api`] | the thread that serves HTTP |
//! | [`client`] | the side of the commands |

pub mod api;
pub mod client;
pub mod mailbox;
pub mod names;
pub mod process;
pub mod refusal;
pub mod registry;
pub mod request;
pub mod sockets;

pub use api::Api;
pub use client::{ask, ask_process, denied, report};
pub use mailbox::{Mailroom, SetHandle, mailbox, serve_mailbox};
pub use refusal::Refusal;
pub use registry::Registry;
pub use request::ControlRequest;
pub use sockets::{ControlSocket, Sockets, find_sockets, socket_directories};
