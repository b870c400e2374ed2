//! The control API from outside: what it refuses and in which words, clients that are slow or say
//! nothing, and the examples of its document.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Daemon, each_io, http, make_set, must, run, scratch, text, ubcache};

const VOLUME: &str = "/v1/volumes/disk0.img";

#[test]
fn a_set_is_read_changed_and_stopped_over_http() {
    each_io("a_set_is_read_changed_and_stopped_over_http", |io, directory| {
        let (cache, backings) = make_set(directory, &[16, 16], &[]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        let mode = std::fs::metadata(&daemon.control).expect("the socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "the control socket is for its owner only");
        let ask = |method, path: &str, body| http::ask(&daemon.control, method, path, body);
        let get = |path: &str| {
            let response = ask("GET", path, "");
            assert_eq!(response.status, 200, "{path}: {response:?}");
            response.json()
        };
        let status = get("/v1/status");
        assert_eq!(status["sets"][0]["state"], "running");
        let set = format!("/v1/sets/{}", status["sets"][0]["uuid"].as_str().expect("a UUID"));
        assert_eq!(get("/v1/volumes")["volumes"][1]["name"], "disk1.img");
        assert_eq!(get(VOLUME)["set"], status["sets"][0]["uuid"]);
        assert_eq!(get("/v1/sets")["sets"][0]["volumes"][0], "disk0.img");
        let metrics = ask("GET", "/v1/metrics", "");
        assert!(metrics.head.contains("application/openmetrics-text"), "{metrics:?}");
        assert!(metrics.body.ends_with("# EOF\n"), "{metrics:?}");
        for (method, path, body) in [
            ("PUT", format!("{VOLUME}/attributes/cache_mode"), r#"{"value":"writeback"}"#),
            ("PATCH", format!("{VOLUME}/attributes"), r#"{"writeback_percent":20}"#),
            ("PATCH", format!("{set}/attributes"), r#"{"discard":true,"sequential_cutoff":"1M"}"#),
            ("PUT", format!("{set}/attributes/journal_delay_ms"), r#"{"value":50}"#),
            ("POST", format!("{VOLUME}/flush"), ""),
            ("POST", format!("{VOLUME}/drain"), r#"{"wait":true}"#),
            ("POST", format!("{set}/flush"), "{}"),
            ("POST", format!("{set}/drain"), ""),
            ("POST", format!("{set}/gc"), ""),
        ] {
            let response = ask(method, &path, body);
            assert_eq!((response.status, response.body.as_str()), (204, ""), "{method} {path}");
        }
        let mode = get(&format!("{VOLUME}/attributes/cache_mode"));
        assert_eq!(mode["value"], "writethrough [writeback] writearound none");
        assert_eq!(get(&format!("{VOLUME}/attributes"))["writeback_percent"], "20");
        let cutoffs = get(&format!("{set}/attributes/sequential_cutoff"));
        assert_eq!(cutoffs["value"]["disk1.img"], "1.0M");
        assert_eq!(get(&format!("{set}/attributes"))["set"]["discard"], "1");
        for (word, key) in [("detach", "volume"), ("attach", "volume"), ("remove", "message")] {
            let response = ask("POST", &format!("{VOLUME}/{word}"), "");
            assert_eq!(response.status, 200, "{response:?}");
            assert!(response.json()[key].is_string(), "{response:?}");
        }
        assert_eq!(ask("GET", VOLUME, "").status, 404);
        let again = format!("{{\"backing\":{:?},\"name\":\"a/b c\"}}", text(&backings[0]));
        assert_eq!(ask("POST", &format!("{set}/add"), &again).json()["volume"], "a/b c");
        assert_eq!(get("/v1/volumes/a%2Fb%20c")["name"], "a/b c");
        // All who ask for the stop before it is over hear of its end.
        let mut stops: Vec<UnixStream> = (0..3)
            .map(|_| UnixStream::connect(&daemon.control).expect("the control socket"))
            .collect();
        for stop in &mut stops {
            // The daemon may have ended meanwhile.
            let _ = stop.write_all(&http::request("POST", "/v1/stop", ""));
        }
        let ends: Vec<Option<u16>> =
            stops.into_iter().map(|stop| http::response_if_any(stop).map(|it| it.status)).collect();
        assert_eq!(ends[0], Some(204));
        assert!(ends.iter().flatten().all(|status| *status == 204), "{ends:?}");
        let control = daemon.control.clone();
        daemon.wait();
        assert_eq!(run(&["status", "--control", text(&control)]).status.code(), Some(3));
        assert!(!control.exists(), "the socket is removed");
    });
}

/// The API lists the devices of the machine as the command does, from a thread of its own: the set
/// serves meanwhile.
#[test]
fn devices_are_listed_as_the_command_lists_them() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16, 16], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    // A place where commands look.
    let runtime = directory.path().join("runtime");
    std::fs::create_dir(&runtime).expect("a directory");
    let sockets = daemon.control.parent().expect("a directory");
    std::os::unix::fs::symlink(sockets, runtime.join("ubcache")).expect("a link");
    let found = runtime.join("ubcache").join(daemon.control.file_name().expect("a name"));
    let ours = |mut listing: serde_json::Value| {
        // Loop devices of other tests come and go.
        let devices = listing["devices"].as_array_mut().expect("devices");
        let prefix = text(directory.path());
        devices.retain(|it| it["path"].as_str().is_some_and(|path| path.starts_with(prefix)));
        let keys: Vec<String> = listing.as_object().expect("an object").keys().cloned().collect();
        let text = listing["devices"].to_string().replace(text(&found), text(&daemon.control));
        (keys, text)
    };
    let output = ubcache().args(["list", "--json"]).env("XDG_RUNTIME_DIR", &runtime).output();
    let by_command = serde_json::from_slice(&output.expect("ubcache runs").stdout).expect("JSON");
    let response = http::ask(&daemon.control, "GET", "/v1/devices", "");
    assert_eq!(response.status, 200, "{response:?}");
    let by_api = response.json();
    let listed = by_api["devices"].as_array().expect("devices");
    let cached = listed.iter().find(|it| it["path"] == text(&cache)).expect("the cache is listed");
    assert_eq!(cached["user"]["control"], text(&daemon.control));
    assert_eq!(ours(by_api.clone()), ours(by_command));
    // Many at once: each gets its list, and the set answers.
    let many: Vec<UnixStream> =
        (0..8).map(|_| http::send(&daemon.control, "GET", "/v1/devices", "")).collect();
    assert_eq!(daemon.status()["sets"][0]["state"], "running");
    for stream in many {
        assert_eq!(http::response(stream).status, 200);
    }
    daemon.stop();
}

/// A mistake in a request: the status code, and words that say where it is and what is right.
#[test]
fn mistakes_are_named_and_change_nothing() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16, 16], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    let attribute = format!("{VOLUME}/attributes/cache_mode");
    let attributes = format!("{VOLUME}/attributes");
    let drain = format!("{VOLUME}/drain");
    let long = format!("{{\"value\":\"{}\"}}", "x".repeat(70_000));
    for (method, path, body, status, words) in [
        ("GET", "/v1/volumes/x", "", 404, &["\"x\"", "disk0.img, disk1.img"][..]),
        ("POST", "/v1/volumes/x/detach", "", 404, &["disk0.img, disk1.img"]),
        ("POST", "/v1/sets/x/gc", "", 404, &["there is no set \"x\""]),
        ("GET", "/v1/volume", "", 404, &["/v1/volume", "openapi.json"]),
        ("DELETE", "/v1/stop", "", 405, &["DELETE", "Allow"]),
        ("POST", &drain, "{\"wait\":\n tru}", 400, &["line 2, column 5"]),
        ("POST", &drain, "{\"wait\":1}", 422, &["line 1, column 9", "boolean"]),
        ("POST", &drain, "{\"hurry\":true}", 422, &["`hurry`", "`wait`"]),
        ("POST", &drain, "[]", 422, &["no JSON object"]),
        ("POST", "/v1/stop", "{\"now\":true}", 422, &["`now`"]),
        ("POST", &format!("{drain}?wait=true"), "", 400, &["?wait=true", "in the body"]),
        ("PUT", &attribute, "", 400, &["EOF", "a JSON object"]),
        ("PUT", &attribute, "{}", 422, &["missing field `value`"]),
        ("PATCH", &attributes, "", 400, &["EOF", "a JSON object"]),
        ("PUT", &attribute, "{\"value\":\"fast\"}", 422, &["fast", "writethrough"]),
        ("PUT", &attribute, &long, 413, &["at most 65536 bytes"]),
        ("PATCH", &attributes, "{\"writeback_percent\":\"x\"}", 422, &["\"x\"", "0 to 40"]),
        ("PATCH", &attributes, "{\"writeback_running\":2}", 422, &["expected 0 or 1"]),
        ("PATCH", &attributes, "{\"nonsense\":1}", 404, &["nonsense", "cache_mode"]),
        ("PATCH", &attributes, "{\"a\":1,\"a\":2}", 422, &["`a` comes twice"]),
        ("PATCH", &attributes, "{\"state\":\"x\"}", 422, &["state can only be read"]),
        ("GET", &format!("{attributes}/nonsense"), "", 404, &["nonsense", "cache_mode"]),
        ("POST", "/v1/upgrade", "{\"program\":\"x\"}", 422, &["begins with /", "\"x\""]),
        ("GET", "/v1/volumes/%ff", "", 400, &["path"]),
    ] {
        let response = http::ask(&daemon.control, method, path, body);
        assert_eq!(response.status, status, "{method} {path} {response:?}");
        assert!(response.head.contains("content-type: application/json"), "{response:?}");
        assert!(!response.error("message").is_empty());
        for word in words {
            let said = response.json()["error"].to_string().replace("\\\"", "\"");
            assert!(said.contains(word), "{method} {path}: {word} is missing in {said}");
        }
    }
    let response = http::ask(&daemon.control, "GET", "/v1/stop", "");
    assert!(response.head.contains("allow: post"), "{response:?}");
    // Not HTTP at all, as in the line protocol of version 0.1.
    let mut stream = UnixStream::connect(&daemon.control).expect("it listens");
    stream.write_all(b"{\"command\":\"stop\"}\n").expect("connected");
    assert_eq!(http::response(stream).status, 400);
    let status = daemon.status();
    assert_eq!(status["sets"][0]["volumes"][0]["mode"], "writethrough");
    daemon.stop();
}

/// The commands turn refusals into their own words and exit codes.
#[test]
fn commands_say_what_the_daemon_refused() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    let output = run(&["detach", "nobody", "--control", text(&daemon.control)]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("ubcache: detach: there is no export \"nobody\"\n"), "{said}");
    assert!(said.contains("\n  expected: one of disk0.img"), "{said}");
    // Somebody else listens there.
    let other = directory.path().join("other.sock");
    let listener = std::os::unix::net::UnixListener::bind(&other).expect("a socket");
    let answering = std::thread::spawn(move || {
        for answer in ["", "hello\n", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"] {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut piece = [0; 1024];
            let _ = stream.read(&mut piece).expect("a request");
            stream.write_all(answer.as_bytes()).expect("connected");
        }
    });
    for why in ["without an answer", "unreadable", "unreadable"] {
        let output = run(&["gc", "--control", text(&other)]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why), "{said}");
    }
    answering.join().expect("it has answered");
    daemon.stop();
}

/// Connections that say nothing, or half a request, take all places: who comes gets an answer all
/// the same, and they are closed after a while.
#[test]
fn silent_control_clients_keep_nobody_from_an_answer() {
    each_io("silent_control_clients_keep_nobody_from_an_answer", |io, directory| {
        let (cache, backings) = make_set(directory, &[16], &[]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
        let connect = || UnixStream::connect(&daemon.control).expect("it listens");
        let mut silent = Vec::new();
        for number in 0..150 {
            let mut stream = connect();
            // An older one of them may have been closed by now, not this one.
            let beginning: &[u8] = match number % 4 {
                0 => b"",
                1 => b"GET /v1/status HTTP/1.1\r\nhost: x",
                // All places at once.
                _ => b"POST /v1/stop HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{",
            };
            stream.write_all(beginning).expect("connected");
            silent.push(stream);
            if number % 10 == 0 {
                assert_eq!(http::ask(&daemon.control, "GET", "/v1/status", "").status, 200);
            }
        }
        assert_eq!(daemon.status()["sets"][0]["state"], "running");
        // The newest of each kind are still there: they end by the clock.
        for mut stream in silent.drain(147..) {
            let mut rest = String::new();
            // The end may come as a reset.
            let _ = stream.read_to_string(&mut rest);
            assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 408"), "{rest}");
        }
        daemon.stop();
    });
}

/// Requests that wait are answered beside others; more of them than there may be are told so.
#[test]
fn requests_that_wait_hold_up_no_others() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[64], &[]);
    let slow = ["--mode", "writeback", "--demo-delay", "20000"];
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &slow);
    daemon.client("disk0.img").write(0, &vec![7; 4 << 20], false).expect("a write");
    let wait =
        || http::send(&daemon.control, "POST", &format!("{VOLUME}/drain"), "{\"wait\":true}");
    let waiting: Vec<UnixStream> = (0..20).map(|_| wait()).collect();
    for _ in 0..10 {
        assert_eq!(http::ask(&daemon.control, "GET", "/v1/status", "").status, 200);
    }
    for stream in waiting {
        assert_eq!(http::response(stream).status, 204);
    }
    assert_eq!(daemon.number(0, "/dirty_bytes"), 0);
    daemon.stop();
}

