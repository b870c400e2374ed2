//! Backing devices behind NBD servers: nbdkit and qemu-nbd serve files, and a set serves those.
//! Servers are killed under load, and servers whose exports are no disks are refused.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use support::nbd_server::{Server, volume, wait_for_connection};
use support::walk::{self, Image, Walk};
use support::{
    Daemon, NO_BYPASS, STAYS_DIRTY, each_io, have, make_set, must, pseudo_random, ring_works,
    scratch, sha256_of, sparse, text, tool, ubcache,
};
use ubcache_cli::nbd_client::Client;

const MIB: u64 = 1 << 20;
/// Sector 16, where the data of a disk begins.
const DATA_AT: u64 = 8192;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn run(command: &mut Command) -> String {
    said(&command.output().expect("ubcache runs"))
}

/// Makes a set of a cache file and a remote disk.
fn make(directory: &Path, uri: &Path, extra: &[&str]) -> PathBuf {
    let cache = directory.join("cache.img");
    let mut make = ubcache();
    make.args(["make", "--size", "64M", "--bucket", "64k", "--label", "data"]).args(extra);
    must(make.arg("-C").arg(&cache).arg("-B").arg(uri));
    cache
}

fn write_and_compare(io: &str, directory: &Path, disk: &Path, server: &Server) {
    let uri = server.uri();
    let cache = make(directory, &uri, &["--writeback"]);
    let shown = must(ubcache().arg("show").arg(&uri));
    assert!(shown.contains("backing device") && shown.contains("data"), "{shown}");
    let listed = must(ubcache().args(["list", "--json"]).args([&cache, &uri]));
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed["devices"][1]["kind"], "remote", "{listed}");
    assert_eq!(listed["devices"][1]["path"], text(&uri), "{listed}");
    let daemon = Daemon::start(io, directory, &cache, std::slice::from_ref(&uri), &STAYS_DIRTY);
    let mut content = vec![0; 4 * MIB as usize];
    pseudo_random(7, &mut content);
    let mut client = daemon.client("data");
    for (at, piece) in (0..).step_by(65_536).zip(content.chunks(65_536)) {
        client.write(at, piece, false).expect("a write");
    }
    client.flush().expect("a flush");
    let mut read = vec![0; content.len()];
    client.read(0, &mut read).expect("a read");
    assert!(read == content);
    assert!(daemon.number(0, "/dirty_bytes") == 4 * MIB, "{}", daemon.status());
    let backing = &volume(&daemon)["backing"];
    assert_eq!(backing["path"], text(&uri));
    assert_eq!(backing["connection"]["state"], "connected", "{backing}");
    assert_eq!(backing["connection"]["reconnects"], 0, "{backing}");
    daemon.set("writeback_running=1");
    must(ubcache().args(["drain", "--wait", "--control"]).arg(&daemon.control));
    drop(client);
    daemon.stop();
    let file = File::open(disk).expect("the disk");
    file.read_exact_at(&mut read, DATA_AT).expect("data");
    assert!(read == content, "the file of the server has something else");

    without_ubcache(directory, &uri, &content);
    // The next run finds it clean, and hits.
    let daemon = Daemon::start(io, directory, &cache, &[uri], &NO_BYPASS);
    daemon.client("data").read(0, &mut read).expect("a read");
    assert!(read == content);
    daemon.stop();
}

/// Runs the command that `unmake` names.
fn without_ubcache(directory: &Path, uri: &Path, content: &[u8]) {
    let said = must(ubcache().arg("unmake").arg(uri));
    let command = said.lines().find_map(|line| line.trim().strip_prefix("nbdkit "));
    let command = command.unwrap_or_else(|| panic!("no command in: {said}"));
    let socket = directory.join("plain.sock");
    let mut nbdkit = tool("sh");
    let start = format!("exec nbdkit -f -U {} {command}", text(&socket));
    nbdkit.args(["-c", &start]);
    let server = Server::start(nbdkit, socket, "");
    // A socket has its name before the server listens on it.
    let connected = || match Client::connect(&server.socket, "") {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::thread::sleep(std::time::Duration::from_millis(10));
            None
        }
        client => Some(client.expect("a connection")),
    };
    let mut client = std::iter::repeat_with(connected).find_map(|client| client).expect("endless");
    let mut read = vec![0; content.len()];
    for (at, piece) in (0..).step_by(MIB as usize).zip(read.chunks_mut(MIB as usize)) {
        client.read(at, piece).expect("a read");
    }
    assert!(read == content, "{command}");
}

