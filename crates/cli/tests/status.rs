//! `ubcache status` as a monitor uses it, and the messages to systemd.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::{
    Daemon, Guard, have, make_set, must, run, scratch, serve_command, text, tool, ubcache,
};

const DETACHED: &str = "the volume disk0.img is detached";

fn said(output: &Output) -> (Option<i32>, String) {
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.code(), said)
}

/// The exit code was 0 whatever had failed.
#[test]
fn the_exit_code_of_status_is_the_health_of_the_set() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &["--writeback"]);
    let settings = ["--set", "writeback_running=0"];
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &settings);
    let (code, table) = daemon.look(&[]);
    assert_eq!(code, 0, "{table}");
    assert!(table.contains("running, healthy") && !table.contains("warning"), "{table}");
    daemon.client("disk0.img").write(0, &[7; 65536], true).expect("a write");
    let (code, table) = daemon.look(&[]);
    assert_eq!(code, 0, "{table}");
    for words in ["64k to write back, but it is off", "% filled", "% dirty", "is switched off"] {
        assert!(table.contains(words), "{words} is missing in: {table}");
    }
    let report = daemon.status();
    let set = &report["sets"][0];
    assert_eq!((&set["health"], &set["cache"]["dirty_bytes"]), (&"healthy".into(), &65536.into()));
    let writeback = &set["volumes"][0]["writeback"];
    assert_eq!((&writeback["state"], &writeback["seconds_left"]), (&"off".into(), &().into()));
    must(ubcache().args(["detach", "--control"]).arg(&daemon.control));
    let (code, table) = daemon.look(&[]);
    assert!(code == 1 && table.contains("running, degraded"), "{code}: {table}");
    assert!(table.contains(DETACHED), "{table}");
    let writeback = daemon.status()["sets"][0]["volumes"][0]["writeback"].clone();
    assert_eq!(
        (&writeback["written_bytes"], &writeback["seconds_left"]),
        (&65536.into(), &0.into())
    );
    daemon.stop();
    for arguments in [&["status", "--nonsense"][..], &["status", "--watch", "0"]] {
        assert_eq!(run(arguments).status.code(), Some(4), "{arguments:?}");
    }
}

/// A user who may not use the socket was told that there is no daemon.
#[test]
fn permission_denied_is_not_no_daemon() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    let forbidden = std::fs::Permissions::from_mode(0o000);
    std::fs::set_permissions(&daemon.control, forbidden).expect("an own socket");
    // Modes mean nothing to root with all capabilities: without them they do.
    let is_root = must(tool("id").arg("-u")).trim() == "0";
    let as_stranger = |arguments: &[&str]| {
        let mut command = if is_root { tool("setpriv") } else { tool("env") };
        if is_root {
            command.arg("--bounding-set=-dac_override,-dac_read_search").arg("--");
        }
        command.arg(env!("CARGO_BIN_EXE_ubcache")).args(arguments);
        said(&command.arg("--control").arg(&daemon.control).output().expect("it runs"))
    };
    if is_root && !have("permission_denied_is_not_no_daemon", &["setpriv"]) {
        return;
    }
    for (arguments, expected) in [(&["status"][..], 4), (&["stop"], 2), (&["get", "state"], 2)] {
        let (code, said) = as_stranger(arguments);
        assert_eq!(code, Some(expected), "{said}");
        assert!(said.contains("permission denied") && said.contains("sudo"), "{said}");
        assert!(!said.contains("no daemon"), "{said}");
    }
    std::fs::set_permissions(&daemon.control, std::fs::Permissions::from_mode(0o600))
        .expect("an own socket");
    daemon.stop();
}

