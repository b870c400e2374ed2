//! The log: it never stops a volume, it has an end, and it can be read by programs.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;

use support::{Daemon, each_io, have, make_set, must, names_in, scratch, text, tool};

/// Greets a daemon with rubbish and waits until it has closed the connection.
fn bad_handshake(socket: &Path) {
    let mut stream = UnixStream::connect(socket).expect("the daemon listens");
    // The daemon may be faster.
    let _ = stream.write_all(&[0xff; 64]);
    let _ = stream.read_to_end(&mut Vec::new());
}

/// A pipe that has no room, held open, with its end to read.
fn full_pipe(path: &Path) -> File {
    const NONBLOCK: i32 = 0o4000;
    must(tool("mkfifo").arg(path));
    let mut pipe = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(NONBLOCK)
        .open(path)
        .expect("a pipe for reading and writing");
    loop {
        match pipe.write(&[b'\n'; 512]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return pipe,
            Err(error) => panic!("filling the pipe: {error}"),
        }
    }
}

/// Every line of the log was written by the thread that serves, which waited for a reader of
/// standard error: one full pipe stopped all volumes and the control socket. Now another thread
/// waits, and what finds no room is dropped and counted.
#[test]
fn a_log_that_nobody_reads_does_not_stop_the_volumes() {
    let test = "a_log_that_nobody_reads_does_not_stop_the_volumes";
    if !have(test, &["mkfifo"]) {
        return;
    }
    each_io(test, |io, directory| {
        let (cache, backings) = make_set(directory, &[16], &[]);
        let log = directory.join("serve.log");
        let mut pipe = full_pipe(&log);
        let mut command = support::serve_command(io, directory, &cache, &backings, &[]);
        command.0.env("UBCACHE_LOG", "debug");
        let started = Daemon::try_start_command(command);
        let daemon = started.unwrap_or_else(|(status, said)| panic!("{status}: {said}"));
        // A line each at least; a thousand of them find room in the queue.
        for _ in 0..2000 {
            bad_handshake(&daemon.socket);
        }
        let mut client = daemon.client("disk0.img");
        client.write(1 << 20, &[7; 4096], true).expect("a write");
        client.read(1 << 20, &mut [0; 4096]).expect("a read");
        let dropped = daemon.status()["sets"][0]["log"]["dropped_lines"].as_u64();
        assert!(dropped > Some(0), "{dropped:?} lines were dropped");

        // Somebody reads again: what was lost is said.
        let mut said = String::new();
        let mut bytes = [0; 64 << 10];
        while !said.contains("lines of the log were dropped") {
            match pipe.read(&mut bytes) {
                Ok(0) => panic!("the daemon has ended: {said}"),
                Ok(count) => said.push_str(&String::from_utf8_lossy(&bytes[..count])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                Err(error) => panic!("reading the log: {error}"),
            }
        }
        assert!(said.contains("serving"), "the lines that found room are there: {said}");
        daemon.stop();
    });
}

/// A clean stop waited for a reader of the log as well.
#[test]
fn a_stop_does_not_wait_for_a_reader_of_the_log() {
    let test = "a_stop_does_not_wait_for_a_reader_of_the_log";
    if !have(test, &["mkfifo"]) {
        return;
    }
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let log = directory.path().join("serve.log");
    let _pipe = full_pipe(&log);
    Daemon::start("pool", directory.path(), &cache, &backings, &[]).stop();
}

/// One stranger wrote a line for each connection, as many as the disk of the log had room for.
#[test]
fn lines_that_a_client_provokes_are_limited_and_counted() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    for _ in 0..100 {
        bad_handshake(&daemon.socket);
    }
    daemon.stop();
    let log = std::fs::read_to_string(directory.path().join("serve.log")).expect("a log");
    let ended = log.lines().filter(|line| line.contains(": connection ended client=")).count();
    assert_eq!(ended, 30, "{log}");
    let counted = log.lines().find(|line| line.contains("were suppressed: connection ended"));
    assert!(counted.is_some_and(|line| line.contains("lines=70")), "{log}");
}

#[test]
fn a_log_in_json_has_an_object_a_line() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let extra = ["--log-format", "json"];
    Daemon::start("pool", directory.path(), &cache, &backings, &extra).stop();
    let log = std::fs::read_to_string(directory.path().join("serve.log")).expect("a log");
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let serving = lines.iter().find(|line| line["message"] == "serving").expect("a line of it");
    assert_eq!(serving["level"], "INFO");
    assert_eq!(serving["set"].as_str().map(str::len), Some(36));
    assert!(serving["timestamp"].is_string(), "{serving}");
}

#[test]
fn a_log_to_journald_has_fields() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &["--label", "two\nlines"]);
    let socket = directory.path().join("journal");
    let journal = UnixDatagram::bind(&socket).expect("a socket");
    let extra = ["--log-format", "journald", "--journal-socket", text(&socket)];
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &extra);
    let mut bytes = [0; 16 << 10];
    let entry = loop {
        let count = journal.recv(&mut bytes).expect("an entry");
        let entry = String::from_utf8_lossy(&bytes[..count]).into_owned();
        if entry.starts_with("MESSAGE=serving") {
            break entry;
        }
    };
    for field in ["PRIORITY=6\n", "SYSLOG_IDENTIFIER=ubcache\n", "UBCACHE_SET=", "TARGET=ubcache"] {
        assert!(entry.contains(field), "{field} is missing in: {entry}");
    }
    assert!(entry.ends_with('\n') && entry.lines().all(|line| line.contains('=')), "{entry}");
    daemon.stop();
    let log = std::fs::read_to_string(directory.path().join("serve.log")).expect("a log");
    assert_eq!(log, "", "nothing goes to standard error");

    // Without a journal, nothing is served that nobody would be told about.
    std::fs::remove_file(&socket).expect("the socket");
    let names = names_in(directory.path());
    let failed = Daemon::try_start("pool", directory.path(), &cache, &backings, &extra);
    let (status, said) = failed.err().expect("serve does not become ready");
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("--log-format text"), "{said}");
    assert_eq!(names_in(directory.path()), names);
}
