//! The fuzz targets: the work of each on one input. They are called by [`crate::mutate`], on a
//! stable compiler, and by `cargo fuzz` (see fuzz/README.md). A target panics if something is
//! wrong.

mod check;
mod dump;
mod format;
mod guest;
mod nbd;
mod pack;
mod serve;

pub use check::check;
pub use dump::dump_lines;
pub use format::format;
pub use guest::guest;
pub use nbd::nbd;
pub use pack::pack_files;
pub use serve::serve;

/// A target.
#[derive(Copy, Clone)]
pub struct Target {
    /// Its name; its corpus is in `fuzz/corpus/<name>`.
    pub name: &'static str,
    /// Runs an input.
    pub run: fn(&[u8]),
    /// Inputs are at most so long.
    pub max_bytes: usize,
}

/// All of them.
pub const TARGETS: [Target; 7] = [
    Target { name: "format", run: format, max_bytes: 4608 },
    Target { name: "nbd", run: nbd, max_bytes: 4096 },
    Target { name: "guest", run: guest, max_bytes: 1024 },
    Target { name: "check", run: check, max_bytes: 130 },
    Target { name: "serve", run: serve, max_bytes: 66 },
    Target { name: "pack", run: pack_files, max_bytes: 129 },
    Target { name: "dump", run: dump_lines, max_bytes: 4096 },
];
