//! The real world: what the traits of `ubcache-env` are on a Linux machine.
//!
//! One [`Host`] is one thread with one reactor: run queues, timers, calls from other threads, and
//! every I/O of a cache set. [`HostEnv`] is the handle to it that the engine sees.
//!
//! ```text
//!   tasks ── HostEnv ──▶ Core ──▶ ops (slab: owns the memory of I/O in flight)
//!                         │         │
//!   other threads         │         ├─▶ ring     io_uring, one submission per turn
//!      │  RemoteHandle    │         ├─▶ poller   epoll for sockets      ┐ where io_uring
//!      └──────────▶ shared queues   └─▶ workers  threads that may block ┘ can not be had
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`reactor`] | [`Host`], [`HostEnv`], [`RemoteHandle`]: the loop and its handles |
//! | [`mod@file`] | [`HostFile`]: a regular file or block device as a `Device`, O_DIRECT |
//! | [`disk`] | [`HostDisk`]: a file, or a device over a network |
//! | [`command`] | [`HostCommands`]: a character device that hands out requests; control commands |
//! | [`socket`] | [`HostSocket`], [`HostListener`]: Unix and TCP streams |
//! | [`passed`] | [`HostChannel`], [`HostBell`]: messages with open files, events of a peer |
//! | [`handover`] | sockets with which another program goes on |
//! | [`exec`] | the start of another program in this process |
//! | [`activation`] | listening sockets that the parent process passed |
//! | [`signal`] | [`Signal`]: waiting for SIGINT, SIGTERM, … |
//! | `queue` | run queues and what other threads may reach of them |
//! | `timers` | who sleeps until when |
//! | `io` | [`IoBackend`] and all I/O in flight over it |
//! | `open` | opening of files and devices, with the reasons why one can't be opened |
//! | `copies` | how much is copied between two turns of I/O on the reactor's own thread |
//! | `op` | one I/O in flight: request, progress, who waits |
//! | `ring` | the io_uring backend |
//! | `places` | numbers by which the ring knows memory of others |
//! | `registered` | memory of this process as that of a requester, for tests |
//! | `poller`, `workers` | the fallback backend; `workers` also runs blocking calls and copies from the page cache for `ring` |
//! | `limits` | what a file or device is like: size, blocks, alignment |
//! | `mapping` | memory that a file or a driver shares |
//! | `claims` | what opening does not tell: read-only devices, loop devices over a file, files under a loop device |
//! | [`owned`] | [`OwnedVolume`]: a volume of one thread, for lanes on others |
//! | `owner_lock` | the lock that keeps lanes from what a thread owns |
//! | [`kept`] | [`HostKept`]: memory that outlives the process |
//! | [`access`] | waiting for rights on a file that somebody else gives |
//! | [`descriptors`] | how many descriptors may be open |
//! | `memory` | how a daemon that clients on its own machine write to goes on when memory is short |
//! | `sys` | system calls as safe functions |
#![allow(
    clippy::disallowed_methods,
    reason = "this crate is the world with the clock and the threads"
)]
#![warn(clippy::large_futures)]

pub mod access;
pub mod activation;
mod claims;
pub mod command;
mod copies;
pub mod descriptors;
pub mod disk;
pub mod exec;
pub mod file;
pub mod handover;
mod io;
pub mod kept;
mod limits;
mod mapping;
pub mod memory;
mod op;
mod open;
pub mod owned;
mod owner_lock;
pub mod passed;
mod places;
mod poller;
mod queue;
pub mod reactor;
#[cfg(feature = "testing")]
pub mod registered;
mod ring;
pub mod signal;
pub mod socket;
mod sys;
mod timers;
mod workers;

pub use access::wait_for_access;
pub use activation::{ActivationError, PassedAddress, PassedSocket, passed_sockets};
pub use claims::{loop_in_use, sysfs_directory, under_loop_in_use};
pub use command::{HostCommands, control};
pub use disk::HostDisk;
pub use file::{FileToRead, HostFile};
pub use io::IoBackend;
pub use kept::{HostKept, KeptError};
pub use open::{OpenError, OpenOptions, PageCache, PlainFile};
pub use owned::OwnedVolume;
pub use passed::{HostBell, HostChannel};
pub use reactor::{Host, HostEnded, HostEnv, RemoteHandle};
#[cfg(feature = "testing")]
pub use registered::RegisteredMemory;
pub use signal::Signal;
pub use socket::{
    HostListener, HostSocket, ListenAddress, SocketAccess, SocketError, bind_unix_socket, group_id,
    remove_unix_socket,
};
