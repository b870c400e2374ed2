//! The commands that talk to a daemon.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::os::unix::fs::PermissionsExt;

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
        assert!(!said.contains(text(&daemon.control)), "the message is about a socket: {said}");
    }
    daemon.stop();
    // The mode is in the superblock: it outlives the daemon.
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    assert_eq!(daemon.status()["sets"][0]["volumes"][0]["mode"], "none");
    assert_eq!(daemon.status()["sets"][0]["volumes"][1]["mode"], "writearound");
    daemon.stop();
}

/// `get` without a name, an unknown name, and a switch that is 2: nothing listed all attributes,
/// the list after an unknown name lacked those of volumes, and 2 became 1 without a word. Messages
/// began with the path of the socket.
#[test]
fn all_attributes_are_listed_and_unknown_ones_refused_with_the_list() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16, 16], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    let control = ["--control", text(&daemon.control)];
    let listed = must(ubcache().arg("get").args(control));
    for line in [
        "set journal_delay_ms: 100",
        "set discard: 0",
        "disk0.img cache_mode: [writethrough] writeback writearound none",
        "disk1.img state: clean",
        "disk1.img writeback_rate_debug: rate: 512.0k/sec",
    ] {
        assert!(listed.lines().any(|found| found.starts_with(line)), "{line}:\n{listed}");
    }
    // Every name in the list is known to `get` as well.
    for line in listed.lines() {
        let name = line.split(':').next().and_then(|names| names.rsplit(' ').next());
        must(ubcache().arg("get").arg(name.expect("a name")).args(control));
    }
    let one = must(ubcache().args(["get", "--json", "--volume", "disk1.img"]).args(control));
    let one: serde_json::Value = serde_json::from_str(&one).expect("JSON");
    assert_eq!(one["volumes"]["disk1.img"]["writeback_percent"], "10", "{one}");
    assert_eq!(one["volumes"].as_object().map(serde_json::Map::len), Some(1), "{one}");
    assert!(one.get("set").is_none(), "{one}");
    let refused = |words: &[&str]| {
        let output = run(&[words, &control].concat());
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for words in [&["set", "cache_mod=x"][..], &["get", "NONSENSE"]] {
        let said = refused(words);
        assert!(said.starts_with(&format!("ubcache: {}: there is no attr", words[0])), "{said}");
        for word in ["cache_mode", "dirty_data", "journal_delay_ms", "cache_available_percent"] {
            assert!(said.contains(word), "{word} is missing in: {said}");
        }
    }
    let said = refused(&["get", "NONSENSE", "--volume", "disk0.img"]);
    assert!(said.contains("cache_mode") && !said.contains("journal_delay_ms"), "{said}");
    for switch in ["discard=2", "writeback_running=7"] {
        let said = refused(&["set", switch]);
        assert!(said.contains("expected 0 or 1"), "{said}");
    }
    daemon.stop();
}

/// A label with a newline split the `export` line of `serve`, and could pass itself off as
/// another line, and as a line of `status` and `get`.
#[test]
fn label_with_a_newline_stays_on_its_line() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16, 16], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    let control = ["--control", text(&daemon.control)];
    must(ubcache().args(["set", "--volume", "disk0.img", "label=x\nready: \x1b[1m"]).args(control));
    let labels = must(ubcache().args(["get", "label"]).args(control));
    assert_eq!(labels, "disk0.img: x\\nready: \\u{1b}[1m\ndisk1.img: \n");
    daemon.stop();
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    let exports = daemon.greeting.iter().filter(|line| line.starts_with("export ")).count();
    assert_eq!((exports, daemon.greeting.len()), (2, 3), "{:?}", daemon.greeting);
    assert!(daemon.greeting[2].starts_with("ready: set "), "{:?}", daemon.greeting);
    assert!(daemon.greeting[0].starts_with("export x\\nready: \\u{1b}[1m "));
    let control = ["--control", text(&daemon.control)];
    for output in ["status", "get"] {
        let said = must(ubcache().arg(output).args(control));
        assert!(!said.contains('\x1b') && !said.contains("\nready"), "{said}");
    }
    daemon.stop();
}

/// `writeback_rate_debug` said that nothing is dirty until the next update of the rate.
#[test]
fn rate_debug_shows_the_dirty_data_of_now() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let settings = ["--mode", "writeback", "--set", "writeback_running=0"];
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &settings);
    daemon.client("disk0.img").write(0, &[1; 65536], false).expect("a write");
    let debug =
        must(ubcache().args(["get", "writeback_rate_debug", "--control"]).arg(&daemon.control));
    assert!(debug.contains("dirty:\t\t64.0k\n"), "{debug}");
    daemon.stop();
}

/// After `mkfs`, which discards the whole disk, `status` said that gigabytes had bypassed the
/// cache; and no figure said how full the cache is.
#[test]
fn discards_are_not_counted_as_bypassed_and_status_says_how_full_the_cache_is() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[64], &[]);
    let settings = ["--set", "congested_write_threshold_us=0", "--set", "sequential_cutoff=0"];
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &settings);
    let mut client = daemon.client("disk0.img");
    client.trim(0, 32 << 20).expect("a discard");
    assert_eq!(daemon.number(0, "/stats/bypassed_bytes"), 0);
    let filled = || daemon.status()["sets"][0]["cache"]["filled_percent"].as_u64();
    let before = filled().expect("a number");
    client.write(0, &vec![7; 32 << 20], false).expect("a write");
    let after = filled().expect("a number");
    assert!((before + 45..=before + 60).contains(&after), "{before} {after}");
    let table = must(ubcache().args(["status", "--control"]).arg(&daemon.control));
    assert!(table.contains(&format!("{after}% filled, ")), "{table}");
    daemon.stop();
}

/// `status` as another user said that there is no daemon.
#[test]
fn socket_of_another_user_is_not_taken_for_no_daemon() {
    let test = "socket_of_another_user_is_not_taken_for_no_daemon";
    let directory = scratch();
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let may = support::tool("setpriv").args(nobody).arg("true").output();
    if !may.is_ok_and(|output| output.status.success()) {
        support::skipped(test, "may not change the user");
        return;
    }
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let sockets = directory.path().join("ubcache");
    std::fs::create_dir(&sockets).expect("a directory");
    for path in [directory.path(), &sockets] {
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(path, open).expect("the owner may");
    }
    let daemon = Daemon::start("pool", &sockets, &cache, &backings, &[]);
    let output = support::tool("setpriv")
        .args(nobody)
        .arg(env!("CARGO_BIN_EXE_ubcache"))
        .arg("status")
        .env("XDG_RUNTIME_DIR", directory.path())
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    let socket = text(&daemon.control);
    assert!(said.contains(socket) && said.contains("permission denied"), "{said}");
    daemon.stop();
}

#[test]
fn invalid_setting_ends_serve_before_it_is_ready() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    // Of two values for one attribute the last one won, silently.
    let twice = ["--mode", "none", "--set", "cache_mode=writeback"];
    for setting in [
        &["--mode", "fast"][..],
        &["--set", "no_such_thing=1"],
        &["--set", "nothing"],
        &["--set", "discard=2"],
        &twice,
    ] {
        let failed = Daemon::try_start("pool", directory.path(), &cache, &backings, setting);
        let (status, said) = failed.err().expect("serve does not become ready");
        assert_eq!(status.code(), Some(2), "{said}");
    }
    Daemon::start("pool", directory.path(), &cache, &backings, &[]).stop();
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
