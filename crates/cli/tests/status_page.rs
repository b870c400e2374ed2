//! The status page in a real browser, and what may be asked for at its address.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;

use serde_json::Value;
use support::{Daemon, NO_BYPASS, http, make_set, must, scratch, text, tool, ubcache};
use ubcache_daemon::size::show_size;

/// A number on the page: the path that gives it if it is not in the report, its place there, and
/// its value.
type Number = (Option<String>, String, String);

fn numbers(page: &str) -> Vec<Number> {
    let of = |tag: &str, name: &str| {
        let from = tag.find(&format!("{name}=\""))? + name.len() + 2;
        Some(tag[from..from + tag[from..].find('"')?].to_owned())
    };
    let tags = page.split('<').filter(|tag| tag.starts_with("span "));
    tags.filter_map(|tag| {
        Some((of(tag, "data-path"), of(tag, "data-place")?, of(tag, "data-exact")?))
    })
    .collect()
}

/// Starts with a status page at a free port; returns its address.
fn start(directory: &Path, settings: &[&str]) -> (Daemon, String) {
    let (cache, disks) = make_set(directory, &[16, 16], &[]);
    let all = [&["--mode", "writeback", "--set", "writeback_running=0"], settings].concat();
    let daemon = Daemon::start("pool", directory, &cache, &disks, &all);
    let url = daemon.greeting.iter().find_map(|line| line.strip_prefix("status page http://"));
    let address = url.expect("the address of the page").trim_end_matches('/').to_owned();
    (daemon, address)
}

fn ask(address: &str, method: &str, path: &str, headers: &str) -> http::Response {
    let mut stream = TcpStream::connect(address).expect("the status page");
    let request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).expect("a request");
    http::response(stream)
}

