//! Backing devices on an object store: moto serves S3, and a set caches a volume on it.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::{Path, PathBuf};

use support::moto::Moto;
use support::store_front::StoreFront;
use support::volume_by_hand::volume_by_hand;
use support::walk::{self, Image, Walk};
use support::{
    Daemon, Guard, NO_BYPASS, STAYS_DIRTY, have, make_set, must, pseudo_random, run, scratch,
    sparse, text, tool, ubcache,
};
use ubcache_cli::nbd_client::Client;

const MIB: u64 = 1 << 20;

fn make(directory: &Path, uri: &Path) -> PathBuf {
    let cache = directory.join("cache.img");
    let mut make = ubcache();
    make.args(["make", "--size", "64M", "--bucket", "64k", "--label", "data", "--writeback"]);
    must(make.arg("-C").arg(&cache).arg("-B").arg(uri));
    cache
}

#[test]
fn a_volume_on_an_object_store_is_made_served_and_found_again_after_a_crash() {
    let scratch = scratch();
    let directory = scratch.path();
    let moto = Moto::start(directory);
    let cache = make(directory, &moto.uri("disks/one", "&size=256M&object=1M"));
    let uri = moto.uri("disks/one", "");
    let shown = must(ubcache().arg("show").arg(&uri));
    assert!(shown.contains("backing device") && shown.contains("data"), "{shown}");

    let daemon = Daemon::start("pool", directory, &cache, std::slice::from_ref(&uri), &NO_BYPASS);
    let mut content = vec![0; 4 * MIB as usize];
    pseudo_random(7, &mut content);
    let mut client = daemon.client("data");
    for (at, piece) in (0..).step_by(65_536).zip(content.chunks(65_536)) {
        client.write(at, piece, false).expect("a write");
    }
    client.flush().expect("a flush");
    must(ubcache().args(["drain", "--wait", "--control"]).arg(&daemon.control));
    let connection = daemon.status()["sets"][0]["volumes"][0]["backing"]["connection"].clone();
    assert_eq!(connection["state"], "connected", "{connection}");
    // Another daemon does not get it, nor does a command that writes.
    let other = directory.join("other.img");
    let arguments =
        ["make", "--size", "64M", "--bucket", "64k", "-C", text(&other), "-B", text(&uri)];
    let refused = String::from_utf8_lossy(&run(&arguments).stderr).into_owned();
    assert!(refused.contains("in use") && refused.contains("process"), "{refused}");
    drop(client);
    daemon.kill();

    // The data is on the store, whatever the cache has.
    let daemon = Daemon::start("pool", directory, &cache, &[uri], &NO_BYPASS);
    let mut read = vec![0; content.len()];
    daemon.client("data").read(0, &mut read).expect("a read");
    assert!(read == content, "after a crash");
    daemon.stop();
    let listing = moto.request("GET /bucket?list-type=2&prefix=disks/one/data/");
    let objects = listing.matches("<Key>disks/one/data/").count();
    assert!((5..=6).contains(&objects), "{listing}");
}

/// A store that permits nothing, with this error. Returns host and port.
fn forbidding_server(error: &'static str) -> std::net::SocketAddr {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 8192]);
            let body = format!("<Error>{error}</Error>");
            let length = body.len();
            let head = "HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\n\
                        Connection: close\r\nContent-Length:";
            let _ = write!(stream, "{head} {length}\r\n\r\n{body}");
        }
    });
    address
}

