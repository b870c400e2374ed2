//! `ubcache metrics`: the numbers that Prometheus reads are those of `status`.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::io::Write as _;
use std::process::Stdio;

use serde_json::Value;
use support::{
    Daemon, NO_BYPASS, each_io, have, make_set, must, run, scratch, text, tool, ubcache,
};

const PIECE: usize = 64 << 10;

fn metrics(daemon: &Daemon, format: &str) -> String {
    must(ubcache().args(["metrics", "--format", format, "--control"]).arg(&daemon.control))
}

/// The value of a sample: its name, and words that are in its labels.
fn value(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    let lines: Vec<&str> = metrics
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .collect();
    assert_eq!(lines.len(), 1, "{name} {labels:?} in:\n{metrics}");
    let value = lines[0].rsplit(' ').next().expect("a value");
    value.parse().unwrap_or_else(|_| panic!("{}", lines[0]))
}

#[test]
fn metrics_are_the_numbers_of_status() {
    each_io("metrics_are_the_numbers_of_status", |io, directory| {
        let (cache, mut disks) = make_set(directory, &[16, 16], &[]);
        // A name that has to be escaped.
        disks[1] = format!("quote\"d={}", text(&disks[1])).into();
        let options: Vec<&str> = NO_BYPASS.into_iter().chain(["--mode", "writeback"]).collect();
        let daemon = Daemon::start(io, directory, &cache, &disks, &options);
        daemon.set("writeback_running=0");
        let mut client = daemon.client("disk0.img");
        client.write(0, &[1; PIECE], true).expect("a write");
        let mut content = [0; PIECE];
        for at in [0, 0, 1 << 20] {
            client.read(at, &mut content).expect("a read");
        }
        // The journal is still being written when the client has its answer: once nothing changes
        // any more, the metrics are those of both reports around them.
        let (status, texts) = loop {
            let before = daemon.status();
            let texts = ["openmetrics", "prometheus"].map(|format| metrics(&daemon, format));
            if daemon.status() == before {
                break (before, texts);
            }
        };
        let set = &status["sets"][0];
        let number =
            |pointer: &str| set.pointer(pointer).and_then(Value::as_f64).expect("a number");
        for (metrics, end) in texts.into_iter().zip(["# EOF\n", "\n"]) {
            assert!(metrics.ends_with(end), "{metrics}");
            let volume = ["volume=\"disk0.img\""];
            for (name, labels, pointer) in [
                ("ubcache_volume_cache_hits_total", &volume[..], "/volumes/0/stats/cache_hits"),
                ("ubcache_volume_cache_misses_total", &volume, "/volumes/0/stats/cache_misses"),
                ("ubcache_volume_dirty_bytes", &volume, "/volumes/0/dirty_bytes"),
                ("ubcache_volume_size_bytes", &["quote\\\"d"], "/volumes/1/size_bytes"),
                ("ubcache_cache_size_bytes", &[], "/cache/size_bytes"),
                ("ubcache_cache_dirty_bytes", &[], "/cache/dirty_bytes"),
                (
                    "ubcache_device_written_bytes_total",
                    &["device=\"cache\""],
                    "/cache/written_bytes",
                ),
                (
                    "ubcache_device_reads_total",
                    &["disk0.img", "device=\"disk\""],
                    "/volumes/0/backing/reads",
                ),
            ] {
                let found = value(&metrics, name, labels);
                assert!(found.total_cmp(&number(pointer)).is_eq(), "{name}: {found}");
            }
            assert!(value(&metrics, "ubcache_volume_cache_hits_total", &volume) >= 2.0);
            assert_histograms(&metrics, set);
            let info = ["mode=\"writeback\"", "state=\"dirty\"", "disk0.img"];
            assert_eq!(value(&metrics, "ubcache_volume_info", &info).to_string(), "1");
        }
        drop(client);
        daemon.stop();
    });
}

/// Histograms count what the report counts: all of it in the last bucket, and each request once.
fn assert_histograms(metrics: &str, set: &Value) {
    let volume = &set["volumes"][0];
    let paths = volume["requests"].as_object().expect("paths");
    for (path, report) in paths {
        let count = report["latency"]["count"].as_f64().expect("a number");
        let labels = ["disk0.img", &format!("path=\"{path}\"")];
        let infinite = ["disk0.img", &format!("path=\"{path}\""), "le=\"+Inf\""];
        for (name, labels) in [
            ("ubcache_volume_request_seconds_count", &labels[..]),
            ("ubcache_volume_request_seconds_bucket", &infinite),
        ] {
            assert_eq!(value(metrics, name, labels).to_string(), count.to_string(), "{path}");
        }
        let sum = report["latency"]["sum_ns"].as_f64().expect("a number") / 1e9;
        let found = value(metrics, "ubcache_volume_request_seconds_sum", &labels);
        assert!((found - sum).abs() < 1e-9, "{path}: {found}, {sum}");
    }
    let requests = |path: &str| paths[path]["latency"]["count"].as_u64().expect("a number");
    assert_eq!(requests("hit"), volume["stats"]["cache_hits"].as_u64().expect("a number"));
    assert_eq!(requests("writeback_write"), 1);
    for (device, labels) in [
        (&set["cache"], ["device=\"cache\"", "operation=\"write\""]),
        (&volume["backing"], ["disk0.img", "operation=\"write\""]),
    ] {
        let writes = device["writes"].as_f64().expect("a number");
        let found = value(metrics, "ubcache_device_io_seconds_count", &labels);
        assert_eq!(found.to_string(), writes.to_string(), "{device}");
    }
}

