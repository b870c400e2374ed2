//! Misuse of the offline tools: input named as output, full disks, closed pipes, devices in the
//! wrong place or in use, truncated images. No existing file is lost, and messages name the right
//! file.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::crashed::{a_crashed_set, json, run};
use support::devices::Loop;
use support::{make_set, must, names_in, scratch, serve_command, sha256_of, ubcache};

/// Output of a command.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A set with a damaged leaf: cache and backing device, in a directory.
fn damaged(directory: &Path) -> (PathBuf, PathBuf) {
    let (cache, backing, _) = a_crashed_set(directory);
    let lines = must(ubcache().args(["dump", "--what", "btree", "--json"]).arg(&cache));
    let mut lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let leaf = lines.find(|line| line["type"] == "node" && line["level"] == 0).expect("a leaf");
    let sector = leaf["key"]["pointers"][0]["sector"].as_u64().expect("a place") as usize;
    let mut bytes = std::fs::read(&cache).expect("the cache");
    bytes[sector * 512 + 40] ^= 1;
    std::fs::write(&cache, bytes).expect("room");
    (cache, backing)
}

/// `repair --out CACHE --force` emptied the cache before it found that it was in use; `--report
/// DISK` wrote over the disk.
#[test]
fn output_over_an_input_is_refused() {
    let directory = scratch();
    let directory = directory.path();
    let (cache, backing) = damaged(directory);
    let (hard, soft) = (directory.join("hard"), directory.join("soft"));
    std::fs::hard_link(&cache, &hard).expect("a link");
    std::os::unix::fs::symlink(&backing, &soft).expect("a link");
    let notes = directory.join("notes");
    std::fs::write(&notes, "where the backups are").expect("room");
    let before = [&cache, &backing, &notes].map(|path| sha256_of(path));
    let new = directory.join("new");
    let names = names_in(directory);
    let repair = || {
        let mut command = ubcache();
        command.arg("repair").arg(&cache).arg("-B").arg(&backing);
        command
    };
    for target in [&cache, &backing, &hard, &soft] {
        run(repair().arg("--force").arg("--out").arg(target), 2);
        run(repair().arg("--out").arg(target), 2);
        run(repair().arg("--dry-run").arg("--report").arg(target), 2);
        run(repair().arg("--out").arg(&new).arg("--report").arg(target), 2);
        run(ubcache().args(["pack", "--force"]).arg(&cache).arg(target).arg("-B").arg(&backing), 2);
        let mut cat = ubcache();
        run(
            cat.args(["cat", "--damaged", "-C"])
                .arg(&cache)
                .arg("-B")
                .arg(&backing)
                .arg("-o")
                .arg(target),
            2,
        );
    }
    let output = run(repair().arg("--dry-run").arg("--report").arg(&notes), 2);
    assert!(
        said(&output).contains("notes") && said(&output).contains("no report"),
        "{}",
        said(&output)
    );
    run(repair().arg("--out").arg(&new).arg("--report").arg(&new), 2);
    assert_eq!([&cache, &backing, &notes].map(|path| sha256_of(path)), before);
    assert_eq!(names_in(directory), names, "and nothing else is there");

    // An earlier report and an earlier image are written over, the image by --force only.
    let report = directory.join("report");
    run(repair().arg("--dry-run").arg("--report").arg(&report), 1);
    run(repair().arg("--out").arg(&new).arg("--report").arg(&report), 1);
    run(repair().arg("--out").arg(&new).arg("--report").arg(&report), 2);
    run(repair().arg("--force").arg("--out").arg(&new).arg("--report").arg(&report), 1);
    let report: Value =
        serde_json::from_slice(&std::fs::read(report).expect("a report")).expect("JSON");
    assert_eq!(report["written_to"], new.to_string_lossy().as_ref());
}

/// The unfinished file of a killed command is no obstacle for the next command.
#[test]
fn unfinished_output_of_an_earlier_run_is_replaced() {
    let directory = scratch();
    let directory = directory.path();
    let (cache, backing, _) = a_crashed_set(directory);
    let whole = directory.join("whole");
    std::fs::write(directory.join("whole.ubcache-partial"), vec![1; 100_000_000]).expect("room");
    run(
        ubcache().arg("cat").arg("-C").arg(&cache).arg("-B").arg(&backing).arg("-o").arg(&whole),
        0,
    );
    assert_eq!(names_in(directory), ["backing", "cache", "whole"]);
    let length = |path: &Path| std::fs::metadata(path).expect("it is there").len();
    assert_eq!(length(&whole), length(&backing) - 8192);
}

