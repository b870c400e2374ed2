//! Volumes as disks of virtual machines: sockets of vhost-user-blk, with the crate `blkio` as
//! client.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};
use serde_json::json;
use support::{Daemon, each_io, http, make_set, must, text, ubcache};
use ubcache_cli::nbd_client::Client;

const BYTES: usize = 64 << 10;

/// A disk of a guest, and memory for one request.
struct Disk {
    queue: Blkioq,
    memory: MemoryRegion,
    bytes: u64,
    _blkio: Blkio,
}

impl Disk {
    fn connect(socket: &Path) -> Disk {
        let mut blkio = Blkio::new("virtio-blk-vhost-user").expect("the driver");
        blkio.set_str("path", text(socket)).expect("set");
        blkio.connect().expect("connected");
        let bytes = blkio.get_u64("capacity").expect("a size");
        let queue = blkio.start().expect("started").queues.remove(0);
        let memory = blkio.alloc_mem_region(BYTES).expect("memory");
        blkio.map_mem_region(&memory).expect("mapped");
        Disk { queue, memory, bytes, _blkio: blkio }
    }

    fn done(&mut self) -> i32 {
        let mut room = [const { MaybeUninit::<Completion>::uninit() }; 1];
        let found = self.queue.do_io(&mut room, 1, None, None).expect("a completion");
        assert_eq!(found, 1);
        // SAFETY: the queue has filled it.
        unsafe { room[0].assume_init_ref() }.ret
    }

    fn memory(&mut self) -> &mut [u8] {
        // SAFETY: no request uses the region, which is as long as this.
        unsafe { std::slice::from_raw_parts_mut(self.memory.addr as *mut u8, BYTES) }
    }

    fn write(&mut self, at: u64, value: u8) {
        self.memory().fill(value);
        let place = self.memory.addr as *const u8;
        self.queue.write(at, place, BYTES, 0, ReqFlags::empty());
        assert_eq!(self.done(), 0);
        self.queue.flush(0, ReqFlags::empty());
        assert_eq!(self.done(), 0);
    }

    fn read(&mut self, at: u64) -> Vec<u8> {
        self.memory().fill(0xee);
        let place = self.memory.addr as *mut u8;
        self.queue.read(at, place, BYTES, 0, ReqFlags::empty());
        assert_eq!(self.done(), 0);
        self.memory().to_vec()
    }
}

#[test]
fn a_guest_and_an_nbd_client_see_the_same_volume() {
    each_io("a_guest_and_an_nbd_client_see_the_same_volume", |io, directory| {
        let (cache, backings) = make_set(directory, &[64, 32], &[]);
        let sockets = ["first.sock", "second.sock"].map(|name| directory.join(name));
        let first = format!("disk0.img={}", sockets[0].display());
        let second = format!("disk1.img={}", sockets[1].display());
        let extra = ["--mode", "writeback", "--vhost-user", &first, "--vhost-user", &second];
        let daemon = Daemon::start(io, directory, &cache, &backings, &extra);
        let said = daemon.greeting.join("\n");
        assert!(said.contains(&format!("vhost-user:{}", sockets[0].display())), "{said}");
        let mode = std::fs::metadata(&sockets[0]).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (mut disk, other) = (Disk::connect(&sockets[0]), Disk::connect(&sockets[1]));
        assert_eq!((disk.bytes >> 20, other.bytes >> 20), (63, 31));
        disk.write(1 << 20, 7);
        let mut nbd = Client::connect(&daemon.socket, "disk0.img").expect("a client");
        let mut found = vec![0; BYTES];
        nbd.read(1 << 20, &mut found).expect("read");
        assert!(found == vec![7; BYTES]);
        nbd.write(1 << 20, &[8; BYTES], false).expect("written");
        assert!(disk.read(1 << 20) == vec![8; BYTES]);
        drop((disk, other, nbd));
        drop(daemon);
    });
}

/// Status, its JSON, the API and the metrics show who uses an export.
#[test]
fn guests_are_in_status_api_and_metrics() {
    each_io("guests_are_in_status_api_and_metrics", |io, directory| {
        let (cache, backings) = make_set(directory, &[64, 32], &[]);
        let socket = directory.join("guest.sock");
        let export = format!("disk0.img={}", socket.display());
        let daemon = Daemon::start(io, directory, &cache, &backings, &["--vhost-user", &export]);
        let of_volume = |index: usize| {
            let status = daemon.status();
            status["sets"][0]["volumes"][index]["frontends"].clone()
        };
        let table = || must(ubcache().args(["status", "--control"]).arg(&daemon.control));
        let metrics = || must(ubcache().args(["metrics", "--control"]).arg(&daemon.control));
        assert_eq!(of_volume(1), json!({ "ublk": [], "vhost_user": [] }));
        let before = of_volume(0);
        let before = &before["vhost_user"][0];
        assert_eq!((&before["socket"], &before["connected"]), (&json!(socket), &json!(false)));
        assert!(table().contains(&format!("guest at {}  not connected", socket.display())));

        let mut disk = Disk::connect(&socket);
        disk.write(0, 5);
        let now = of_volume(0);
        let guest = &now["vhost_user"][0];
        assert_eq!((&guest["connected"], &guest["queues"]), (&json!(true), &json!(1)), "{guest}");
        assert_eq!((&guest["in_flight"], &guest["reissued"]), (&json!(0), &json!(0)), "{guest}");
        assert_eq!((&guest["rings"][0]["queue"], &guest["broken_queues"]), (&json!(0), &json!(0)));
        let features = guest["features"].as_array().expect("features");
        assert!(features.contains(&json!("flush")), "{guest}");
        let api = http::ask(&daemon.control, "GET", "/v1/volumes/disk0.img", "").json();
        assert_eq!(api["frontends"], now);
        let said = table();
        let line = said.lines().find(|line| line.contains("guest at")).expect("a line");
        assert!(line.contains("connected, 1 queue, 0 in flight, 0 carried out again; "), "{line}");
        let said = metrics();
        for (name, value) in [("connected", 1), ("queues", 1), ("requests_in_flight", 0)] {
            let name = format!("ubcache_frontend_{name}{{");
            let lines: Vec<&str> = said.lines().filter(|line| line.starts_with(&name)).collect();
            let [line] = lines[..] else { panic!("{name}: {lines:?}") };
            assert!(line.contains("frontend=\"vhost-user\"") && line.contains("disk0.img"));
            let found: Option<f64> = line.rsplit(' ').next().and_then(|word| word.parse().ok());
            assert_eq!(found, Some(f64::from(value)), "{line}");
        }
        drop(disk);
        drop(daemon);
    });
}

