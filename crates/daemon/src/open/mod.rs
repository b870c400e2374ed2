//! Opening: checks of the devices before anything is changed.
//!
//! | module | holds |
//! |---|---|
//! | [`target`] | devices and files before they are served: opening, size, locking |
//! | [`superblock`] | reading superblocks, and messages about defects in them |
//! | [`adopt`] | disks that are taken as they are |
//! | [`header`] | headers of disks that have no superblock: finding, making, removing them |
//! | [`probe`] | recognizing file systems and other things of value on a device |
//! | `io` | the reactor |
//! | [`precheck`] | the checks that come before any change |
//! | `preconditions` | the part of a start that needs no device for itself alone |
//! | `refusal` | messages for refusals of the engine |

pub mod adopt;
pub mod header;
pub(crate) mod io;
pub mod precheck;
pub(crate) mod preconditions;
pub mod probe;
pub(crate) mod refusal;
pub mod superblock;
pub mod target;