/// docs/reference/metrics.md lists them, and nothing else.
#[test]
fn every_metric_is_in_the_reference() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16], &[]);
    let daemon = Daemon::start("pool", directory, &cache, &disks, &[]);
    let metrics = metrics(&daemon, "prometheus");
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut printed: Vec<&str> = types.filter_map(|line| line.split(' ').next()).collect();
    printed.sort_unstable();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/metrics.md");
    let text = std::fs::read_to_string(path).expect("the reference");
    let words = text.split('`').filter(|word| word.starts_with("ubcache_"));
    let mut listed: Vec<&str> = words.collect();
    listed.sort_unstable();
    assert_eq!(listed, printed);
    daemon.stop();
}

#[test]
fn promtool_finds_no_fault() {
    let test = "promtool_finds_no_fault";
    if !have(test, &["promtool"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16, 16], &[]);
    let daemon = Daemon::start("pool", directory, &cache, &disks, &[]);
    let file = directory.join("ubcache.prom");
    for _ in 0..2 {
        let mut command = ubcache();
        command.args(["metrics", "--format", "prometheus", "--out"]).arg(&file);
        must(command.arg("--control").arg(&daemon.control));
    }
    let metrics = std::fs::read(&file).expect("it was written");
    let mut command = tool("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = command.spawn().expect("promtool runs");
    promtool.stdin.take().expect("a pipe").write_all(&metrics).expect("it reads all");
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    daemon.stop();
}

/// `why` names the reason, its bytes are those of the status, and the command that it prints has
/// the effect that it states.
#[test]
fn why_prints_a_command_that_keeps_requests_in_the_cache() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16, 16], &[]);
    let options = ["--set", "sequential_cutoff=256k", "--set", "congested_read_threshold_us=0"];
    let daemon = Daemon::start("pool", directory, &cache, &disks, &options);
    let mut client = daemon.client("disk0.img");
    let mut content = [0; PIECE];
    let mut read = |from: u64| {
        for at in 0..16 {
            client.read(from + at * PIECE as u64, &mut content).expect("a read");
        }
    };
    read(0);
    let why = |volume: &str| {
        let mut command = ubcache();
        command.args(["why", volume, "--json", "--control"]).arg(&daemon.control);
        let text = must(&mut command);
        serde_json::from_str::<Value>(&text).expect("JSON")[0].take()
    };
    let past = why("disk0.img");
    assert_eq!(past["reasons"][0]["reason"], "sequential", "{past}");
    let status = daemon.status();
    let counted = &status["sets"][0]["volumes"][0]["bypassed"]["sequential"]["read_bytes"];
    assert_eq!(past["reasons"][0]["read_bytes"], *counted, "{past}");
    assert_eq!(past["bypassed_read_bytes"], *counted, "{past}");
    assert_eq!(past["read_bytes"], 16 * PIECE);
    assert_eq!(why("disk1.img")["reasons"], serde_json::json!([]));

    let mut command = ubcache();
    let shown = must(command.args(["why", "disk0.img", "--control"]).arg(&daemon.control));
    let (_, remedy) = shown.split_once("to change it: ubcache ").expect("a command");
    let words = remedy.lines().next().expect("a line").split(' ');
    must(ubcache().args(words).arg("--control").arg(&daemon.control));
    read(8 << 20);
    let after = why("disk0.img");
    assert_eq!(after["reasons"], {
        let mut reasons = past["reasons"].clone();
        reasons[0]["percent"] = after["reasons"][0]["percent"].clone();
        reasons
    });
    assert_eq!(after["read_bytes"], 32 * PIECE);

    let output = run(&["why", "nothing", "--control", text(&daemon.control)]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("disk0.img, disk1.img"), "{said}");
    drop(client);
    daemon.stop();
}

