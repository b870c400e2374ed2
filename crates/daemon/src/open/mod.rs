//! Opening: what is on the devices, before anything is changed.
//!
//! | module | holds |
//! |---|---|
//! | [`target`] | devices and files before they are served: opening, size, locking |
//! | [`superblock`] | reading superblocks, and their faults in words |
//! | [`probe`] | recognizing file systems and other things of value on a device |
//! | [`precheck`] | the checks that come before any change |
//! | `refusal` | messages for what the engine refuses |

pub mod precheck;
pub mod probe;
pub(crate) mod refusal;
pub mod superblock;
pub mod target;
