//! Configuration files: what is refused, with place and remedy; what is shown.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use support::{make_set, run, scratch, text, ubcache};

const GOOD: &str = "cache = \"/c\"\n[[volume]]\nname = \"a\"\nbacking = \"/a\"\n";

fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("a file");
    path
}

/// Output and exit code of `config check`.
fn check(path: &Path) -> (String, Option<i32>) {
    let output = run(&["config", "check", text(path)]);
    (said(&output), output.status.code())
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A file that is wrong in one thing is refused with the place and what is expected.
#[test]
fn every_fault_is_named_with_its_line_and_column() {
    let scratch = scratch();
    let after = |line: &str| format!("{line}\n{GOOD}");
    let before = |lines: &str| format!("{GOOD}{lines}\n");
    for (text, place, words) in [
        (after("mode = "), "1:", "not TOML"),
        (after("mode = \"writebck\""), "1:8:", "expected one of \"writethrough\", \"writeback\""),
        (after("cacche = \"/x\""), "1:1:", "did you mean \"cache\"?"),
        (after("zzz = 1"), "1:1:", "expected one of cache, mode, nbd"),
        (after("read_only = \"yes\""), "1:13:", "found \"yes\", expected true or false"),
        (after("index_memory = \"64k\""), "1:16:", "at least 1M"),
        (after("index_memory = \"lots\""), "1:16:", "a size"),
        (after("drain_timeout = 10"), "1:17:", "a time from 0 to 1d with a unit"),
        (after("drain_timeout = \"2d\""), "1:17:", "a time from 0 to 1d"),
        (after("busy_poll = \"2s\""), "1:13:", "a time from 0 to 1s"),
        (after("socket_mode = \"0999\""), "1:15:", "permissions in octal"),
        (after("socket_group = \"no-such-group\""), "1:16:", "getent group"),
        (after("nbd = \"unix:/x\""), "1:7:", "a list of"),
        (after("nbd = [\"/x\"]"), "1:7:", "expected unix:/PATH or tcp:ADDRESS:PORT"),
        (after("nbd = [\"tcp:127.0.0.1:1\"]"), "1:7:", "insecure_tcp = true"),
        (after("allow = [\"10.0.0/8\"]"), "1:9:", "is not a network"),
        (after("attributes = 1"), "1:14:", "expected a table of attributes"),
        (after("attributes.writeback_percent = 50"), "1:32:", "out of range: expected 0 to 40"),
        (after("attributes.writeback_percent = \"50%\""), "1:32:", "expected 0 to 40"),
        (after("attributes.writeback_delay = \"10ms\""), "1:30:", "expected whole s"),
        (after("attributes.sequential_cutof = 0"), "1:12:", "did you mean \"sequential_cutoff\"?"),
        (after("attributes.sequential_cutoff = -1"), "1:32:", "found -1"),
        (after("attributes.label = \"x\""), "1:12:", "each volume has its own"),
        (after("attributes.dirty_data = 1"), "1:12:", "unknown attribute \"dirty_data\""),
        (after("mode = \"none\"\nattributes.cache_mode = \"none\""), "1:8:", "is given as well"),
        (before("attributes.discard = true"), "5:12:", "an attribute of the set"),
        (before("attributes.labl = \"x\""), "5:12:", "did you mean \"label\"?"),
        (before("backup = \"/x\""), "5:1:", "did you mean \"backing\"?"),
        (before("limits.iops = 0"), "5:15:", "a whole number of at least 1"),
        (before("limits.bytes = \"1k\""), "5:16:", "at least 4k"),
        (before("limits.client_iops = 5"), "5:8:", "expected one of iops, bytes"),
        (before("[[volume]]\nname = \"a\"\nbacking = \"/b\""), "6:8:", "volume in line 3"),
        (before("[[volume]]\nbacking = \"/b\""), "5:1:", "the key \"name\" is missing"),
        (before("[[volume]]\nname = \"a/b\"\nbacking = \"/b\""), "6:8:", "expected no \"/\""),
        ("cache = \"/c\"".to_owned(), "1:1:", "a [[volume]], with name and backing, is missing"),
        ("[[volume]]\nname = \"a\"\nbacking = \"/a\"".to_owned(), "1:1:", "\"cache\" is missing"),
        ("cache = \"/c\"\n[volume]\nname = \"a\"\nbacking = \"/a\"".to_owned(), "2:", "[[volume]]"),
        (
            "cache = \"\"\n[[volume]]\nname = \"a\"\nbacking = \"/a\"".to_owned(),
            "1:9:",
            "an empty text",
        ),
    ] {
        let path = write(scratch.path(), "bad.toml", &text);
        let (said, code) = check(&path);
        let line = format!("{}:{place}", path.display());
        let found = said.lines().any(|said| said.starts_with(&line) && said.contains(words));
        assert!(found && code == Some(1), "{text}\nexpected {line} … {words}\n{said}");
    }
}

#[test]
fn all_faults_of_all_files_are_found_at_once() {
    let scratch = scratch();
    write(scratch.path(), "one.toml", "cacche = 1\nmode = \"x\"\n[[volume]]\nname = 5\n");
    write(scratch.path(), "two.toml", "a = \nb = \n");
    write(scratch.path(), ".hidden.toml", "=");
    write(scratch.path(), "notes.txt", "=");
    let output = run(&["config", "check", "--json", text(scratch.path())]);
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let faults = all["faults"].as_array().expect("a list");
    let of = |name: &str| {
        let is_of = |fault: &&Value| fault["file"].as_str().is_some_and(|it| it.ends_with(name));
        faults.iter().filter(is_of).count()
    };
    assert_eq!((of("one.toml"), output.status.code()), (5, Some(1)), "{all:#}");
    assert!(of("two.toml") >= 2 && of("hidden.toml") + of("notes.txt") == 0, "{all:#}");
    assert!(faults.iter().all(|fault| fault["line"].is_u64()), "{all:#}");
}

#[test]
fn files_that_can_not_be_read_are_named() {
    let scratch = scratch();
    let (said, code) = check(&scratch.path().join("none.toml"));
    assert!(said.contains("none.toml: can't be read") && code == Some(1), "{said}");
    let (said, code) = check(scratch.path());
    assert!(said.contains("there is no configuration file") && code == Some(2), "{said}");
    let path = write(scratch.path(), "a b.toml", GOOD);
    let (said, code) = check(&path);
    assert!(said.contains("the name of the file is the name of the set"), "{said}");
    assert_eq!(code, Some(1));
    std::fs::write(&path, [0xff, 0xfe]).expect("a file");
    let (said, code) = check(&path);
    assert!(said.contains("can't be read: ") && code == Some(1), "{said}");
}

/// Two sets with one device would write over each other.
#[test]
fn device_and_address_are_of_one_set_only() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16, 16], &[]);
    let link = directory.join("link");
    std::os::unix::fs::symlink(&disks[0], &link).expect("a link");
    let copy = directory.join("copy.img");
    std::fs::copy(&disks[0], &copy).expect("a copy");
    let other = directory.join("other");
    std::fs::create_dir(&other).expect("a directory");
    let (other_cache, _) = make_set(&other, &[16], &[]);
    let set = |cache: &Path, disk: &Path, more: &str| {
        format!("cache = {cache:?}\n{more}\n[[volume]]\nname = \"v\"\nbacking = {disk:?}\n")
    };
    write(directory, "a.toml", &set(&cache, &disks[0], "nbd = [\"unix:/x/sock\"]"));
    for (text, place, words) in [
        (set(&other_cache, &link, ""), "b.toml:5:11:", "is the device of the volume v in"),
        (set(&other_cache, &copy, ""), "b.toml:5:11:", "one is a copy of the other"),
        (set(&cache, &disks[1], ""), "b.toml:1:9:", "is the device of cache in"),
        (
            set(&other_cache, &disks[1], "nbd = [\"unix:/x/sock\"]"),
            "b.toml:2:7:",
            "the address of nbd in",
        ),
    ] {
        write(directory, "b.toml", &text);
        let (said, code) = check(directory);
        let found = said.lines().any(|line| line.contains(place) && line.contains(words));
        assert!(found && said.contains("a.toml") && code == Some(1), "{text}\n{said}");
    }
    write(directory, "b.toml", &set(&other_cache, &disks[1], ""));
    let (said, code) = check(directory);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn devices_are_found_by_uuid_and_label() {
    let scratch = scratch();
    let directory = scratch.path();
    let (cache, disks) = make_set(directory, &[16], &["--label", "archive"]);
    let other = directory.join("other");
    std::fs::create_dir(&other).expect("a directory");
    make_set(&other, &[16], &["--label", "archive"]);
    let uuid = |path: &Path, field: &str| {
        let shown = said(&run(&["show", text(path)]));
        let line =
            shown.lines().find(|line| line.starts_with(field)).expect("the field").to_owned();
        line.split_whitespace().nth(1).expect("a value").to_owned()
    };
    let (set, disk) = (uuid(&cache, "cset.uuid"), uuid(&disks[0], "dev.uuid"));
    let file = |directories: &[&Path], cache: &str, disk: &str| {
        let path = directory.join("set.toml");
        let written =
            format!("cache = \"UUID={cache}\"\n[[volume]]\nname = \"v\"\nbacking = \"{disk}\"\n");
        std::fs::write(&path, written).expect("a file");
        let mut command = ubcache();
        command.args(["config", "check", text(&path)]);
        command.env("UBCACHE_DEVICES", std::env::join_paths(directories).expect("no colon"));
        let output = command.output().expect("ubcache runs");
        (said(&output), output.status.code())
    };
    for disk in [&format!("UUID={disk}"), "LABEL=archive"] {
        let (found, code) = file(&[directory], &set, disk);
        assert!(!found.contains("warning") && code == Some(0), "{found}");
    }
    let (found, code) = file(&[directory], &set, &format!("UUID={}", disk.to_uppercase()));
    assert!(!found.contains("warning") && code == Some(0), "{found}");
    let none = "UUID=00000000-0000-0000-0000-000000000000";
    let (found, code) = file(&[directory], &uuid(&cache, "dev.uuid"), none);
    assert!(found.contains("warning: ") && found.contains(":4:11:") && code == Some(0), "{found}");
    let (found, _) = file(&[directory, &other], &set, "LABEL=archive");
    assert!(found.contains("more than one device has it"), "{found}");
}

