//! `ubcache daemon`: several sets of configuration files in one process, with clients.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::devices::Fragile;
use support::{Daemon, each_io, make_set, must, run, scratch, sha256_of, text, tool, ubcache};
use ubcache_cli::nbd_client::Client;

/// A set with one volume, in a directory of its own.
struct Set {
    name: &'static str,
    cache: PathBuf,
    disk: PathBuf,
    socket: PathBuf,
}

impl Set {
    fn make(directory: &Path, name: &'static str) -> Set {
        let own = directory.join(name);
        std::fs::create_dir(&own).expect("a directory");
        let (cache, disks) = make_set(&own, &[16], &[]);
        Set { name, cache, disk: disks[0].clone(), socket: own.join("nbd.sock") }
    }

    /// Writes its file; `more` is at the top.
    fn configure(&self, directory: &Path, more: &str) {
        let Set { name, cache, disk, socket } = self;
        let text = format!(
            "cache = {cache:?}\nnbd = [\"unix:{}\"]\n{more}\n[[volume]]\nname = \"{name}\"\n\
             backing = {disk:?}\n",
            socket.display()
        );
        std::fs::write(directory.join(format!("{name}.toml")), text).expect("a file");
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket, self.name).unwrap_or_else(|error| panic!("{error}"))
    }

    fn write(&self, byte: u8) {
        self.client().write(4096, &[byte; 8192], true).expect("a write");
    }

    fn assert_has(&self, byte: u8) {
        let mut read = [0; 8192];
        self.client().read(4096, &mut read).expect("a read");
        assert_eq!(read, [byte; 8192], "{}", self.name);
    }
}

fn command(io: &str, directory: &Path) -> (Command, PathBuf, PathBuf, PathBuf) {
    let log = directory.join("daemon.log");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).expect("a log");
    let mut command = ubcache();
    let control = directory.join("control.sock");
    command.env("UBCACHE_IO", io).arg("daemon").arg("--config").arg(directory);
    command.arg("--control").arg(&control).stdout(Stdio::piped()).stderr(file);
    (command, directory.join("no"), control, log)
}

fn start(io: &str, directory: &Path) -> Daemon {
    let started = Daemon::try_start_command(command(io, directory));
    started.unwrap_or_else(|(status, said)| panic!("{status}: {said}"))
}

fn log(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("daemon.log")).expect("a log")
}

fn signal(daemon: &Daemon, name: &str) {
    must(tool("kill").arg(name).arg(daemon.id().to_string()));
}

/// Runs a command for the daemon.
fn ask(daemon: &Daemon, arguments: &[&str]) -> Output {
    run(&[arguments, &["--control", text(&daemon.control)]].concat())
}

/// Exit code and output, errors included.
fn said(output: &Output) -> (Option<i32>, String) {
    let [out, error] = [&output.stdout, &output.stderr].map(|it| String::from_utf8_lossy(it));
    (output.status.code(), format!("{out}{error}"))
}

/// The report on a set.
fn report(daemon: &Daemon, set: &str) -> Value {
    let report = daemon.status();
    let sets = report["sets"].as_array().expect("a list");
    sets.iter().find(|it| it["name"] == set).unwrap_or_else(|| panic!("{report:#}")).clone()
}

