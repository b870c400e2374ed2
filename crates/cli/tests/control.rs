//! The control protocol and the commands that speak it.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use support::{Daemon, each_io, make_set, must, run, scratch, text, ubcache};

#[test]
fn status_json_has_all_documented_fields() {
    each_io("status_json_has_all_documented_fields", |io, directory| {
        let (cache, backings) = make_set(directory, &[16, 24], &[]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        let mut client = daemon.client("disk1.img");
        client.write(0, &[1; 8192], true).expect("a write");
        client.read(0, &mut [0; 8192]).expect("a read");
        let status = daemon.status();
        assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
        let set = &status["sets"][0];
        assert_eq!(set["uuid"].as_str().map(str::len), Some(36));
        assert_eq!(set["cache"]["path"], text(&cache));
        assert_eq!(set["cache"]["size_bytes"], 64 << 20);
        assert_eq!(set["cache"]["bucket_bytes"], 64 << 10);
        for counter in
            ["reads", "read_bytes", "writes", "written_bytes", "flushes", "available_percent"]
        {
            assert!(set["cache"][counter].is_number(), "{counter} of the cache: {set}");
        }
        for counter in ["bytes", "extents", "in_flight", "copies", "unflushed", "ghosts", "streams"]
        {
            assert!(set["memory"][counter].is_u64(), "{counter} of the memory: {set}");
        }
        let volumes = set["volumes"].as_array().expect("volumes");
        assert_eq!(volumes.len(), 2);
        for (volume, (name, mib)) in volumes.iter().zip([("disk0.img", 16_u64), ("disk1.img", 24)])
        {
            assert_eq!(volume["name"], name);
            assert_eq!(volume["size_bytes"], (mib << 20) - 8192);
            assert_eq!(volume["mode"], "writethrough");
            assert_eq!(volume["state"], "clean");
            assert_eq!(volume["dirty_bytes"], 0);
            for counter in ["reads", "read_bytes", "writes", "written_bytes", "flushes"] {
                assert!(
                    volume["backing"][counter].is_u64(),
                    "{counter} of the backing device: {volume}"
                );
            }
            for counter in [
                "cache_hits",
                "cache_misses",
                "cache_bypass_hits",
                "cache_bypass_misses",
                "bypassed_bytes",
                "cache_miss_collisions",
                "fills_doomed",
                "durable_invalidations",
            ] {
                assert!(volume["stats"][counter].is_u64(), "{counter}: {volume}");
            }
        }
        assert!(volumes[1]["backing"]["written_bytes"].as_u64() >= Some(8192));
        let table = must(ubcache().args(["status", "--control"]).arg(&daemon.control));
        assert!(
            table.contains("disk0.img") && table.contains("disk1.img") && table.contains("hit"),
            "{table}"
        );
        daemon.stop();
    });
}

#[test]
fn attributes_are_set_and_read_by_sysfs_names() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16, 16], &[]);
    let settings =
        ["--set", "sequential_cutoff=1M", "--set", "journal_delay_ms=50", "--mode", "writearound"];
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &settings);
    let get = |name: &str, more: &[&str]| {
        must(ubcache().args(["get", name]).args(more).arg("--control").arg(&daemon.control))
            .trim()
            .to_owned()
    };
    let one = ["--volume", "disk0.img"];
    assert_eq!(get("sequential_cutoff", &one), "1.0M");
    assert_eq!(get("journal_delay_ms", &[]), "50");
    assert_eq!(get("cache_mode", &one), "writethrough writeback [writearound] none");
    must(
        ubcache()
            .args(["set", "--volume", "disk0.img", "cache_mode=none", "--control"])
            .arg(&daemon.control),
    );
    assert_eq!(get("cache_mode", &one), "writethrough writeback writearound [none]");
    assert_eq!(
        get("cache_mode", &["--volume", "disk1.img"]),
        "writethrough writeback [writearound] none"
    );
    must(ubcache().args(["gc", "--control"]).arg(&daemon.control));
    for (arguments, words) in [
        (&["set", "cache_mode=fast"][..], &["fast", "writethrough"][..]),
        (&["set", "no_such_thing=1"], &["no_such_thing"]),
        (&["get", "no_such_thing"], &["no_such_thing"]),
        (&["get", "cache_mode", "--volume", "nobody"], &["nobody"]),
    ] {
        let output = ubcache()
            .args(arguments)
            .arg("--control")
            .arg(&daemon.control)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
    daemon.stop();
    // The mode is in the superblock: it outlives the daemon.
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    assert_eq!(daemon.status()["sets"][0]["volumes"][0]["mode"], "none");
    assert_eq!(daemon.status()["sets"][0]["volumes"][1]["mode"], "writearound");
    daemon.stop();
}