#[test]
fn written_data_is_on_the_disk_of_the_server_behind_the_superblock() {
    const TEST: &str = "written_data_is_on_the_disk_of_the_server_behind_the_superblock";
    if !have(TEST, &["nbdkit", "qemu-nbd"]) {
        return;
    }
    each_io(TEST, |io, directory| {
        let disk = directory.join("disk.img");
        sparse(&disk, 64 * MIB);
        write_and_compare(io, directory, &disk, &Server::file(directory, &disk));
        sparse(&disk, 64 * MIB);
        std::fs::remove_file(directory.join("cache.img")).expect("the cache");
        write_and_compare(io, directory, &disk, &Server::qemu_nbd(directory, &disk));
    });
}

/// After a kill a server may still carry out what ubcache had sent, over what the next run writes:
/// the next run waits, half a minute. So both servers have their walk at the same time.
#[test]
fn file_systems_behind_servers_outlive_adoption_kills_and_release() {
    const TEST: &str = "file_systems_behind_servers_outlive_adoption_kills_and_release";
    if !have(TEST, &["nbdkit", "qemu-nbd", "nbdcopy"]) || !have(TEST, &walk::PROGRAMS) {
        return;
    }
    let scratch = scratch();
    let io = if ring_works() { "ring" } else { "pool" };
    std::thread::scope(|scope| {
        for (name, io, start) in [
            ("nbdkit", "pool", Server::file as fn(&Path, &Path) -> Server),
            ("qemu-nbd", io, Server::qemu_nbd),
        ] {
            let directory = scratch.path().join(name);
            scope.spawn(move || walk_over(io, &directory, start));
        }
    });
}

fn walk_over(io: &str, directory: &Path, start: fn(&Path, &Path) -> Server) {
    std::fs::create_dir(directory).expect("a directory");
    let mut image = Image::make(directory);
    let disk = directory.join("disk.img");
    std::fs::copy(&image.file, &disk).expect("a copy");
    let mut server = start(directory, &disk);
    let read_back = |file: &Path| {
        std::fs::copy(&disk, file).expect("a copy");
    };
    let walk = Walk { io, directory, uri: server.uri(), read_back: &read_back };
    walk.adopt(&image);
    let mut writeback = NO_BYPASS.to_vec();
    writeback.extend(["--mode", "writeback"]);
    let daemon = walk.serve(&writeback);
    assert!(!walk.log().contains("still carry out a write"), "{}", walk.log());
    let counts = walk.load_and_kill(&mut image, daemon, |daemon, counts| {
        server.kill();
        wait_for_connection(daemon, "lost");
        server = start(directory, &disk);
        wait_for_connection(daemon, "connected");
        counts.wait_for(50);
    });
    assert_eq!(counts.errors.load(Ordering::Relaxed), 0, "a server that is killed is a pause");
    let daemon = walk.serve(&STAYS_DIRTY);
    assert!(walk.log().contains("still carry out a write"), "{}", walk.log());
    image.settle(&mut daemon.client("data"));
    walk.change(&mut image, &daemon, 0);
    daemon.stop();
    assert_ne!(sha256_of(&disk), sha256_of(&image.file), "what is dirty is in the cache");
    walk.release(&mut image);
}

#[test]
fn clients_of_a_server_that_is_killed_and_started_again_see_a_pause() {
    const TEST: &str = "clients_of_a_server_that_is_killed_and_started_again_see_a_pause";
    if !have(TEST, &["nbdkit"]) {
        return;
    }
    each_io(TEST, |io, directory| {
        let disk = directory.join("disk.img");
        sparse(&disk, 64 * MIB);
        let mut server = Server::file(directory, &disk);
        let uri = server.uri();
        let cache = make(directory, &uri, &[]);
        let daemon = Daemon::start(io, directory, &cache, &[uri], &NO_BYPASS);
        let stop = AtomicBool::new(false);
        let written = std::thread::scope(|scope| {
            let (daemon, stop) = (&daemon, &stop);
            let writer = scope.spawn(move || {
                let mut client = daemon.client("data");
                let (mut block, mut read) = (vec![0; 4096], vec![0; 4096]);
                let mut blocks = 0;
                while !stop.load(Ordering::Relaxed) {
                    let at = blocks % 8192 * 4096;
                    pseudo_random(blocks, &mut block);
                    client.write(at, &block, false).expect("a write");
                    client.read(at, &mut read).expect("a read");
                    assert!(read == block, "block {blocks}");
                    blocks += 1;
                    if blocks % 64 == 0 {
                        client.flush().expect("a flush");
                    }
                }
                client.flush().expect("a flush");
                blocks
            });
            for round in 1..=2 {
                server.kill();
                wait_for_connection(daemon, "lost");
                let (_, table) = daemon.look(&[]);
                assert!(table.contains("has no connection to"), "{table}");
                server = Server::file(directory, &disk);
                let connection = wait_for_connection(daemon, "connected");
                assert_eq!(connection["reconnects"], round, "{connection}");
            }
            stop.store(true, Ordering::Relaxed);
            writer.join().expect("no client has an error")
        });
        assert!(written > 0);
        assert_eq!(daemon.number(0, "/backing/errors"), 0, "{}", daemon.status());
        daemon.stop();
        let log = std::fs::read_to_string(directory.join("serve.log")).expect("a log");
        let lines = |word: &str| log.lines().filter(|line| line.contains(word)).count();
        assert_eq!((lines("connection lost"), lines("connected again")), (2, 2), "{log}");
        // The mode is writethrough: the newest of each block is on the disk.
        let file = File::open(&disk).expect("the disk");
        let (mut block, mut found) = (vec![0; 4096], vec![0; 4096]);
        for number in written.saturating_sub(8192)..written {
            pseudo_random(number, &mut block);
            let at = DATA_AT + number % 8192 * 4096;
            file.read_exact_at(&mut found, at).expect("data");
            assert!(found == block, "block {number} of {written}");
        }
        drop(server);
    });
}