/// The examples of docs/reference/control.md, as they stand there.
#[test]
fn examples_of_the_document_work() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/control.md");
    let document = std::fs::read_to_string(path).expect("the document");
    let examples: Vec<&str> =
        document.split("\n```sh\n").skip(1).filter_map(|rest| rest.split("\n```").next()).collect();
    assert!(!examples.is_empty(), "{path}");
    assert!(support::have("examples_of_the_document_work", &["curl"]), "apt install curl");
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &["--label", "data"]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    let uuid = daemon.status()["sets"][0]["uuid"].as_str().expect("a UUID").to_owned();
    for example in examples {
        let script = example
            .replace("/run/ubcache/data.sock", text(&daemon.control))
            .replace("6dab8f32-0000-4000-8000-000000000000", &uuid);
        let output = Command::new("sh").args(["-ec", &script]).output().expect("a shell");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{script}: {output:?}");
        assert!(!said.contains("\"error\""), "{script}: {said}");
    }
    assert_eq!(daemon.status()["sets"][0]["volumes"][0]["mode"], "writeback");
    daemon.stop();
}

/// Hundreds of requests after one another over one connection, as a monitor keeps it.
#[test]
fn a_connection_serves_many_requests() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    let mut stream = UnixStream::connect(&daemon.control).expect("it listens");
    for _ in 0..300 {
        stream.write_all(b"GET /v1/sets HTTP/1.1\r\nhost: x\r\n\r\n").expect("connected");
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        while !answer.ends_with(b"]}]}\n") {
            let count = stream.read(&mut piece).expect("connected");
            assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&piece[..count]);
        }
    }
    drop(stream);
    daemon.stop();
}

