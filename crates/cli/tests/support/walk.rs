//! The way of a remote disk with data through a cache and back: adopted, used under a load that
//! verifies what it reads, killed, released, compared. Commands are killed in the middle as well.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ubcache_cli::nbd_client::Client;

use super::file_system::{ext4_of, files};
use super::{Daemon, must, names_in, pseudo_random, serve_command, sha256_of, tool};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const EIO: i32 = 5;
/// Programs that it takes.
pub const PROGRAMS: [&str; 3] = ["mkfs.ext4", "e2fsck", "debugfs"];

/// An ext4 with files, and what it has to be at any moment.
pub struct Image {
    /// The content that the disk has to have.
    pub file: PathBuf,
    files: PathBuf,
    load: Vec<Block>,
    turn: u64,
}

/// A block of the file that the load writes.
struct Block {
    at: u64,
    /// The content that a flush has covered, and the newest that was sent.
    flushed: u64,
    newest: u64,
    /// The newest was acknowledged.
    is_sure: bool,
}

impl Image {
    /// An ext4 of 32 MiB with files, made without ubcache.
    pub fn make(directory: &Path) -> Image {
        let (file, files) = (directory.join("image"), files(directory, 8, MIB));
        let mut content = vec![0; 4 * MIB as usize];
        pseudo_random(8, &mut content);
        std::fs::write(files.join("load"), &content).expect("a file");
        ext4_of(&files, &file, 32 * MIB, 32 * MIB);
        let blocks = must(tool("debugfs").args(["-R", "blocks /load"]).arg(&file));
        let at = blocks.split_whitespace().map(|block| block.parse::<u64>().expect("a number"));
        let load = at.map(|at| Block { at: at * BLOCK, flushed: 0, newest: 0, is_sure: true });
        let load: Vec<Block> = load.collect();
        assert_eq!(load.len() as u64, 4 * MIB / BLOCK, "{blocks}");
        Image { file, files, load, turn: 0 }
    }

    /// Replaces a file of the image, and returns the blocks that changed.
    pub fn change(&mut self, round: u64) -> Vec<(u64, Vec<u8>)> {
        let old = std::fs::read(&self.file).expect("the image");
        let new = self.files.join(format!("new{round}"));
        let mut content = vec![0; MIB as usize];
        pseudo_random(100 + round, &mut content);
        std::fs::write(&new, &content).expect("a file");
        for command in [format!("write {} new{round}", new.display()), format!("rm file{round}")] {
            must(tool("debugfs").args(["-w", "-R", &command]).arg(&self.file));
        }
        std::fs::remove_file(self.files.join(format!("file{round}"))).expect("a file");
        let now = std::fs::read(&self.file).expect("the image");
        let blocks = now.chunks(BLOCK as usize).zip(old.chunks(BLOCK as usize));
        let changed =
            (0..).step_by(BLOCK as usize).zip(blocks).filter(|(_, (now, old))| now != old);
        changed.map(|(at, (now, _))| (at, now.to_vec())).collect()
    }

    fn content(&self, block: &Block, generation: u64) -> Vec<u8> {
        let mut content = vec![0; BLOCK as usize];
        match generation {
            0 => File::open(&self.file)
                .expect("the image")
                .read_exact_at(&mut content, block.at)
                .expect("the image"),
            _ => pseudo_random(block.at ^ generation << 40, &mut content),
        }
        content
    }

    /// The generation that a block has.
    fn generation(&self, block: &Block, found: &[u8]) -> u64 {
        let oldest = if block.is_sure { block.newest } else { block.flushed };
        let mut possible = (oldest..=block.newest).rev();
        possible.find(|it| self.content(block, *it) == found).unwrap_or_else(|| {
            panic!("byte {} has none of the contents {oldest} to {}", block.at, block.newest)
        })
    }