#[test]
fn values_in_effect_are_shown_with_defaults() {
    let scratch = scratch();
    let path = write(
        scratch.path(),
        "data.toml",
        "cache = \"/c\"\nindex_memory = 1073741824\n[attributes]\nsequential_cutoff = \"8M\"\n\
         writeback_delay = \"1min\"\n[[volume]]\nname = \"a\"\nbacking = \"/a\"\nlimits.iops = 7\n",
    );
    let shown = said(&run(&["config", "show", text(&path)]));
    for line in [
        "cache = \"/c\"",
        "# mode = as the superblock says",
        "index_memory = \"1G\"",
        "# drain_timeout = \"10s\"",
        "attributes.sequential_cutoff = \"8M\"",
        "attributes.writeback_delay = \"60\"",
        "volume.a.backing = \"/a\"",
        "volume.a.limits.iops = 7",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} in:\n{shown}");
    }
    let output = run(&["config", "show", "--json", text(&path)]);
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(all["sets"][0]["name"], "data");
}

/// An example with a fault would be copied.
#[test]
fn the_examples_of_the_documents_are_good_files() {
    let scratch = scratch();
    let mut count = 0;
    for document in ["reference/config.md", "reference/serving.md"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(document);
        let words = std::fs::read_to_string(&path).expect("a document");
        for example in words.split("\n```toml\n").skip(1) {
            let example = example.split("\n```").next().expect("its end");
            let file = write(scratch.path(), "data.toml", example);
            let (said, code) = check(&file);
            assert!(code == Some(0) && said.contains("1 set good: data"), "{document}: {said}");
            count += 1;
        }
    }
    assert_eq!(count, 2);
}
