//! Block devices of the kernel, `/dev/ublkbN`, for volumes that are served.
//!
//! | module | holds |
//! |---|---|
//! | [`options`] | volumes that get a device, and how |
//! | [`driver`] | the control device of the kernel's driver |
//! | `start` | finding, making and recovering of a device |
//! | [`device`] | a device that is served, and its end |
//! | [`listed`] | devices of the driver, of any program |
//! | `volumes` | devices of the volumes of a set |
//! | `record` | a file for each device, which udev names it by |
//!
//! A device outlives its daemon: when that dies, requests wait, and the next daemon with the same
//! volume finds the device by the volume's UUID and goes on. Control commands may take their time,
//! so they run on worker threads of the host.

pub mod device;
pub mod driver;
pub mod listed;
pub mod options;
pub mod record;
mod start;
mod volumes;

pub use options::{UblkExport, UblkOptions};
pub(crate) use start::Lineage;
pub use ubcache_ublk::DeviceState;
