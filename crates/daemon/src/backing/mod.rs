//! Backing devices that are not files of this machine.
//!
//! A device of a network can't be opened for one user alone: neither O_EXCL nor a lock of the file
//! reaches it. The lock of the cache device keeps two daemons of one machine apart; nothing keeps
//! those of two machines apart (docs/guide/network-disks.md).
//!
//! | module | holds |
//! |---|---|
//! | [`address`] | names of backing devices: paths and URIs |
//! | [`connection`] | the purpose of a connection, and its state |
//! | [`remote`] | a device of any kind: each has a module of its own |
//! | [`nbd`] | exports of NBD servers |
//! | `blocking` | a device for commands, with blocking calls |

pub mod address;
pub(crate) mod blocking;
pub mod connection;
pub mod nbd;
pub mod remote;

pub use self::address::{BackingName, absolute, is_same_uri, is_uri};
pub(crate) use self::connection::LATE_WRITES_END;
pub use self::connection::{Connection, ConnectionState, Purpose};
pub use self::remote::Remote;
