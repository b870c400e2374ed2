//! Ways in for clients: rights of sockets, sockets that the parent made, read-only exports,
//! networks.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Output;

use support::{Daemon, have, make_set, must, nbdsh, run, scratch, skipped, text, tool, ubcache};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Bug: sockets were for their owner only, so that QEMU under libvirt, which is another user, was
/// refused. Fix: they can be a group's.
#[test]
fn sockets_are_the_owners_or_a_groups() {
    let test = "sockets_are_the_owners_or_a_groups";
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let rights = |daemon: &Daemon| {
        let about = std::fs::metadata(&daemon.socket).expect("a socket");
        let control = std::fs::metadata(&daemon.control).expect("a socket");
        assert_eq!(control.permissions().mode() & 0o777, 0o600, "the control socket");
        (about.permissions().mode() & 0o777, about.gid())
    };
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    let (mode, own_group) = rights(&daemon);
    assert_eq!(mode, 0o600);
    daemon.stop();

    let group = must(tool("getent").args(["group", "daemon"]));
    let number: u32 = group.split(':').nth(2).and_then(|number| number.parse().ok()).expect("one");
    let options = ["--socket-mode", "0660", "--socket-group", "daemon"];
    match Daemon::try_start("pool", directory.path(), &cache, &backings, &options) {
        Ok(daemon) => {
            assert_eq!(rights(&daemon), (0o660, number));
            daemon.client("disk0.img").read(0, &mut [0; 512]).expect("it is served");
            daemon.stop();
        }
        Err((_, said)) if said.contains("giving it to the group") => {
            skipped(test, "the group of the socket: not root");
        }
        Err((_, said)) => panic!("{said}"),
    }
    let options = ["--socket-mode", "0666"];
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &options);
    assert_eq!(rights(&daemon), (0o666, own_group));
    daemon.stop();

    for (options, found) in [
        (["--socket-group", "no-such-group"], "there is no such group; `getent group` lists them"),
        (["--socket-mode", "0999"], "expected permissions in octal"),
        (["--socket-mode", "1777"], "expected permissions in octal"),
        (["--allow", "10.0.0.0/40"], "is not a network"),
    ] {
        let cache = text(&cache);
        let refused =
            run(&[&["serve", "-C", cache, "-B", text(&backings[0])], &options[..]].concat());
        assert_eq!(refused.status.code(), Some(2), "{options:?}");
        assert!(stderr(&refused).contains(found), "{options:?}: {}", stderr(&refused));
    }
}

/// libnbd starts the server, passes it a listening socket, and stops it when it has what it wants.
#[test]
fn libnbd_starts_the_server_itself() {
    let test = "libnbd_starts_the_server_itself";
    if !have(test, &["nbdinfo"]) {
        return;
    }
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let control = directory.path().join("control.sock");
    for _ in 0..2 {
        // The server's own words come first.
        let said = must(
            tool("nbdinfo")
                .args(["--size", "--", "[", env!("CARGO_BIN_EXE_ubcache"), "serve"])
                .args(["-C", text(&cache), "-B", text(&backings[0])])
                .args(["--control", text(&control), "]"]),
        );
        assert_eq!(said.lines().last(), Some("16769024"), "{said}");
        assert!(!directory.path().join("control.nbd").exists(), "no socket of its own");
        // nbdinfo does not wait for the end of the server.
        while control.exists() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        must(ubcache().arg("check").arg(&cache));
    }
}

/// A descriptor that is no listening socket is refused, by what it is.
#[test]
fn passed_descriptors_that_are_no_listeners_are_refused() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    for (open, count, found) in [
        ("3</dev/null", "1", "/dev/null"),
        ("3<&-", "1", "not open"),
        ("3</dev/null", "many", "LISTEN_FDS is \"many\""),
    ] {
        let script =
            format!("exec {open}; export LISTEN_PID=$$ LISTEN_FDS={count}; exec \"$0\" \"$@\"");
        let refused = tool("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_ubcache"), "serve"])
            .args(["-C", text(&cache), "-B", text(&backings[0])])
            .arg("--control")
            .arg(directory.path().join("control.sock"))
            .output()
            .expect("sh runs");
        assert_eq!(refused.status.code(), Some(2), "{open}: {}", stderr(&refused));
        assert!(stderr(&refused).contains(found), "{open}: {}", stderr(&refused));
    }
}

#[test]
fn one_export_is_read_only_and_the_other_is_not() {
    let test = "one_export_is_read_only_and_the_other_is_not";
    if !have(test, &["nbdsh"]) {
        return;
    }
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16, 16], &[]);
    let options = ["--read-only=disk1.img"];
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &options);
    let writes = "
import errno
h.set_strict_mode(0)
def outcome(call):
    try:
        call()
    except nbd.Error as error:
        return error.errnum
found = [outcome(call) for call in [
    lambda: h.pwrite(b'x' * 512, 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)]]
";
    let denied = format!("{writes}\nassert h.is_read_only() and found == [errno.EPERM] * 3, found");
    let allowed = format!("{writes}\nassert not h.is_read_only() and found == [None] * 3, found");
    if !nbdsh(&daemon.uri("disk1.img"), &denied) {
        return skipped(test, "no libnbd for Python");
    }
    nbdsh(&daemon.uri("disk0.img"), &allowed);
    daemon.stop();
    let options = ["--read-only=disk9.img"];
    let refused = Daemon::try_start("pool", directory.path(), &cache, &backings, &options);
    let (status, said) = refused.err().expect("there is no disk9.img");
    assert_eq!(status.code(), Some(2));
    assert!(said.contains("one of disk0.img, disk1.img"), "{said}");
}

#[test]
fn clients_of_other_networks_are_disconnected() {
    let test = "clients_of_other_networks_are_disconnected";
    if !have(test, &["nbdinfo"]) {
        return;
    }
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    for (network, allowed) in [("10.0.0.0/8", false), ("127.0.0.0/8", true)] {
        let options = ["--nbd", "tcp:127.0.0.1:0", "--insecure-tcp", "--allow", network];
        let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &options);
        let line =
            daemon.greeting.iter().find(|line| line.contains(" nbd://")).expect("an address");
        let uri = line.rsplit_once(' ').expect("words").1;
        let info = tool("nbdinfo").args(["--size", uri]).output().expect("nbdinfo runs");
        assert_eq!(info.status.success(), allowed, "{network}: {}", stderr(&info));
        // Unix sockets have their own rights.
        must(tool("nbdinfo").arg("--size").arg(daemon.uri("disk0.img")));
        daemon.stop();
    }
    let log = std::fs::read_to_string(directory.path().join("serve.log")).expect("a log");
    assert_eq!(log.matches("its address is not in --allow").count(), 1, "{log}");
    assert!(log.contains("127.0.0.1"), "{log}");
}