#[test]
fn invalid_setting_ends_serve_before_it_is_ready() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    for setting in [&["--mode", "fast"][..], &["--set", "no_such_thing=1"], &["--set", "nothing"]] {
        let failed = Daemon::try_start("pool", directory.path(), &cache, &backings, setting);
        let (status, said) = failed.err().expect("serve does not become ready");
        assert_eq!(status.code(), Some(2), "{said}");
    }
    Daemon::start("pool", directory.path(), &cache, &backings, &[]).stop();
}

#[test]
fn control_protocol_is_one_line_each_way() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    let mode = std::fs::metadata(&daemon.control).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the control socket is for its owner only");
    let mut stream = UnixStream::connect(&daemon.control).expect("the daemon answers");
    let mut answers = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut ask = |line: &[u8]| {
        stream.write_all(line).expect("the daemon reads");
        let mut answer = String::new();
        answers.read_line(&mut answer).expect("the daemon answers");
        serde_json::from_str::<serde_json::Value>(&answer).expect("JSON")
    };
    assert_eq!(
        ask(b"{\"command\":\"get\",\"name\":\"writeback_percent\"}\n")["result"]["disk0.img"],
        "10"
    );
    assert_eq!(ask(b"rubbish\n")["ok"], false);
    assert_eq!(ask(b"{\"command\":\"dance\"}\n")["ok"], false);
    assert_eq!(ask(b"\xff\xfe\n")["ok"], false);
    assert_eq!(ask(b"{\"command\":\"status\"}\n")["result"]["sets"][0]["state"], "running");
    assert_eq!(ask(b"{\"command\":\"stop\"}\n")["ok"], true);
    daemon.wait();
    assert_eq!(
        run(&["status", "--control", text(&directory.path().join("control.sock"))]).status.code(),
        Some(2)
    );
}

#[test]
fn sigterm_is_a_clean_stop() {
    each_io("sigterm_is_a_clean_stop", |io, directory| {
        let (cache, backings) = make_set(directory, &[16], &[]);
        for signal in ["-TERM", "-INT"] {
            let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
            let mut client = daemon.client("disk0.img");
            client.write(0, &[3; 4096], false).expect("a write");
            must(support::tool("kill").arg(signal).arg(daemon.id().to_string()));
            let socket = daemon.socket.clone();
            daemon.wait();
            assert!(!socket.exists(), "the socket is removed");
        }
    });
}

#[test]
fn a_volume_is_detached_and_attached_while_it_is_served() {
    each_io("a_volume_is_detached_and_attached_while_it_is_served", |io, directory| {
        let (cache, backings) = make_set(directory, &[16, 16], &[]);
        let settings = ["--mode", "writeback", "--set", "writeback_running=0"];
        let daemon = Daemon::start(io, directory, &cache, &backings, &settings);
        let mut client = daemon.client("disk0.img");
        client.write(1 << 20, &[7; 65536], false).expect("a write");
        let volume = || daemon.status()["sets"][0]["volumes"][0].clone();
        assert_eq!(
            (&volume()["state"], &volume()["dirty_bytes"]),
            (&"dirty".into(), &65536.into())
        );
        let control = |words: &[&str]| {
            let output = ubcache().args(words).arg("--control").arg(&daemon.control).output();
            let output = output.expect("ubcache runs");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (output.status.success(), text(&output.stdout), text(&output.stderr))
        };
        let unnamed = control(&["detach"]);
        assert!(!unnamed.0 && unnamed.2.contains("several exports (disk0.img, "), "{unnamed:?}");
        assert_eq!(control(&["detach", "disk0.img"]).1, "disk0.img: detached\n");
        assert_eq!((&volume()["state"], &volume()["dirty_bytes"]), (&"no cache".into(), &0.into()));
        let mut bytes = [0; 65536];
        std::os::unix::fs::FileExt::read_exact_at(
            &std::fs::File::open(&backings[0]).expect("the backing file"),
            &mut bytes,
            8192 + (1 << 20),
        )
        .expect("its content");
        assert!(bytes.iter().all(|&byte| byte == 7), "what was dirty is on the backing device");
        let again = control(&["detach", "disk0.img"]);
        assert!(!again.0 && again.2.contains("not attached"), "{again:?}");
        client.write(1 << 20, &[8; 4096], true).expect("a write past the cache");
        assert_eq!(control(&["attach", "disk0.img", "--json"]).1, "{\"attached\":\"disk0.img\"}\n");
        assert_eq!(volume()["state"], "clean");
        let mut bytes = [0; 8192];
        client.read(1 << 20, &mut bytes).expect("a read");
        assert!(
            bytes[..4096].iter().all(|&byte| byte == 8)
                && bytes[4096..].iter().all(|&byte| byte == 7)
        );
        daemon.stop();
    });
}
