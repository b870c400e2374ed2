//! A cache that fails while clients are served: it is told, and another one takes its place.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use support::devices::Fragile;
use support::pieces::{PIECE, write_and_compare};
use support::{Daemon, each_io, have, make_set, must, sparse, text, tool, ubcache};

fn new_cache(directory: &Path, options: &[&str]) -> PathBuf {
    let cache = directory.join("new.img");
    sparse(&cache, 64 << 20);
    must(ubcache().args(["make", "--bucket", "64k"]).args(options).arg("-C").arg(&cache));
    cache
}

fn log(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("serve.log")).expect("a log")
}

fn ask(daemon: &Daemon, arguments: &[&str]) -> Command {
    let mut command = ubcache();
    command.args(arguments).arg("--control").arg(&daemon.control);
    command
}

/// Runs a command that has to be refused; returns its message.
fn refused(mut command: Command) -> String {
    let output = command.output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{command:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs every `ubcache` command in backquotes of a message; returns how many there were.
fn run_commands(daemon: &Daemon, said: &str) -> usize {
    let commands: Vec<&str> = said.split('`').filter(|part| part.starts_with("ubcache ")).collect();
    for command in &commands {
        let arguments: Vec<&str> = command.split(' ').skip(1).collect();
        match arguments[0] {
            "forget-cache" => must(ubcache().args(&arguments)),
            _ => must(&mut ask(daemon, &arguments)),
        };
    }
    commands.len()
}

/// Ends the load, also when a client has failed.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A client that writes, compares and flushes without a pause; counts its turns.
fn load(daemon: &Daemon, export: &str, over: &AtomicBool, turns: &AtomicU64) {
    let _ends = Ends(over);
    let mut client = daemon.client(export);
    let mut turn = 0_u8;
    while !over.load(Ordering::Relaxed) {
        turn = turn.wrapping_add(1);
        let at = (u64::from(turn) % 32) * PIECE as u64;
        write_and_compare(&mut client, turn, at);
        turns.fetch_add(1, Ordering::Relaxed);
    }
}

/// fio writes and verifies, round after round; counts them.
fn fio(daemon: &Daemon, directory: &Path, export: &str, over: &AtomicBool, rounds: &AtomicU64) {
    let _ends = Ends(over);
    while !over.load(Ordering::Relaxed) {
        let mut command = tool("fio");
        command.current_dir(directory).args([
            "--name=load",
            "--ioengine=nbd",
            "--rw=randrw",
            "--bsrange=4k-64k",
            "--size=8m",
            "--iodepth=8",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_backlog=64",
            "--output-format=terse",
        ]);
        must(command.arg(format!("--uri={}", daemon.uri(export))));
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits until so many more turns are done: requests went through what there is now.
fn wait_for_turns(over: &AtomicBool, turns: &AtomicU64, more: u64) {
    let end = turns.load(Ordering::Relaxed) + more;
    while turns.load(Ordering::Relaxed) < end {
        assert!(!over.load(Ordering::Relaxed), "a client has failed");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A cache that died was replaced by a stop of everything, which every client noticed.
#[test]
fn a_cache_that_fails_under_load_is_told_and_replaced() {
    let test = "a_cache_that_fails_under_load_is_told_and_replaced";
    each_io(test, |io, directory| {
        let (cache, disks) = make_set(directory, &[16, 16], &[]);
        let Some(fragile) = Fragile::new(test, directory, &cache) else { return };
        let new = new_cache(directory, &[]);
        let daemon = Daemon::start(io, directory, &fragile.path, &disks, &[]);
        let (over, turns, rounds) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let with_fio = have(test, &["fio"]);
        std::thread::scope(|scope| {
            let (daemon, over, turns, rounds) = (&daemon, &over, &turns, &rounds);
            scope.spawn(move || load(daemon, "disk0.img", over, turns));
            if with_fio {
                scope.spawn(move || fio(daemon, directory, "disk1.img", over, rounds));
            } else {
                scope.spawn(move || load(daemon, "disk1.img", over, rounds));
            }
            let _ends = Ends(over);
            wait_for_turns(over, turns, 20);
            fragile.fail();
            while !log(directory).contains("the set has failed") {
                std::thread::sleep(Duration::from_millis(20));
            }
            wait_for_turns(over, turns, 20);
            let (code, table) = daemon.look(&[]);
            assert_eq!(code, 2, "{table}");
            for words in ["the set has failed: ", text(&fragile.path), "ubcache attach --cache"] {
                let lines = table.lines().filter(|line| line.contains("warning  the set"));
                assert_eq!(lines.filter(|line| line.contains(words)).count(), 1, "{table}");
            }
            let said = must(&mut ask(daemon, &["attach", "--cache", text(&new)]));
            assert_eq!(said, "disk0.img: attached\ndisk1.img: attached\n");
            wait_for_turns(over, turns, 20);
            wait_for_turns(over, rounds, 2);
        });
        let (code, table) = daemon.look(&[]);
        assert!(code == 0 && table.contains("running, healthy"), "{code}: {table}");
        let said = log(directory);
        for once in ["the set has failed: ", "a new cache is there", "the former cache is free"] {
            assert_eq!(said.matches(once).count(), 1, "{once}: {said}");
        }
        assert_eq!(said.matches("attached to another cache").count(), 2, "{said}");
        assert!(daemon.number(0, "/stats/cache_hits") > 0, "it is cached again");
        daemon.stop();
        // The former cache comes back, and the command line names it still: it is not believed.
        fragile.mend();
        let Err((status, said)) = Daemon::try_start(io, directory, &cache, &disks, &[]) else {
            panic!("disks of another set are refused");
        };
        assert!(status.code() == Some(1) && said.contains("another cache set"), "{said}");
        must(ubcache().arg("check").arg(&new).arg("-B").args(&disks));
    });
}

/// A disk whose newest data was in the failed cache stays with it, and the commands that are
/// printed give it up and cache the disk again, while clients of the other disk go on.
#[test]
fn a_volume_with_lost_data_goes_on_by_the_printed_commands() {
    let test = "a_volume_with_lost_data_goes_on_by_the_printed_commands";
    each_io(test, |io, directory| {
        let (cache, disks) = make_set(directory, &[16, 16], &[]);
        let Some(fragile) = Fragile::new(test, directory, &cache) else { return };
        let new = new_cache(directory, &[]);
        let settings = ["--set", "writeback_running=0"];
        let daemon = Daemon::start(io, directory, &fragile.path, &disks, &settings);
        daemon.client("disk1.img").write(0, &[1; PIECE], true).expect("a write");
        must(&mut ask(&daemon, &["set", "cache_mode=writeback", "--volume", "disk1.img"]));
        daemon.client("disk1.img").write(0, &[2; PIECE], true).expect("a write");
        assert_eq!(daemon.number(1, "/dirty_bytes"), PIECE as u64);
        let (over, turns) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let (daemon, over, turns) = (&daemon, &over, &turns);
            scope.spawn(move || load(daemon, "disk0.img", over, turns));
            let _ends = Ends(over);
            wait_for_turns(over, turns, 20);
            fragile.fail();
            while !log(directory).contains("the set has failed") {
                std::thread::sleep(Duration::from_millis(20));
            }
            let said = refused(ask(daemon, &["attach", "--cache", text(&new)]));
            assert!(said.contains("disk0.img: attached\n"), "{said}");
            assert!(said.contains("disk1.img: not attached: ") && said.contains("64k"), "{said}");
            // It asked the new cache, and waited for ever.
            let said = refused(ask(daemon, &["detach", "disk1.img"]));
            assert!(said.contains("the cache set has failed"), "{said}");
            wait_for_turns(over, turns, 20);
            let (code, table) = daemon.look(&[]);
            assert!(code == 2 && table.contains("had the only copy of 64k"), "{table}");
            let table = table.replace('\n', " ");
            let warning = table.split("warning").find(|it| it.contains("only copy"));
            assert_eq!(run_commands(daemon, warning.expect("it was found")), 4, "{table}");
            wait_for_turns(over, turns, 20);
        });
        let (code, table) = daemon.look(&[]);
        assert!(code == 0 && table.contains("running, healthy"), "{code}: {table}");
        let mut found = [0; PIECE];
        daemon.client("disk1.img").read(0, &mut found).expect("a read");
        assert!(found == [1; PIECE], "what the disk has by itself");
        while !log(directory).contains("the former cache is free") {
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon.stop();
        must(ubcache().arg("check").arg(&new).arg("-B").args(&disks));
    });
}

/// A cache with larger blocks than the disks took the place of the former one, with no volume.
#[test]
fn a_new_cache_with_larger_blocks_is_refused_before_anything_changes() {
    let scratch = support::scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16], &["--block", "512"]);
    let new = new_cache(directory, &["--block", "4k"]);
    let daemon = Daemon::start("pool", directory, &cache, &disks, &[]);
    must(&mut ask(&daemon, &["detach"]));
    let said = refused(ask(&daemon, &["attach", "--cache", text(&new)]));
    let advice = "ubcache make --wipe-bcache --block 512 -C ";
    assert!(said.contains("blocks of 512 bytes") && said.contains(advice), "{said}");
    assert_eq!(daemon.status()["sets"][0]["cache"]["path"], text(&cache));
    must(
        ubcache()
            .args(["make", "--wipe-bcache", "--block", "512", "--bucket", "64k", "-C"])
            .arg(&new),
    );
    must(&mut ask(&daemon, &["attach", "--cache", text(&new)]));
    assert_eq!(daemon.status()["sets"][0]["volumes"][0]["state"], "clean");
    daemon.stop();
}
