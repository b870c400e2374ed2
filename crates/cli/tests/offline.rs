//! `check`, `cat`, `recover` and `dump` as a user runs them: on a set that the Linux driver left
//! behind a power cut.

#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use serde_json::Value;
use support::crashed::{a_crashed_set, json, run};
use support::{scratch, sha256_of, ubcache};

#[test]
fn a_crashed_set_is_checked_read_and_recovered() {
    let directory = scratch();
    let (cache, backing, digest) = a_crashed_set(directory.path());
    let before = (sha256_of(&cache), sha256_of(&backing));

    let report =
        json(&run(ubcache().arg("check").arg(&cache).arg("-B").arg(&backing).arg("--json"), 0));
    assert_eq!(report["clean"], true);
    assert_eq!(report["stats"]["dirty_sectors"], 60_473);

    let (copy, sparse) = (directory.path().join("copy"), directory.path().join("sparse"));
    run(ubcache().arg("cat").arg("-C").arg(&cache).arg("-B").arg(&backing).arg("-o").arg(&copy), 0);
    assert_eq!(sha256_of(&copy), digest);
    run(
        ubcache()
            .args(["cat", "--sparse", "-C"])
            .arg(&cache)
            .arg("-B")
            .arg(&backing)
            .arg("-o")
            .arg(&sparse),
        0,
    );
    assert_eq!(sha256_of(&sparse), digest);
    run(ubcache().arg("cat").arg("-C").arg(&cache).arg("-B").arg(&backing).arg("-o").arg(&copy), 2);
    let map = json(&run(
        ubcache().args(["cat", "--map", "--json", "-C"]).arg(&cache).arg("-B").arg(&backing),
        0,
    ));
    assert_eq!(map["dirty_sectors"], 60_473);

    let recover = |more: &[&str]| {
        let mut command = ubcache();
        command
            .arg("recover")
            .arg("-C")
            .arg(&cache)
            .arg("-B")
            .arg(&backing)
            .arg("--json")
            .args(more);
        json(&run(&mut command, 0))
    };
    assert_eq!(recover(&["--dry-run"])["outcome"], "dry run");
    assert_eq!((sha256_of(&cache), sha256_of(&backing)), before, "nothing was changed until now");
    assert_eq!(recover(&[])["outcome"], "clean");
    assert_eq!(recover(&["--detach"])["outcome"], "detached");
    assert_eq!(recover(&["--detach"])["outcome"], "already detached");
    let alone = std::fs::read(&backing).expect("a device").split_off(8192);
    let path = directory.path().join("alone");
    std::fs::write(&path, alone).expect("room");
    assert_eq!(sha256_of(&path), digest);
    run(ubcache().arg("check").arg(&cache).arg("-B").arg(&backing), 0);
}

#[test]
fn damage_exits_with_1_and_a_refusal_with_2() {
    let directory = scratch();
    let (cache, backing, _) = a_crashed_set(directory.path());
    run(ubcache().arg("check").arg(directory.path().join("nothing")), 2);
    run(ubcache().arg("check").arg(directory.path()), 2);
    run(ubcache().arg("dump"), 2);
    // A backing device in the place of the cache is not damage.
    run(ubcache().arg("check").arg(&backing), 2);
    let held = std::fs::File::open(&cache).expect("a device");
    held.lock().expect("nobody else has it");
    run(ubcache().arg("check").arg(&cache), 2);
    drop(held);

    let lines =
        run(ubcache().arg("dump").arg(&cache).args(["--what", "btree", "--json"]), 0).stdout;
    let lines = String::from_utf8(lines).expect("text");
    let node: Value = serde_json::from_str(lines.lines().next().expect("a node")).expect("JSON");
    let sector = node["key"]["pointers"][0]["sector"].as_u64().expect("a place") as usize;
    for what in ["super", "journal", "prio", "uuids", "extents", "buckets"] {
        assert!(
            !run(ubcache().arg("dump").arg(&cache).args(["--what", what]), 0).stdout.is_empty(),
            "{what}"
        );
    }

    let mut bytes = std::fs::read(&cache).expect("a device");
    bytes[sector * 512 + 40] ^= 1;
    std::fs::write(&cache, &bytes).expect("room");
    let before = (sha256_of(&cache), sha256_of(&backing));
    let output = run(ubcache().arg("check").arg(&cache).arg("-B").arg(&backing), 1);
    let said = String::from_utf8_lossy(&output.stdout);
    for words in ["[node-damaged]", "means:", "to do:", "bucket", "DAMAGED"] {
        assert!(said.contains(words), "{words} in:\n{said}");
    }
    run(ubcache().arg("recover").arg("-C").arg(&cache).arg("-B").arg(&backing), 1);
    run(ubcache().arg("cat").arg("-C").arg(&cache).arg("-B").arg(&backing), 1);
    let output =
        run(ubcache().args(["cat", "--damaged", "-C"]).arg(&cache).arg("-B").arg(&backing), 1);
    assert!(String::from_utf8_lossy(&output.stderr).contains("newest data lost"));
    assert_eq!((sha256_of(&cache), sha256_of(&backing)), before);
}

