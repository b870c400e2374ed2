//! A day in the life of a daemon: eight volumes under load while everything that an operator does,
//! and everything that breaks, happens to them. No client sees an error but where the only copy of
//! its data was on a dead device, and the log alone tells what has happened.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use support::devices::Fragile;
use support::pieces::PIECE;
use support::{
    Daemon, NO_BYPASS, each_io, have, kills, make_set, must, ring_works, sparse, text, tool,
    ubcache,
};
use ubcache_cli::nbd_client::Client;

/// Volumes; each has a client that writes and verifies without a pause.
const VOLUMES: usize = 8;
/// The disk that dies and returns.
const DYING: usize = 6;
/// The volume whose newest data is in the cache only when the cache fails.
const DIRTY: usize = 7;

/// A client that goes on until it is stopped.
struct Load {
    over: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    fn start(mut round: impl FnMut() + Send + 'static) -> Load {
        let (over, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (over.clone(), rounds.clone());
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                round();
                counts.fetch_add(1, Ordering::Relaxed);
            }
        });
        Load { over, rounds, thread: Some(thread) }
    }

    /// Waits until so many more rounds are done: requests went through what there is now.
    fn goes_on(&mut self, more: u64) {
        let end = self.rounds.load(Ordering::Relaxed) + more;
        while self.rounds.load(Ordering::Relaxed) < end {
            if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
                self.stop();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for its end; fails with the error that it had.
    fn stop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a client has failed");
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// fio over a volume: every block is verified that it wrote.
fn verified_load(daemon: &Daemon, directory: &Path, export: &str) -> Load {
    let (uri, directory) = (daemon.uri(export), directory.to_owned());
    Load::start(move || {
        let mut command = tool("fio");
        command.current_dir(&directory).args([
            "--name=load",
            "--ioengine=nbd",
            "--rw=randrw",
            "--bsrange=4k-64k",
            "--size=1m",
            "--iodepth=4",
            "--rate_iops=100,100",
            "--fsync=16",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_backlog=32",
            "--verify_state_save=0",
            "--output-format=terse",
        ]);
        must(command.arg(format!("--uri={uri}")));
    })
}

/// Connects, asks for much, reads nothing, sends halves and nonsense, and leaves; again and again.
fn hostile_load(daemon: &Daemon, export: &str) -> Load {
    let (socket, export) = (daemon.socket.clone(), export.to_owned());
    let mut kept = Vec::new();
    let mut turn = 0_u64;
    Load::start(move || {
        turn += 1;
        if let Ok(client) = Client::connect(&socket, &export) {
            let mut stream = client.into_stream();
            let mut junk = vec![0; 28 * 64];
            support::pseudo_random(turn, &mut junk);
            for request in junk.chunks_mut(28).take(if turn.is_multiple_of(3) { 0 } else { 64 }) {
                request[..4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
                // Reads of 1 MiB, whose replies nobody takes.
                request[4..8].copy_from_slice(&[0; 4]);
                request[16..24].copy_from_slice(&[0; 8]);
                request[24..28].copy_from_slice(&(1_u32 << 20).to_be_bytes());
            }
            let _ = stream.write_all(&junk[..junk.len() - 5]);
            kept.push(stream);
        }
        if kept.len() > 5 {
            kept.remove(0);
        }
        std::thread::sleep(Duration::from_millis(200));
    })
}

fn ask(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command: Command = ubcache();
    command.args(arguments).arg("--control").arg(&daemon.control);
    command.output().expect("it runs")
}

fn done(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = ask(daemon, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Another program goes on: here the same one. Prints how long clients waited.
fn upgrade(daemon: &Daemon) {
    println!("{}", done(daemon, &["upgrade"]).trim());
}

fn refused(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = ask(daemon, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn log(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("serve.log")).expect("a log")
}

fn wait_for_line(directory: &Path, words: &str) {
    while !log(directory).contains(words) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The lines of a log that have these words, in this order: the story.
fn tells(log: &str, story: &[&str]) {
    let mut lines = log.lines();
    for words in story {
        assert!(lines.any(|line| line.contains(words)), "{words:?} is not told, or late:\n{log}");
    }
}

fn fragile_disk(test: &str, directory: &Path, name: &str, file: &Path) -> Option<Fragile> {
    let own = directory.join(name);
    std::fs::create_dir(&own).expect("a directory");
    Fragile::new(test, &own, file)
}

#[test]
fn clients_see_no_error_through_a_day_of_changes_and_failures() {
    let test = "clients_see_no_error_through_a_day_of_changes_and_failures";
    if !have(test, &["fio"]) {
        return;
    }
    // Over both ways of I/O, with the environment variable that asks for longer tests.
    each_io(test, |io, directory| {
        if io == "pool" && ring_works() && kills(1) == 1 {
            return;
        }
        let (cache, mut disks) = make_set(directory, &[16; VOLUMES], &[]);
        let new = directory.join("new.img");
        sparse(&new, 64 << 20);
        must(ubcache().args(["make", "--bucket", "64k", "-C"]).arg(&new));
        let Some(ssd) = fragile_disk(test, directory, "ssd", &cache) else { return };
        let Some(dying) = fragile_disk(test, directory, "dying", &disks[DYING]) else { return };
        disks[DYING] = dying.path.clone();
        day(io, directory, &ssd, &dying, &disks, &new);
        must(ubcache().arg("check").arg(&new).arg("-B").args(&disks));
    });
}

/// Names of the exports, in order of the disks.
fn names() -> Vec<String> {
    (0..VOLUMES).map(|number| format!("volume{number}")).collect()
}

fn day(io: &str, directory: &Path, ssd: &Fragile, dying: &Fragile, disks: &[PathBuf], new: &Path) {
    let names = names();
    let named: Vec<PathBuf> = names
        .iter()
        .zip(disks)
        .map(|(name, disk)| format!("{name}={}", text(disk)).into())
        .collect();
    let daemon = Daemon::start(io, directory, &ssd.path, &named, &NO_BYPASS);
    let mut loads: Vec<Load> =
        names.iter().map(|name| verified_load(&daemon, directory, name)).collect();
    let mut hostile = hostile_load(&daemon, &names[0]);
    let all_go_on = |loads: &mut Vec<Load>| loads.iter_mut().for_each(|load| load.goes_on(1));
    all_go_on(&mut loads);

    // Morning: modes are switched.
    for mode in ["writeback", "writearound", "none", "writethrough", "writeback"] {
        done(&daemon, &["set", &format!("cache_mode={mode}")]);
        loads[1].goes_on(1);
    }

    // A disk goes, and comes back; another one leaves the cache, and is cached again.
    loads[5].stop();
    done(&daemon, &["remove", &names[5]]);
    done(&daemon, &["add", "-B", text(&named[5])]);
    loads[5] = verified_load(&daemon, directory, &names[5]);
    done(&daemon, &["detach", &names[3]]);
    loads[3].goes_on(1);
    done(&daemon, &["attach", &names[3]]);
    all_go_on(&mut loads);

    upgrade(&daemon);
    all_go_on(&mut loads);

    // Noon: the SSD dies. One disk has dirty data in it, the others have none.
    loads[DIRTY].stop();
    done(&daemon, &["set", "cache_mode=writethrough"]);
    for name in &names {
        done(&daemon, &["drain", name, "--wait"]);
    }
    done(&daemon, &["set", "cache_mode=writeback", "--volume", &names[DIRTY]]);
    done(&daemon, &["set", "writeback_running=0", "--volume", &names[DIRTY]]);
    let mut client = daemon.client(&names[DIRTY]);
    client.write(0, &[9; PIECE], true).expect("a write");
    let status = daemon.status();
    let volumes = status["sets"][0]["volumes"].as_array().expect("volumes");
    let dirty = volumes.iter().find(|it| it["name"] == *names[DIRTY]).expect("it is served");
    assert_eq!(dirty["dirty_bytes"], PIECE, "{dirty}");
    ssd.fail();
    wait_for_line(directory, "the set has failed");
    let others = |loads: &mut Vec<Load>| {
        let running = loads.iter_mut().filter(|load| load.thread.is_some());
        running.for_each(|load| load.goes_on(1));
    };
    others(&mut loads);
    assert!(client.read(0, &mut [0; PIECE]).is_err(), "the only copy was on the dead SSD");
    let said = refused(&daemon, &["attach", "--cache", text(new)]);
    assert!(said.contains(&format!("{}: not attached: ", names[DIRTY])), "{said}");
    others(&mut loads);
    // Its data is given up.
    done(&daemon, &["remove", &names[DIRTY], "--keep-dirty"]);
    must(ubcache().args(["forget-cache", "--discard-dirty"]).arg(&disks[DIRTY]));
    done(&daemon, &["add", "-B", text(&named[DIRTY])]);
    done(&daemon, &["attach", &names[DIRTY]]);
    loads[DIRTY] = verified_load(&daemon, directory, &names[DIRTY]);
    wait_for_line(directory, "the former cache is free");
    all_go_on(&mut loads);
    let (code, table) = daemon.look(&[]);
    assert!(code == 0 && table.contains("running, healthy"), "{code}: {table}");

    // The cache and a disk are not those of the command line any more.
    upgrade(&daemon);
    all_go_on(&mut loads);

    // Evening: a disk dies, and returns.
    loads[DYING].stop();
    let mut client = daemon.client(&names[DYING]);
    client.flush().expect("all that fio wrote is safe");
    dying.fail();
    assert!(client.write(15 << 20, &[1; PIECE], true).is_err(), "the disk is dead");
    others(&mut loads);
    dying.mend();
    assert!(client.flush().is_err(), "what it wrote may be lost: it is told once");
    client.flush().expect("the disk is back");
    client.write(15 << 20, &[2; PIECE], true).expect("the disk is back");
    // A client that is cut off may not have got its error, and a stop says so.
    client.disconnect().expect("an orderly end");
    loads[DYING] = verified_load(&daemon, directory, &names[DYING]);
    all_go_on(&mut loads);

    hostile.stop();
    loads.iter_mut().for_each(Load::stop);
    daemon.stop();
    tells(
        &log(directory),
        &[
            "the set was opened",
            "attribute set export=\"all\" name=\"cache_mode\" value=\"writeback\"",
            "removed export=\"volume5\"",
            "added export=\"volume5\"",
            "detached: all data is on the disk, and requests go past the cache export=\"volume3\"",
            "attached, with an empty cache export=\"volume3\"",
            "handing over to another program",
            "took over from the program before",
            "all dirty data is being written back export=\"volume6\"",
            "requests to the cache device failed",
            "the set has failed",
            "the cache had the only copy of its dirty data export=\"volume7\"",
            "a new cache is there",
            "stays without the new cache",
            "removed export=\"volume7\"",
            "the former cache is free",
            "added export=\"volume7\"",
            "handing over to another program",
            "took over from the program before",
            "requests to the disk device failed",
            "stopped",
        ],
    );
}
