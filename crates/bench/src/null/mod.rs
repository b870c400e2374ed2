//! A world in which only the engine costs anything: devices complete at once and copy no client
//! data, and the clock is a number that the load moves.
//!
//! Everything in it is decided by the load and one seed, so that counts (allocations, instructions,
//! bytes written) are the same in every run. It is neither of the two worlds that the engine is
//! for: no crash, no error, and by default no latency.
//!
//! | module | holds |
//! |---|---|
//! | [`executor`] | tasks in three queues, timers over a clock that the load moves |
//! | [`device`] | a device that keeps metadata and forgets client data |
//! | [`driver`] | a driver of ublk that has the next request at once |
//! | [`rig`] | a cache set with a volume in this world |

pub mod device;
pub mod driver;
pub mod executor;
pub mod rig;

pub use device::NullDevice;
pub use driver::NullDriver;
pub use executor::{LongPolls, NullEnv, NullWorld};
pub use rig::{BUCKET_SECTORS, REQUEST_TIME, REQUESTS_PER_TURN, Rig, Shape};