#[test]
fn two_sets_serve_in_one_process_and_stop_cleanly() {
    each_io("two_sets_serve_in_one_process_and_stop_cleanly", |io, directory| {
        let sets = [Set::make(directory, "one"), Set::make(directory, "two")];
        sets[0].configure(directory, "mode = \"writeback\"\nattributes.writeback_running = false");
        sets[1].configure(directory, "attributes.sequential_cutoff = \"8M\"");
        let daemon = start(io, directory);
        assert_eq!(daemon.greeting.last().map(String::as_str), Some("ready: 2 of 2 sets"));
        let clients = sets.each_ref().map(Set::client);
        std::thread::scope(|scope| {
            for (index, mut client) in clients.into_iter().enumerate() {
                scope.spawn(move || {
                    for turn in 0..200_u64 {
                        let byte = (turn as u8).wrapping_add(index as u8);
                        let at = turn % 50 * 65536;
                        client.write(at, &[byte; 65536], false).expect("a write");
                        let mut read = vec![0; 65536];
                        client.read(at, &mut read).expect("a read");
                        assert_eq!(read, [byte; 65536]);
                    }
                });
            }
        });
        sets[0].write(1);
        sets[1].write(2);
        let (one, two) = (report(&daemon, "one"), report(&daemon, "two"));
        assert_eq!((&one["name"], &two["name"]), (&"one".into(), &"two".into()));
        assert_eq!(one["volumes"][0]["mode"], "writeback");
        assert!(one["volumes"][0]["dirty_bytes"].as_u64() > Some(0), "{one:#}");
        for name in ["two", "two/two"] {
            let cutoff = ask(&daemon, &["get", "sequential_cutoff", "--volume", name]);
            assert_eq!(said(&cutoff), (Some(0), "8.0M\n".to_owned()));
        }
        signal(&daemon, "-TERM");
        daemon.wait();
        let log = log(directory);
        for name in ["one", "two"] {
            let of_set = format!("set{{set_name=\"{name}\"}}");
            let stopped = log.lines().filter(|line| line.contains(&of_set));
            assert_eq!(stopped.filter(|line| line.ends_with(": stopped")).count(), 1, "{log}");
        }
        let daemon = start(io, directory);
        sets[0].assert_has(1);
        sets[1].assert_has(2);
        signal(&daemon, "-INT");
        daemon.wait();
    });
}

/// A set whose cache dies with the only copy of data ends when its clients have gone; the process
/// goes on with the other one, and its exit code says that one has failed.
#[test]
fn a_set_that_fails_leaves_the_others_alone() {
    let test = "a_set_that_fails_leaves_the_others_alone";
    each_io(test, |io, directory| {
        let mut bad = Set::make(directory, "bad");
        let good = Set::make(directory, "good");
        let Some(fragile) = Fragile::new(test, directory, &bad.cache) else { return };
        bad.cache.clone_from(&fragile.path);
        bad.configure(directory, "mode = \"writeback\"\nattributes.writeback_running = false");
        good.configure(directory, "");
        let daemon = start(io, directory);
        bad.write(1);
        good.write(2);
        let mut client = good.client();
        fragile.fail();
        // The failure shows at the next request that needs the cache.
        while !log(directory).contains("the set has ended by an error") {
            if let Ok(mut client) = Client::connect(&bad.socket, "bad") {
                let _ = client.write(0, &[3; 4096], true);
            }
            client.write(0, &[4; 4096], true).expect("the other set serves");
        }
        good.assert_has(2);
        assert_eq!(report(&daemon, "good")["health"], "healthy");
        signal(&daemon, "-TERM");
        assert_eq!(daemon.wait_for_status().code(), Some(5), "{}", log(directory));
    });
}

