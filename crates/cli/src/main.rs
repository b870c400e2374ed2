//! The `ubcache` command. All of it is in the library: see `lib.rs` for a map.

use std::process::ExitCode;

fn main() -> ExitCode {
    ubcache_cli::main()
}
