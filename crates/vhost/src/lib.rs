//! The vhost-user-blk protocol: a volume as a disk of a virtual machine.
//!
//! The client is a machine monitor (QEMU). It shares the memory of its guest, and the guest puts
//! requests into rings in that memory: no request passes the monitor.
//!
//! ```text
//!  monitor ── Channel ──▶ serve ─▶ relay ─▶ handler ─┐ sets up
//!                                                    ▼
//!  guest ──── kick ─────▶ queue ─▶ workers ─▶ request ─▶ Volume
//!    ▲   memory, rings      │         ▲ chain: descriptors, checked
//!    └─────── call ─────────┘         └ inflight: what a crash must not lose
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`serve`] | [`serve_connection`]: one connection of a monitor; [`Control`] |
//! | `relay` | whole messages to the checked handler and back, without waiting |
//! | `handler` | requests of the monitor, carried out on the device |
//! | `memory` | the table of shared memory |
//! | [`device`] | [`Device`]: features, configuration and queues of a disk |
//! | `config` | configuration space and feature bits |
//! | `queue` | one ring: taking requests, publishing answers, stopping |
//! | `chain` | descriptors of a request, checked |
//! | `ring` | the ring itself, in the memory of the guest |
//! | `regions` | addresses of the guest, found in its memory |
//! | `request` | a request, from its header to its status |
//! | `workers` | futures that carry requests out, used again and again |
//! | [`inflight`] | requests in flight, in memory that outlives this process |
//! | `signal` | a place where one task waits |
//!
//! The guest is not trusted, and may change everything at any moment: each value in its memory is
//! read once and then checked. Data of a write is copied before anything else, so what is written
//! twice is the same twice (rule T0). A ring with nonsense in it stops; others go on.
#![forbid(unsafe_code)]
#![warn(clippy::large_futures)]

mod chain;
mod config;
pub mod device;
mod handler;
pub mod inflight;
mod memory;
mod queue;
mod regions;
mod relay;
mod request;
mod ring;
pub mod serve;
mod signal;
mod workers;

pub use chain::ChainError;
pub use device::{
    Counters, Device, DiskStatus, Lineage, LostWrites, Pace, Ring, RingStatus, Settings,
};
pub use inflight::InflightRegion;
pub use queue::QueueError;
pub use serve::{Control, Options, ServeError, serve_connection};

/// Queues of a disk, at most.
pub const QUEUES_MAX: u16 = 64;
/// Requests in a queue, at most: as many as QEMU permits.
pub const QUEUE_SIZE_MAX: u16 = 1024;
