//! The NBD protocol: codec, server and client.
//!
//! | module | holds |
//! |---|---|
//! | [`proto`] | the codec, both directions, without I/O |
//! | [`server`] | [`serve_connection`]: one connection from greeting to goodbye |
//! | [`client`] | [`RemoteDisk`]: an export of a server as a device |
//! | [`exports`] | [`Exports`]: names, and the volumes that are served under them |
//! | [`stats`] | [`ConnectionStats`]: counters of a connection |
//!
//! Section names in *italics* are those of the NBD protocol document (`doc/proto.md` of the NBD
//! project). Supported: fixed newstyle negotiation, simple and structured replies, the metadata
//! contexts `base:allocation`, `ubcache:cached` and `ubcache:dirty`, and TLS if the stream has it
//! ([`ubcache_env::Protection`]). Not supported: extended headers, resizing.
#![forbid(unsafe_code)]
#![warn(clippy::large_futures)]

pub mod client;
pub mod exports;
pub mod proto;
pub mod server;
pub mod stats;

pub use client::{Connect, OpenFailure, RemoteCounters, RemoteDisk, RemoteEvent, RemoteOptions};
pub use exports::Exports;
pub use proto::ProtocolError;
pub use server::{
    ClientMemory, Drain, Handover, Pace, Parked, Rates, Refused, ServeError, ServerOptions,
    Silence, Watch, serve_connection, serve_until_handover,
};
pub use stats::ConnectionStats;
