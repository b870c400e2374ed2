//! The on-disk format of Linux bcache: bytes in, typed values out, and back. No I/O, and no way to panic whatever
//! the bytes are.

#![forbid(unsafe_code)]

mod bytes;
mod error;
mod geometry;
mod key;
mod units;

pub use error::*;
pub use geometry::*;
pub use key::*;
pub use units::*;
