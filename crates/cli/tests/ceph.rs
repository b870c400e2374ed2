//! An image of Ceph as a backing device: a Ceph of one node, qemu-nbd over it, and a set that
//! caches its image. The OSD is killed under load and brought back.
//!
//! `cargo xtask ceph` installs what it takes (Debian: ceph-mon, ceph-osd, ceph-common,
//! qemu-block-extra) and runs it: 200 seconds. It needs root and no kernel module.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use support::walk::{Counts, Image, Walk};
use support::{Daemon, Guard, NO_BYPASS, STAYS_DIRTY, must, scratch, text, tool};

/// One monitor and one OSD, whose data is in files.
struct Ceph {
    directory: PathBuf,
    _monitor: Guard,
    osd: Option<Guard>,
}

impl Ceph {
    /// A new cluster with the pool `rbd`.
    fn start(directory: &Path) -> Ceph {
        for name in ["mon", "osd"] {
            std::fs::create_dir_all(directory.join(name)).expect("a directory");
        }
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr();
        let address = format!("v2:127.0.0.1:{}", port.expect("an address").port());
        let (cluster, osd) = (new_uuid(), new_uuid());
        std::fs::write(conf(directory), configuration(directory, &cluster, &address))
            .expect("a file");
        let map = directory.join("monmap");
        let mut maptool = command(directory, "monmaptool");
        maptool.args(["--create", "--fsid", &cluster, "--addv", "a", &format!("[{address}]")]);
        must(maptool.arg(&map));
        must(command(directory, "ceph-mon").args(["-i", "a", "--mkfs", "--monmap", text(&map)]));
        let monitor = spawn(directory, "ceph-mon", "a");
        let mut ceph = Ceph { directory: directory.to_owned(), _monitor: monitor, osd: None };
        // The OSD never comes up if these two are not the same.
        ceph.run("ceph", &["osd", "new", &osd]);
        ceph.run("ceph-osd", &["-i", "0", "--mkfs", "--osd-uuid", &osd]);
        ceph.start_osd();
        ceph.run("ceph", &["osd", "pool", "create", "rbd", "8"]);
        ceph
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        must(command(&self.directory, program).args(arguments));
    }

    fn start_osd(&mut self) {
        self.osd = Some(spawn(&self.directory, "ceph-osd", "0"));
    }

    /// `kill -9`.
    fn kill_osd(&mut self) {
        drop(self.osd.take().expect("it runs"));
    }

    /// qemu-nbd over an image, with further options of librados.
    fn serve(&self, socket: &Path, options: &str) -> Guard {
        let _ = std::fs::remove_file(socket);
        let image = format!("rbd:rbd/img:conf={}{options}", text(&conf(&self.directory)));
        let mut qemu = tool("qemu-nbd");
        qemu.args(["-t", "-e", "8", "-f", "raw", "--cache=none", "--discard=unmap", "-x", "img"]);
        let child = qemu.arg("-k").arg(socket).arg(image).spawn().expect("qemu-nbd runs");
        let mut guard = Guard(child);
        while !socket.exists() {
            assert!(guard.0.try_wait().expect("a child").is_none(), "qemu-nbd has ended");
            std::thread::sleep(Duration::from_millis(20));
        }
        guard
    }
}

fn conf(directory: &Path) -> PathBuf {
    directory.join("ceph.conf")
}

fn new_uuid() -> String {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("a UUID");
    uuid.trim().to_owned()
}

fn configuration(directory: &Path, cluster: &str, address: &str) -> String {
    let here = directory.display();
    format!(
        "[global]\nfsid = {cluster}\nmon host = {address}\npublic network = 127.0.0.0/8\n\
         auth cluster required = none\nauth service required = none\nauth client required = none\n\
         run dir = {here}\nadmin socket = {here}/$cluster-$name.$pid.asok\npid file =\n\
         log file = {here}/$name.log\nmon cluster log file = {here}/cluster.log\n\
         mon allow pool size one = true\nmon data avail warn = 2\nmon data avail crit = 1\n\
         osd pool default size = 1\nosd pool default min size = 1\n\
         osd pool default pg autoscale mode = off\nosd crush chooseleaf type = 0\n\
         osd objectstore = bluestore\nbluestore block size = 2147483648\n\
         mon osd nearfull ratio = .97\nmon osd backfillfull ratio = .98\n\
         mon osd full ratio = .99\n\
         [mon.a]\nmon data = {here}/mon\n[osd.0]\nosd data = {here}/osd\n"
    )
}

