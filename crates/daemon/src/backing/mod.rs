//! Backing devices that are not files of this machine.
//!
//! | module | holds |
//! |---|---|
//! | [`address`] | names of backing devices: paths and URIs |

pub mod address;

pub use address::{BackingName, is_uri};
