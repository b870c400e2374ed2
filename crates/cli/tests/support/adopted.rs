//! Adopted disks in end-to-end tests: a disk with data, its header, and the cache that took it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};

use super::{Daemon, must, names_in, pseudo_random, serve_command, sha256_of, ubcache};

pub const MIB: u64 = 1 << 20;
/// Size of the disks.
pub const DISK_MIB: u64 = 64;

/// A disk with data in a scratch directory, and a cache that has adopted it.
#[derive(Clone)]
pub struct Adopted {
    pub io: String,
    pub directory: PathBuf,
    pub cache: PathBuf,
    pub disk: PathBuf,
}

impl Adopted {
    /// A disk of random data.
    pub fn new(io: &str, directory: &Path) -> Adopted {
        let disk = directory.join("disk.img");
        let mut content = vec![0; (DISK_MIB * MIB) as usize];
        pseudo_random(3, &mut content);
        std::fs::write(&disk, content).expect("a file");
        Adopted::over(io, directory, disk)
    }

    /// A disk that is there.
    pub fn over(io: &str, directory: &Path, disk: PathBuf) -> Adopted {
        let cache = directory.join("cache.img");
        let adopted = Adopted { io: io.to_owned(), directory: directory.to_owned(), cache, disk };
        let before = sha256_of(&adopted.disk);
        must(
            adopted
                .ubcache("make")
                .args(["--size", "64M", "--bucket", "64k", "--label", "data"])
                .arg("-C")
                .arg(&adopted.cache)
                .arg("--adopt")
                .arg(&adopted.disk),
        );
        assert_eq!(sha256_of(&adopted.disk), before, "not one byte is changed");
        adopted
    }

    pub fn headers(&self) -> PathBuf {
        self.directory.join("headers")
    }

    /// The only header.
    pub fn header(&self) -> PathBuf {
        let names = names_in(&self.headers());
        assert_eq!(names.len(), 1, "{names:?}");
        self.headers().join(&names[0])
    }

    pub fn ubcache(&self, command: &str) -> Command {
        let mut ubcache = ubcache();
        ubcache.env("UBCACHE_HEADERS", self.headers()).arg(command);
        ubcache
    }

    /// Starts the daemon; `Err` with its status and what it printed if it ends instead.
    pub fn start(&self, options: &[&str]) -> Result<Daemon, (ExitStatus, String)> {
        self.start_with(std::slice::from_ref(&self.disk), options)
    }

    /// The same with these disks.
    pub fn start_with(
        &self,
        disks: &[PathBuf],
        options: &[&str],
    ) -> Result<Daemon, (ExitStatus, String)> {
        let (mut command, socket, control, log) =
            serve_command(&self.io, &self.directory, &self.cache, disks, options);
        command.env("UBCACHE_HEADERS", self.headers());
        Daemon::try_start_command((command, socket, control, log))
    }

    pub fn try_serve(&self, options: &[&str]) -> Result<Daemon, String> {
        self.start(options).map_err(|(_, said)| said)
    }

    pub fn serve(&self, options: &[&str]) -> Daemon {
        self.try_serve(options).unwrap_or_else(|said| panic!("serve: {said}"))
    }

    pub fn release(&self) -> Output {
        let mut command = self.ubcache("release");
        command.arg(&self.disk).arg("-C").arg(&self.cache).output().expect("ubcache runs")
    }

    pub fn write_elsewhere(&self, at: u64, bytes: &[u8]) {
        let disk = File::options().write(true).open(&self.disk).expect("the disk");
        disk.write_all_at(bytes, at).expect("a write past ubcache");
    }

    /// Makes the disk larger, and tells its daemon.
    pub fn grow(&self, daemon: &Daemon, mib: u64) {
        let disk = File::options().write(true).open(&self.disk).expect("the disk");
        disk.set_len(mib * MIB).expect("a larger disk");
        must(self.ubcache("resize").arg("--control").arg(&daemon.control));
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("serve.log")).expect("a log")
    }

    /// Everything that clients read.
    pub fn content(&self, daemon: &Daemon) -> Vec<u8> {
        let mut client = daemon.client("data");
        let mut content = vec![0; (DISK_MIB * MIB) as usize];
        for (at, part) in (0..).step_by(MIB as usize).zip(content.chunks_mut(MIB as usize)) {
            client.read(at, part).expect("a read");
        }
        content
    }
}

/// Everything that a command printed.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