/// With two daemons, `status` was refused, and one could be chosen by its socket only.
#[test]
fn several_daemons_are_shown_at_once_and_chosen_by_name() {
    let directory = scratch();
    let sockets = directory.path().join("ubcache");
    std::fs::create_dir(&sockets).expect("a directory");
    let start = |label: &str| {
        let home = directory.path().join(label);
        std::fs::create_dir(&home).expect("a directory");
        let (cache, backings) = make_set(&home, &[16], &["--label", label]);
        let (mut command, socket, _, log) = serve_command("pool", &home, &cache, &backings, &[]);
        let control = sockets.join(format!("{label}.sock"));
        command.arg("--control").arg(&control);
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        // The first --control is that of the helper.
        let at = arguments.iter().position(|it| it == "--control").expect("a control socket");
        let mut again = ubcache();
        again.args(arguments[..at].iter().chain(&arguments[at + 2..]));
        again.env("UBCACHE_IO", "pool").stdout(Stdio::piped()).stderr(Stdio::null());
        let started = Daemon::try_start_command((again, socket, control, log));
        started.unwrap_or_else(|(status, said)| panic!("{status}: {said}"))
    };
    let (one, two) = (start("one"), start("two"));
    let uuid = |daemon: &Daemon| daemon.status()["sets"][0]["uuid"].as_str().map(str::to_owned);
    let (first, second) = (uuid(&one).expect("a UUID"), uuid(&two).expect("a UUID"));
    let ask = |arguments: &[&str]| {
        let mut command = ubcache();
        command.args(arguments).env("XDG_RUNTIME_DIR", directory.path());
        said(&command.output().expect("it runs"))
    };
    let (code, table) = ask(&["status"]);
    assert!(table.contains(&first) && table.contains(&second), "{code:?}: {table}");
    for name in ["two", second.as_str(), &second[..8]] {
        let (code, table) = ask(&["status", "--daemon", name]);
        assert_eq!(code, Some(0), "{table}");
        assert!(table.contains(&second) && !table.contains(&first), "{name}: {table}");
    }
    assert_eq!(ask(&["get", "cache_mode", "--daemon", "one"]).0, Some(0));
    let (code, refused) = ask(&["get", "cache_mode"]);
    assert_eq!(code, Some(2), "{refused}");
    for word in [first.as_str(), second.as_str(), "(one)", "(two)", "--daemon NAME"] {
        assert!(refused.contains(word), "{word} is missing in: {refused}");
    }
    assert_eq!(ask(&["status", "--daemon", "three"]).0, Some(3));
    assert_eq!(ask(&["stop", "--daemon", "one"]).0, Some(0));
    one.wait();
    two.stop();
}

#[test]
fn status_is_shown_again_and_again() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    let mut command = ubcache();
    command.args(["status", "--json", "--watch", "1", "--control"]).arg(&daemon.control);
    let mut child = Guard(command.stdout(Stdio::piped()).spawn().expect("ubcache runs"));
    let lines = BufReader::new(child.0.stdout.take().expect("a pipe")).lines();
    for line in lines.take(3) {
        let report: serde_json::Value =
            serde_json::from_str(&line.expect("a line")).expect("an object a line");
        assert_eq!(report["sets"][0]["health"], "healthy");
    }
    daemon.stop();
    assert_eq!(child.0.wait().expect("it ends with the daemon").code(), Some(3));
}

/// Receives messages up to one that has this line.
fn receive(systemd: &UnixDatagram, wanted: &str) -> String {
    let mut bytes = [0; 4096];
    loop {
        let count = systemd.recv(&mut bytes).expect("a message");
        let message = String::from_utf8_lossy(&bytes[..count]).into_owned();
        if message.lines().any(|line| line.starts_with(wanted)) {
            return message;
        }
    }
}

fn under_systemd(
    directory: &Path,
    socket: &Path,
    cache: &Path,
    backings: &[PathBuf],
) -> (Command, PathBuf, PathBuf, PathBuf) {
    let mut command = serve_command("pool", directory, cache, backings, &[]);
    command.0.env("NOTIFY_SOCKET", socket).env("WATCHDOG_USEC", "100000");
    command
}

#[test]
fn systemd_gets_ready_status_watchdog_and_stopping() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let socket = directory.path().join("notify");
    let systemd = UnixDatagram::bind(&socket).expect("a socket");
    let command = under_systemd(directory.path(), &socket, &cache, &backings);
    let started = Daemon::try_start_command(command);
    let daemon = started.unwrap_or_else(|(status, said)| panic!("{status}: {said}"));
    receive(&systemd, "READY=1");
    let status = receive(&systemd, "STATUS=");
    assert!(status.contains("running; 1 volumes, 0 clients"), "{status}");
    for _ in 0..5 {
        receive(&systemd, "WATCHDOG=1");
    }
    let control = daemon.control.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| must(ubcache().arg("stop").arg("--control").arg(&control)));
        receive(&systemd, "STOPPING=1");
    });
    daemon.wait();
}

/// Messages went out from the thread that serves, which a manager that reads none of them stopped.
#[test]
fn a_service_manager_that_does_not_read_stops_no_volume() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let socket = directory.path().join("notify");
    let _systemd = UnixDatagram::bind(&socket).expect("a socket");
    let mut command = under_systemd(directory.path(), &socket, &cache, &backings);
    command.0.env("WATCHDOG_USEC", "2000");
    let started = Daemon::try_start_command(command);
    let daemon = started.unwrap_or_else(|(status, said)| panic!("{status}: {said}"));
    let mut client = daemon.client(text(Path::new("disk0.img")));
    // A few hundred messages find room in a socket.
    std::thread::sleep(std::time::Duration::from_secs(2));
    client.write(0, &[7; 4096], true).expect("a write");
    client.read(0, &mut [0; 4096]).expect("a read");
    daemon.stop();
}
