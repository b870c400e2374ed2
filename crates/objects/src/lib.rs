//! A volume on an object store, as a block device.
//!
//! The volume is cut into objects of one size. An object is written whole, under a name that is
//! used once, and becomes part of the volume when a *page* names it and the *root* names the page:
//!
//! ```text
//!   PREFIX/root                      size, epoch, writer, names of the pages   conditional PUT
//!   PREFIX/pages/PAGE-EPOCH-SERIAL   names of 1024 objects                     written once
//!   PREFIX/data/INDEX-EPOCH-SERIAL   an object of the volume                   written once
//!   PREFIX/lease                     holder of the volume: a courtesy          conditional PUT
//! ```
//!
//! A flush PUTs the objects that changed, then the pages that name them, then the root. The root is
//! replaced only if it is still the one that this writer wrote last, so a crash leaves the volume
//! of one flush or of the next, and no other.
//!
//! **One writer.** Attaching raises the epoch in the root by a conditional PUT. A writer of an
//! earlier epoch may still be running, and its requests may still be on their way:
//!
//! ```text
//!   old writer, epoch 4                new writer                     in the root
//!   PUT data/7-4-90   ···                                              epoch 4, tag a
//!                                      GET root (epoch 4, tag a)
//!                                      PUT root if tag a: epoch 5      epoch 5, tag b
//!   ··· arrives: nothing names it                                      epoch 5, tag b
//!   PUT root if tag a ─▶ refused                                       epoch 5, tag b
//!   DELETE data/7-4-12: what it had                                    epoch 5, tag b
//!     unnamed before; nobody names it
//! ```
//!
//! Names are used once, so a late PUT never replaces what a root names, and a late DELETE removes
//! what no later root can name again. Clocks have no part in it: the lease, whose holder renews it,
//! keeps a second daemon from taking a volume that is in use, and may be wrong.
//!
//! **Unknown outcomes.** A PUT that was not answered is repeated under its name with the same
//! content. A conditional PUT that was not answered, or was refused after that, is read back: its
//! content is unique, so it is there or it is not. A root that was not answered in time may take
//! effect until another one has replaced the one before it, so objects that either of them names
//! stay until then.
//!
//! | module | holds |
//! |---|---|
//! | [`store`] | [`Store`]: the requests that an object store has to understand |
//! | [`retry`] | repetition with limits, and the events of a store that is away |
//! | [`conditional`] | conditional PUTs with a known outcome |
//! | [`names`] | names of objects and pages |
//! | [`manifest`] | root and pages, as text |
//! | [`lease`] | the lease: acquire, renew, release |
//! | [`probe`] | the refusal of stores that ignore conditions |
//! | [`map`] | the current name of every object, and names to delete |
//! | [`layer`], [`buffers`] | written data that is not in the store yet |
//! | [`ahead`] | read-ahead |
//! | [`attach`] | create, open |
//! | [`disk`] | [`ObjectDisk`]: the device |
//! | [`grow`] | growth |
//! | [`upload`], [`flush`], [`sweep`] | PUT of one object; flush; deletion of what nothing names |
//! | `s3` | the real store (feature `s3`) |
//! | `memory` | a store in memory, with faults (feature `testing`) |
#![forbid(unsafe_code)]
#![warn(clippy::large_futures)]

pub mod ahead;
pub mod attach;
pub mod buffers;
pub mod conditional;
pub mod disk;
pub mod flush;
pub mod grow;
pub mod layer;
pub mod lease;
pub mod manifest;
pub mod map;
#[cfg(feature = "testing")]
pub mod memory;
pub mod names;
pub mod probe;
pub mod retry;
#[cfg(feature = "s3")]
pub mod s3;
pub mod store;
pub mod sweep;
pub mod upload;

pub use attach::{OpenFailure, OpenOptions, StoreRules, create};
pub use disk::ObjectDisk;
pub use grow::GrowFailure;
pub use manifest::Shape;
pub use retry::StoreEvent;
pub use store::{Condition, Object, Store, StoreError};
