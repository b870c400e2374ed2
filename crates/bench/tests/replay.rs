//! The program, on made-up loads and on bad input.

use std::process::{Command, Output};

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ubcache-bench")).args(arguments).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn load(directory: &std::path::Path, arguments: &[&str]) -> String {
    let made = bench(&[&["generate"], arguments].concat());
    assert!(made.status.success());
    let path = directory.join("load.csv");
    std::fs::write(&path, made.stdout).expect("room for a trace");
    path.to_str().expect("a path in UTF-8").to_owned()
}

fn ratios(json: &serde_json::Value, name: &str) -> Vec<f64> {
    json["sizes"]
        .as_array()
        .expect("sizes")
        .iter()
        .map(|row| row[name].as_f64().expect("a ratio"))
        .collect()
}

#[test]
fn larger_caches_hit_more_and_sampling_agrees() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = load(directory.path(), &["--blocks", "20000", "--requests", "200000"]);
    let svg = directory.path().join("curve.svg");
    let svg = svg.to_str().expect("a path in UTF-8");
    let whole = bench(&["replay", &path, "--json", "--svg", svg, "--bucket", "64k"]);
    assert!(whole.status.success(), "{}", text(&whole.stderr));
    let whole: serde_json::Value = serde_json::from_slice(&whole.stdout).expect("JSON");
    let lru = ratios(&whole, "lru_read_hit_ratio");
    assert!(lru.is_sorted() && lru[0] > 0.05 && *lru.last().expect("rows") > 0.8, "{lru:?}");
    let buckets = ratios(&whole, "bucket_read_hit_ratio");
    assert!(buckets.iter().zip(&lru).all(|(buckets, lru)| buckets <= lru), "{buckets:?} {lru:?}");
    let sampled = bench(&["replay", &path, "--json", "--sample", "0.2"]);
    let sampled: serde_json::Value = serde_json::from_slice(&sampled.stdout).expect("JSON");
    for (whole, sampled) in lru.iter().zip(ratios(&sampled, "lru_read_hit_ratio")) {
        assert!((whole - sampled).abs() < 0.06, "{whole} and {sampled}");
    }
    let picture = std::fs::read_to_string(svg).expect("a picture");
    assert!(picture.starts_with("<svg") && picture.matches("<polyline").count() == 2);
}

#[test]
fn a_scan_costs_bucket_eviction_at_least_what_block_eviction_loses() {
    let directory = tempfile::tempdir().expect("a directory");
    let scans = [
        "--blocks",
        "20000",
        "--requests",
        "200000",
        "--scan-every",
        "20000",
        "--scan-blocks",
        "10000",
    ];
    let path = load(directory.path(), &scans);
    let with = bench(&["replay", &path, "--json", "--cache", "16M"]);
    let with: serde_json::Value = serde_json::from_slice(&with.stdout).expect("JSON");
    let path = load(directory.path(), &scans[..4]);
    let without = bench(&["replay", &path, "--json", "--cache", "16M"]);
    let without: serde_json::Value = serde_json::from_slice(&without.stdout).expect("JSON");
    for name in ["lru_read_hit_ratio", "bucket_read_hit_ratio"] {
        assert!(
            ratios(&with, name)[0] < ratios(&without, name)[0] - 0.1,
            "{name}: scans hurt an LRU"
        );
    }
}

/// A loop of 3,000 blocks, three times, in the format of ARC, packed.
fn packed_loop(directory: &std::path::Path) -> String {
    let mut text = String::new();
    for number in 0..9000 {
        text += &format!("{} 1 0 {number}\n", number % 3000);
    }
    let path = directory.join("loop.lis.zst");
    std::fs::write(&path, zstd::encode_all(text.as_bytes(), 1).expect("packed"))
        .expect("room for a trace");
    path.to_str().expect("a path in UTF-8").to_owned()
}