#[test]
fn a_killed_daemon_leaves_a_socket_that_the_next_one_replaces() {
    each_io("a_killed_daemon_leaves_a_socket", |io, directory| {
        let (cache, backings) = make_set(directory, &[64], &[]);
        let socket = directory.join("guest.sock");
        let extra = ["--mode", "writeback", "--vhost-user", text(&socket)];
        let daemon = Daemon::start(io, directory, &cache, &backings, &extra);
        Disk::connect(&socket).write(0, 3);
        daemon.kill();
        assert!(socket.exists(), "nobody was there to remove it");
        let daemon = Daemon::start(io, directory, &cache, &backings, &extra);
        assert!(Disk::connect(&socket).read(0) == vec![3; BYTES], "flushed data is there");
        let log = std::fs::read_to_string(directory.join("serve.log")).expect("a log");
        assert!(log.contains("removing a stale socket"), "{log}");
        daemon.stop();
        assert!(!socket.exists(), "an orderly end removes it");
    });
}

#[test]
fn a_path_that_is_taken_and_an_export_that_does_not_exist_are_refused() {
    each_io("a_path_that_is_taken", |io, directory| {
        let (cache, backings) = make_set(directory, &[64, 32], &[]);
        let (file, socket) = (directory.join("a file"), directory.join("guest.sock"));
        std::fs::write(&file, "precious").expect("a file");
        let _other = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        for (wanted, what) in [
            (format!("disk0.img={}", file.display()), "exists and is not a socket"),
            (format!("disk0.img={}", socket.display()), "another process listens there"),
            ("nothing=/tmp/x".to_owned(), "no such export"),
            (text(&socket).to_owned(), "several exports"),
        ] {
            let extra = ["--vhost-user", &wanted];
            let Err((_, output)) = Daemon::try_start(io, directory, &cache, &backings, &extra)
            else {
                panic!("{wanted} is not refused")
            };
            assert!(output.contains(what) && output.contains("--vhost-user"), "{output}");
        }
        assert_eq!(std::fs::read_to_string(&file).expect("it is there"), "precious");
    });
}

#[test]
fn a_path_that_is_taken_leaves_the_other_volumes_their_sockets() {
    each_io("a_path_that_is_taken_of_two", |io, directory| {
        let (cache, backings) = make_set(directory, &[64, 32], &[]);
        let (taken, free) = (directory.join("taken.sock"), directory.join("free.sock"));
        let _other = std::os::unix::net::UnixListener::bind(&taken).expect("a socket");
        let wanted = [format!("disk0.img={}", text(&taken)), format!("disk1.img={}", text(&free))];
        let extra = ["--vhost-user", &wanted[0], "--vhost-user", &wanted[1]];
        let daemon = Daemon::start(io, directory, &cache, &backings, &extra);
        let mut disk = Disk::connect(&free);
        disk.write(0, 5);
        assert!(disk.read(0) == vec![5; BYTES]);
        drop(disk);
        daemon.client("disk0.img").write(0, &[7; 4096], true).expect("it is served over NBD");
        daemon.stop();
        let log = std::fs::read_to_string(directory.join("serve.log")).expect("a log");
        let told = |line: &&str| {
            line.contains("no socket for virtual machines") && line.contains("disk0.img")
        };
        assert_eq!(log.lines().filter(told).count(), 1, "{log}");
    });
}

#[test]
fn a_peer_that_speaks_nonsense_is_logged_once_and_the_export_goes_on() {
    each_io("a_peer_that_speaks_nonsense", |io, directory| {
        let (cache, backings) = make_set(directory, &[64], &[]);
        let socket = directory.join("guest.sock");
        let extra = ["--vhost-user", text(&socket)];
        let daemon = Daemon::start(io, directory, &cache, &backings, &extra);
        let mut peer = UnixStream::connect(&socket).expect("connected");
        peer.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
        // It ends as a reset, with bytes that were not read.
        let _ = peer.read_to_end(&mut Vec::new());
        let mut disk = Disk::connect(&socket);
        disk.write(4096, 9);
        assert!(disk.read(4096) == vec![9; BYTES]);
        drop(disk);
        // The log is whole when the daemon has ended.
        daemon.stop();
        let log = std::fs::read_to_string(directory.join("serve.log")).expect("a log");
        assert_eq!(log.matches("protocol error").count(), 1, "{log}");
    });
}