#[test]
fn top_prints_one_table_where_there_is_no_terminal() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16, 16], &[]);
    let daemon = Daemon::start("pool", directory, &cache, &disks, &["--mode", "writeback"]);
    let mut command = ubcache();
    let shown = must(command.args(["top", "--interval", "1", "--control"]).arg(&daemon.control));
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 3, "{shown}");
    assert!(lines[0].starts_with("volume") && lines[0].contains("read p50/p99"), "{shown}");
    assert!(lines[1].starts_with("disk0.img  writeback"), "{shown}");
    assert!(lines[2].starts_with("disk1.img  writeback"), "{shown}");
    daemon.stop();
}

#[test]
fn a_set_that_is_not_healthy_is_a_number() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, mut disks) = make_set(directory, &[16, 16], &[]);
    Daemon::start("pool", directory, &cache, &disks, &[]).stop();
    disks[1] = directory.join("gone.img");
    let daemon = Daemon::start("pool", directory, &cache, &disks, &[]);
    let metrics = metrics(&daemon, "openmetrics");
    assert!(value(&metrics, "ubcache_set_health", &[]) > 0.0, "{metrics}");
    assert!(value(&metrics, "ubcache_disks_down", &[]) > 0.0, "{metrics}");
    daemon.stop();
    let output = run(&["metrics", "--control", text(&directory.join("control.sock"))]);
    assert_eq!(output.status.code(), Some(3), "no daemon, as for status");
}

/// A server that answers every request with the metrics of a daemon; its port.
fn exporter(daemon: &Daemon) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let control = daemon.control.clone();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut request = [0; 4096];
            let _ = std::io::Read::read(&mut client, &mut request);
            let mut metrics = ubcache();
            metrics.args(["metrics", "--format", "prometheus", "--control"]).arg(&control);
            let text = metrics.output().expect("it runs").stdout;
            let _ = write!(client, "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n");
            let _ = client.write_all(&text);
        }
    });
    port
}

/// Expressions of the dashboard, with values for its variables.
fn expressions() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../contrib/grafana/ubcache.json");
    let text = std::fs::read_to_string(path).expect("the dashboard");
    let board: Value = serde_json::from_str(&text).expect("JSON");
    let panels = board["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let filled = targets.map(|target| {
        let text = target["expr"].as_str().expect("an expression");
        text.replace("$__rate_interval", "1m").replace("$set", ".*").replace("$volume", ".*")
    });
    filled.collect()
}

/// Every panel of the dashboard has data, by a real Prometheus that reads a real daemon; and the
/// alerts fire when they should.
#[test]
fn dashboard_and_alerts_work_in_prometheus() {
    let test = "dashboard_and_alerts_work_in_prometheus";
    if !have(test, &["prometheus", "promtool"]) {
        return;
    }
    let contrib = concat!(env!("CARGO_MANIFEST_DIR"), "/../../contrib/prometheus/");
    let [rules, tests] =
        ["ubcache.rules.yml", "ubcache.rules.test.yml"].map(|name| format!("{contrib}{name}"));
    must(tool("promtool").args(["check", "rules", &rules]));
    must(tool("promtool").args(["test", "rules", &tests]));

    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16], &[]);
    let daemon = Daemon::start("pool", directory, &cache, &disks, &NO_BYPASS);
    let mut content = [0; PIECE];
    daemon.client("disk0.img").read(0, &mut content).expect("a read");
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("an address").port();
    let config = directory.join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 1s}}\nrule_files: [\"{rules}\"]\nscrape_configs:\n- job_name: \
         ubcache\n  static_configs: [{{targets: [\"127.0.0.1:{}\"]}}]\n",
        exporter(&daemon)
    );
    std::fs::write(&config, text).expect("room");
    drop(free);
    let mut prometheus = tool("prometheus");
    prometheus.arg(format!("--config.file={}", support::text(&config)));
    prometheus.arg(format!("--storage.tsdb.path={}", directory.join("data").display()));
    prometheus.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let log = std::fs::File::create(directory.join("prometheus.log")).expect("a log");
    let child = prometheus.stdout(Stdio::null()).stderr(log).spawn().expect("prometheus runs");
    let _guard = support::Guard(child);
    let url = format!("http://127.0.0.1:{port}");
    let query = |expression: &str| {
        let output = tool("promtool").args(["query", "instant", &url, expression]).output();
        let output = output.expect("promtool runs");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // Two samples make a rate.
    let twice = "count_over_time(ubcache_set_health[1m]) >= 2";
    while query(twice).is_none_or(|found| found.trim().is_empty()) {
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let expressions = expressions();
    assert!(expressions.len() >= 13, "{expressions:?}");
    for expression in expressions {
        let found = query(&expression).unwrap_or_else(|| panic!("{expression}: not understood"));
        assert!(found.contains("=>"), "{expression}: no data");
    }
    daemon.stop();
}
