//! One module a subcommand.

use std::io::{self, Write};
use std::path::Path;

use ubcache_daemon::Failure;

pub mod advise;
pub mod cat;
pub mod check;
mod choose;
pub mod config;
pub mod control;
pub mod convert;
pub mod daemon;
pub mod demo;
pub mod detach;
pub mod doctor;
pub mod dump;
pub mod flash;
pub mod forget_cache;
pub mod forget_disk;
pub mod list;
pub mod make;
pub mod map;
pub mod members;
pub mod metrics;
pub mod move_backing;
mod move_data;
mod new_file;
mod offline;
pub mod pack;
mod process;
pub mod recover;
pub mod release;
pub mod repair;
pub mod resize;
pub mod restore;
pub mod scrub;
pub mod serve;
pub mod show;
pub mod status;
pub mod top;
pub mod ublk;
pub mod unmake;
pub mod upgrade;
pub mod why;

/// Prints to standard output. Ignores EPIPE; reports every other error.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    printed(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// A name or label on a line of its own: what would end the line, or steer a terminal, is escaped.
fn visible(name: &str) -> String {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().collect(),
        false => String::from(c),
    };
    name.chars().map(escape).collect()
}

/// Result of printing, as that of the command.
fn printed(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(cannot_print(&error)),
        _ => Ok(()),
    }
}

/// The failure for incomplete output.
fn cannot_print(error: &dyn std::fmt::Display) -> Failure {
    Failure::could_not_run(Path::new("standard output"), format_args!("can't write to it: {error}"))
        .advice("the output is incomplete; make room, and run it again")
}

/// Prints a message to standard error. Ignores all errors.
pub(crate) fn complain(text: &str) {
    // Behind the last lines of a log, and without waiting for ever.
    if ubcache_daemon::log::print(text) {
        return;
    }
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}
