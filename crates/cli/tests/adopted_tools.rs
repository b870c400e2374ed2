//! Adopted disks beside `make` and `serve`: a configuration file that has a disk adopted, lists,
//! and the tools for sets that are not running, with a header that is named or lost.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::crashed::{json, run};
use support::{
    Daemon, STAYS_DIRTY, must, names_in, pseudo_random, scratch, serve_command, sha256_of, text,
    ubcache,
};

const MIB: usize = 1 << 20;
const DISK: usize = 16 * MIB;

/// A disk of random data, and a place for headers.
struct World {
    directory: tempfile::TempDir,
    content: Vec<u8>,
}

impl World {
    fn new() -> World {
        let directory = scratch();
        let mut content = vec![0; DISK];
        pseudo_random(3, &mut content);
        std::fs::write(directory.path().join("disk.img"), &content).expect("a file");
        World { directory, content }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn ubcache(&self, command: &str) -> Command {
        let mut ubcache = ubcache();
        ubcache.env("UBCACHE_HEADERS", self.path("headers")).env("UBCACHE_IO", "pool").arg(command);
        ubcache.env("XDG_RUNTIME_DIR", self.directory.path());
        ubcache
    }

    fn header(&self) -> PathBuf {
        let names = names_in(&self.path("headers"));
        assert_eq!(names.len(), 1, "{names:?}");
        self.path("headers").join(&names[0])
    }

    /// A set that has adopted the disk, with a dirty block in the last mebibyte.
    fn with_dirty_data() -> World {
        let mut world = World::new();
        must(
            world
                .ubcache("make")
                .args(["--size", "40M", "--bucket", "64k", "--label", "data", "-C"])
                .arg(world.path("cache.img"))
                .arg("--adopt")
                .arg(world.path("disk.img")),
        );
        let served = world.serve();
        let at = DISK - MIB;
        served.client("data").write(at as u64, &[7; 4096], true).expect("a write");
        world.content[at..at + 4096].fill(7);
        served.stop();
        world
    }

    fn serve(&self) -> Daemon {
        let (cache, disks) = (self.path("cache.img"), [self.path("disk.img")]);
        let (mut command, socket, control, log) =
            serve_command("pool", self.directory.path(), &cache, &disks, &STAYS_DIRTY);
        command.env("UBCACHE_HEADERS", self.path("headers"));
        // Commands find it there.
        let place = self.path("ubcache");
        std::fs::create_dir_all(&place).expect("a directory");
        let known = place.join("set.sock");
        let _ = std::fs::remove_file(&known);
        std::os::unix::fs::symlink(&control, known).expect("a link");
        let started = Daemon::try_start_command((command, socket, control, log));
        started.unwrap_or_else(|(_, said)| panic!("{said}"))
    }

    fn offline(&self, command: &str) -> Command {
        let mut ubcache = self.ubcache(command);
        ubcache.arg("-C").arg(self.path("cache.img")).arg("-B").arg(self.path("disk.img"));
        ubcache
    }
}

#[test]
fn adopted_disks_are_listed_and_shown_with_header_and_witness() {
    let world = World::with_dirty_data();
    let disk = world.path("disk.img");
    let list = || json(&run(world.ubcache("list").arg("--json").arg(&disk), 0))["devices"].clone();
    let listed = list();
    assert_eq!(listed[0]["header"], text(&world.header()));
    assert_eq!((&listed[0]["witness"], &listed[0]["state"]), (&"same".into(), &"dirty".into()));
    let shown = json(&run(world.ubcache("show").arg("--json").arg(&disk), 0));
    assert_eq!(shown["header.path"], text(&world.header()));
    assert_eq!((&shown["header.witness"], &shown["dev.label"]), (&"same".into(), &"data".into()));
    // The disk of the driver: the header's sectors, and then those of the disk.
    let (header, sectors) = (text(&world.header()).to_owned(), DISK / 512);
    let table =
        [format!("0 16 linear {header} 0"), format!("16 {sectors} linear {} 0", text(&disk))];
    assert_eq!(shown["driver.table"], serde_json::json!(table), "{shown}");
    let said = must(world.ubcache("show").arg(&disk));
    for line in [
        format!("header=$(losetup --find --show {header})"),
        format!("disk=$(losetup --find --show {})", text(&disk)),
        format!("printf '0 16 linear %s 0\\n16 {sectors} linear %s 0\\n' $header $disk | dmsetup"),
        "echo /dev/mapper/data > /sys/fs/bcache/register".to_owned(),
    ] {
        assert!(said.contains(&line), "{line} in: {said}");
    }
    let said = must(world.ubcache("list").arg(&disk));
    assert!(said.contains("adopted, header") && said.contains("as a clean stop left it"), "{said}");
    let served = world.serve();
    assert!(list()[0]["witness"].is_null(), "it is in use");
    served.kill();
    assert_eq!(list()[0]["witness"], "same", "nothing was written");
    let served = world.serve();
    served.client("data").write(0, &[1; 4096], true).expect("a write");
    served.set("writeback_running=1");
    must(world.ubcache("drain").args(["data", "--wait", "--control"]).arg(&served.control));
    served.kill();
    assert_eq!(list()[0]["witness"], "open");
    let file = std::fs::File::options().write(true).open(&disk).expect("the disk");
    file.write_all_at(&[5; 512], 512 << 10).expect("a write past ubcache");
    assert_eq!(list()[0]["witness"], "changed");
    file.set_len(DISK as u64 + 4096).expect("another size");
    assert_eq!(list()[0]["witness"], "resized");
}

#[test]
fn offline_tools_take_a_header_by_its_path_or_from_the_cache_device() {
    let world = World::with_dirty_data();
    let elsewhere = world.path("elsewhere.header");
    std::fs::rename(world.header(), &elsewhere).expect("it moves");
    // The copy on the cache device would be found otherwise.
    let (cache, kept) = (world.path("cache.img"), world.path("kept.img"));
    std::fs::copy(&cache, &kept).expect("a copy");
    let out = world.path("out.img");
    must(world.offline("cat").arg("--header").arg(&elsewhere).arg("-o").arg(&out));
    assert!(std::fs::read(&out).expect("a file") == world.content);
    let mut check = world.ubcache("check");
    check.arg(&cache).arg("-B").arg(world.path("disk.img"));
    must(check.arg("--header").arg(&elsewhere));
    assert!(names_in(&world.path("headers")).is_empty(), "none was made");
    let before = sha256_of(&world.path("disk.img"));
    must(world.offline("recover").arg("--dry-run").arg("--header").arg(&elsewhere));
    assert_eq!(sha256_of(&world.path("disk.img")), before);
    // Lost: made again from its copy.
    std::fs::remove_file(&elsewhere).expect("it goes");
    must(world.offline("recover").arg("--detach"));
    assert!(world.header().exists());
    assert!(std::fs::read(world.path("disk.img")).expect("the disk") == world.content);
}

/// A daemon of a file that has the disk adopted.
fn daemon(world: &World, sets: &Path) -> Daemon {
    let started = try_daemon(world, sets);
    started.unwrap_or_else(|(status, said)| panic!("{status}: {said}"))
}

/// The same, which may be refused. What it says is in `daemon.log`.
fn try_daemon(world: &World, sets: &Path) -> Result<Daemon, (std::process::ExitStatus, String)> {
    let log = world.path("daemon.log");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).expect("a log");
    let mut command = world.ubcache("daemon");
    let control = world.path("control.sock");
    command.arg("--config").arg(sets).arg("--control").arg(&control);
    command.stdout(Stdio::piped()).stderr(file);
    Daemon::try_start_command((command, world.path("nbd.sock"), control, log))
}

