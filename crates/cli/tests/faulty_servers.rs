//! Backing devices behind NBD servers that fail: they announce more than they have, answer with
//! errors, take longer than a request may take, or are slow.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use support::blocks::Blocks;
use support::nbd_server::{Server, volume, wait_for_connection};
use support::{
    Daemon, NO_BYPASS, STAYS_DIRTY, each_io, have, must, pseudo_random, scratch, sparse, text,
    ubcache,
};

const MIB: u64 = 1 << 20;
/// Sector 16, where the data of a disk begins.
const DATA_AT: u64 = 8192;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// A file of the server that is there as long as it is to fail.
struct Trouble(PathBuf);

impl Trouble {
    fn named(directory: &Path, name: &str) -> Trouble {
        Trouble(directory.join(name))
    }

    fn begin(&self) {
        std::fs::write(&self.0, "").expect("a file");
    }

    fn end(&self) {
        std::fs::remove_file(&self.0).expect("a file");
    }
}

/// A server of scripts over a file, `disk.img`. It announces 64 MiB, and has what the file `room`
/// says; flushes fail while there is a file `flushes`.
fn scripted(directory: &Path, has: u64) -> (Server, PathBuf) {
    let file = directory.join("disk.img");
    sparse(&file, 64 * MIB);
    room(directory, has);
    let beyond = |error: &str, message: &str| {
        format!(
            "if [ $(($4 + $3)) -gt $(cat {}/room) ]; then echo '{error} {message}' >&2; exit 1; fi",
            directory.display()
        )
    };
    let disk = file.display();
    let server = Server::nbdkit(
        directory,
        &[
            "eval",
            &format!("get_size=echo {}", 64 * MIB),
            &format!(
                "pread={}; dd if={disk} skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none",
                beyond("EIO", "nothing is there")
            ),
            &format!(
                "pwrite={}; dd of={disk} seek=$4 conv=notrunc oflag=seek_bytes status=none",
                beyond("ENOSPC", "no room")
            ),
            &format!(
                "flush=if [ -e {0}/flushes ]; then echo 'EIO no flush' >&2; exit 1; fi; \
                 sync {disk}",
                directory.display()
            ),
        ],
    );
    (server, file)
}

/// Sets the bytes that the scripted server has.
fn room(directory: &Path, bytes: u64) {
    std::fs::write(directory.join("room"), bytes.to_string()).expect("a file");
}

fn make(directory: &Path, uri: &Path) -> PathBuf {
    let cache = directory.join("cache.img");
    let mut make = ubcache();
    make.args(["make", "--size", "64M", "--bucket", "64k", "--label", "data"]);
    must(make.arg("-C").arg(&cache).arg("-B").arg(uri));
    cache
}

fn log(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("serve.log")).expect("a log")
}

