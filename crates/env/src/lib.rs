//! The seam between the cache engine and the world it runs in.
//!
//! The engine reaches clock, tasks, randomness and devices through the traits of this crate
//! only. Two worlds implement them: `ubcache-host` (the real one) and `ubcache-sim` (virtual
//! time, from a seed). Everything here is single-threaded and deterministic.
//!
//! | module | holds |
//! |---|---|
//! | [`world`] | [`Env`]: clock, spawn, randomness; [`Task`] |
//! | [`device`] | [`Device`], [`DeviceLimits`], [`DeviceShape`], [`IoError`] |
//! | [`volume`] | [`Volume`]: what a frontend (NBD, ublk, vhost) serves |
//! | [`stream`] | [`Stream`]: a connected byte stream, for socket protocols |
//! | [`command`] | [`CommandDevice`]: requests of the kernel, by commands of io_uring |
//! | [`passed`] | [`Channel`], [`Bell`]: messages with open files, for protocols over shared memory |
//! | [`bytes`] | requests for any bytes of a volume, made of whole blocks |
//! | [`buf`] | [`Buf`], [`Slice`], [`IoVec`]: page-aligned memory for I/O |
//! | [`interval`] | [`IntervalSet`], [`IntervalMap`] over sectors |
//! | [`local`] | mutex, semaphore, notify, one-shot: FIFO, for one thread |
//! | [`erased`] | [`erased::AnyDevice`]: devices of several kinds behind one type |
//! | [`joined`] | [`Joined`]: a disk without a superblock, behind a header that has it |
//! | [`lane`] | [`LaneVolume`]: a volume whose clients are served beside its owner |
//! | [`kept`] | [`KeptMemory`]: memory that outlives the process |
//! | [`work`] | [`Work`]: steps of a poll, counted in worlds that check them |
//! | `testing` | duties of every [`Device`], a volume in memory (feature `testing`) |

#![forbid(unsafe_code)]
#![warn(clippy::large_futures)]

pub mod buf;
pub mod bytes;
pub mod command;
pub mod device;
pub mod erased;
pub mod interval;
pub mod joined;
pub mod kept;
pub mod lane;
pub mod local;
pub mod passed;
pub mod stream;
#[cfg(feature = "testing")]
pub mod testing;
pub mod volume;
pub mod work;
pub mod world;

pub use buf::{Buf, BufPool, IoVec, Parcel, Slice, Supply};
pub use bytes::ByteRange;
pub use command::{COMMAND_ADDRESS_AT, Command, CommandDevice};
pub use device::{
    Device, DeviceLimits, DeviceShape, Distance, Durability, IoError, IoResult, Place, Witness,
};
pub use interval::{IntervalMap, IntervalSet};
pub use joined::Joined;
pub use kept::KeptMemory;
pub use lane::{LaneVolume, MappedRead, Owner, ReadEnd};
pub use passed::{Bell, Channel, PassedFiles, Received};
pub use stream::{Protection, Stream, StreamError};
pub use ubcache_format::{Sector, SectorRange};
pub use volume::{
    BlockStatus, ForeignMemory, StreamEnd, StreamId, Volume, VolumeError, VolumeInfo,
};
pub use work::Work;
pub use world::{Env, Nanos, Priority, Task};