#[test]
fn what_is_missing_is_named_and_the_rest_serves() {
    let scratch = scratch();
    let directory = scratch.path();
    let whole = Set::make(directory, "whole");
    let (gone, text_of) = (directory.join("gone.img"), |path: &Path| format!("{path:?}"));
    whole.configure(directory, "");
    let file = directory.join("whole.toml");
    let mut content = std::fs::read_to_string(&file).expect("a file");
    for (name, optional) in [("later", "true"), ("lost", "false")] {
        content += &format!(
            "[[volume]]\nname = \"{name}\"\nbacking = {}\noptional = {optional}\n",
            text_of(&gone.with_extension(name))
        );
    }
    std::fs::write(&file, content).expect("a file");
    let no_cache = Set { cache: gone, ..Set::make(directory, "no_cache") };
    no_cache.configure(directory, "");
    std::fs::write(directory.join("wrong.toml"), "cache = 5\n").expect("a file");
    let daemon = start("pool", directory);
    assert_eq!(daemon.greeting.last().map(String::as_str), Some("ready: 1 of 2 sets"));
    whole.write(7);
    let set = report(&daemon, "whole");
    let down: Vec<(&str, bool)> = set["down"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|down| {
            (down["name"].as_str().expect("a name"), down["optional"].as_bool().unwrap_or(false))
        })
        .collect();
    assert_eq!(down, [("later", true), ("lost", false)], "{set:#}");
    assert_eq!(set["health"], "failed");
    let warnings = set["warnings"].to_string();
    assert!(warnings.contains("lost") && !warnings.contains("later"), "{warnings}");
    let log = log(directory);
    let table = daemon.look(&[]).1;
    for words in ["set wrong  not started: ", "set no_cache  not started: ", "set whole "] {
        assert!(table.contains(words), "{table}");
    }
    for words in [
        "wrong.toml:1:9: cache: found 5",
        "the set is not started: ",
        "gone.img: there is no such device",
    ] {
        assert!(log.contains(words), "{words} in:\n{log}");
    }
    signal(&daemon, "-TERM");
    daemon.wait();
    std::fs::remove_file(&file).expect("the file");
    let ended = Daemon::try_start_command(command("pool", directory)).map(drop);
    let (status, said) = ended.expect_err("no set can be started");
    assert_eq!(status.code(), Some(2), "{said}");
}

#[test]
fn flushed_data_of_all_sets_survives_kill_9() {
    each_io("flushed_data_of_all_sets_survives_kill_9", |io, directory| {
        let sets = [Set::make(directory, "one"), Set::make(directory, "two")];
        for set in &sets {
            set.configure(directory, "mode = \"writeback\"");
        }
        for turn in 1..=3 {
            let daemon = start(io, directory);
            for (index, set) in sets.iter().enumerate() {
                if turn > 1 {
                    set.assert_has(10 * turn - 10 + index as u8);
                }
                set.write(10 * turn + index as u8);
            }
            daemon.kill();
        }
    });
}

#[test]
fn systemd_hears_of_all_sets_together() {
    let scratch = scratch();
    let directory = scratch.path();
    for name in ["one", "two"] {
        Set::make(directory, name).configure(directory, "");
    }
    let notify = directory.join("notify");
    let systemd = UnixDatagram::bind(&notify).expect("a socket");
    let mut command = command("pool", directory);
    command.0.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "100000");
    let started = Daemon::try_start_command(command);
    let daemon = started.unwrap_or_else(|(status, said)| panic!("{status}: {said}"));
    let mut messages = Vec::new();
    let mut receive = |wanted: &dyn Fn(&str) -> bool| loop {
        let mut bytes = [0; 4096];
        let count = systemd.recv(&mut bytes).expect("a message");
        let message = String::from_utf8_lossy(&bytes[..count]).into_owned();
        messages.push(message.clone());
        if message.lines().any(wanted) {
            return messages.clone();
        }
    };
    receive(&|line| line == "READY=1");
    let all = |line: &str| {
        line.starts_with("STATUS=one: running; 1 volumes") && line.contains("; two: running; 1 ")
    };
    receive(&all);
    for _ in 0..5 {
        receive(&|line| line == "WATCHDOG=1");
    }
    signal(&daemon, "-TERM");
    let messages = receive(&|line| line == "STOPPING=1");
    let ready = messages.iter().filter(|message| message.contains("READY=1"));
    assert_eq!(ready.count(), 1, "{messages:?}");
    daemon.wait();
}

