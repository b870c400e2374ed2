//! Upgrades as clients see them: a pause, and no error.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::{
    Daemon, Guard, Mount, NO_BYPASS, STAYS_DIRTY, copy_program, each_io, have, http, make_set,
    must, pseudo_random, serve_command, skipped, text, tool, ubcache,
};

const EXPORT: &str = "disk0.img";

/// `ubcache upgrade`, with its output.
fn upgrade(daemon: &Daemon, extra: &[&str]) -> Output {
    let mut command = ubcache();
    command.args(["upgrade", "--json", "--control"]).arg(&daemon.control).args(extra);
    command.output().expect("ubcache runs")
}

/// An upgrade that succeeds. Prints the pause.
fn must_upgrade(daemon: &Daemon, extra: &[&str]) -> serde_json::Value {
    let output = upgrade(daemon, extra);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {said}", output.status);
    let done: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    println!("clients {}, pause {} ms", done["clients"], done["pause_ms"]);
    done
}

fn log_of(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("serve.log")).expect("a log")
}

/// fio writes and verifies all the time; its ioengine has no reconnect.
#[test]
fn load_goes_on_over_upgrades() {
    let test = "load_goes_on_over_upgrades";
    if !have(test, &["fio"]) {
        return;
    }
    each_io(test, |io, directory| {
        let (cache, backings) = make_set(directory, &[128], &["--block", "512"]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &["--mode", "writeback"]);
        let mut load = tool("fio")
            .current_dir(directory)
            .args(["--ioengine=nbd", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"])
            .args(["--iodepth=16", "--randrepeat=0", "--output-format=terse", "--loops=8"])
            .args(["--name=load", "--rw=randwrite", "--bsrange=512-64k", "--size=24m"])
            .args(["--numjobs=2", "--offset_increment=32m", "--group_reporting"])
            .arg(format!("--uri={}", daemon.uri(EXPORT)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("fio runs");
        let reads = || {
            let stats = daemon.status()["sets"][0]["volumes"][0]["stats"].clone();
            let count = |name: &str| stats[name].as_u64().expect("a count");
            ["cache_hits", "cache_misses", "cache_bypass_hits", "cache_bypass_misses"]
                .into_iter()
                .map(count)
                .sum::<u64>()
        };
        for number in 0..3 {
            // The load runs: requests come after each upgrade.
            while reads() < 200 {
                if load.try_wait().expect("a child").is_some() {
                    let output = load.wait_with_output().expect("a child");
                    panic!("the load has ended: {output:?}\n{}", log_of(directory));
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            let done = must_upgrade(&daemon, &[]);
            assert_eq!(done["clients"], 2, "{number}: {done}");
        }
        let output = load.wait_with_output().expect("a child can be waited for");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{}", log_of(directory));
        daemon.stop();
    });
}

/// A request of the transmission phase.
fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&0_u16.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

/// Requests that read so many bytes from offset 0 each. They are written at once: one by one they
/// fill the buffer of the socket before a server that waits for memory has read them all.
fn reads(cookies: Range<u64>, length: u32) -> Vec<u8> {
    cookies.flat_map(|cookie| request(0, cookie, 0, length)).collect()
}

/// A simple reply: its error and its cookie.
fn reply(stream: &mut UnixStream) -> (u32, u64) {
    let mut bytes = [0; 16];
    stream.read_exact(&mut bytes).expect("a reply");
    assert_eq!(bytes[..4], 0x6744_6698_u32.to_be_bytes());
    let error = u32::from_be_bytes(bytes[4..8].try_into().expect("four bytes"));
    (error, u64::from_be_bytes(bytes[8..].try_into().expect("eight bytes")))
}

/// The window between two bytes of a message: a header or a payload that has come in part is taken
/// up by the next program, and so is a payload that is refused; replies that a client does not
/// read, which would stop whoever waits for it, are sent when it does.
#[test]
fn messages_that_are_under_way_go_over_upgrades() {
    each_io("messages_that_are_under_way_go_over_upgrades", |io, directory| {
        const READ: u16 = 0;
        const WRITE: u16 = 1;
        const MIB: usize = 1 << 20;
        let (cache, backings) = make_set(directory, &[64], &[]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &["--mode", "writeback"]);
        let mut content = vec![0; MIB];
        pseudo_random(7, &mut content);
        let connect = || daemon.client(EXPORT).into_stream();
        let mut idle = daemon.client(EXPORT);
        idle.write(0, &content, false).expect("a write");

        let cuts = [1, 27, 28, 29, 28 + 4096, 28 + MIB / 2, 28 + MIB - 1];
        let end = 64 << 20;
        let mut half: Vec<(UnixStream, Vec<u8>, u32)> = Vec::new();
        for (offset, error) in [(1 << 20, 0), (end, 28)] {
            let mut message = request(WRITE, 9, offset, MIB as u32);
            message.extend_from_slice(&content);
            for cut in cuts {
                let mut stream = connect();
                stream.write_all(&message[..cut]).expect("the beginning");
                half.push((stream, message[cut..].to_vec(), error));
            }
        }
        let mut lazy = connect();
        const READS: u64 = 40;
        lazy.write_all(&reads(0..READS, MIB as u32)).expect("requests");
        let clients = half.len() as u64 + 2;
        // The beginnings are read, and replies are on their way.
        std::thread::sleep(std::time::Duration::from_millis(300));
        for _ in 0..2 {
            assert_eq!(must_upgrade(&daemon, &[])["clients"], clients);
        }
        for (stream, rest, error) in &mut half {
            stream.write_all(rest).expect("the rest");
            assert_eq!(reply(stream), (*error, 9), "{} bytes were missing", rest.len());
            stream.write_all(&request(READ, 10, 1 << 20, MIB as u32)).expect("a request");
            assert_eq!(reply(stream), (0, 10));
            let mut read = vec![0; MIB];
            stream.read_exact(&mut read).expect("content");
            assert!(*error != 0 || read == content, "{} bytes were missing", rest.len());
        }
        let mut cookies = Vec::new();
        for _ in 0..READS {
            let (error, cookie) = reply(&mut lazy);
            assert_eq!(error, 0);
            cookies.push(cookie);
            let mut read = vec![0; MIB];
            lazy.read_exact(&mut read).expect("content");
            assert!(read == content, "{cookie}");
        }
        cookies.sort_unstable();
        assert_eq!(cookies, (0..READS).collect::<Vec<_>>(), "each request has one reply");
        let mut read = vec![0; MIB];
        idle.read(0, &mut read).expect("an idle client goes on");
        assert!(read == content);
        daemon.stop();
    });
}

/// Structured replies, metadata contexts and TCP; sockets that the parent process has made.
#[test]
fn sessions_keep_what_was_negotiated() {
    const SCRIPT: &str = r#"
import subprocess
seen = []
def look(context, offset, entries, error):
    seen.append((context, entries[1]))
def check(status):
    h.pwrite(b"\7" * 65536, 1 << 20)
    assert h.pread(65536, 1 << 20) == b"\7" * 65536
    assert h.pread_structured(4096, 1 << 20, lambda *chunk: 0) == b"\7" * 4096
    seen.clear()
    h.block_status(65536, 1 << 20, look)
    assert sorted(seen) == [("base:allocation", 0), ("ubcache:dirty", 1)], seen
for context in ["base:allocation", "ubcache:dirty"]:
    h.add_meta_context(context)
CONNECT
check(0)
for number in range(2):
    said = subprocess.run(UPGRADE, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    check(number)
h.flush()
h.shutdown()
STOP
"#;
    let test = "sessions_keep_what_was_negotiated";
    if !have(test, &["nbdsh"]) {
        return;
    }
    each_io(test, |io, directory| {
        let (cache, backings) = make_set(directory, &[16], &[]);
        let control = directory.join("control.sock");
        let command = |word: &str| {
            format!("[{:?}, {word:?}, \"--control\", {:?}]", env!("CARGO_BIN_EXE_ubcache"), control)
        };
        let script = |connect: &str, stop: &str| {
            SCRIPT
                .replace("CONNECT", connect)
                .replace("UPGRADE", &command("upgrade"))
                .replace("STOP", stop)
        };
        let run = |script: &str| {
            let mut command = tool("env");
            command.args(["PATH=/usr/bin:/bin"]).arg(format!("UBCACHE_IO={io}"));
            let output = command.args(["nbdsh", "-c", script]).output().expect("env runs");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if said.contains("No module named") {
                skipped(test, "no libnbd for Python");
                return false;
            }
            assert!(output.status.success(), "{said}");
            true
        };
        let tcp = ["--nbd", "tcp:127.0.0.1:0", "--insecure-tcp"];
        let daemon =
            Daemon::start(io, directory, &cache, &backings, &[&STAYS_DIRTY, &tcp[..]].concat());
        let uri = daemon
            .greeting
            .iter()
            .find_map(|line| line.split(' ').find(|it| it.starts_with("nbd://")));
        let uri = uri.expect("a URI of TCP");
        if !run(&script(&format!("h.connect_uri({uri:?})"), "")) {
            return;
        }
        daemon.stop();
        let mut serve = vec![env!("CARGO_BIN_EXE_ubcache"), "serve"];
        serve.extend(STAYS_DIRTY);
        serve.extend(["-C"]);
        serve.extend([text(&cache), "-B", text(&backings[0]), "--control", text(&control)]);
        let connect = format!("h.connect_systemd_socket_activation({serve:?})");
        run(&script(&connect, &format!("subprocess.run({}, check=True)", command("stop"))));
    });
}

/// A program that can't be run, refuses, or gives up after it was asked: the old one goes on, with
/// all clients.
#[test]
fn an_upgrade_that_fails_leaves_the_old_program_going_on() {
    each_io("an_upgrade_that_fails_leaves_the_old_program_going_on", |io, directory| {
        let (cache, backings) = make_set(directory, &[16], &[]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &["--mode", "writeback"]);
        let mut client = daemon.client(EXPORT);
        let real = env!("CARGO_BIN_EXE_ubcache");
        let mut scripts = 0;
        let mut script = |text: String| {
            scripts += 1;
            let written = directory.join("script");
            std::fs::write(&written, text).expect("a script");
            std::fs::set_permissions(&written, std::fs::Permissions::from_mode(0o755))
                .expect("permissions");
            let path = directory.join(format!("program{scripts}"));
            copy_program(&written, &path);
            path.to_str().expect("UTF-8").to_owned()
        };
        let asked = format!("#!/bin/sh\n[ \"$1\" = upgrade-check ] && exec {real:?} \"$@\"\n");
        let programs = [
            ("/bin/false".to_owned(), "refuses"),
            ("/bin/true".to_owned(), "does not answer"),
            ("/does/not/exist".to_owned(), "can't be run"),
            (directory.to_str().expect("UTF-8").to_owned(), "can't be run"),
            (script("#!/bin/sh\necho too old >&2; exit 1\n".to_owned()), "too old"),
            (script(format!("{asked}exec {real:?} \"$@\" --no-such-option")), "--no-such-option"),
            (script(format!("{asked}UBCACHE_IO=no exec {real:?} \"$@\"")), "UBCACHE_IO"),
            (script(format!("{asked}exec {real:?} \"$@\" --tls-dir /does/not/exist")), "/does/not"),
            // It is gone when it is to go on.
            (script(asked.replace("&&", "&& rm \"$0\" &&")), "can't be run"),
        ];
        let id = daemon.id();
        for (number, (program, why)) in programs.iter().enumerate() {
            let content = vec![number as u8 + 1; 8192];
            client.write(0, &content, false).expect("a write before");
            let output = upgrade(&daemon, &["--program", program]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{program}: {said}");
            assert!(said.contains(why), "{program}: {said}");
            let mut read = vec![0; 8192];
            client.read(0, &mut read).expect("a read after");
            assert_eq!(read, content, "{program}");
        }
        // It looks at the devices before anything changes.
        let away = directory.join("away");
        std::fs::rename(&cache, &away).expect("a name");
        let output = upgrade(&daemon, &[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("refuses") && said.contains("cache.img"), "{said}");
        std::fs::rename(&away, &cache).expect("a name");
        assert_eq!(must_upgrade(&daemon, &[])["program"], real, "the way is not lost");
        assert_eq!(daemon.id(), id);
        client.read(0, &mut [0; 512]).expect("a read after");
        daemon.stop();
    });
}

/// Dirty data, attributes, and volumes that have come and gone since the start; the program at the
/// path of the old one, and the old one again.
#[test]
fn changes_since_the_start_are_kept() {
    each_io("changes_since_the_start_are_kept", |io, directory| {
        let (cache, backings) = make_set(directory, &[16, 16, 16], &[]);
        let (program, new) = (directory.join("ubcache"), directory.join("ubcache.new"));
        let real = env!("CARGO_BIN_EXE_ubcache");
        copy_program(Path::new(real), &program);
        let (command, socket, control, log) =
            serve_command(io, directory, &cache, &backings[..2], &STAYS_DIRTY);
        let mut copy = Command::new(&program);
        copy.args(command.get_args()).env("UBCACHE_IO", io).stdout(Stdio::piped());
        copy.stderr(std::fs::File::create(&log).expect("a log"));
        let daemon = Daemon::try_start_command((copy, socket, control, log)).expect("it starts");
        let control = ["--control", text(&daemon.control)];
        let mut client = daemon.client(EXPORT);
        client.write(0, &[7; 65536], false).expect("a write");
        must(
            ubcache().args(["add", "-B"]).arg(format!("late={}", text(&backings[2]))).args(control),
        );
        must(ubcache().args(["remove", "disk1.img"]).args(control));
        for assignment in ["writeback_percent=33", "journal_delay_ms=77", "cache_mode=writeback"] {
            daemon.set(assignment);
        }
        must(ubcache().args(["set", "sequential_cutoff=123k", "--volume", "late"]).args(control));
        let mut late = daemon.client("late");
        late.write(0, &[9; 4096], false).expect("a write");
        let look = || {
            // Dirty data is counted after the start, in the background.
            let mut status = daemon.status();
            while status["sets"][0]["cache"]["counted"] != true {
                status = daemon.status();
            }
            let volumes = status["sets"][0]["volumes"].as_array().expect("volumes").clone();
            let of = |volume: &serde_json::Value| {
                ["name", "mode", "state", "dirty_bytes"].map(|name| volume[name].clone())
            };
            let attributes = must(ubcache().args(["get", "--json"]).args(control));
            let attributes: serde_json::Value = serde_json::from_str(&attributes).expect("JSON");
            let names = ["writeback_percent", "sequential_cutoff", "writeback_running"];
            let kept = ["disk0.img", "late"]
                .map(|volume| names.map(|name| attributes["volumes"][volume][name].clone()));
            let of_set = attributes["set"]["journal_delay_ms"].clone();
            (volumes.iter().map(of).collect::<Vec<_>>(), kept, of_set)
        };
        let before = look();
        copy_program(Path::new(real), &new);
        std::fs::rename(&new, &program).expect("another program at the path");
        let done = must_upgrade(&daemon, &[]);
        assert_eq!(done["program"], text(&program));
        let runs = std::fs::read_link(format!("/proc/{}/exe", daemon.id())).expect("a program");
        assert_eq!(runs, program, "the old one was deleted");
        assert_eq!(look(), before);
        assert_eq!(must_upgrade(&daemon, &["--program", real])["program"], real);
        assert_eq!(look(), before);
        let mut read = [0; 4096];
        late.read(0, &mut read).expect("a read");
        assert_eq!(read, [9; 4096]);
        client.read(4096, &mut read).expect("a read");
        assert_eq!(read, [7; 4096]);
        daemon.stop();
    });
}

/// A file whose flushes fail as long as the file `failing` exists.
fn without_flushes(
    directory: &Path,
    file: &Path,
    failing: &Path,
) -> Option<(Mount, [Guard; 2], PathBuf)> {
    let (file, failing) = (text(file), text(failing));
    let socket = directory.join("eval.sock");
    let copy = "iflag=count_bytes,skip_bytes oflag=seek_bytes conv=notrunc status=none";
    let mut nbdkit = tool("nbdkit");
    nbdkit
        .args(["-f", "-U", text(&socket), "eval"])
        .arg(format!("get_size=stat -c %s {file}"))
        .arg(format!("pread=dd if={file} skip=$4 count=$3 {copy}"))
        .arg(format!("pwrite=dd of={file} seek=$4 {copy}"))
        .args(["can_write=exit 0", "can_flush=exit 0"])
        .arg(format!("flush=[ ! -e {failing} ] || {{ echo EIO lost >&2; exit 1; }}"));
    support::devices::as_file(directory, "eval", nbdkit, &socket)
}

/// The window: a flush fails that somebody else asked for (F4), and the daemon is upgraded before
/// the client that has to get an error asks for its own.
#[test]
fn errors_that_clients_are_owed_go_over_upgrades() {
    let test = "errors_that_clients_are_owed_go_over_upgrades";
    if !have(test, &["nbdkit", "nbdfuse"]) {
        return;
    }
    each_io(test, |io, directory| {
        let (cache, backings) = make_set(directory, &[16], &[]);
        let failing = directory.join("failing");
        let Some((_mount, _guards, disk)) = without_flushes(directory, &backings[0], &failing)
        else {
            return skipped(test, "nbdfuse can't mount here (no /dev/fuse?)");
        };
        let named = [PathBuf::from(format!("{EXPORT}={}", text(&disk)))];
        let daemon = Daemon::start(io, directory, &cache, &named, &NO_BYPASS);
        let (mut first, mut second) = (daemon.client(EXPORT), daemon.client(EXPORT));
        first.write(0, &[1; 4096], false).expect("a write");
        second.write(8192, &[2; 4096], false).expect("a write");
        std::fs::write(&failing, "").expect("the switch");
        second.flush().expect_err("the disk fails");
        std::fs::remove_file(&failing).expect("the switch");
        assert_eq!(must_upgrade(&daemon, &[])["clients"], 2);
        second.flush().expect("it has got its error");
        assert_eq!(must_upgrade(&daemon, &[])["clients"], 2);
        first.flush().expect_err("its write may be lost, and it was not told");
        first.flush().expect("it has got its error");
        first.disconnect().expect("a goodbye");
        second.disconnect().expect("a goodbye");
        daemon.stop();
    });
}

/// Bug: replies that the program before had not sent were sent without regard to errors: a client
/// that would read no more kept its connection, and no upgrade succeeded any more. Fix: the
/// connection ends, as after any reply that can't be sent.
#[test]
fn client_that_reads_no_more_does_not_stop_upgrades() {
    each_io("client_that_reads_no_more_does_not_stop_upgrades", |io, directory| {
        let (cache, backings) = make_set(directory, &[64], &[]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        let mut lazy = daemon.client(EXPORT).into_stream();
        lazy.write_all(&reads(0..100, 4 << 20)).expect("requests");
        must_upgrade(&daemon, &[]);
        lazy.shutdown(std::net::Shutdown::Read).expect("connected");
        for _ in 0..2 {
            must_upgrade(&daemon, &[]);
        }
        daemon.stop();
    });
}

/// Bug: replies that nobody reads were no part of `--client-memory` after an upgrade, and with each
/// one came as many again: 2 GB after six. Fix: they count until they are sent.
#[test]
fn replies_that_nobody_reads_do_not_grow_with_upgrades() {
    each_io("replies_that_nobody_reads_do_not_grow_with_upgrades", |io, directory| {
        let (cache, backings) = make_set(directory, &[64], &[]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &["--client-memory", "64M"]);
        const READS: u64 = 400;
        let mut lazy = daemon.client(EXPORT).into_stream();
        lazy.write_all(&reads(0..READS, 1 << 20)).expect("requests");
        let held = || {
            // The next program has done what it will do by itself.
            std::thread::sleep(std::time::Duration::from_millis(500));
            let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id()));
            let status = status.expect("it runs");
            let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
            let kib = line.split_whitespace().nth(1).expect("a number");
            kib.parse::<u64>().expect("a number") >> 10
        };
        must_upgrade(&daemon, &[]);
        let first = held();
        for _ in 0..5 {
            must_upgrade(&daemon, &[]);
        }
        let last = held();
        assert!(last < first + 64, "{first} MiB after one upgrade, {last} after six");
        let mut cookies = Vec::new();
        let mut content = vec![0; 1 << 20];
        for _ in 0..READS {
            let (error, cookie) = reply(&mut lazy);
            assert_eq!(error, 0);
            cookies.push(cookie);
            lazy.read_exact(&mut content).expect("content");
        }
        cookies.sort_unstable();
        assert_eq!(cookies, (0..READS).collect::<Vec<_>>(), "each request has one reply");
        daemon.stop();
    });
}

/// Bug: a connection to the control socket that was open already carried requests out while clients
/// waited for the next program: what they changed was lost, or a panic. Fix: they are refused.
#[test]
fn nothing_is_changed_while_an_upgrade_is_under_way() {
    each_io("nothing_is_changed_while_an_upgrade_is_under_way", |io, directory| {
        let (cache, backings) = make_set(directory, &[64], &[]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        let mut control = UnixStream::connect(&daemon.control).expect("it listens");
        // The upgrade waits a moment for the choice of a client that has just come.
        let choosing = UnixStream::connect(&daemon.socket).expect("it listens");
        let answer = std::thread::scope(|scope| {
            let upgrading = scope.spawn(|| must_upgrade(&daemon, &[]));
            while !log_of(directory).contains("handing over to another program") {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            let request = http::request("POST", "/v1/volumes/disk0.img/detach", "");
            control.write_all(&request).expect("connected");
            let answer = http::response(control);
            upgrading.join().expect("it succeeds");
            answer
        });
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.error("message").contains("an upgrade is under way"), "{answer:?}");
        assert_eq!(daemon.status()["sets"][0]["volumes"][0]["state"], "clean");
        drop(choosing);
        daemon.stop();
    });
}