    /// Writes, reads and flushes until the connection ends. Counts requests and errors.
    pub fn load(&mut self, client: &mut Client, counts: &Counts) {
        loop {
            self.turn = self.turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let index = (self.turn >> 33) as usize % self.load.len();
            let done = match self.turn >> 60 {
                0 => client.flush().map(|()| {
                    for block in self.load.iter_mut().filter(|block| block.is_sure) {
                        block.flushed = block.newest;
                    }
                }),
                1..=5 => {
                    let mut found = vec![0; BLOCK as usize];
                    client.read(self.load[index].at, &mut found).map(|()| {
                        self.generation(&self.load[index], &found);
                    })
                }
                _ => {
                    let block = &mut self.load[index];
                    (block.newest, block.is_sure) = (block.newest + 1, false);
                    let content = self.content(&self.load[index], self.load[index].newest);
                    let done = client.write(self.load[index].at, &content, false);
                    self.load[index].is_sure = done.is_ok();
                    done
                }
            };
            match done.map_err(|error| error.raw_os_error()) {
                Ok(()) => counts.done.fetch_add(1, Ordering::Relaxed),
                Err(Some(EIO)) => counts.errors.fetch_add(1, Ordering::Relaxed),
                Err(_) => break,
            };
        }
        for block in &mut self.load {
            block.is_sure &= block.flushed == block.newest;
        }
    }

    /// Compares each block with what it may have, and takes it for what it has.
    pub fn settle(&mut self, client: &mut Client) {
        for index in 0..self.load.len() {
            let mut found = vec![0; BLOCK as usize];
            client.read(self.load[index].at, &mut found).expect("a read");
            let generation = self.generation(&self.load[index], &found);
            let block = &mut self.load[index];
            (block.newest, block.is_sure) = (generation, true);
        }
    }

    /// Gives the file of the load its content.
    fn finish(&mut self) {
        let image = File::options().write(true).open(&self.file).expect("the image");
        let load: Vec<Vec<u8>> =
            self.load.iter().map(|block| self.content(block, block.newest)).collect();
        for (block, content) in self.load.iter().zip(&load) {
            image.write_all_at(content, block.at).expect("the image");
        }
        std::fs::write(self.files.join("load"), load.concat()).expect("a file");
    }
}

/// Requests of a load.
#[derive(Default, Debug)]
pub struct Counts {
    /// Those that succeeded.
    pub done: AtomicU64,
    /// Those that failed.
    pub errors: AtomicU64,
}

impl Counts {
    /// Waits until so many more have succeeded.
    pub fn wait_for(&self, more: u64) {
        let end = self.done.load(Ordering::Relaxed) + more;
        while self.done.load(Ordering::Relaxed) < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Runs a command that is killed after a while, then again, each time later, until it ends by
/// itself. Returns its output, and how often it was killed.
pub fn killed_until_done(command: impl Fn() -> Command) -> (Output, u32) {
    let mut wait = Duration::from_millis(1);
    for kills in 0.. {
        let mut command = command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("ubcache runs");
        std::thread::sleep(wait);
        wait = wait * 3 / 2;
        child.kill().expect("a child can be killed");
        let output = child.wait_with_output().expect("a child can be waited for");
        // The kernel gives the locks of a process with io_uring back a moment after its end.
        let locked = String::from_utf8_lossy(&output.stderr).contains(": in use\n");
        if output.status.code().is_some() && !locked {
            return (output, kills);
        }
    }
    unreachable!("the wait grows")
}

/// A remote disk and its cache.
pub struct Walk<'a> {
    /// Way of doing I/O.
    pub io: &'a str,
    /// A directory of its own.
    pub directory: &'a Path,
    /// The disk.
    pub uri: PathBuf,
    /// Reads the whole disk into a file, past ubcache.
    pub read_back: &'a (dyn Fn(&Path) + Sync),
}

impl Walk<'_> {
    fn cache(&self) -> PathBuf {
        self.directory.join("cache.img")
    }

    fn headers(&self) -> PathBuf {
        self.directory.join("headers")
    }

    fn ubcache(&self, command: &str) -> Command {
        let mut ubcache = super::ubcache();
        ubcache.env("UBCACHE_HEADERS", self.headers()).arg(command);
        ubcache
    }

    fn headers_made(&self) -> usize {
        names_in(&self.headers()).iter().filter(|name| name.ends_with(".header")).count()
    }

