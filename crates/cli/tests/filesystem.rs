//! A real file system on an export: made, filled, unmounted, checked after a restart of the daemon.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::Path;

use support::file_system::{FileSystem, PROGRAMS};
use support::{Daemon, each_io, have, make_set_sized, must, skipped, tool};

#[test]
fn a_file_system_survives_a_restart() {
    let test = "a_file_system_survives_a_restart";
    if !have(test, &PROGRAMS) || !have(test, &["diff", "cp"]) {
        return;
    }
    let tree = "/usr/share/doc";
    if !Path::new(tree).is_dir() {
        skipped(test, "there is no /usr/share/doc to copy");
        return;
    }
    each_io(test, |io, directory| {
        let (cache, backings) = make_set_sized(directory, 128, &[512], &["--writeback"]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        let Some(file_system) = FileSystem::make(test, &daemon, directory) else { return };
        must(tool("cp").args(["-a", tree]).arg(&file_system.point));
        file_system.unmount();
        daemon.stop();

        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        let file_system = FileSystem::again(&daemon, directory);
        let copy = file_system.point.join("doc");
        must(tool("diff").args(["-r", "--no-dereference", tree]).arg(copy));
        file_system.unmount();
        daemon.stop();
    });
}
