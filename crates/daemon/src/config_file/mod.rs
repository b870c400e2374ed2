//! Configuration files: one cache set a file, which has the name of the set.
//!
//! ```text
//!  /etc/ubcache/data.toml ─▶ text ─▶ keys, kinds ─▶ SetFile ─▶ devices found ─▶ ServeConfig
//!                                  all faults of all files, with line and column
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`keys`] | every key: its table, kind, range, default, and if `config apply` changes it live |
//! | [`kind`] | reading of values: sizes, times, switches, lists |
//! | [`fault`] | a fault, with file, line and column |
//! | `reader` | the tables of a file, with all their faults |
//! | `attributes` | attributes in a file |
//! | [`set_file`] | a file as a set and its volumes |
//! | [`files`] | the files of a directory, and what they have in common by mistake |
//! | [`devices`] | devices by path, UUID or label |
//! | [`effective`] | what is in effect, and how two configurations differ |
//! | [`save`] | a value that is written into a file |

mod attributes;
pub mod devices;
pub mod effective;
pub mod fault;
pub mod files;
pub mod keys;
pub mod kind;
mod reader;
pub mod save;
pub mod set_file;

pub use devices::{Found, Lookup};
pub use effective::Change;
pub use fault::Fault;
pub use files::{Configuration, DEFAULT_DIRECTORY};
pub use set_file::{SetFile, VolumeFile};