/// Attributes, limits and volumes change under a client that goes on; the rest is named.
#[test]
fn a_changed_file_is_put_into_effect_while_clients_go_on() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16, 16, 16], &[]);
    let socket = directory.join("nbd.sock");
    let volume =
        |name: &str, disk: &Path| format!("[[volume]]\nname = \"{name}\"\nbacking = {disk:?}\n");
    let configure = |top: &str, volumes: &str| {
        let text =
            format!("cache = {cache:?}\nnbd = [\"unix:{}\"]\n{top}\n{volumes}", socket.display());
        std::fs::write(directory.join("data.toml"), text).expect("a file");
    };
    let (stays, goes) = (volume("stays", &disks[0]), volume("goes", &disks[1]));
    configure("attributes.sequential_cutoff = \"8M\"", &format!("{stays}{goes}"));
    let daemon = start("pool", directory);
    assert_eq!(said(&ask(&daemon, &["config", "diff"])), (Some(0), String::new()));
    let connect = |name: &str| Client::connect(&socket, name);
    let mut client = connect("stays").expect("a client");
    let comes = volume("comes", &disks[2]);
    configure(
        "index_memory = \"64M\"\nattributes.congested_read_threshold_us = \"5ms\"",
        &format!(
            "{stays}limits.iops = 1000\nattributes.writeback_percent = \"20%\"\nmode = \
             \"writeback\"\n{comes}"
        ),
    );
    let (code, diff) = said(&ask(&daemon, &["config", "diff"]));
    for line in [
        "data: attributes.sequential_cutoff: \"8M\" -> default: live",
        "data: attributes.congested_read_threshold_us: default -> \"5000\": live",
        "data: index_memory: default -> \"64M\": restart",
        "data: volume.stays.limits.iops: default -> 1000: new connections",
        "data: volume.stays.mode: default -> \"writeback\": live",
    ] {
        assert!(diff.lines().any(|it| it == line) && code == Some(1), "{line} in:\n{diff}");
    }
    let (code, applied) = said(&ask(&daemon, &["config", "apply"]));
    assert!(
        applied.contains("index_memory: default -> \"64M\": holds from the next start"),
        "{applied}"
    );
    let done = applied.lines().filter(|line| line.ends_with(": done")).count();
    assert_eq!((code, done), (Some(1), 7), "{applied}");
    client.write(0, &[1; 4096], true).expect("the client goes on");
    connect("comes").expect("a client").write(0, &[2; 4096], true).expect("a write");
    assert!(connect("goes").is_err());
    for (arguments, value) in [
        (&["get", "sequential_cutoff", "--volume", "stays"][..], "4.0M\n"),
        (&["get", "writeback_percent", "--volume", "stays"], "20\n"),
        (&["get", "writeback_percent", "--volume", "comes"], "10\n"),
        (&["get", "congested_read_threshold_us"], "5000\n"),
    ] {
        assert_eq!(said(&ask(&daemon, arguments)), (Some(0), value.to_owned()));
    }
    let (_, left) = said(&ask(&daemon, &["config", "diff"]));
    assert!(
        left.starts_with("data: index_memory: ") && left.matches("data: ").count() == 1,
        "{left}"
    );
    // A fault changes nothing.
    configure("attributes.sequential_cutoff = \"x\"", &goes);
    let (code, fault) = said(&ask(&daemon, &["config", "apply"]));
    assert!(code == Some(1) && fault.contains("data.toml:3:32: "), "{fault}");
    client.write(0, &[3; 4096], true).expect("the client goes on");
    let output = ask(&daemon, &["config", "diff", "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["faults"].as_array().map(Vec::len), Some(1), "{json:#}");
    drop(client);
    signal(&daemon, "-TERM");
    daemon.wait();
}

#[test]
fn sets_come_and_go_and_missing_devices_return() {
    let scratch = scratch();
    let directory = scratch.path();
    let sets = ["one", "two", "late"].map(|name| Set::make(directory, name));
    let [one, two, late] = &sets;
    one.configure(directory, "");
    late.configure(directory, "");
    let away = directory.join("away.img");
    std::fs::rename(&late.cache, &away).expect("a file");
    let daemon = start("pool", directory);
    assert_eq!(daemon.greeting.last().map(String::as_str), Some("ready: 1 of 2 sets"));
    assert_eq!(report(&daemon, "late")["health"], "failed");
    std::fs::rename(&away, &late.cache).expect("a file");
    two.configure(directory, "");
    let (code, words) = said(&ask(&daemon, &["config", "apply"]));
    assert_eq!((code, words.as_str()), (Some(0), "late: started\ntwo: started\n"));
    while [two, late].iter().any(|set| Client::connect(&set.socket, set.name).is_err()) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    sets.iter().for_each(|set| set.write(5));
    std::fs::remove_file(directory.join("one.toml")).expect("a file");
    signal(&daemon, "-HUP");
    while !log(directory).contains("set{set_name=\"one\"}: ubcache::state: stopped") {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    two.assert_has(5);
    late.assert_has(5);
    assert_eq!(daemon.status()["sets"].as_array().map(Vec::len), Some(2));
    // A daemon without files has nothing to compare.
    one.configure(directory, "");
    signal(&daemon, "-TERM");
    daemon.wait();
    let alone = directory.join("alone");
    std::fs::create_dir(&alone).expect("a directory");
    let serve = Daemon::start("pool", &alone, &one.cache, std::slice::from_ref(&one.disk), &[]);
    let (code, words) = said(&ask(&serve, &["config", "diff"]));
    assert!(code == Some(1) && words.contains("no configuration files"), "{words}");
    serve.stop();
}

#[test]
fn ubcached_is_the_daemon_and_is_not_upgraded() {
    let scratch = scratch();
    let directory = scratch.path();
    let set = Set::make(directory, "one");
    set.configure(directory, "");
    let program = directory.join("ubcached");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ubcache"), &program).expect("a link");
    let (_, socket, control, log) = command("pool", directory);
    let mut command = Command::new(&program);
    command.arg("--config").arg(directory.join("one.toml")).arg("--control").arg(&control);
    command.stdout(Stdio::piped());
    command.stderr(std::fs::File::create(&log).expect("a log"));
    let started = Daemon::try_start_command((command, socket, control, log));
    let daemon = started.unwrap_or_else(|(status, said)| panic!("{status}: {said}"));
    let (code, words) = said(&ask(&daemon, &["upgrade"]));
    assert!(code == Some(1) && words.contains("systemctl restart ubcached"), "{words}");
    set.write(1);
    assert_eq!(said(&ask(&daemon, &["stop"])), (Some(0), "stopped\n".to_owned()));
    daemon.wait();
}

#[test]
fn a_set_is_saved_into_its_file() {
    let scratch = scratch();
    let directory = scratch.path();
    let set = Set::make(directory, "one");
    set.configure(directory, "# Cold data.\nmode = \"writethrough\" # for now");
    let file = directory.join("one.toml");
    let before = std::fs::read_to_string(&file).expect("a file");
    let daemon = start("pool", directory);
    let saved = |arguments: &[&str]| {
        let (code, said) = said(&ask(&daemon, arguments));
        (said, code, std::fs::read_to_string(&file).expect("a file"))
    };
    let (said, code, now) = saved(&["set", "--save", "cache_mode=writeback"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(now, before.replace("\"writethrough\" # for", "\"writeback\" # for"));
    let (said, code, after) = saved(&["set", "--save", "--volume", "one", "label=x"]);
    assert_eq!((code, after), (Some(0), now + "\n[volume.attributes]\nlabel = \"x\"\n"), "{said}");
    let digest = sha256_of(&file);
    // Clamped where it runs; a file has to say what is.
    let (said, code, _) = saved(&["set", "--save", "writeback_percent=99"]);
    assert!(code == Some(1) && said.contains("out of range: expected 0 to 40"), "{said}");
    assert_eq!(sha256_of(&file), digest);
    signal(&daemon, "-TERM");
    daemon.wait();
    let daemon = start("pool", directory);
    assert_eq!(report(&daemon, "one")["volumes"][0]["mode"], "writeback");
    signal(&daemon, "-TERM");
    daemon.wait();
    // A daemon by its command line has no file.
    let daemon = Daemon::start("pool", directory, &set.cache, std::slice::from_ref(&set.disk), &[]);
    let mut command = ubcache();
    command.args(["set", "--save", "cache_mode=none", "--control"]).arg(&daemon.control);
    let refused = command.output().expect("ubcache runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("no configuration file"), "{said}");
    assert_eq!(report_of(&daemon)["volumes"][0]["mode"], "writeback", "nothing was set");
    daemon.stop();
}

fn report_of(daemon: &Daemon) -> Value {
    daemon.status()["sets"][0].clone()
}