    /// The content of the disk.
    fn content(&self) -> String {
        let file = self.directory.join("content");
        (self.read_back)(&file);
        sha256_of(&file)
    }

    fn make_adopt(&self) -> Command {
        let mut make = self.ubcache("make");
        make.args(["--size", "64M", "--bucket", "64k", "--label", "data", "-C"]);
        make.arg(self.cache()).arg("--adopt").arg(&self.uri);
        make
    }

    /// Adopts a disk that has nothing yet.
    pub fn adopt_new(&self) {
        must(&mut self.make_adopt());
    }

    /// Adopts the disk, and is killed meanwhile.
    pub fn adopt(&self, image: &Image) {
        // One that was killed may have made the cache, and may have made the header.
        let (output, kills) = killed_until_done(|| {
            let mut make = self.make_adopt();
            make.arg("--wipe-bcache");
            make
        });
        let said = String::from_utf8_lossy(&output.stderr);
        println!("make --adopt: killed {kills} times, then {}: {said}", output.status);
        assert!(output.status.success() || said.contains("adopted already"), "{said}");
        assert_eq!(self.headers_made(), 1);
        assert_eq!(self.content(), sha256_of(&image.file), "not one byte is changed");
    }

    /// Serves the disk.
    pub fn serve(&self, options: &[&str]) -> Daemon {
        let disks = [self.uri.clone()];
        let (mut command, socket, control, log) =
            serve_command(self.io, self.directory, &self.cache(), &disks, options);
        command.env("UBCACHE_HEADERS", self.headers());
        Daemon::try_start_command((command, socket, control, log))
            .unwrap_or_else(|(_, said)| panic!("serve: {said}"))
    }

    /// Log of all daemons so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("serve.log")).expect("a log")
    }

    /// Runs the load while `trouble` goes on, and kills the daemon under it.
    pub fn load_and_kill(
        &self,
        image: &mut Image,
        daemon: Daemon,
        trouble: impl FnOnce(&Daemon, &Counts),
    ) -> Counts {
        let counts = Counts::default();
        std::thread::scope(|scope| {
            let mut client = daemon.client("data");
            let of_load = &counts;
            let load = scope.spawn(move || image.load(&mut client, of_load));
            counts.wait_for(50);
            trouble(&daemon, &counts);
            counts.wait_for(50);
            daemon.kill();
            load.join().expect("a load that finds nothing wrong");
        });
        counts
    }

    /// Changes the file system by way of the cache.
    pub fn change(&self, image: &mut Image, daemon: &Daemon, round: u64) {
        let mut client = daemon.client("data");
        for (at, block) in image.change(round) {
            client.write(at, &block, false).expect("a write");
        }
        client.flush().expect("a flush");
    }

    /// Gives the disk back, is killed meanwhile, and compares it with what it has to be.
    pub fn release(&self, image: &mut Image) {
        let (output, kills) = killed_until_done(|| {
            let mut release = self.ubcache("release");
            release.arg(&self.uri).arg("-C").arg(self.cache());
            release
        });
        let said = String::from_utf8_lossy(&output.stderr);
        println!("release: killed {kills} times, then {}: {said}", output.status);
        assert!(output.status.success() || said.contains("nothing to release"), "{said}");
        assert_eq!(self.headers_made(), 0);
        image.finish();
        let disk = self.directory.join("content");
        let content = self.content();
        must(tool("e2fsck").arg("-fn").arg(&disk));
        let names = names_in(&image.files);
        for name in &names {
            let out = self.directory.join("out");
            let dump = format!("dump {name} {}", out.display());
            must(tool("debugfs").args(["-R", &dump]).arg(&disk));
            assert_eq!(sha256_of(&out), sha256_of(&image.files.join(name)), "{name}");
        }
        println!("{} files are as they have to be, and e2fsck finds nothing", names.len());
        assert_eq!(content, sha256_of(&image.file), "the whole disk");
        let again = self.ubcache("release").arg(&self.uri).output().expect("ubcache runs");
        let again = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(again.contains("nothing to release"), "{again}");
    }
}