/// A command that may not write files of more than so many KiB: to it, the disk is full.
fn with_limit(kib: u64, arguments: &[&str], paths: &[&Path]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f $(($0 * 2)); exec \"$@\""]).arg(kib.to_string());
    command.arg(ubcache().get_program()).args(arguments).args(paths);
    command
}

#[test]
fn full_disk_is_reported_and_leaves_no_partial_file() {
    let directory = scratch();
    let directory = directory.path();
    let (cache, backing) = damaged(directory);
    let good = scratch();
    let (whole, _, _) = a_crashed_set(good.path());
    let dump = directory.join("dump");
    std::fs::write(&dump, must(ubcache().args(["dump", "--format", "restore"]).arg(&whole)))
        .expect("room");
    let before = [&cache, &backing].map(|path| sha256_of(path));
    let (new, names) = (directory.join("new"), names_in(directory));
    let commands: [(u64, Vec<&str>, Vec<&Path>); 5] = [
        (3000, vec!["repair", "--out"], vec![&new, &cache]),
        (
            3000,
            vec!["cat", "--damaged", "-o"],
            vec![&new, Path::new("-C"), &cache, Path::new("-B"), &backing],
        ),
        (
            3000,
            vec!["cat", "--damaged", "--sparse", "-o"],
            vec![&new, Path::new("-C"), &cache, Path::new("-B"), &backing],
        ),
        (20, vec!["pack"], vec![&cache, &new]),
        (3000, vec!["restore"], vec![&dump, &new]),
    ];
    for (kib, arguments, paths) in commands {
        let output = run(&mut with_limit(kib, &arguments, &paths), 1);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = said.split("ubcache: ").last().unwrap_or_default();
        assert!(last.starts_with(&*new.to_string_lossy()), "{arguments:?}: {said}");
        assert!(
            last.contains("File too large") && last.contains("removed"),
            "{arguments:?}: {said}"
        );
        assert_eq!(names_in(directory), names, "{arguments:?}");
    }
    assert_eq!([&cache, &backing].map(|path| sha256_of(path)), before);
    // Lost standard output is reported as well.
    for arguments in [
        vec!["dump"],
        vec!["dump", "--json"],
        vec!["dump", "--format", "restore"],
        vec!["check", "--json"],
    ] {
        let full = File::options().write(true).open("/dev/full").expect("a full device");
        let output = ubcache().args(&arguments).arg(&whole).stdout(full).output().expect("it runs");
        let said = said(&output);
        assert!(
            !output.status.success() && said.contains("standard output"),
            "{arguments:?}: {said}"
        );
        assert!(
            !said.contains("panicked") && output.status.code() != Some(101),
            "{arguments:?}: {said}"
        );
    }
}

/// A pipe whose reader has gone.
fn closed_pipe() -> Stdio {
    let mut child = Command::new("true").stdin(Stdio::piped()).spawn().expect("true runs");
    let pipe = child.stdin.take().expect("a pipe");
    child.wait().expect("it ends");
    pipe.into()
}

/// `ubcache check CACHE 2>&1 | head -1` panicked.
#[test]
fn closed_output_pipe_does_not_panic() {
    let directory = scratch();
    let (cache, backing) = damaged(directory.path());
    let backing = backing.to_string_lossy().into_owned();
    let commands: [(&[&str], i32); 5] = [
        (&["check"], 1),
        (&["dump"], 1),
        (&["repair", "--dry-run"], 1),
        (&["cat", "--map", "--damaged", "-B", &backing, "-C"], 1),
        (&["show", "--bogus"], 2),
    ];
    for (arguments, code) in commands {
        let status = ubcache()
            .args(arguments)
            .arg(&cache)
            .stdout(closed_pipe())
            .stderr(closed_pipe())
            .status();
        assert_eq!(status.expect("it runs").code(), Some(code), "{arguments:?}");
    }
}

