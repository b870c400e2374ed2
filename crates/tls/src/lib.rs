//! TLS over a byte stream, the server's side.
//!
//! | module | holds |
//! |---|---|
//! | [`stream`] | [`TlsStream`]: a stream that is encrypted when the client asks for it |
//! | [`certificates`] | [`load`]: certificates and keys, read and checked |
//! | `progress` | [`Progress`]: signs of life, for the one who ends silent connections |
//! | `reasons` | reasons for a failed handshake, in words |
//!
//! The protocol and its cryptography are rustls with ring. There is no I/O and no clock here
//! except for reading the files: records go through whatever stream is below.
#![forbid(unsafe_code)]
#![warn(clippy::large_futures)]

pub mod certificates;
mod progress;
mod reasons;
pub mod stream;

pub use certificates::{Files, Loaded, Refusal, load};
pub use progress::Progress;
pub use rustls::ServerConfig;
pub use stream::TlsStream;