#[test]
fn an_export_that_grew_is_used_after_a_resize() {
    const TEST: &str = "an_export_that_grew_is_used_after_a_resize";
    if !have(TEST, &["nbdkit"]) {
        return;
    }
    each_io(TEST, |io, directory| {
        let disk = directory.join("disk.img");
        sparse(&disk, 64 * MIB);
        let mut server = Server::file(directory, &disk);
        let uri = server.uri();
        let cache = make(directory, &uri, &[]);
        let daemon = Daemon::start(io, directory, &cache, std::slice::from_ref(&uri), &NO_BYPASS);
        let mut client = daemon.client("data");
        let resize = || must(ubcache().arg("resize").arg("--control").arg(&daemon.control));
        assert!(resize().contains("as before"));
        File::options().write(true).open(&disk).expect("the disk").set_len(80 * MIB).expect("room");
        assert!(resize().contains("as before"), "the server has not been reached since");
        let mut to_size = ubcache();
        to_size.args(["resize", "data", "--size", "1G", "--control"]).arg(&daemon.control);
        expect_words(&run(&mut to_size), &["has the size of its disk", "make the disk larger"]);
        server.kill();
        wait_for_connection(&daemon, "lost");
        server = Server::file(directory, &disk);
        wait_for_connection(&daemon, "connected");
        let log = std::fs::read_to_string(directory.join("serve.log")).expect("a log");
        assert!(log.contains("the export has 83886080 bytes now"), "{log}");
        assert!(resize().contains("before"));
        client.read(0, &mut [0; 4096]).expect("clients go on");
        let bytes = daemon.client("data").bytes();
        assert_eq!(bytes, 80 * MIB - DATA_AT);
        daemon.client("data").write(bytes - 4096, &[6; 4096], true).expect("a write at the end");
        daemon.stop();
        let mut found = [0; 4096];
        let file = File::open(&disk).expect("the disk");
        file.read_exact_at(&mut found, 80 * MIB - 4096).expect("data");
        assert!(found == [6; 4096]);
        drop(server);
    });
}