/// The page as a browser has it after some seconds.
fn page_in_chromium(address: &str, directory: &Path) -> String {
    let output = tool("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", text(&directory.join("browser"))))
        .arg(format!("http://{address}/"))
        .output()
        .expect("chromium runs (apt-get install chromium)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("CONSOLE"), "errors in the console: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Metrics of a volume, and their places in its report.
const METRICS: [(&str, &str); 12] = [
    ("volume_size_bytes", "/size_bytes"),
    ("volume_dirty_bytes", "/dirty_bytes"),
    ("volume_cache_hits_total", "/stats/cache_hits"),
    ("volume_cache_misses_total", "/stats/cache_misses"),
    ("volume_cache_bypass_hits_total", "/stats/cache_bypass_hits"),
    ("volume_cache_bypass_misses_total", "/stats/cache_bypass_misses"),
    ("volume_bypassed_bytes_total", "/stats/bypassed_bytes"),
    ("volume_fills_doomed_total", "/stats/fills_doomed"),
    ("volume_durable_invalidations_total", "/stats/durable_invalidations"),
    ("volume_written_back_bytes_total", "/writeback/written_bytes"),
    ("volume_request_seconds_count{path=hit}", "/requests/hit/latency/count"),
    ("volume_request_seconds_count{path=miss}", "/requests/miss/latency/count"),
];

/// The value of a metric of the first volume.
fn metric(metrics: &str, name: &str) -> Option<f64> {
    let (name, path) = name.split_once("{path=").unwrap_or((name, ""));
    let path = match path.trim_end_matches('}') {
        "" => String::new(),
        path => format!("path=\"{path}\""),
    };
    let is_it = |line: &&str| {
        let of_volume = line.contains("volume=\"disk0.img\"") && line.contains(&path);
        line.starts_with(&format!("ubcache_{name}{{")) && of_volume
    };
    let line = metrics.lines().find(is_it)?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Report, API, metrics and `top` show the same of a volume.
fn counters_agree(report: &Value, api: &Value, metrics: &str, top: &str) {
    for (name, place) in METRICS {
        let number = report.pointer(place).and_then(Value::as_u64);
        let number = number.unwrap_or_else(|| panic!("no {place} in {report}"));
        assert_eq!(api.pointer(place).and_then(Value::as_u64), Some(number), "API: {place}");
        assert_eq!(metric(metrics, name), Some(number as f64), "metrics: {name}");
    }
    assert_eq!(report["stats"]["cache_hits"], 1, "{report}");
    assert_eq!(report["stats"]["cache_misses"], 1, "{report}");
    let row = top.lines().find(|line| line.starts_with("disk0.img")).expect("a row");
    let dirty = show_size(report["dirty_bytes"].as_u64().expect("a number"));
    assert!(row.contains(" writeback ") && row.ends_with(&format!(" {dirty}")), "{top}");
}

#[test]
fn page_api_status_metrics_and_top_show_the_same_numbers() {
    let directory = scratch();
    let settings = [&NO_BYPASS[..], &["--status-page", "127.0.0.1:0"]].concat();
    let (daemon, address) = start(directory.path(), &settings);
    let mut client = daemon.client("disk0.img");
    client.write(0, &[1; 1 << 20], true).expect("a write");
    client.read(0, &mut [0; 1 << 20]).expect("a hit");
    client.read(8 << 20, &mut [0; 4096]).expect("a miss");
    // The journal is still being written when the client has its answer: once nothing changes any
    // more, all are of the moment of both reports around them.
    let control =
        |arguments: &[&str]| must(ubcache().args(arguments).arg("--control").arg(&daemon.control));
    let (report, page, metrics, top, api) = loop {
        let before = daemon.status();
        let page = page_in_chromium(&address, directory.path());
        let metrics = control(&["metrics"]);
        let top = control(&["top", "--once", "--interval", "1"]);
        let api = http::ask(&daemon.control, "GET", "/v1/volumes/disk0.img", "").json();
        if daemon.status() == before {
            break (before, page, metrics, top, api);
        }
    };
    counters_agree(&report["sets"][0]["volumes"][0], &api, &metrics, &top);
    assert!(page.contains("<title>ubcache: healthy</title>"), "{page}");
    let numbers = numbers(&page);
    let (of_maps, of_report) = (|it: &&Number| it.0.is_some(), |it: &&Number| it.0.is_none());
    assert!(numbers.iter().filter(of_report).count() >= 18 + 15, "{numbers:?}");
    // Buckets, and the ranges of two volumes.
    assert!(numbers.iter().filter(of_maps).count() >= 5 + 6, "{numbers:?}");
    for (path, place, value) in numbers {
        let other =
            path.map(|path| http::ask(&daemon.control, "GET", &format!("/{path}"), "").json());
        let answer = other.as_ref().unwrap_or(&report);
        let expected = answer.pointer(&format!("/{place}")).unwrap_or_else(|| panic!("no {place}"));
        assert_eq!(value, expected.to_string(), "{place}");
    }
    assert_eq!(report["sets"][0]["volumes"][0]["dirty_bytes"], 1 << 20);
    assert!(page.contains(&format!("Set {}", report["sets"][0]["uuid"].as_str().expect("text"))));
    // On the control socket there is the same page.
    let page = http::ask(&daemon.control, "GET", "/", "");
    assert!(page.status == 200 && page.body.contains("status.js"), "{page:?}");
    daemon.stop();
}

#[test]
fn the_page_changes_nothing_and_shows_itself_to_this_machine_alone() {
    let directory = scratch();
    let (daemon, address) = start(directory.path(), &["--status-page", "127.0.0.1:0"]);
    let own = format!("host: {address}\r\n");
    assert_eq!(ask(&address, "GET", "/v1/status", &own).status, 200);
    let metrics = ask(&address, "GET", "/v1/metrics", &own);
    assert!(metrics.status == 200 && metrics.body.ends_with("# EOF\n"), "{metrics:?}");
    for path in ["/v1/stop", "/v1/upgrade", "/v1/volumes/disk0.img/detach"] {
        assert_eq!(ask(&address, "POST", path, &own).status, 404, "{path}");
    }
    assert_eq!(ask(&address, "POST", "/v1/status", &own).status, 405);
    let other = ask(&address, "GET", "/v1/status", "host: rebound.example\r\n");
    assert_eq!((other.status, other.error("message").contains("another site")), (403, true));
    // Silent connections keep nobody out.
    let silent: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(&address).expect("a connection")).collect();
    assert_eq!(ask(&address, "GET", "/v1/status", &own).status, 200);
    drop(silent);
    daemon.stop();
}

#[test]
fn other_machines_need_the_token() {
    let directory = scratch();
    let token = directory.path().join("token");
    std::fs::write(&token, "0123456789abcdef\n").expect("a file");
    let everywhere = ["--status-page", "0.0.0.0:0", "--status-token", text(&token)];
    let (daemon, address) = start(directory.path(), &everywhere);
    let address = address.replace("0.0.0.0", "127.0.0.1");
    let asked = |headers: &str| ask(&address, "GET", "/v1/status", headers);
    let refused = asked("host: cache.example\r\n");
    assert!(refused.status == 401 && refused.head.contains("www-authenticate"), "{refused:?}");
    assert_eq!(asked("authorization: Bearer 0123456789abcdee\r\n").status, 401);
    assert_eq!(asked("authorization: Bearer 0123456789abcdef\r\n").status, 200);
    // The page itself says nothing.
    assert_eq!(ask(&address, "GET", "/", "").status, 200);
    daemon.stop();

    let cache = directory.path().join("cache.img");
    let disks = [directory.path().join("disk0.img")];
    std::fs::write(&token, "short\n").expect("a file");
    for (settings, expected) in [
        (&["--status-page", "0.0.0.0:0"][..], "everybody who reaches this address could read it"),
        (&everywhere, "this is no token that protects the status page"),
        (&["--status-token", text(&token)], "there is no status page"),
        (&["--status-page", "192.0.2.1:1", "--status-token", "/nowhere"], "can't read the token"),
    ] {
        let started = Daemon::try_start("pool", directory.path(), &cache, &disks, settings);
        let (_, said) = started.err().expect("it is refused");
        assert!(said.contains(expected), "{said}");
    }
}