/// A leaf is damaged: the original is only read, the new image is clean, and everything outside the
/// list reads as before.
#[test]
fn a_damaged_set_is_repaired() {
    let directory = scratch();
    let (cache, backing, _) = a_crashed_set(directory.path());
    let (new, report) = (directory.path().join("new"), directory.path().join("report"));
    let repair = |more: &[&str], code| {
        let mut command = ubcache();
        command.arg("repair").arg(&cache).arg("-B").arg(&backing).arg("--json").args(more);
        run(&mut command, code)
    };
    assert_eq!(json(&repair(&["--dry-run"], 0))["clean"], true);

    let lines =
        run(ubcache().arg("dump").arg(&cache).args(["--what", "btree", "--json"]), 0).stdout;
    let lines = String::from_utf8(lines).expect("text");
    let leaf = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .find(|line| line["type"] == "node" && line["level"] == 0)
        .expect("a leaf");
    let sector = leaf["key"]["pointers"][0]["sector"].as_u64().expect("a place") as usize;
    let whole = std::fs::read(&cache).expect("a device");
    let mut bytes = whole.clone();
    bytes[sector * 512 + 40] ^= 1;
    std::fs::write(&cache, &bytes).expect("room");
    let before = (sha256_of(&cache), sha256_of(&backing));

    let told = json(&repair(&["--dry-run"], 1));
    let kept = told["kept_sectors"].as_u64().expect("a number");
    assert!(kept > 0 && kept < 60_473, "{kept} of the dirty sectors are certain");
    let new_text = new.to_string_lossy().into_owned();
    repair(&["--out", &new_text, "--report", &report.to_string_lossy()], 1);
    assert_eq!((sha256_of(&cache), sha256_of(&backing)), before, "the original is only read");
    let written: Value =
        serde_json::from_slice(&std::fs::read(&report).expect("a report")).expect("JSON");
    assert_eq!(written["uncertain"], told["uncertain"]);
    run(ubcache().arg("check").arg(&new).arg("-B").arg(&backing), 0);
    let map = json(&run(
        ubcache().args(["cat", "--map", "--json", "-C"]).arg(&new).arg("-B").arg(&backing),
        0,
    ));
    assert_eq!(map["dirty_sectors"].as_u64(), Some(kept));
    repair(&["--out", &new_text], 2);
    repair(&["--out", &new_text, "--force"], 1);

    // In place: only with the name of the device once more, and an option for uncertain data.
    let name = cache.to_string_lossy().into_owned();
    repair(&["--in-place"], 2);
    repair(&["--in-place", "--drop-uncertain", "--confirm", &new_text], 2);
    repair(&["--in-place", "--confirm", &name], 2);
    assert_eq!((sha256_of(&cache), sha256_of(&backing)), before, "nothing was changed until now");
    repair(&["--in-place", "--drop-uncertain", "--confirm", &name], 1);
    run(ubcache().arg("check").arg(&cache).arg("-B").arg(&backing), 0);
    assert_eq!(json(&repair(&["--dry-run"], 0))["clean"], true);
}