#[test]
fn a_disk_whose_server_is_not_there_at_the_start_is_taken_up_later() {
    const TEST: &str = "a_disk_whose_server_is_not_there_at_the_start_is_taken_up_later";
    if !have(TEST, &["nbdkit"]) {
        return;
    }
    each_io(TEST, |io, directory| {
        let (cache, mut disks) = make_set(directory, &[16], &[]);
        let disk = directory.join("remote.img");
        sparse(&disk, 16 * MIB);
        let server = Server::file(directory, &disk);
        let uri = server.uri();
        must(ubcache().args(["make", "-B"]).arg(&uri));
        drop(server);
        let named = PathBuf::from(format!("far={}", uri.display()));
        disks.push(named);
        let daemon = Daemon::start(io, directory, &cache, &disks, &[]);
        let down = daemon.status()["sets"][0]["down"][0].clone();
        assert_eq!((&down["name"], &down["path"]), (&"far".into(), &text(&uri).into()), "{down}");
        let why = down["why"].as_str().expect("a reason");
        assert!(why.contains("the server can't be reached"), "{why}");
        let server = Server::file(directory, &disk);
        while daemon.status()["sets"][0]["down"] != Value::Array(Vec::new()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon.client("far").write(0, &[7; 4096], true).expect("a write");
        let twice =
            run(ubcache().args(["add", "-B"]).arg(&uri).arg("--control").arg(&daemon.control));
        assert!(twice.contains("is served already, as \"far\""), "{twice}");
        must(ubcache().args(["remove", "far", "--control"]).arg(&daemon.control));
        must(ubcache().args(["add", "-B"]).arg(&disks[1]).arg("--control").arg(&daemon.control));
        let mut found = [0; 4096];
        daemon.client("far").read(0, &mut found).expect("a read");
        assert!(found == [7; 4096]);
        daemon.stop();
        drop(server);
    });
}

#[test]
fn configuration_files_name_exports_by_their_uris() {
    let scratch = scratch();
    let file = scratch.path().join("set.toml");
    let cache = scratch.path().join("cache.img");
    sparse(&cache, MIB);
    let check = |backing: &str| {
        let text = format!(
            "cache = \"{}\"\n[[volume]]\nname = \"data\"\nbacking = \"{backing}\"\n",
            cache.display()
        );
        std::fs::write(&file, text).expect("a file");
        ubcache().args(["config", "check"]).arg(&file).output().expect("ubcache runs")
    };
    // Nobody is asked: the server may be away, or serve this daemon alone.
    let good = check("nbd+unix:///disk?socket=/nowhere");
    assert!(good.status.success() && said(&good).contains("1 set good"), "{}", said(&good));
    let bad = said(&check("nbd+unix:///disk"));
    expect_words(&bad, &["not the URI of an NBD export", "no socket"]);
}

/// A `make` on an export that fails; its message.
fn run_make(uri: &str) -> String {
    let output = ubcache().args(["make", "-B", uri]).output().expect("ubcache runs");
    assert!(!output.status.success(), "{uri}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Refusal of a `make` on an export; `serve` of it is not tried, as nothing can be made there.
fn refused(uri: &str) -> String {
    let said = run_make(uri);
    assert!(said.contains(uri), "{said}");
    said
}

fn expect_words(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "\"{word}\" is missing: {said}");
    }
}

#[test]
fn exports_that_are_no_disks_are_refused_with_the_reason() {
    const TEST: &str = "exports_that_are_no_disks_are_refused_with_the_reason";
    if !have(TEST, &["nbdkit", "qemu-nbd"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let nbdkit = |arguments: &[&str]| {
        let server = Server::nbdkit(directory, arguments);
        (refused(text(&server.uri())), server)
    };
    let (said, _) = nbdkit(&["-r", "memory", "64M"]);
    expect_words(&said, &["the export is read-only", "without --read-only"]);
    let (said, _) = nbdkit(&["memory", "1000001"]);
    expect_words(&said, &["not a whole number of blocks", "1000001 bytes", "a multiple of 512"]);
    let (said, _) = nbdkit(&[
        "eval",
        "get_size=echo 67108864",
        "pread=dd if=/dev/zero count=$3 iflag=count_bytes",
        "pwrite=cat >/dev/null",
    ]);
    expect_words(&said, &["the server can't flush", "NBD_CMD_FLUSH"]);
    let (said, _) = nbdkit(&["memory", "4096"]);
    expect_words(&said, &["too small for a backing device"]);
}

#[test]
fn servers_that_are_not_there_are_named() {
    const TEST: &str = "servers_that_are_not_there_are_named";
    if !have(TEST, &["qemu-nbd"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let disk = directory.join("disk.img");
    sparse(&disk, 16 * MIB);
    let mut server = Server::qemu_nbd(directory, &disk);
    let other = format!("nbd+unix:///other?socket={}", server.socket.display());
    expect_words(&refused(&other), &["does not give this export", "\"other\"", "nbdinfo --list"]);
    server.kill();
    // The socket is still there.
    let socket = directory.join("server.sock");
    expect_words(&refused(&other), &["the server can't be reached", "no server listens there"]);
    std::fs::remove_file(&socket).expect("the socket");
    expect_words(&refused(&other), &["the server can't be reached", "No such file"]);
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let free = port.local_addr().expect("an address").port();
    drop(port);
    let uri = format!("nbd://127.0.0.1:{free}/disk");
    expect_words(&refused(&uri), &["the server can't be reached", "no server listens there"]);
    expect_words(
        &refused("nbd://no-such-host.invalid/disk"),
        &["no-such-host.invalid is not known"],
    );
    let uri = format!("nbds://127.0.0.1:{free}/disk?tls-certificates=/nowhere");
    expect_words(&run_make(&uri), &["/nowhere/ca-cert.pem", "can't read it"]);
    expect_words(&refused("nbd://localhost:x/disk"), &["the port \"x\""]);
    let (cache, disks) = make_set(directory, &[16], &[]);
    let serve = |arguments: &[&str]| run(ubcache().arg("serve").args(arguments));
    let said = serve(&["-C", &other, "-B", text(&disks[0])]);
    expect_words(&said, &["a cache device can't be behind a network"]);
    // It is the only disk.
    let said = serve(&["-C", text(&cache), "-B", &other]);
    expect_words(&said, &["the server can't be reached"]);
    let said = serve(&["-C", text(&cache), "-B", text(&disks[0]), "-B", "nbd+unix:///x"]);
    expect_words(&said, &["not the URI of an NBD export", "no socket"]);
}
