//! Block devices of the kernel, as far as a machine without its driver can tell: what is refused,
//! and in which words. With the driver: tests/kernel-vm, case 16.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::Path;

use support::{Daemon, make_set, must, run, scratch, skipped, ubcache};

fn has_driver() -> bool {
    Path::new("/dev/ublk-control").exists()
}

#[test]
fn without_the_driver_serve_names_the_way_to_it_and_nothing_is_changed() {
    let test = "without_the_driver_serve_names_the_way_to_it_and_nothing_is_changed";
    if has_driver() {
        return skipped(test, "this kernel has ublk");
    }
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let refused = Daemon::try_start("pool", directory.path(), &cache, &backings, &["--ublk"]);
    let said = refused.err().expect("no device can be made").1;
    for words in ["/dev/ublk-control", "modprobe ublk_drv", "leave out --ublk"] {
        assert!(said.contains(words), "{words} in: {said}");
    }
    Daemon::start("pool", directory.path(), &cache, &backings, &[]).stop();
}

#[test]
fn wrong_choices_of_devices_are_refused_with_what_was_expected() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16, 16], &[]);
    for (options, expected) in [
        (["--ublk", "0"], "several volumes"),
        (["--ublk", "nothing"], "no such export"),
        (["--ublk", "disk0.img=x"], "is not the number of a device"),
        (["--ublk-without", "magic"], "known are user-copy, auto-buffers"),
        (["--ublk-require", "magic"], "known are user-copy, auto-buffers"),
        (["--ublk-depth", "0"], "1..=4096"),
    ] {
        let refused = Daemon::try_start("pool", directory.path(), &cache, &backings, &options);
        let said = refused.err().unwrap_or_else(|| panic!("{options:?} is refused")).1;
        assert!(said.contains(expected), "{options:?}: {expected} in: {said}");
    }
}

#[test]
fn an_ability_that_is_required_and_switched_off_is_a_contradiction() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let options = ["--ublk", "--ublk-require", "reissue", "--ublk-without", "recovery"];
    let refused = Daemon::try_start("pool", directory.path(), &cache, &backings, &options);
    let said = refused.err().expect("nothing is both").1;
    for words in ["--ublk-require reissue: can't be had", "--ublk-without recovery"] {
        assert!(said.contains(words), "{words} in: {said}");
    }
    let file = directory.path().join("set.toml");
    let text = r#"cache = "/x"
ublk_require = ["auto-buffers"]
ublk_without = ["user-copy"]
[[volume]]
name = "data"
backing = "/y"
export = "ublk"
"#;
    std::fs::write(&file, text).expect("a file");
    let checked = run(&["config", "check", &file.display().to_string()]);
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert_eq!(checked.status.code(), Some(1), "{said}");
    assert!(said.contains(":2:16: ublk_require: auto-buffers can't be had"), "{said}");
}

#[test]
fn doctor_tells_of_this_machine_for_people_and_for_scripts() {
    let said = must(ubcache().arg("doctor"));
    for words in ["kernel ", "I/O: ", "block devices (ublk): ", "I/O flusher ", "locked memory: "] {
        assert!(said.contains(words), "{words} in: {said}");
    }
    let said = must(ubcache().args(["doctor", "--json"]));
    let found: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(found["ublk"]["available"], has_driver());
    assert_eq!(found["io_flusher"], support::may_use_resources("self"));
    assert!(["ring", "pool"].contains(&found["io"].as_str().expect("a word")), "{said}");
}

#[test]
fn devices_of_a_machine_without_the_driver_are_none_that_can_be_listed() {
    let test = "devices_of_a_machine_without_the_driver_are_none_that_can_be_listed";
    if has_driver() {
        return skipped(test, "this kernel has ublk");
    }
    let listed = run(&["ublk", "list"]);
    assert_eq!(listed.status.code(), Some(2));
    let said = String::from_utf8_lossy(&listed.stderr).into_owned();
    assert!(said.contains("modprobe ublk_drv"), "{said}");
    // It can't tell of block devices, and tells of the rest.
    let directory = scratch();
    let (cache, _) = make_set(directory.path(), &[16], &[]);
    assert!(must(ubcache().arg("list").arg(&cache)).contains("cache"));
}
