//! TLS over a byte stream, for either side.
//!
//! | module | holds |
//! |---|---|
//! | [`stream`] | [`TlsStream`]: a stream that is encrypted when the client asks for it |
//! | [`certificates`] | [`load`]: certificates and keys of a server, read and checked |
//! | [`client`] | [`load_client`]: the same for a client |
//! | `progress` | [`Progress`]: signs of life, for the one who ends silent connections |
//! | `reasons` | reasons for a failed handshake, in words |
//!
//! The protocol and its cryptography are rustls with ring. There is no I/O and no clock here
//! except for reading the files: records go through whatever stream is below.
#![forbid(unsafe_code)]
#![warn(clippy::large_futures)]

pub mod certificates;
pub mod client;
mod progress;
mod reasons;
pub mod stream;

pub use certificates::{Files, Loaded, Refusal, load};
pub use client::{ClientFiles, load_client};
pub use progress::Progress;
pub use rustls::pki_types::ServerName;
pub use rustls::{ClientConfig, ServerConfig};
pub use stream::TlsStream;
