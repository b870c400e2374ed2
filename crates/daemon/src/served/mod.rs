//! The running set, its clients, its report.
//!
//! | module | holds |
//! |---|---|
//! | [`absent`] | disks that are gone for good |
//! | `backing` | opening of backing devices, with their headers |
//! | `cache` | another cache, or none |
//! | `connection` | a connection that may still be there |
//! | [`lanes`] | threads that serve NBD clients for the set's thread |
//! | [`client`] | lines of the log about clients |
//! | [`advice`] | settings that fit the traffic, and what other sizes of the cache would do |
//! | [`daemon`] | the running set and its volumes, with their operations |
//! | [`events`] | words for what happens to the set |
//! | [`flash`] | flash-only volumes |
//! | [`frontend_report`] | the part of the report that is about block devices and guests |
//! | `frontends` | makes it |
//! | `former_set` | a set whose cache was replaced |
//! | `gate` | a place where new connections wait |
//! | `handover` | the end of a daemon with which another program goes on |
//! | `header_copy` | copies of headers on the cache device |
//! | [`health`] | health of a set, and warnings in words |
//! | `kept` | memory that outlives the process: a file beside the control socket |
//! | `late_writes` | writes of a run that was cut off, at the server of a remote disk |
//! | [`larger_cache`] | a cache that gets the size of its device |
//! | [`listen`] | sockets for NBD clients |
//! | [`maps`] | what is cached of each part of a volume, and what each part of a cache holds |
//! | [`metrics`] | the numbers of the report for Prometheus |
//! | [`pace`] | speed of writeback |
//! | `members` | volumes that come and go |
//! | `move_backing` | volumes that move to other disks |
//! | [`move_report`] | the part of the report that is about them |
//! | `moving` | a move that is under way |
//! | [`orders`] | orders from other threads of the process |
//! | [`process`] | the process of a set, its own or shared |
//! | [`request_report`] | the part of the report that is about requests |
//! | [`report`] | the object of `status --json` |
//! | `resize` | volumes whose disks have another size than before |
//! | `resize_alone` | a cache whose set does not run, and which gets another size |
//! | `returning` | remote disks whose server was not there at the start |
//! | `scrub` | comparison of clean cached data with the disks |
//! | [`scrub_report`] | the part of the report that is about scrubs |
//! | [`shrink_report`] | the part of the report that is about a smaller cache |
//! | `shrinking` | a cache that is becoming smaller |
//! | [`smaller_cache`] | a cache that becomes smaller |
//! | [`systemd`] | messages to systemd |
//! | `upgrades` | requests for an upgrade |
//! | [`watch`] | regular looks at the set |
//! | [`world`] | the engine's world: opening of devices and sockets |

pub mod absent;
pub mod advice;
pub(crate) mod backing;
pub(crate) mod cache;
pub mod client;
mod connection;
pub mod daemon;
pub mod events;
pub mod flash;
pub(crate) mod former_set;
pub mod frontend_report;
mod frontends;
pub(crate) mod gate;
pub(crate) mod handover;
pub(crate) mod header_copy;
pub mod health;
pub(crate) mod kept;
pub mod lanes;
pub mod larger_cache;
pub(crate) mod late_writes;
pub mod listen;
pub mod maps;
mod members;
pub mod metrics;
pub(crate) mod move_backing;
pub mod move_report;
pub(crate) mod moving;
pub mod orders;
pub mod pace;
pub mod process;
pub mod report;
pub mod request_report;
mod resize;
mod resize_alone;
pub(crate) mod returning;
mod scrub;
pub mod scrub_report;
pub mod shrink_report;
mod shrinking;
pub mod smaller_cache;
pub mod systemd;
pub(crate) mod upgrades;
pub mod watch;
pub mod world;