/// A daemon whose log pipe was closed panicked at its next line.
#[test]
fn daemon_serves_on_with_its_log_pipe_closed() {
    let directory = scratch();
    let (cache, backings) = make_set(directory.path(), &[16], &[]);
    let (mut command, _, control, _) =
        serve_command("pool", directory.path(), &cache, &backings, &[]);
    command.env("UBCACHE_LOG", "debug");
    let mut child = support::Guard(
        command.stdout(closed_pipe()).stderr(closed_pipe()).spawn().expect("it runs"),
    );
    while !control.exists() {
        assert!(child.0.try_wait().expect("a child").is_none(), "it ended");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    must(ubcache().args(["gc", "--control"]).arg(&control));
    must(ubcache().args(["stop", "--control"]).arg(&control));
    assert!(child.0.wait().expect("it ends").success());
}

#[test]
fn swapped_devices_are_reported_as_swapped_not_damaged() {
    let directory = scratch();
    let (cache, backing, _) = a_crashed_set(directory.path());
    let empty = directory.path().join("empty");
    std::fs::write(&empty, []).expect("room");
    let before = [&cache, &backing].map(|path| sha256_of(path));
    let (c, b, e) = (cache.as_path(), backing.as_path(), empty.as_path());
    let dashed =
        |first: &'static str, c, b| vec![Path::new(first), Path::new("-C"), c, Path::new("-B"), b];
    let plain = |first: &'static str, c, b| vec![Path::new(first), c, Path::new("-B"), b];
    let option = Path::new("--dry-run");
    let commands = [
        (plain("check", b, c), "a backing device"),
        (plain("check", c, c), "named twice"),
        (vec![Path::new("check"), c, Path::new("-B"), b, b], "named twice"),
        (plain("check", e, b), "too short"),
        (dashed("cat", b, c), "a backing device"),
        (dashed("cat", c, c), "named twice"),
        (dashed("recover", b, c), "a backing device"),
        (dashed("recover", c, c), "named twice"),
        (vec![Path::new("repair"), option, b, Path::new("-B"), c], "a backing device"),
        (vec![Path::new("repair"), option, c, Path::new("-B"), c], "named twice"),
        (vec![Path::new("dump"), b], "a backing device"),
        (
            vec![Path::new("dump"), Path::new("--format"), Path::new("restore"), b],
            "a backing device",
        ),
        (vec![Path::new("pack"), b, e], "a backing device"),
        (
            vec![Path::new("cat"), Path::new("-C"), c, Path::new("--volume"), Path::new("0")],
            "dump --what uuids",
        ),
    ];
    for (arguments, expected) in commands {
        let output = run(ubcache().args(&arguments), 2);
        let said = said(&output);
        assert!(said.contains(expected) && !said.contains("DAMAGED"), "{arguments:?}: {said}");
    }
    assert_eq!([&cache, &backing].map(|path| sha256_of(path)), before);
}

/// A truncated cache was reported with a damaged superblock, which `repair` would find again, and
/// did not.
#[test]
fn truncated_image_is_reported_as_truncated() {
    let directory = scratch();
    let directory = directory.path();
    let (cache, backing, _) = a_crashed_set(directory);
    let whole = directory.join("whole");
    let set = |command: &mut Command, cache: &Path| {
        command.arg("-C").arg(cache).arg("-B").arg(&backing);
    };
    let mut cat = ubcache();
    set(cat.arg("cat").arg("-o").arg(&whole), &cache);
    run(&mut cat, 0);
    let whole = std::fs::read(whole).expect("the volume");
    let bytes = std::fs::metadata(&cache).expect("a file").len();
    for length in [8192, bytes / 3, bytes / 3 * 2, bytes - 512] {
        let file = File::options().write(true).open(&cache).expect("a file");
        file.set_len(length).expect("shorter");
        let (new, read) =
            (directory.join(format!("new{length}")), directory.join(format!("read{length}")));
        let checked =
            run(ubcache().args(["check", "--json"]).arg(&cache).arg("-B").arg(&backing), 1);
        let first = &json(&checked)["findings"][0];
        assert_eq!(first["kind"], "device-short", "{first}");
        let before = [&cache, &backing].map(|path| sha256_of(path));
        let mut recover = ubcache();
        set(recover.arg("recover"), &cache);
        assert!(said(&run(&mut recover, 1)).contains("truncated"));
        let mut repair = ubcache();
        repair.arg("repair").arg(&cache).arg("-B").arg(&backing).arg("--json");
        let mut in_place = ubcache();
        in_place
            .arg("repair")
            .arg(&cache)
            .args(["--in-place", "--drop-uncertain", "--confirm"])
            .arg(&cache);
        let code = if length == 8192 { 1 } else { 2 };
        run(in_place.arg("-B").arg(&backing), code);
        assert_eq!([&cache, &backing].map(|path| sha256_of(path)), before, "nothing was written");
        if length > 8192 {
            let report = json(&run(repair.arg("--out").arg(&new), 1));
            run(ubcache().arg("check").arg(&new).arg("-B").arg(&backing), 0);
            let mut cat = ubcache();
            set(cat.arg("cat").arg("-o").arg(&read), &new);
            run(&mut cat, 0);
            assert_listed(&whole, &std::fs::read(&read).expect("the volume"), &report);
            let mut pack = ubcache();
            let file = directory.join(format!("pack{length}"));
            run(pack.arg("pack").arg(&cache).arg(&file), 1);
            assert!(said(&run(ubcache().arg("check").arg(&file), 1)).contains("device-short"));
        }
        // The next one is longer: the part that was cut off does not exist any more.
        let (again, _, _) = a_crashed_set(directory);
        assert_eq!(again, cache);
    }
}

/// Every sector that reads otherwise is in the list of uncertain ranges.
fn assert_listed(before: &[u8], after: &[u8], report: &Value) {
    assert_eq!(before.len(), after.len());
    let listed: Vec<(u64, u64)> = report["uncertain"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|part| {
            let first = part["first_key_sector"].as_u64().expect("a number");
            (first, first.saturating_add(part["sectors"].as_u64().unwrap_or(u64::MAX)))
        })
        .collect();
    assert!(listed.is_sorted());
    for (sector, (before, after)) in before.chunks(512).zip(after.chunks(512)).enumerate() {
        let key = sector as u64 + 16;
        let is_listed = || {
            let next = listed.partition_point(|(_, end)| *end <= key);
            listed.get(next).is_some_and(|(first, _)| *first <= key)
        };
        assert!(before == after || is_listed(), "sector {sector} is not listed");
    }
}

/// A file was free for all while a loop device over it was mounted; a device that takes no writes
/// was found out by the first one that failed, with half of the work done.
#[test]
fn loop_devices_in_use_and_devices_without_writes_are_refused() {
    let test = "loop_devices_in_use_and_devices_without_writes_are_refused";
    let directory = scratch();
    let (cache, backing, _) = a_crashed_set(directory.path());
    let Some(over) = Loop::new(&cache, &["--read-only"]) else {
        support::skipped(test, "no loop devices here");
        return;
    };
    let before = [&cache, &backing].map(|path| sha256_of(path));
    let recover = |cache: &Path| {
        let mut command = ubcache();
        command.arg("recover").arg("-C").arg(cache).arg("-B").arg(&backing);
        command
    };
    let output = run(&mut recover(&over.0), 2);
    assert!(said(&output).contains("read-only"), "{}", said(&output));
    // No process holds it, so its existence does no harm.
    run(recover(&cache).arg("--dry-run"), 0);
    use std::os::unix::fs::OpenOptionsExt;
    const O_EXCL: i32 = 0o200;
    let held = File::options().read(true).custom_flags(O_EXCL).open(&over.0).expect("it opens");
    let output = run(&mut recover(&cache), 2);
    assert!(
        said(&output).contains("in use") && said(&output).contains("loop"),
        "{}",
        said(&output)
    );
    let backings = std::slice::from_ref(&backing);
    let daemon = serve_command("pool", directory.path(), &cache, backings, &[])
        .0
        .stderr(Stdio::piped())
        .output();
    assert!(said(&daemon.expect("it runs")).contains("in use"));
    drop(held);
    assert_eq!([&cache, &backing].map(|path| sha256_of(path)), before);
    run(&mut recover(&cache), 0);
}