#[test]
fn policies_stand_side_by_side_in_a_small_cache() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = packed_loop(directory.path());
    let svg = directory.path().join("curves.svg");
    let svg = svg.to_str().expect("a path in UTF-8");
    let arguments = [
        "replay",
        &path,
        "--lis-block",
        "4k",
        "--share",
        "40",
        "--share",
        "150",
        "--bucket",
        "64k",
        "--engine",
        "--policy",
        "lru",
        "--policy",
        "scan-resistant",
        "--svg",
        svg,
    ];
    let done = bench(&[&arguments[..], &["--json"]].concat());
    assert!(done.status.success(), "{}", text(&done.stderr));
    let json: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    let (small, large) = (&json["sizes"][0]["engine"], &json["sizes"][1]["engine"]);
    assert_eq!(small[0]["policy"], "lru");
    assert_eq!(small[0]["read_hit_ratio"], 0.0, "a loop larger than the cache");
    let hits = |row: &serde_json::Value, policy: usize| {
        row[policy]["read_hit_ratio"].as_f64().expect("a ratio")
    };
    assert!(hits(small, 1) > 0.0 && hits(large, 0) > 0.6, "{small} {large}");
    let written = |row: &serde_json::Value| row[0]["written_per_byte_read"].as_f64();
    assert!(written(small) >= Some(1.0) && written(large) < Some(0.8), "{small} {large}");
    // 513 buckets of 64 KiB would be more than the cache.
    assert!(small[0]["bucket_bytes"].as_u64() < Some(64 << 10), "{small}");
    let picture = std::fs::read_to_string(svg).expect("a picture");
    assert!(picture.matches("<polyline").count() == 4 && picture.contains(">engine, lru<"));
    let table = text(&bench(&arguments).stdout);
    assert!(table.contains("lru   scan-resistant"), "{table}");
}

#[test]
fn net_cache_has_room_for_as_much_data_as_asked_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = packed_loop(directory.path());
    let arguments = [
        "replay",
        &path,
        "--lis-block",
        "4k",
        "--share",
        "105",
        "--engine",
        "--policy",
        "lru",
        "--json",
    ];
    let hits = |arguments: &[&str]| {
        let json: serde_json::Value =
            serde_json::from_slice(&bench(arguments).stdout).expect("JSON");
        json["sizes"][0]["engine"][0]["read_hit_ratio"].as_f64().expect("a ratio")
    };
    let net = hits(&[&arguments[..], &["--net"]].concat());
    assert!(hits(&arguments) < 0.1 && net > 0.6, "the loop fits only into a net cache: {net}");
}

/// Reads of single blocks, 64 KiB from one to the next: what surrounds them is for nothing.
#[test]
fn larger_fill_units_write_more_and_hit_more_only_where_neighbours_are_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let replayed = |name: &str, blocks: &mut dyn Iterator<Item = u64>, unit: &str| {
        let path = directory.path().join(name);
        let lines = blocks.map(|block| format!("0,r,{},4096\n", block * 4096));
        std::fs::write(&path, lines.collect::<String>()).expect("room for a trace");
        let path = path.to_str().expect("a path in UTF-8");
        let done = bench(&[
            "replay",
            path,
            "--cache",
            "64M",
            "--engine",
            "--policy",
            "lru",
            "--json",
            "--fill-unit",
            unit,
        ]);
        assert!(done.status.success(), "{}", text(&done.stderr));
        let json: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
        let of = json["sizes"][0]["engine"][0].clone();
        ["read_hit_ratio", "fetched_per_byte_read", "written_per_byte_read"]
            .map(|name| of[name].as_f64().expect("a number"))
    };
    let apart = |unit: &str| replayed("apart", &mut (0..400).map(|it| it * 16), unit);
    let together = |unit: &str| replayed("together", &mut (0..6400), unit);
    let [hits, fetched, written] = apart("4k");
    assert_eq!((hits, fetched), (0.0, 1.0));
    assert!(written < 1.5, "{written}");
    // The last one ends with the volume.
    let [hits, fetched, written] = apart("64k");
    assert!(hits == 0.0 && fetched > 15.9 && written > 15.0, "{hits} {fetched} {written}");
    let [hits, fetched, written] = together("64k");
    let hits_all_others = (hits - 15.0 / 16.0).abs() < 0.001;
    assert!(hits_all_others && fetched < 1.001 && written < 1.5, "{hits} {fetched} {written}");
}

#[test]
fn unreadable_trace_is_reported_with_its_file() {
    let missing = bench(&["replay", "/nonexistent/trace.csv"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        text(&missing.stderr).contains("/nonexistent/trace.csv: can't read it"),
        "{}",
        text(&missing.stderr)
    );
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("prose.txt");
    std::fs::write(&path, "once upon a time\n").expect("a file");
    let prose = bench(&["replay", path.to_str().expect("a path in UTF-8")]);
    assert!(
        text(&prose.stderr).contains("not a trace: found \"once upon a time\""),
        "{}",
        text(&prose.stderr)
    );
    assert_eq!(bench(&["replay", "x", "--cache", "12q"]).status.code(), Some(2));
}
