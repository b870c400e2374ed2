//! Clients that connect again after the daemon was killed, as docs/reference/serving.md (*After a
//! crash*) says: their users see a pause and no error, and the data is right.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use support::pieces::PIECE;
use support::{Daemon, Guard, each_io, have, kills, make_set, tool};
use ubcache_cli::nbd_client::Client;

/// Pieces that are written and read again, in turn.
const PIECES: u64 = 32;

/// Turns between two kills, at least.
const TURNS: u64 = 8;

/// Modes, and true where every write has to be durable: after a crash, a volume in writeback mode
/// may lack writes that were answered and not flushed, and a client that has connected again does
/// not find out.
const MODES: [(&str, bool); 2] = [("writethrough", false), ("writeback", true)];

#[test]
fn qemu_with_reconnect_delay_goes_on_after_a_kill() {
    let test = "qemu_with_reconnect_delay_goes_on_after_a_kill";
    if !have(test, &["qemu-nbd"]) {
        return;
    }
    goes_on_after_kills(test, |socket, beside| {
        let server = format!("driver=nbd,server.type=unix,server.path={}", socket.display());
        let mut command = tool("qemu-nbd");
        command.arg("-t").arg("-k").arg(beside).arg("--image-opts");
        command.arg(format!("{server},export=disk0.img,reconnect-delay=60"));
        command
    });
}

#[test]
fn nbdkit_with_retry_goes_on_after_a_kill() {
    let test = "nbdkit_with_retry_goes_on_after_a_kill";
    if !have(test, &["nbdkit"]) {
        return;
    }
    goes_on_after_kills(test, |socket, beside| {
        let uri = format!("uri=nbd+unix:///disk0.img?socket={}", socket.display());
        let mut command = tool("nbdkit");
        command.args(["-f", "-U"]).arg(beside).args(["--filter=retry", "nbd"]).arg(uri);
        command.args(["retry=60", "retries=60", "retry-delay=1", "retry-exponential=no"]);
        command
    });
}

/// Kills the daemon under a client, made by `client` for the daemon's socket, that listens itself
/// at another socket: it has the role of the user's program.
fn goes_on_after_kills(test: &str, client: impl Fn(&Path, &Path) -> Command) {
    each_io(test, |io, directory| {
        for (mode, durable) in MODES {
            let directory = directory.join(mode);
            std::fs::create_dir(&directory).expect("a directory");
            let (cache, backings) = make_set(&directory, &[64], &[]);
            let start = || Daemon::start(io, &directory, &cache, &backings, &["--mode", mode]);
            let mut daemon = start();
            let beside = directory.join("beside.sock");
            let child = client(&daemon.socket, &beside).stdout(Stdio::null()).spawn();
            let mut guard = Guard(child.expect("the client runs"));
            let user = connect(&mut guard, &beside);

            let (turns, stop) = (AtomicU64::new(0), AtomicBool::new(false));
            let daemon = std::thread::scope(|scope| {
                let (turns, stop) = (&turns, &stop);
                let load = scope.spawn(move || write_and_read(user, durable, turns, stop));
                for _ in 0..kills(2) {
                    await_turns(&load, turns);
                    daemon.kill();
                    daemon = start();
                }
                await_turns(&load, turns);
                stop.store(true, Ordering::Release);
                load.join().expect("no request fails, and all data is right");
                daemon
            });
            // The other side has what the client was told.
            let turns = turns.into_inner();
            let mut direct = daemon.client("disk0.img");
            for turn in turns.saturating_sub(PIECES)..turns {
                assert_piece(&mut direct, turn);
            }
            drop((direct, guard));
            daemon.stop();
        }
    });
}

/// Connects as soon as the client listens.
fn connect(child: &mut Guard, socket: &Path) -> Client {
    loop {
        if let Ok(client) = Client::connect(socket, "") {
            return client;
        }
        let ended = child.0.try_wait().expect("a child can be waited for");
        assert!(ended.is_none(), "the client ended: {ended:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until the load has made some more turns; it may have ended with an error instead.
fn await_turns<T>(load: &ScopedJoinHandle<'_, T>, turns: &AtomicU64) {
    let before = turns.load(Ordering::Acquire);
    while turns.load(Ordering::Acquire) < before + TURNS && !load.is_finished() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Writes a piece in every turn, and reads it and the one before it, which may have been written
/// before a kill.
fn write_and_read(mut user: Client, durable: bool, turns: &AtomicU64, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        let turn = turns.load(Ordering::Acquire);
        let (at, byte) = piece_of(turn);
        user.write(at, &[byte; PIECE], durable)
            .unwrap_or_else(|error| panic!("turn {turn}: a write: {error}"));
        for turn in turn.saturating_sub(1)..=turn {
            assert_piece(&mut user, turn);
        }
        if turn.is_multiple_of(16) {
            user.flush().unwrap_or_else(|error| panic!("turn {turn}: a flush: {error}"));
        }
        turns.store(turn + 1, Ordering::Release);
    }
}

/// The place and the bytes that a turn writes.
fn piece_of(turn: u64) -> (u64, u8) {
    (turn % PIECES * PIECE as u64, (turn % 251) as u8 + 1)
}

fn assert_piece(client: &mut Client, turn: u64) {
    let (at, byte) = piece_of(turn);
    let mut found = vec![0; PIECE];
    client.read(at, &mut found).unwrap_or_else(|error| panic!("turn {turn}: a read: {error}"));
    assert!(found.iter().all(|found| *found == byte), "turn {turn}: not the data of this turn");
}
