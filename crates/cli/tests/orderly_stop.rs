//! Stops as clients see them, and hang-ups.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use support::{Daemon, each_io, have, make_set, must, nbdsh, skipped, tool};

/// The read in flight waits 3 s for its disk (`--demo-delay`); the daemon gets a SIGTERM meanwhile.
const READ_OVER_A_STOP: &str = r#"
import errno, os, signal, time
slow = nbd.Buffer(4096)
cookie = h.aio_pread(slow, 0)
while h.aio_in_flight() == 1 and not os.path.exists(MARK):
    os.kill(PID, signal.SIGTERM)
    open(MARK, "w").close()
while "stopping" not in open(LOG).read():
    time.sleep(0.01)
try:
    h.pread(512, 1 << 20)
    refused = None
except nbd.Error as error:
    refused = error.errnum
IN_FLIGHT
"#;

const IS_ANSWERED: &str = r#"
assert refused == errno.ESHUTDOWN, refused
while not h.aio_command_completed(cookie):
    h.poll(-1)
"#;

const IS_CUT: &str = r#"
try:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
    raise SystemExit("a reply came after the time limit")
except nbd.Error:
    pass
"#;

fn script(daemon: &Daemon, directory: &std::path::Path, end: &str) -> String {
    let log = directory.join("serve.log");
    let mark = directory.join(format!("told-{}", daemon.id()));
    format!(
        "MARK = {:?}\nLOG = {:?}\nPID = {}\n{}",
        mark,
        log,
        daemon.id(),
        READ_OVER_A_STOP.replace("IN_FLIGHT", end)
    )
}

/// Bug: a stop cut off requests in flight; each restart was an I/O error for a client without
/// reconnect. Fix: they are answered within `--drain-timeout`, and new ones get ESHUTDOWN.
#[test]
fn a_stop_answers_what_is_in_flight() {
    let test = "a_stop_answers_what_is_in_flight";
    if !have(test, &["nbdsh"]) {
        return;
    }
    each_io(test, |io, directory| {
        for (timeout, end) in [("60", IS_ANSWERED), ("0", IS_CUT)] {
            let (cache, backings) = make_set(directory, &[16], &["--force"]);
            let _ = std::fs::remove_file(directory.join("serve.log"));
            // One thread: a lane may find the read in its socket when the stop has begun.
            let options = ["--demo-delay", "3000000", "--drain-timeout", timeout, "--threads", "1"];
            let daemon = Daemon::start(io, directory, &cache, &backings, &options);
            if !nbdsh(&daemon.uri("disk0.img"), &script(&daemon, directory, end)) {
                return skipped(test, "no libnbd for Python");
            }
            daemon.wait();
        }
    });
}

/// Bug: SIGHUP killed the daemon like SIGKILL: who started it in a terminal and closed that lost
/// the disk under a file system. Fix: it is ignored, and the log says so, once.
#[test]
fn a_hang_up_is_ignored() {
    each_io("a_hang_up_is_ignored", |io, directory| {
        let (cache, backings) = make_set(directory, &[16], &[]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        let mut client = daemon.client("disk0.img");
        client.write(0, &[7; 4096], false).expect("a write");
        for _ in 0..3 {
            must(tool("kill").arg("-HUP").arg(daemon.id().to_string()));
            let mut content = [0; 4096];
            client.read(0, &mut content).expect("the daemon goes on");
            assert_eq!(content, [7; 4096]);
        }
        daemon.stop();
        let log = std::fs::read_to_string(directory.join("serve.log")).expect("a log");
        assert_eq!(log.matches("SIGHUP").count(), 1, "{log}");
    });
}