/// Passes bytes between clients over TCP, as some programs know nothing else, and the control
/// socket.
fn over_tcp(socket: &Path) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let socket = socket.to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(daemon) = UnixStream::connect(&socket) else { return };
            let (Ok(mut from), Ok(mut to)) = (client.try_clone(), daemon.try_clone()) else {
                return;
            };
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
            let (mut from, mut to) = (daemon, client);
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
    });
    address
}

/// schemathesis makes requests by the document, and requests that the document does not allow.
///
/// It found bodies that may not be left out and were, integers with an exponent that were refused,
/// and forms that the document names and does not have.
#[test]
fn requests_made_from_the_document_get_documented_answers() {
    // Attributes have ranges that the document does not know: 422 is an answer to what it allows.
    const CONFIG: &str = r#"
warnings = { fail-on = ["missing_test_data", "unresolvable_reference"] }
checks.positive_data_acceptance.expected-statuses = ["2xx", "403", "404", "409", "422", "503"]
[parameters]
"path.volume" = "disk0.img"
"path.set" = "UUID"
"path.attribute" = "writeback_percent"
[[operations]]
include-path = "/v1/volumes/{volume}/remove"
parameters = { "path.volume" = "disk1.img" }
[[operations]]
include-path = "/v1/volumes/{volume}/resize"
parameters = { "path.volume" = "flash0" }
[[operations]]
include-path = "/v1/volumes/{volume}/remove-flash"
parameters = { "path.volume" = "flash1" }
"#;
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = std::env::split_paths(&path).chain([tools]).collect();
    let program = places.iter().map(|place| place.join("schemathesis")).find(|it| it.is_file());
    let program =
        program.expect("schemathesis is not there; install it with: cargo xtask packages");
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16, 16], &[]);
    let daemon = Daemon::start("pool", directory.path(), &cache, &backings, &[]);
    for name in ["flash0", "flash1"] {
        let create = ["flash", "create", name, "--size", "1M", "--control"];
        must(ubcache().args(create).arg(&daemon.control));
    }
    let uuid = daemon.status()["sets"][0]["uuid"].as_str().expect("a UUID").to_owned();
    let config = directory.path().join("schemathesis.toml");
    std::fs::write(&config, CONFIG.replace("UUID", &uuid)).expect("a file");
    let url = format!("http://{}/v1/openapi.json", over_tcp(&daemon.control));
    let output = Command::new(program)
        .current_dir(directory.path())
        .args(["--config-file", text(&config), "run", &url, "--seed", "1", "--max-examples", "10"])
        // They would end the test. Others ask for them.
        .args(["--exclude-path", "/v1/stop", "--exclude-path", "/v1/upgrade", "--no-color"])
        .output()
        .expect("schemathesis runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", said.lines().rev().take(12).collect::<Vec<_>>().join("\n"));
    assert_eq!(daemon.status()["sets"][0]["state"], "running");
    daemon.stop();
}
