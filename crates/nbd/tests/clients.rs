//! The server against the clients in common use, over a Unix socket and the real reactor. The test
//! skips a client that is not installed, and reports it.
#![allow(
    clippy::disallowed_methods,
    reason = "the clients run beside the server, so a thread waits for them"
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::thread;

use support::volume::MemoryVolume;
use ubcache_env::{Env, Nanos, Priority, StreamId};
use ubcache_host::{Host, HostListener, IoBackend};
use ubcache_nbd::{Exports, ServerOptions, serve_connection};

const SECTORS: u64 = 64 << 11;

/// Directory and socket under which the clients find the server.
struct ServerDirectory {
    directory: tempfile::TempDir,
}

impl ServerDirectory {
    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }
    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }
}

/// Serves two volumes, with both backends, while the clients run. No connection may go wrong.
fn serve(clients: fn(&ServerDirectory)) {
    for backend in [IoBackend::Ring, IoBackend::Pool] {
        match Host::new(backend) {
            Ok(host) => serve_on(&host, clients),
            Err(error) => println!("skipped: no backend {backend:?} here: {error}"),
        }
    }
}

fn serve_on(host: &Host, clients: fn(&ServerDirectory)) {
    let place = ServerDirectory { directory: tempfile::tempdir().expect("a directory") };
    let env = host.env();
    let listener = HostListener::bind_unix(&env, place.socket()).expect("a socket");
    let exports = Rc::new(Exports::new());
    exports.add(MemoryVolume::new("first", SECTORS)).expect("new");
    let second = MemoryVolume::new("second", 2048);
    second.info.borrow_mut().read_only = true;
    exports.add_as("second".into(), "cannot be written".into(), second).expect("new");
    let spawner = env.clone();
    let accepting = async move {
        let mut stream = 0;
        while let Ok(socket) = listener.accept().await {
            stream += 1;
            let serving = serve_connection(
                spawner.clone(),
                Rc::new(socket),
                exports.clone(),
                ServerOptions::default(),
                StreamId(stream),
            );
            spawner.spawn(Priority::Foreground, async move {
                if let Err(error) = serving.await {
                    eprintln!("connection {stream}: {error}");
                }
            });
        }
    };
    env.spawn(Priority::Foreground, accepting);
    let running = thread::spawn(move || clients(&place));
    host.block_on(async {
        while !running.is_finished() {
            env.sleep(Nanos::from_millis(5)).await;
        }
    });
    running.join().expect("the clients are content");
}

/// Runs a program and gives what it printed; `None` if it is not installed.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: {program} is not installed");
            return None;
        }
        Err(error) => panic!("{program}: {error}"),
    };
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{printed}\n{complaints}",
        output.status
    );
    Some(printed)
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

/// Pages of content and pages of zeroes.
fn content(len: usize) -> Vec<u8> {
    let byte = |at: usize| {
        if (at >> 16).is_multiple_of(3) { 0 } else { (at as u32).wrapping_mul(0x9e37_79b1) >> 24 }
    };
    (0..len).map(|at| byte(at) as u8).collect()
}

#[test]
fn nbdinfo() {
    serve(|place| {
        let Some(printed) = run("nbdinfo", &["--json", &place.uri("second")]) else { return };
        for expected in [
            "\"export-name\": \"second\"",
            "\"description\": \"cannot be written\"",
            "\"export-size\": 1048576",
            "\"is_read_only\": true",
            "\"can_multi_conn\": true",
            "\"can_df\": true",
            "\"structured\": true",
            "\"base:allocation\"",
            "\"block_size_minimum\": 1,",
            "\"block_size_preferred\": 4096",
            "\"block_size_maximum\": 33554432",
        ] {
            assert!(printed.contains(expected), "{expected} is missing: {printed}");
        }
        let listed = run("nbdinfo", &["--list", &place.uri("")]).expect("installed");
        assert!(
            listed.contains("export=\"first\"") && listed.contains("export=\"second\""),
            "{listed}"
        );
        assert!(
            run("nbdinfo", &["--map", &place.uri("first")])
                .expect("installed")
                .contains("hole,zero")
        );
        run("nbdinfo", &["--can", "fast-zero", &place.uri("first")]);
    });
}

#[test]
fn nbdcopy_and_qemu_img() {
    serve(|place| {
        let (source, back) = (place.file("source"), place.file("back"));
        std::fs::write(&source, content(SECTORS as usize * 512)).expect("written");
        let uri = place.uri("first");
        if run("nbdcopy", &["--connections=4", path(&source), &uri]).is_some() {
            run("nbdcopy", &["--connections=4", "--request-size=1048576", &uri, path(&back)]);
            assert!(std::fs::read(&source).expect("read") == std::fs::read(&back).expect("read"));
            run("nbdcopy", &["--synchronous", path(&source), &uri]);
        }
        if run("qemu-img", &["info", "--image-opts", &image(place)]).is_none() {
            return;
        }
        run(
            "qemu-img",
            &["convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8", path(&source), &uri],
        );
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", path(&source), &uri]);
        let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &uri]).expect("installed");
        assert!(map.contains("\"data\": false"), "{map}");
    });
}

fn image(place: &ServerDirectory) -> String {
    format!(
        "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export=first",
        path(&place.socket())
    )
}

#[test]
fn qemu_io() {
    serve(|place| {
        let uri = place.uri("first");
        let commands = [
            "write -P 0x5a 64k 1M",
            "write -f -P 0x11 512 1024",
            "read -P 0x5a 64k 1M",
            "read -P 0x11 512 1024",
            "write -z 128k 64k",
            "write -z -u 256k 64k",
            "read -P 0 128k 64k",
            "read -P 0x5a 192k 64k",
            "read -P 0 256k 64k",
            "discard 64k 64k",
            "aio_write -P 0x33 2M 16M",
            "aio_write -P 0x44 20M 16M",
            "aio_flush",
            "read -P 0x33 2M 16M",
            "read -P 0x44 20M 16M",
            "flush",
        ];
        let mut arguments = vec!["-f", "raw"];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        arguments.push(&uri);
        let Some(printed) = run("qemu-io", &arguments) else { return };
        assert!(!printed.contains("failed") && !printed.contains("error"), "{printed}");
    });
}

#[test]
fn fio() {
    if !run("fio", &["--enghelp"]).is_some_and(|engines| engines.contains("nbd")) {
        println!("skipped: fio is not installed or has no engine for NBD");
        return;
    }
    serve(|place| {
        for (name, blocks) in [("small", "4k-4k"), ("mixed", "512-256k")] {
            let output = place.file("output");
            run(
                "fio",
                &[
                    &format!("--name={name}"),
                    "--ioengine=nbd",
                    &format!("--uri={}", place.uri("first")),
                    "--rw=randwrite",
                    &format!("--bsrange={blocks}"),
                    "--iodepth=32",
                    "--size=48m",
                    "--verify=crc32c",
                    "--verify_fatal=1",
                    "--randrepeat=1",
                    &format!("--output={}", path(&output)),
                    &format!("--aux-path={}", path(place.directory.path())),
                ],
            );
            let report = std::fs::read_to_string(&output).expect("a report");
            assert!(report.contains("err= 0"), "{report}");
        }
    });
}