/// Waits until the log has a line with all of these words.
fn wait_for_line(directory: &Path, words: &[&str]) {
    while !log(directory).lines().any(|line| words.iter().all(|word| line.contains(word))) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn drain(daemon: &Daemon) {
    must(ubcache().args(["drain", "--wait", "--control"]).arg(&daemon.control));
}

/// Writes a whole block of 4 KiB.
fn write(daemon: &Daemon, at: u64, byte: u8) -> std::io::Result<()> {
    let mut client = daemon.client("data");
    client.write(at, &[byte; 4096], false)?;
    client.flush()
}

fn expect_errno(result: std::io::Result<()>, errno: i32) {
    assert_eq!(result.map_err(|error| error.raw_os_error()), Err(Some(errno)));
}

/// Writes dirty data back; the disk refuses it, and says so.
fn drain_in_vain(daemon: &Daemon) {
    daemon.set("writeback_running=1");
    let mut drain = ubcache();
    let output = drain.args(["drain", "--wait", "--control"]).arg(&daemon.control).output();
    let output = output.expect("ubcache runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("fails writes of dirty data"), "{said}");
    let (_, table) = daemon.look(&[]);
    assert!(table.contains("writeback of the volume data") && table.contains("refuses"), "{table}");
    assert_eq!(daemon.number(0, "/dirty_bytes"), 4096, "{table}");
}

fn compare(disk: &Path, at: u64, byte: u8) {
    let mut found = [0; 4096];
    File::open(disk).expect("the disk").read_exact_at(&mut found, DATA_AT + at).expect("data");
    assert!(found == [byte; 4096], "byte {at}");
}

#[test]
fn an_export_that_ends_before_its_size_is_refused() {
    const TEST: &str = "an_export_that_ends_before_its_size_is_refused";
    if !have(TEST, &["nbdkit"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let (server, disk) = scripted(directory, 32 * MIB);
    let cache = directory.join("cache.img");
    for how in ["-B", "--adopt"] {
        let mut make = ubcache();
        make.env("UBCACHE_HEADERS", directory.join("headers"));
        make.args(["make", "--size", "64M", "--bucket", "64k", "-C"]).arg(&cache);
        let output = make.arg(how).arg(server.uri()).output().expect("ubcache runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        for word in [
            "the last sector can't be read",
            "an error at byte 67108352",
            "the 67108864 bytes that the server announces",
            "check the size of the disk at the server",
        ] {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert!(!cache.exists(), "{how}: a refused command leaves no file");
    }
    let found = std::fs::read(&disk).expect("the disk");
    assert!(found.iter().all(|byte| *byte == 0), "nothing was written");
}

/// A thin disk whose pool is full, for instance.
#[test]
fn what_an_export_has_no_room_for_stays_in_the_cache_until_it_has() {
    const TEST: &str = "what_an_export_has_no_room_for_stays_in_the_cache_until_it_has";
    if !have(TEST, &["nbdkit"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let (server, disk) = scripted(directory, 64 * MIB);
    let uri = [server.uri()];
    let cache = make(directory, &uri[0]);
    room(directory, 32 * MIB);
    let daemon = Daemon::start("pool", directory, &cache, &uri, &NO_BYPASS);
    write(&daemon, 0, 1).expect("there is room");
    expect_errno(write(&daemon, 40 * MIB, 2), ENOSPC);
    expect_errno(daemon.client("data").read(48 * MIB, &mut [0; 4096]), EIO);
    let (_, table) = daemon.look(&[]);
    assert!(table.contains("2 requests failed since the start"), "{table}");
    wait_for_line(directory, &["requests to the disk device failed", "No space left on device"]);
    daemon.stop();

    let daemon = Daemon::start("pool", directory, &cache, &uri, &STAYS_DIRTY);
    write(&daemon, 40 * MIB, 3).expect("the cache has room");
    drain_in_vain(&daemon);
    daemon.stop();
    let daemon = Daemon::start("pool", directory, &cache, &uri, &STAYS_DIRTY);
    let mut found = [0; 4096];
    daemon.client("data").read(40 * MIB, &mut found).expect("a read");
    assert!(found == [3; 4096], "after a restart");
    room(directory, 64 * MIB);
    daemon.set("writeback_running=1");
    drain(&daemon);
    daemon.stop();
    compare(&disk, 40 * MIB, 3);
    compare(&disk, 0, 1);
}

/// Data that was written back is dirty until a flush has succeeded.
#[test]
fn data_stays_dirty_while_a_server_fails_flushes() {
    const TEST: &str = "data_stays_dirty_while_a_server_fails_flushes";
    if !have(TEST, &["nbdkit"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let (server, disk) = scripted(directory, 64 * MIB);
    let uri = [server.uri()];
    let cache = make(directory, &uri[0]);
    let flushes = Trouble::named(directory, "flushes");
    let daemon = Daemon::start("pool", directory, &cache, &uri, &STAYS_DIRTY);
    write(&daemon, MIB, 5).expect("a write");
    flushes.begin();
    drain_in_vain(&daemon);
    flushes.end();
    drain(&daemon);
    daemon.stop();
    compare(&disk, MIB, 5);
    let daemon = Daemon::start("pool", directory, &cache, &uri, &NO_BYPASS);
    flushes.begin();
    expect_errno(write(&daemon, MIB, 6), EIO);
    daemon.kill();
}

/// The deadline of a request is half a minute, and so is the time for which writes keep off what a
/// connection that was given up may still change.
#[test]
fn a_server_that_takes_longer_than_the_deadline_is_given_up_and_its_requests_sent_again() {
    const TEST: &str =
        "a_server_that_takes_longer_than_the_deadline_is_given_up_and_its_requests_sent_again";
    if !have(TEST, &["nbdkit"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let disk = directory.join("disk.img");
    sparse(&disk, 64 * MIB);
    let start = |delay: &str| {
        Server::nbdkit(
            directory,
            &["--filter=delay", "--filter=rate", "file", text(&disk), delay, "rate=80M"],
        )
    };
    let mut server = start("wdelay=20ms");
    let uri = [server.uri()];
    let cache = make(directory, &uri[0]);
    let daemon = Daemon::start("pool", directory, &cache, &uri, &STAYS_DIRTY);
    let mut content = vec![0; 4 * MIB as usize];
    pseudo_random(3, &mut content);
    support::pieces::write_pieces(&mut daemon.client("data"), &content);
    daemon.set("writeback_running=1");
    drain(&daemon);
    let connection = volume(&daemon)["backing"]["connection"].clone();
    assert_eq!(connection["reconnects"], 0, "being slow is no reason: {connection}");
    daemon.set("cache_mode=writethrough");
    server.kill();
    wait_for_connection(&daemon, "lost");
    server = start("wdelay=600");
    wait_for_connection(&daemon, "connected");
    std::thread::scope(|scope| {
        let daemon = &daemon;
        let writer = scope.spawn(move || write(daemon, 8 * MIB, 4));
        // It is reached again at once, so the state of the connection says nothing.
        wait_for_line(directory, &["connection lost", "no answer to a", "30000 ms"]);
        server.kill();
        server = start("wdelay=20ms");
        writer.join().expect("no panic").expect("a pause, and no error");
    });
    assert_eq!(daemon.number(0, "/backing/errors"), 0, "{}", daemon.status());
    daemon.stop();
    compare(&disk, 8 * MIB, 4);
    let mut found = vec![0; content.len()];
    File::open(&disk).expect("the disk").read_exact_at(&mut found, DATA_AT).expect("data");
    assert!(found == content);
    drop(server);
}

/// Times of a load, each with an index.
const BEFORE: usize = 0;
const TROUBLE: usize = 1;
const AFTER: usize = 2;
const END: usize = 3;

/// Clients of a volume whose server fails requests for a while.
#[derive(Default)]
struct Load {
    time: AtomicUsize,
    /// Requests that succeeded, by the time of their beginning.
    done: [AtomicU64; END],
    errors: AtomicU64,
}

impl Load {
    fn run(&self, daemon: &Daemon, mut blocks: Blocks) -> Blocks {
        let mut client = daemon.client("data");
        loop {
            let began = self.time.load(Ordering::SeqCst);
            if began == END {
                return blocks;
            }
            match blocks.request(&mut client).map_err(|error| error.raw_os_error()) {
                Ok(()) => self.done[began].fetch_add(1, Ordering::SeqCst),
                Err(errno) => {
                    assert_eq!(errno, Some(EIO));
                    let now = self.time.load(Ordering::SeqCst);
                    assert!(began == TROUBLE || now == TROUBLE, "an error in time {began}");
                    self.errors.fetch_add(1, Ordering::SeqCst)
                }
            };
        }
    }

    fn begin(&self, time: usize) {
        self.time.store(time, Ordering::SeqCst);
    }

    /// Waits until so many more requests of this time have succeeded.
    fn goes_on(&self, time: usize, more: u64, clients: &[ScopedJoinHandle<Blocks>]) {
        let end = self.done[time].load(Ordering::SeqCst) + more;
        while self.done[time].load(Ordering::SeqCst) < end {
            if clients.iter().any(ScopedJoinHandle::is_finished) {
                // The others would go on for ever.
                self.begin(END);
                panic!("a client found something wrong");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The file system of the server has bad blocks for a while, for instance. In writethrough clients
/// get the errors of their writes; in writeback the data stays dirty, and is written later.
#[test]
fn a_server_that_fails_requests_for_a_while_costs_errors_and_no_data() {
    const TEST: &str = "a_server_that_fails_requests_for_a_while_costs_errors_and_no_data";
    if !have(TEST, &["nbdkit"]) {
        return;
    }
    each_io(TEST, |io, directory| {
        fail_for_a_while(io, directory, if io == "ring" { "writeback" } else { "writethrough" });
    });
}

fn fail_for_a_while(io: &str, directory: &Path, mode: &str) {
    let disk = directory.join("disk.img");
    sparse(&disk, 64 * MIB);
    let trouble = Trouble::named(directory, "trouble");
    let when = format!("error-file={}", trouble.0.display());
    let server = Server::nbdkit(
        directory,
        &["--filter=error", "file", text(&disk), "error=EIO", "error-rate=40%", &when],
    );
    let uri = [server.uri()];
    let cache = make(directory, &uri[0]);
    let file = File::options().read(true).write(true).open(&disk).expect("the disk");
    let blocks = [0, 20 * MIB, 40 * MIB].map(|at| Blocks::on_disk(&file, DATA_AT, at, 1500));
    let options = ["--mode", mode, "--set", "writeback_delay=0", "--set", "writeback_percent=0"];
    let daemon = Daemon::start(io, directory, &cache, &uri, &[&options[..], &NO_BYPASS].concat());
    let load = Load::default();
    let (mut blocks, connection) = std::thread::scope(|scope| {
        let (load, daemon) = (&load, &daemon);
        let clients = blocks.map(|blocks| scope.spawn(move || load.run(daemon, blocks)));
        load.goes_on(BEFORE, 100, &clients);
        load.begin(TROUBLE);
        trouble.begin();
        load.goes_on(TROUBLE, 300, &clients);
        let connection = volume(daemon)["backing"]["connection"].clone();
        trouble.end();
        load.begin(AFTER);
        load.goes_on(AFTER, 200, &clients);
        load.begin(END);
        let ended = clients.map(|client| client.join().expect("a client that finds nothing wrong"));
        (ended, connection)
    });
    // A connection whose requests fail is none that is lost.
    assert_eq!(connection["state"], "connected", "{connection}");
    assert_eq!(connection["reconnects"], 0, "{connection}");
    let errors = load.errors.load(Ordering::SeqCst);
    assert!(errors > 20, "{errors} errors in {:?}", load.done);
    let (_, table) = daemon.look(&[]);
    assert!(table.contains("requests failed since the start"), "{table}");
    let counted = daemon.number(0, "/backing/errors");
    assert!(counted >= errors, "{errors} errors of clients, {counted} of the disk");
    for blocks in &mut blocks {
        blocks.settle(&mut daemon.client("data"));
    }
    drain(&daemon);
    daemon.stop();
    for blocks in &blocks {
        blocks.compare_disk(&file, DATA_AT);
    }
    // It says so once, and then every ten seconds.
    let log = log(directory);
    let told = |words: &str| {
        log.lines().filter(|line| line.contains(words) && line.contains(text(&uri[0]))).count()
    };
    let lines = told("requests to the disk device failed");
    assert!(lines > 0 && (lines as u64) < counted / 4, "{lines} lines of {counted}: {log}");
    assert!(log.contains("Input/output error"), "{log}");
    drop(server);
}
