//! One module a subcommand.

use std::io::Write;

pub mod cat;
pub mod check;
pub mod control;
pub mod demo;
pub mod detach;
pub mod dump;
pub mod make;
mod new_file;
mod offline;
pub mod pack;
pub mod recover;
pub mod repair;
pub mod restore;
pub mod serve;
pub mod show;

/// Prints to standard output; a closed pipe is not worth a word.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