fn command(directory: &Path, program: &str) -> Command {
    let mut command = tool(program);
    command.env("CEPH_CONF", conf(directory));
    command
}

fn spawn(directory: &Path, program: &str, id: &str) -> Guard {
    let log = File::create(directory.join(format!("{program}.out"))).expect("a file");
    let mut daemon = command(directory, program);
    daemon.args(["-f", "-i", id]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Guard(daemon.spawn().unwrap_or_else(|error| panic!("{program}: {error}")))
}

fn connection(daemon: &Daemon) -> serde_json::Value {
    daemon.status()["sets"][0]["volumes"][0]["backing"]["connection"].clone()
}

/// Kills the OSD under load, waits for the time that it is away, and brings it back.
fn kill_osd_under_load(ceph: &mut Ceph, daemon: &Daemon, counts: &Counts, away: Duration) {
    println!("before: {}", connection(daemon));
    ceph.kill_osd();
    let killed = Instant::now();
    let mut seen = String::new();
    while killed.elapsed() < away {
        let state = connection(daemon)["state"].to_string();
        if state != seen {
            println!("{:.1} s without OSD: {state}", killed.elapsed().as_secs_f64());
            seen = state;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let errors = counts.errors.load(Ordering::Relaxed);
    println!("the OSD was away for {} s: {errors} requests of clients failed", away.as_secs());
    ceph.start_osd();
    let started = Instant::now();
    while connection(daemon)["state"] != "connected" {
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("connected {:.1} s after its start", started.elapsed().as_secs_f64());
    // Some of them miss, or are written through: the OSD answers.
    counts.wait_for(200);
    println!(
        "200 requests {:.1} s after its start: {}",
        started.elapsed().as_secs_f64(),
        connection(daemon)
    );
}

#[test]
#[ignore = "installs a Ceph and takes minutes: cargo xtask ceph"]
fn a_file_system_on_an_image_of_ceph_outlives_its_osd_and_its_cache() {
    let scratch = scratch();
    let directory = scratch.path();
    let mut image = Image::make(directory);
    let place = directory.join("ceph");
    let mut ceph = Ceph::start(&place);
    ceph.run("rbd", &["create", "--size", "32M", "rbd/img"]);
    let socket = directory.join("rbd.sock");
    let uri = format!("nbd+unix:///img?socket={}", text(&socket));
    let server = ceph.serve(&socket, ":rados_osd_op_timeout=5");
    must(tool("nbdcopy").arg(&image.file).arg(&uri));
    let read_back = |file: &Path| {
        let _ = std::fs::remove_file(file);
        must(tool("nbdcopy").arg(&uri).arg(file));
    };
    let walk = Walk { io: "ring", directory, uri: PathBuf::from(&uri), read_back: &read_back };
    walk.adopt(&image);

    println!("-- rados_osd_op_timeout=5, OSD away for 15 s");
    let daemon = walk.serve(&NO_BYPASS);
    let away = Duration::from_secs(15);
    let counts = walk.load_and_kill(&mut image, daemon, |daemon, counts| {
        kill_osd_under_load(&mut ceph, daemon, counts, away);
    });
    println!("load: {counts:?}");
    let daemon = walk.serve(&STAYS_DIRTY);
    image.settle(&mut daemon.client("data"));
    walk.change(&mut image, &daemon, 0);
    daemon.stop();
    drop(server);

    println!("-- no timeout of librados, OSD away for 50 s");
    let server = ceph.serve(&socket, "");
    let mut writeback = NO_BYPASS.to_vec();
    writeback.extend(["--mode", "writeback"]);
    let daemon = walk.serve(&writeback);
    let away = Duration::from_secs(50);
    let counts = walk.load_and_kill(&mut image, daemon, |daemon, counts| {
        kill_osd_under_load(&mut ceph, daemon, counts, away);
    });
    println!("load: {counts:?}");
    let daemon = walk.serve(&STAYS_DIRTY);
    image.settle(&mut daemon.client("data"));
    walk.change(&mut image, &daemon, 1);
    daemon.stop();
    println!("{}", walk.log());
    walk.release(&mut image);
    drop(server);
}