/// A directory with the file of a set that has the disk adopted, and its cache, if there is none.
fn adopting(world: &World, disk: &str) -> PathBuf {
    let (sets, cache) = (world.path("sets"), world.path("cache.img"));
    std::fs::create_dir_all(&sets).expect("a directory");
    if !cache.exists() {
        let mut make = world.ubcache("make");
        must(make.args(["--size", "40M", "--bucket", "64k", "-C"]).arg(&cache));
    }
    let configuration = format!(
        "cache = {cache:?}\nnbd = [\"unix:{}\"]\n[[volume]]\nname = \"data\"\nbacking = \
         {:?}\nadopt = true\n",
        world.path("nbd.sock").display(),
        world.path(disk)
    );
    std::fs::write(sets.join("set.toml"), configuration).expect("a file");
    sets
}

#[test]
fn a_disk_that_its_header_does_not_know_again_gets_no_second_header() {
    let world = World::new();
    daemon(&world, &adopting(&world, "disk.img")).stop();
    let header = world.header();
    // Another name, and other content at every place.
    std::fs::remove_file(world.path("disk.img")).expect("it goes");
    std::fs::write(world.path("other.img"), vec![7; DISK]).expect("a file");
    let said = match try_daemon(&world, &adopting(&world, "other.img")) {
        Ok(running) => {
            running.stop();
            String::new()
        }
        Err((_, said)) => said,
    };
    let log = std::fs::read_to_string(world.path("daemon.log")).expect("a log");
    let told = format!("{said}{log}");
    assert!(told.contains("the disk may have a header already"), "{told}");
    assert_eq!(world.header(), header, "no other one was made");
}

#[test]
fn a_configuration_file_has_a_disk_adopted_once() {
    let world = World::new();
    let sets = adopting(&world, "disk.img");
    let mut header = PathBuf::new();
    for start in 0..3 {
        let running = daemon(&world, &sets);
        let mut block = vec![0; 65_536];
        running.client("data").read(0, &mut block).expect("a read");
        assert!(block == world.content[..65_536], "start {start}");
        if start == 0 {
            header = world.header();
            running.client("data").write(8 << 20, &[9; 4096], true).expect("a write");
        }
        running.stop();
        assert_eq!(world.header(), header, "one header only");
        if start == 1 {
            // Lost: its copy on the cache device is used, and no other header is made.
            std::fs::remove_file(&header).expect("it goes");
        }
    }
    let mut release = world.ubcache("release");
    must(release.arg(world.path("disk.img")).arg("-C").arg(world.path("cache.img")));
    let mut expected = world.content.clone();
    expected[8 << 20..(8 << 20) + 4096].fill(9);
    assert!(std::fs::read(world.path("disk.img")).expect("the disk") == expected);
}
