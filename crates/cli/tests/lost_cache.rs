//! A cache that is lost: the commands that messages print are run as they stand, and bring the disk
//! back as it is by itself.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::{Path, PathBuf};

use serde_json::Value;
use support::{Daemon, make_set, must, run, scratch, sparse, text, ubcache};

const PIECE: usize = 64 << 10;
const SHAPE: [&str; 6] = ["--label", "data", "--data-offset", "2048", "--block", "512"];

/// The words with which `serve` refuses this disk.
fn refused(arguments: &[&str]) -> String {
    let mut command = vec!["serve"];
    command.extend(arguments);
    let output = run(&command);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The command in a message, from `ubcache NAME` up to the end of its arguments.
fn command_in<'a>(said: &'a str, name: &str) -> &'a str {
    let command = format!("ubcache {name} ");
    let from = said.rfind(&command).unwrap_or_else(|| panic!("{command} is missing in: {said}"));
    said[from..].split([',', '\n', ';', '`']).next().expect("a command").trim_end_matches('.')
}

/// Runs the command in a message, with these words put in for placeholders.
fn run_advice(said: &str, name: &str, put_in: &[(&str, &Path)]) -> String {
    let arguments = command_in(said, name).split_whitespace().skip(1).map(|word| {
        let real = put_in.iter().find(|(placeholder, _)| *placeholder == word);
        real.map_or(PathBuf::from(word), |(_, path)| path.to_path_buf())
    });
    must(ubcache().args(arguments))
}

/// The shape of a disk: what has to stay.
fn shape(disk: &Path) -> Vec<Value> {
    let shown: Value =
        serde_json::from_str(&must(ubcache().args(["show", "--json"]).arg(disk))).expect("JSON");
    ["dev.label", "dev.uuid", "dev.data.first_sector", "dev.sectors_per_block"]
        .iter()
        .map(|name| {
            assert!(!shown[name].is_null(), "{name}: {shown}");
            shown[name].clone()
        })
        .collect()
}

/// A disk that was written to and flushed through its cache, with `dirty` data besides; the cache
/// is gone.
fn a_disk_without_its_cache(directory: &Path, dirty: bool) -> PathBuf {
    let (cache, mut disks) = make_set(directory, &[16], &SHAPE);
    let daemon = Daemon::start("pool", directory, &cache, &disks, &[]);
    daemon.client("data").write(0, &[1; PIECE], true).expect("a write");
    daemon.set("writeback_running=0");
    if dirty {
        daemon.set("cache_mode=writeback");
        daemon.client("data").write(0, &[2; PIECE], true).expect("a write");
    }
    daemon.stop();
    std::fs::remove_file(cache).expect("the cache is lost");
    disks.remove(0)
}

/// Runs `ubcache attach` as it is in a message; the volume has a cache then.
fn attached_by(daemon: &Daemon, said: &str) {
    let state = || daemon.status()["sets"][0]["volumes"][0]["state"].clone();
    assert_eq!(state(), "no cache");
    let with_socket =
        format!("{} --control {};", command_in(said, "attach"), text(&daemon.control));
    run_advice(&with_socket, "attach", &[]);
    assert_eq!(state(), "clean");
    let mut found = [0; PIECE];
    // A fill may end after its read.
    while daemon.number(0, "/stats/cache_hits") == 0 {
        daemon.client("data").read(0, &mut found).expect("a read");
    }
}

fn served_again(directory: &Path, new: &Path, disk: &Path, before: &[Value]) {
    assert_eq!(shape(disk), before, "label, UUID, data offset and block size stay");
    let daemon = Daemon::start("pool", directory, new, &[disk.to_owned()], &[]);
    let mut found = [0; PIECE];
    daemon.client("data").read(0, &mut found).expect("a read");
    assert!(found == [1; PIECE], "what the disk has by itself");
    // It is detached until the command that the daemon prints was run.
    let said = daemon.status()["sets"][0]["warnings"][0].as_str().expect("a warning").to_owned();
    attached_by(&daemon, &said);
    daemon.stop();
    assert_eq!(shape(disk), before);
    must(ubcache().arg("check").arg(new).arg("-B").arg(disk));
}

/// The advice was to make a cache, which was refused then: as one of another set, or because its
/// blocks were larger.
#[test]
fn printed_commands_give_a_clean_disk_a_new_cache() {
    let scratch = scratch();
    let directory = scratch.path();
    let disk = a_disk_without_its_cache(directory, false);
    let before = shape(&disk);
    let new = directory.join("new.img");
    sparse(&new, 300 << 20);
    let said = refused(&["-B", text(&disk)]);
    run_advice(&said, "forget-cache", &[]);
    run_advice(&said, "make", &[("NEW", &new)]);
    let daemon = Daemon::start("pool", directory, &new, std::slice::from_ref(&disk), &[]);
    attached_by(&daemon, &said);
    daemon.stop();
    must(ubcache().arg("forget-cache").arg(&disk));
    served_again(directory, &new, &disk, &before);
}

/// The advice was to make the disk again: its data began somewhere else then, without its label.
#[test]
fn printed_command_detaches_a_dirty_disk_from_its_lost_cache() {
    for name_the_cache in [false, true] {
        let scratch = scratch();
        let directory = scratch.path();
        let disk = a_disk_without_its_cache(directory, true);
        let before = shape(&disk);
        let new = directory.join("new.img");
        sparse(&new, 300 << 20);
        must(ubcache().args(["make", "-C"]).arg(&new));
        let said = match name_the_cache {
            true => refused(&["-C", text(&new), "-B", text(&disk)]),
            false => refused(&["-B", text(&disk)]),
        };
        assert!(said.contains("--discard-dirty"), "{said}");
        run_advice(&said, "forget-cache", &[]);
        // The new cache has larger blocks than the disk. That was advised to be mended by a command
        // that was refused.
        let said = refused(&["-C", text(&new), "-B", text(&disk)]);
        run_advice(&said, "make", &[]);
        served_again(directory, &new, &disk, &before);
    }
}
