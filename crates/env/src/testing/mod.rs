//! Parts of tests that several crates have: a script of the duties of every device, and a volume
//! in memory for tests of frontends.

mod device;
mod volume;

pub use device::{DEVICE_BYTES_MIN, device_conformance};
pub use volume::{Asked, MemoryVolume};
