//! `ubcache list`: every device with a superblock, in its set, with its state and its user.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::devices::Loop;
use support::{Daemon, have, make_set, must, run, scratch, skipped, sparse, text, tool, ubcache};

/// Exit code, devices, and all of the JSON.
fn list(paths: &[&Path]) -> (Option<i32>, Vec<Value>, Value) {
    let output = ubcache().args(["list", "--json"]).args(paths).output().expect("ubcache runs");
    let all: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        panic!("no JSON, but: {}", String::from_utf8_lossy(&output.stderr));
    });
    (output.status.code(), all["devices"].as_array().expect("devices").clone(), all)
}

#[test]
fn files_are_listed_with_set_state_and_daemon() {
    let directory = scratch();
    let options = ["--label", "data", "--writeback"];
    let (cache, disks) = make_set(directory.path(), &[16], &options);
    let disk = disks[0].as_path();
    let (code, devices, _) = list(&[&cache, disk]);
    assert_eq!(code, Some(0));
    let [of_cache, of_disk] = &devices[..] else { panic!("{devices:?}") };
    assert_eq!((&of_cache["role"], &of_disk["role"]), (&json!("cache"), &json!("backing")));
    assert_eq!((&of_cache["state"], &of_disk["state"]), (&json!("new"), &json!("not attached")));
    assert_eq!(of_cache["set_uuid"], of_disk["set_uuid"]);
    assert_eq!((&of_disk["label"], &of_disk["mode"]), (&json!("data"), &json!("writeback")));
    assert_eq!((&of_disk["size_bytes"], &of_disk["user"]), (&json!(16 << 20), &Value::Null));

    let stays_dirty = support::STAYS_DIRTY;
    let daemon = Daemon::start("pool", directory.path(), &cache, &disks, &stays_dirty);
    daemon.client("data").write(0, &[1; 4096], true).expect("a write");
    // Its socket is in no place where commands look, as one that another user runs.
    let (code, devices, _) = list(&[&cache, disk]);
    assert_eq!((code, &devices[0]["state"]), (Some(0), &json!("started")));
    assert_eq!(devices[1]["state"], "dirty");
    let runtime = directory.path().join("run");
    let found = runtime.join("ubcache");
    std::fs::create_dir_all(&found).expect("a directory");
    std::os::unix::fs::symlink(&daemon.control, found.join("x.sock")).expect("a link");
    let list = ubcache().arg("list").env("XDG_RUNTIME_DIR", &runtime).output().expect("it runs");
    let said = String::from_utf8_lossy(&list.stdout);
    for path in [&cache, &disks[0]] {
        let line = said.lines().find(|line| line.contains(text(path)));
        let line = line.unwrap_or_else(|| panic!("{} in:\n{said}", path.display()));
        assert!(line.contains("used by ubcache (") && line.contains("x.sock"), "{line}");
    }
    daemon.stop();

    must(ubcache().args(["recover", "--detach", "-C"]).arg(&cache).arg("-B").arg(disk));
    let (_, devices, _) = self::list(&[disk]);
    assert_eq!((&devices[0]["state"], &devices[0]["set_uuid"]), (&json!("detached"), &Value::Null));
}

#[test]
fn unreadable_and_foreign_devices_are_named_beside_the_others() {
    let directory = scratch();
    let (cache, disks) = make_set(directory.path(), &[16], &[]);
    let [absent, foreign, damaged, short] =
        ["absent", "foreign", "damaged", "short"].map(|name| directory.path().join(name));
    sparse(&foreign, 1 << 20);
    let mut bytes = std::fs::read(&disks[0]).expect("a disk");
    bytes[4096 + 72] ^= 1;
    std::fs::write(&damaged, &bytes).expect("room");
    std::fs::write(&short, &std::fs::read(&cache).expect("a cache")[..1 << 20]).expect("room");
    let paths = [&absent, &foreign, &damaged, &short, &disks[0]];
    let (code, devices, all) = list(&paths.map(|path| path.as_path()));
    assert_eq!(code, Some(2), "a path can't be opened");
    assert_eq!(devices.len(), 2, "{all:#}");
    let problems = all["problems"].as_array().expect("problems");
    for (path, words) in [
        (&absent, "not found"),
        (&foreign, "not a bcache device"),
        (&damaged, "wrong checksum"),
        (&short, "does not fit"),
    ] {
        let problem = problems.iter().find(|problem| problem["path"] == text(path));
        let why = problem.and_then(|it| it["why"].as_str()).unwrap_or_default();
        assert!(why.contains(words), "{words}: {all:#}");
    }
    let output = run(&["list", text(&foreign), text(&disks[0])]);
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(out.contains(text(&disks[0])) && err.contains("not a bcache device"), "{out}\n{err}");
}

