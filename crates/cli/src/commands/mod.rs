//! One module a subcommand.

use std::io::{self, Write};
use std::path::Path;

use ubcache_daemon::Failure;

pub mod cat;
pub mod check;
pub mod control;
pub mod demo;
pub mod detach;
pub mod dump;
pub mod forget_cache;
pub mod forget_disk;
pub mod make;
mod new_file;
mod offline;
pub mod pack;
pub mod recover;
pub mod repair;
pub mod restore;
pub mod serve;
pub mod show;

/// Prints to standard output. A reader that went away is not worth a word; a full disk is.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    printed(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// What became of printing.
fn printed(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(cannot_print(&error)),
        _ => Ok(()),
    }
}

/// What was to be printed is not there as a whole.
fn cannot_print(error: &dyn std::fmt::Display) -> Failure {
    Failure::could_not_run(Path::new("standard output"), format_args!("can't write to it: {error}"))
        .advice("what was printed is not all of it; make room, and run it again")
}

/// Says something on standard error, if there is anybody who reads it.
pub(crate) fn complain(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}
