//! A real file system on an export: nbdfuse shows the export as a file, and ext4 is mounted from
//! it.

use std::path::{Path, PathBuf};

use super::{
    Daemon, Guard, Mount, export_as_file, must, pseudo_random, skipped, sparse, text, tool,
};

/// Programs that it takes.
pub const PROGRAMS: [&str; 5] = ["nbdfuse", "fusermount3", "mkfs.ext4", "e2fsck", "mount"];

/// Files `file0`, `file1` and so on, of so many bytes each, in a directory `files`, which is
/// returned.
pub fn files(directory: &Path, count: u64, bytes: u64) -> PathBuf {
    let files = directory.join("files");
    std::fs::create_dir(&files).expect("a directory");
    let mut content = vec![0; bytes as usize];
    for number in 0..count {
        pseudo_random(number, &mut content);
        std::fs::write(files.join(format!("file{number}")), &content).expect("a file");
    }
    files
}

/// Makes an image of so many bytes with an ext4 that has these files and ends at byte `end`.
pub fn ext4_of(files: &Path, image: &Path, bytes: u64, end: u64) {
    sparse(image, bytes);
    let mut mkfs = tool("mkfs.ext4");
    mkfs.args(["-q", "-F", "-b", "4096", "-d", text(files)]).arg(image);
    must(mkfs.arg(format!("{}k", end >> 10)));
}

/// An export as a file: the mount, nbdfuse, the file.
type ExportFile = (Mount, Guard, PathBuf);

/// A mounted file system on an export.
pub struct FileSystem {
    mount: Mount,
    export: ExportFile,
    /// The mount point.
    pub point: PathBuf,
}

impl FileSystem {
    /// Makes an ext4 on the first export and mounts it. Reports the test as skipped if this machine
    /// can't.
    pub fn make(test: &str, daemon: &Daemon, directory: &Path) -> Option<FileSystem> {
        let Some(export) = export_as_file(daemon, directory, "disk0.img") else {
            skipped(test, "nbdfuse can't mount here (no /dev/fuse?)");
            return None;
        };
        must(tool("mkfs.ext4").args(["-q", "-F"]).arg(&export.2));
        let mounted = Self::mount(export, directory);
        if mounted.is_none() {
            skipped(test, "no loop mount here (needs root and /dev/loop*)");
        }
        mounted
    }

    /// Mounts the file system that is on the first export.
    pub fn again(daemon: &Daemon, directory: &Path) -> FileSystem {
        let export = export_as_file(daemon, directory, "disk0.img");
        let export = export.expect("an export that was shown once can be again");
        Self::mount(export, directory).expect("the file system mounts after the restart")
    }

    fn mount(export: ExportFile, directory: &Path) -> Option<FileSystem> {
        let point = directory.join("mnt");
        std::fs::create_dir_all(&point).expect("a directory");
        let mut mount = tool("mount");
        let output = mount.args(["-o", "loop"]).arg(&export.2).arg(&point).output();
        output.expect("mount runs").status.success().then(|| {
            let mount = Mount::new(point.clone(), "umount");
            FileSystem { mount, export, point }
        })
    }

    /// Unmounts, and checks the file system.
    pub fn unmount(self) {
        self.mount.unmount();
        must(tool("e2fsck").arg("-fn").arg(&self.export.2));
        let (fuse, nbdfuse, _) = self.export;
        fuse.unmount();
        drop(nbdfuse);
    }

    /// Takes away what is left when the daemon was killed: nbdfuse does not connect again.
    pub fn tear_down(self) {
        self.mount.unmount();
        let (fuse, nbdfuse, _) = self.export;
        fuse.unmount();
        drop(nbdfuse);
    }
}
