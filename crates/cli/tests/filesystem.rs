//! A real file system on an export: made, filled, unmounted, checked after a restart of the daemon.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::{Path, PathBuf};

use support::{Daemon, Mount, each_io, export_as_file, have, make_set_sized, must, skipped, tool};

/// Mounts a file system image.
fn mount(file: &Path, directory: &Path) -> Option<(Mount, PathBuf)> {
    let point = directory.join("mnt");
    std::fs::create_dir_all(&point).expect("a directory");
    let output =
        tool("mount").args(["-o", "loop"]).arg(file).arg(&point).output().expect("mount runs");
    output.status.success().then(|| (Mount::new(point.clone(), "umount"), point))
}

#[test]
fn a_file_system_survives_a_restart() {
    let test = "a_file_system_survives_a_restart";
    if !have(test, &["nbdfuse", "fusermount3", "mkfs.ext4", "e2fsck", "mount", "diff", "cp"]) {
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
        let Some((fuse, guard, file)) = export_as_file(&daemon, directory, "disk0.img") else {
            skipped(test, "nbdfuse can't mount here (no /dev/fuse?)");
            return;
        };
        must(tool("mkfs.ext4").args(["-q", "-F"]).arg(&file));
        let Some((mounted, point)) = mount(&file, directory) else {
            skipped(test, "no loop mount here (needs root and /dev/loop*)");
            return;
        };
        must(tool("cp").args(["-a", tree]).arg(&point));
        mounted.unmount();
        fuse.unmount();
        drop(guard);
        daemon.stop();

        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        let (fuse, guard, file) = export_as_file(&daemon, directory, "disk0.img")
            .expect("what could be mounted once can be again");
        let (mounted, point) =
            mount(&file, directory).expect("the file system mounts after the restart");
        must(tool("diff").args(["-r", "--no-dereference", tree]).arg(point.join("doc")));
        mounted.unmount();
        must(tool("e2fsck").arg("-fn").arg(&file));
        fuse.unmount();
        drop(guard);
        daemon.stop();
    });
}