/// Sets of the driver, one of them behind a power cut: the words are those
/// of bcache-super-show.
#[test]
fn devices_of_the_driver_agree_with_bcache_super_show() {
    let test = "devices_of_the_driver_agree_with_bcache_super_show";
    let tools = have(test, &["bcache-super-show"]);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../format/tests/fixtures");
    for (case, state) in [
        ("writeback-clean", "dirty"),
        ("writeback-crash", "dirty"),
        ("writethrough-mixed", "clean"),
    ] {
        let directory = scratch();
        let files = ["cache", "backing"].map(|name| {
            let image = fixtures.join(case).join(format!("{name}.img.xz"));
            let packed = std::fs::read(image).expect("an image");
            let mut reader = lzma_rust2::XzReader::new(packed.as_slice(), false);
            let file = directory.path().join(name);
            let mut copy = std::fs::File::create(&file).expect("room");
            std::io::copy(&mut reader, &mut copy).expect("room");
            file
        });
        let (code, devices, all) = list(&[&files[0], &files[1]]);
        assert_eq!((code, devices.len()), (Some(0), 2), "{all:#}");
        assert_eq!(devices[0]["set_uuid"], devices[1]["set_uuid"]);
        assert_eq!(
            (&devices[0]["state"], &devices[1]["state"]),
            (&json!("started"), &json!(state))
        );
        // A disk without its cache.
        let said = must(ubcache().arg("list").arg(&files[1]));
        assert!(said.contains("cache    not found"), "{said}");
        if !tools {
            continue;
        }
        for (file, device) in files.iter().zip(&devices) {
            let shown = must(tool("bcache-super-show").arg(file));
            for (name, field) in [
                ("dev.uuid", "uuid"),
                ("cset.uuid", "set_uuid"),
                ("dev.data.cache_state", "state"),
                ("dev.data.cache_mode", "mode"),
            ] {
                let Some(line) = shown.lines().find(|line| line.starts_with(name)) else {
                    assert!(name.starts_with("dev.data"), "{shown}");
                    continue;
                };
                let word = device[field].as_str().expect("a text");
                assert!(line.contains(word), "{line}, and {field} {word}");
            }
        }
    }
}

/// A search of the machine names every block device that it could not read.
#[test]
fn block_devices_of_the_machine_are_found() {
    let test = "block_devices_of_the_machine_are_found";
    let directory = scratch();
    if !have(test, &["losetup", "make-bcache"]) {
        return;
    }
    let file = directory.path().join("file");
    sparse(&file, 64 << 20);
    let Some(device) = Loop::new(&file, &[]) else {
        skipped(test, "no loop devices here");
        return;
    };
    must(tool("make-bcache").args(["--bucket", "64k", "-C"]).arg(&device.0));
    let (_, devices, all) = list(&[]);
    let ours = devices.iter().find(|it| it["path"] == text(&device.0));
    let ours = ours.unwrap_or_else(|| panic!("{}: {all:#}", device.0.display()));
    assert_eq!((&ours["kind"], &ours["role"]), (&json!("block device"), &json!("cache")));
    assert_eq!((&ours["state"], &ours["user"]), (&json!("new"), &Value::Null));
    // The file under it has the same superblock.
    let (_, devices, all) = list(&[&device.0, &file]);
    assert_eq!(devices[1]["same_uuid_as"], text(&device.0), "{all:#}");
}