#[test]
fn a_volume_grows_while_its_clients_go_on() {
    let scratch = scratch();
    let directory = scratch.path();
    let moto = Moto::start(directory);
    let cache = make(directory, &moto.uri("disk", "&size=64M&object=1M"));
    let uri = [moto.uri("disk", "")];
    let daemon = Daemon::start("pool", directory, &cache, &uri, &STAYS_DIRTY);
    let mut client = daemon.client("data");
    client.write(0, &[5; 4096], false).expect("a write");
    let resize = |size: &str| {
        let mut resize = ubcache();
        resize.args(["resize", "data", "--size", size, "--control"]).arg(&daemon.control);
        let output = resize.output().expect("ubcache runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let said = resize("96M");
    assert!(said.contains("before"), "{said}");
    client.read(0, &mut [0; 4096]).expect("a read");
    let bytes = daemon.client("data").bytes();
    assert_eq!(bytes, 96 * MIB - 8192);
    daemon.client("data").write(bytes - 4096, &[6; 4096], true).expect("a write at the end");
    let said = resize("64M");
    assert!(said.contains("does not become shorter"), "{said}");
    drop(client);
    daemon.stop();
    let daemon = Daemon::start("pool", directory, &cache, &uri, &[]);
    let mut read = [0; 4096];
    daemon.client("data").read(bytes - 4096, &mut read).expect("a read");
    assert!(read == [6; 4096]);
    daemon.stop();
}

#[test]
fn a_volume_moves_to_an_object_store_and_back_while_its_clients_go_on() {
    let scratch = scratch();
    let directory = scratch.path();
    let moto = Moto::start(directory);
    let (cache, disks) = make_set(directory, &[16], &[]);
    let daemon = Daemon::start("pool", directory, &cache, &disks, &STAYS_DIRTY);
    let mut content = vec![0; 3 * MIB as usize];
    pseudo_random(9, &mut content);
    let mut client = daemon.client("disk0.img");
    let write = |client: &mut Client, content: &[u8]| {
        for (at, piece) in (0..).step_by(65_536).zip(content.chunks(65_536)) {
            client.write(4 * MIB + at, piece, false).expect("a write");
        }
        client.flush().expect("a flush");
    };
    write(&mut client, &content);
    must(ubcache().args(["drain", "--wait", "--control"]).arg(&daemon.control));
    let new = moto.uri("disk", "&size=16M&object=1M");
    let move_to = |to: &Path| {
        let mut command = ubcache();
        command.args(["move", "disk0.img"]).arg(to).arg("--control").arg(&daemon.control);
        must(&mut command)
    };
    let said = move_to(&new);
    assert!(said.contains("moved from") && said.contains("s3://"), "{said}");
    pseudo_random(10, &mut content[..MIB as usize]);
    write(&mut client, &content);
    let compare = |client: &mut Client, content: &[u8]| {
        let mut read = vec![0; content.len()];
        client.read(4 * MIB, &mut read).expect("a read");
        assert!(read == content);
    };
    compare(&mut client, &content);
    must(ubcache().args(["drain", "--wait", "--control"]).arg(&daemon.control));
    // The store has no objects for what is zero.
    let listing = moto.request("GET /bucket?list-type=2&prefix=disk/data/");
    let objects = listing.matches("<Key>disk/data/").count();
    assert!((4..=6).contains(&objects), "{listing}");
    drop(client);
    daemon.stop();

    let named = [PathBuf::from(format!("disk0.img={}", moto.uri("disk", "").display()))];
    let daemon = Daemon::start("pool", directory, &cache, &named, &STAYS_DIRTY);
    compare(&mut daemon.client("disk0.img"), &content);
    let back = directory.join("back.img");
    sparse(&back, 16 * MIB);
    let mut command = ubcache();
    must(command.args(["move", "disk0.img"]).arg(&back).arg("--control").arg(&daemon.control));
    compare(&mut daemon.client("disk0.img"), &content);
    daemon.stop();
    let disk = std::fs::read(&back).expect("the disk");
    let at = 8192 + 4 * MIB as usize;
    assert!(disk[at..at + content.len()] == content, "it is on the disk");
}

#[test]
fn configuration_files_name_volumes_by_their_uris() {
    use std::io::{BufRead, BufReader};
    let scratch = scratch();
    let directory = scratch.path();
    let moto = Moto::start(directory);
    let cache = make(directory, &moto.uri("disk", "&size=64M&object=1M"));
    let (file, socket, control) =
        (directory.join("set.toml"), directory.join("nbd"), directory.join("control"));
    let words = format!(
        "cache = \"{}\"\nnbd = [\"unix:{}\"]\n[[volume]]\nname = \"far\"\nbacking = \"{}\"\n",
        cache.display(),
        socket.display(),
        moto.uri("disk", "").display()
    );
    std::fs::write(&file, words).expect("a file");
    must(ubcache().args(["config", "check"]).arg(&file));
    let mut daemon = ubcache();
    daemon.arg("daemon").arg("--config").arg(&file).arg("--control").arg(&control);
    let child = daemon.stdout(std::process::Stdio::piped()).spawn().expect("ubcache runs");
    let mut daemon = Guard(child);
    let stdout = BufReader::new(daemon.0.stdout.take().expect("a pipe"));
    let ready = stdout.lines().map_while(Result::ok).find(|line| line.starts_with("ready"));
    assert_eq!(ready.as_deref(), Some("ready: 1 of 1 sets"));
    let mut client = Client::connect(&socket, "far").expect("a connection");
    client.write(0, &[5; 4096], true).expect("a write");
    drop(client);
    must(ubcache().arg("stop").arg("--control").arg(&control));
    assert!(daemon.0.wait().expect("a child").success());
    let volume = volume_by_hand(&moto, "disk");
    assert!(volume[8192..8192 + 4096] == [5; 4096], "it is behind the superblock");
}

#[test]
fn volumes_that_can_not_be_served_are_refused_with_what_to_do() {
    let scratch = scratch();
    let directory = scratch.path();
    let moto = Moto::start(directory);
    let cache = directory.join("cache.img");
    let refused = |uri: &Path| {
        let arguments =
            ["make", "--size", "64M", "--bucket", "64k", "-C", text(&cache), "-B", text(uri)];
        let output = run(&arguments);
        assert!(!output.status.success(), "{uri:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(&moto.uri("none", ""));
    assert!(said.contains("no volume") && said.contains("size="), "{said}");
    let missing = text(&moto.uri("x", "&size=64M")).replace("bucket", "nothing");
    let said = refused(Path::new(&missing));
    assert!(said.contains("NoSuchBucket"), "{said}");
    make(directory, &moto.uri("disk", "&size=64M"));
    std::fs::remove_file(&cache).expect("the cache");
    let said = refused(&moto.uri("disk", "&size=128M"));
    assert!(said.contains("another size") && said.contains("64"), "{said}");
    // A root of a version to come.
    let root = String::from_utf8(moto.get("disk/root")).expect("JSON");
    moto.put("disk/root", root.replace("\"version\":1", "\"version\":9").as_bytes());
    let said = refused(&moto.uri("disk", ""));
    for word in ["version 9", "version 1", "newer ubcache", "\"root\""] {
        assert!(said.contains(word), "{word}: {said}");
    }
    for (error, words) in [
        (
            "<Code>AccessDenied</Code><Message>Access Denied</Message>",
            ["access denied", "AWS_ACCESS_KEY_ID", "bucket's permissions"],
        ),
        (
            "<Code>RequestTimeTooSkewed</Code><Message>The difference between the request time and \
             the current time is too large.</Message><RequestTime>20261130T104500Z</RequestTime>\
             <ServerTime>2026-11-30T12:45:01Z</ServerTime>",
            [
                "this machine has 20261130T104500Z, the store 2026-11-30T12:45:01Z",
                "set the clock",
                "15 minutes",
            ],
        ),
    ] {
        let said = refused(&at(forbidding_server(error), &moto, "x", "&size=64M"));
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
    let away = std::net::SocketAddr::from(([127, 0, 0, 1], 9));
    let said = refused(&at(away, &moto, "x", "&size=64M"));
    assert!(said.contains("no answer") && said.contains("endpoint"), "{said}");
}

/// The URI of a volume at another address than moto's.
fn at(address: std::net::SocketAddr, moto: &Moto, prefix: &str, more: &str) -> PathBuf {
    text(&moto.uri(prefix, more)).replace(&moto.address, &address.to_string()).into()
}

/// Two writers would destroy a volume on such a store.
#[test]
fn a_store_that_ignores_conditions_is_refused_for_new_volumes_and_for_old_ones() {
    let scratch = scratch();
    let directory = scratch.path();
    let moto = Moto::start(directory);
    let front = StoreFront::without_conditions(&moto.address);
    let cache = make(directory, &moto.uri("old", "&size=64M&object=1M"));
    let root = moto.get("old/root");
    let other = directory.join("other.img");
    let make = ["make", "--size", "64M", "--bucket", "64k", "-C", text(&other), "-B"];
    let nbd = format!("unix:{}", directory.join("nbd.sock").display());
    let serve = ["serve", "--nbd", &nbd, "-C", text(&cache), "-B"];
    for (command, uri) in [
        (&make[..], at(front.address, &moto, "new", "&size=64M&object=1M")),
        (&make[..], at(front.address, &moto, "old", "")),
        (&serve[..], at(front.address, &moto, "old", "")),
    ] {
        let output = run(&[command, &[text(&uri)]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        for word in [
            "the store ignores conditions",
            "a PUT with If-None-Match: * that replaced an object",
            "conditional PUT (If-None-Match, If-Match)",
            "use another store",
        ] {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
    assert!(moto.get("old/root") == root, "nothing was changed");
    let left = moto.request("GET /bucket?list-type=2&prefix=new/");
    assert!(!left.contains("<Key>"), "{left}");
    // The way past the door still works.
    let uri = [moto.uri("old", "")];
    Daemon::start("pool", directory, &cache, &uri, &[]).stop();
}

#[test]
fn a_volume_whose_store_is_down_at_the_start_is_taken_up_later() {
    let scratch = scratch();
    let directory = scratch.path();
    let moto = Moto::start(directory);
    let front = StoreFront::open(&moto.address);
    let address = front.address;
    let (cache, mut disks) = make_set(directory, &[16], &[]);
    let uri = at(address, &moto, "far", "");
    let with_size = at(address, &moto, "far", "&size=64M&object=1M");
    must(ubcache().args(["make", "-B"]).arg(&with_size));
    drop(front);
    // It is the only disk.
    let said = match Daemon::try_start("pool", directory, &cache, std::slice::from_ref(&uri), &[]) {
        Ok(_) => panic!("there is nothing to serve"),
        Err((_, said)) => said,
    };
    for word in ["no answer from the store", "start the store, or check the endpoint"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    disks.push(format!("far={}", uri.display()).into());
    let daemon = Daemon::start("pool", directory, &cache, &disks, &[]);
    let down = daemon.status()["sets"][0]["down"][0].clone();
    assert_eq!((&down["name"], &down["path"]), (&"far".into(), &text(&uri).into()), "{down}");
    let why = down["why"].as_str().expect("a reason");
    assert!(why.contains("no answer from the store"), "{why}");
    daemon.client("disk0.img").write(0, &[3; 4096], true).expect("the other disk is served");
    let front = StoreFront::reopen(address, &moto.address);
    while daemon.status()["sets"][0]["down"] != serde_json::json!([]) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    daemon.client("far").write(0, &[7; 4096], true).expect("a write");
    daemon.stop();
    drop(front);
    let volume = volume_by_hand(&moto, "far");
    assert!(volume[8192..8192 + 4096] == [7; 4096], "it is behind the superblock");
}

#[test]
fn a_file_system_on_an_object_store_outlives_adoption_kills_and_release() {
    const TEST: &str = "a_file_system_on_an_object_store_outlives_adoption_kills_and_release";
    if !have(TEST, &walk::PROGRAMS) || !have(TEST, &["nbdcopy"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let moto = Moto::start(directory);
    let mut image = Image::make(directory);
    let read_back =
        |file: &Path| std::fs::write(file, volume_by_hand(&moto, "disk")).expect("a file");

    // A volume is filled by way of another cache, which is released.
    let first = directory.join("first");
    std::fs::create_dir(&first).expect("a directory");
    let uri = moto.uri("disk", "&size=32M&object=1M");
    let filling = Walk { io: "pool", directory: &first, uri, read_back: &read_back };
    filling.adopt_new();
    let daemon = filling.serve(&[]);
    must(tool("nbdcopy").args(["--flush", text(&image.file), &daemon.uri("data")]));
    daemon.stop();
    filling.release(&mut image);

    let uri = moto.uri("disk", "");
    let walk = Walk { io: "pool", directory, uri, read_back: &read_back };
    walk.adopt(&image);
    let mut writeback = NO_BYPASS.to_vec();
    writeback.extend(["--mode", "writeback"]);
    let daemon = walk.serve(&writeback);
    let counts = walk.load_and_kill(&mut image, daemon, |_, counts| counts.wait_for(50));
    assert_eq!(counts.errors.load(std::sync::atomic::Ordering::Relaxed), 0);
    let daemon = walk.serve(&STAYS_DIRTY);
    image.settle(&mut daemon.client("data"));
    walk.change(&mut image, &daemon, 0);
    daemon.stop();
    walk.release(&mut image);
}
