//! `dump --format restore` and `restore` as a user runs them: metadata that is broken, and there
//! again.

#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::Path;

use support::crashed::{a_crashed_set, json, run};
use support::{Daemon, each_io, make_set, pseudo_random, scratch, sha256_of, ubcache};

fn dump(cache: &Path, to: &Path) {
    let lines = run(ubcache().arg("dump").arg(cache).args(["--format", "restore"]), 0).stdout;
    std::fs::write(to, lines).expect("room");
}

/// Bytes of the device that have no data and no nodes.
fn end_of_journal(cache: &Path) -> usize {
    let shape = json(&run(ubcache().arg("dump").arg(cache).args(["--what", "super", "--json"]), 0));
    let number = |name: &str| shape[name].as_u64().expect("a number") as usize;
    (number("first_bucket") + number("journal_buckets")) * number("bucket_sectors") * 512
}

fn content(cache: &Path, backing: &Path, to: &Path) -> String {
    let _ = std::fs::remove_file(to);
    run(ubcache().arg("cat").arg("-C").arg(cache).arg("-B").arg(backing).arg("-o").arg(to), 0);
    sha256_of(to)
}

#[test]
fn broken_metadata_is_restored_in_place() {
    let directory = scratch();
    let (cache, backing, digest) = a_crashed_set(directory.path());
    let [lines, pack, copy] =
        ["cache.dump", "cache.pack", "copy"].map(|name| directory.path().join(name));
    dump(&cache, &lines);
    run(ubcache().arg("pack").arg(&cache).arg(&pack), 0);
    let of_pack = run(ubcache().arg("dump").arg(&pack).args(["--format", "restore"]), 0).stdout;
    assert_eq!(
        of_pack,
        std::fs::read(&lines).expect("a dump"),
        "a pack is dumped as the device is"
    );

    // Superblock and journal: nothing on the device leads to the tree any more.
    let end = end_of_journal(&cache);
    let mut image = std::fs::read(&cache).expect("an image");
    image[..end].fill(0x55);
    std::fs::write(&cache, &image).expect("room");
    run(ubcache().arg("check").arg(&cache), 1);
    let broken = sha256_of(&cache);
    run(ubcache().arg("dump").arg(&cache).args(["--format", "restore"]), 1);

    let restore = |more: &[&str], code| {
        run(ubcache().arg("restore").arg(&lines).arg(&cache).args(more), code)
    };
    let name = cache.to_string_lossy().into_owned();
    restore(&[], 2);
    restore(&["--confirm", &backing.to_string_lossy()], 2);
    let told = json(&restore(&["--dry-run", "--json"], 0));
    assert_eq!((&told["written"], &told["dirty_sectors"]), (&false.into(), &60_473.into()));
    assert_eq!(sha256_of(&cache), broken, "nothing was changed until now");
    let told = json(&restore(&["--confirm", &name, "--json"], 0));
    assert_eq!((&told["written"], &told["new_file"]), (&true.into(), &false.into()));
    run(ubcache().arg("check").arg(&cache).arg("-B").arg(&backing), 0);
    assert_eq!(content(&cache, &backing, &copy), digest);
}

#[test]
fn a_dump_that_is_older_than_the_set_is_refused() {
    let directory = scratch();
    let (cache, backing, digest) = a_crashed_set(directory.path());
    let [lines, copy] = ["cache.dump", "copy"].map(|name| directory.path().join(name));
    dump(&cache, &lines);
    run(ubcache().arg("recover").arg("-C").arg(&cache).arg("-B").arg(&backing), 0);
    let since = sha256_of(&cache);
    let restore = |more: &[&str], code| {
        run(
            ubcache()
                .arg("restore")
                .arg(&lines)
                .arg(&cache)
                .arg("--confirm")
                .arg(&cache)
                .args(more),
            code,
        )
    };
    let said = restore(&[], 2).stderr;
    assert!(String::from_utf8_lossy(&said).contains("after the dump"));
    assert_eq!(sha256_of(&cache), since);
    // A recovery reuses no bucket of the data, so here it does no harm.
    restore(&["--older-dump"], 0);
    assert_eq!(content(&cache, &backing, &copy), digest);
}

#[test]
fn restore_into_a_new_file_warns_that_data_is_missing() {
    let directory = scratch();
    let (cache, backing, _) = a_crashed_set(directory.path());
    let [lines, new, again] =
        ["cache.dump", "new", "again.dump"].map(|name| directory.path().join(name));
    dump(&cache, &lines);
    let restore = |new: &Path, code| run(ubcache().arg("restore").arg(&lines).arg(new), code);
    let said = restore(&new, 0).stdout;
    assert!(String::from_utf8_lossy(&said).contains("WITHOUT DATA"));
    assert_eq!(
        std::fs::metadata(&new).expect("a file").len(),
        std::fs::metadata(&cache).expect("a file").len()
    );
    run(ubcache().arg("check").arg(&new), 0);
    dump(&new, &again);
    let extents = |path: &Path| {
        let text = std::fs::read_to_string(path).expect("a dump");
        text.lines()
            .filter(|line| line.contains(r#""extent""#))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert!(!extents(&lines).is_empty());
    assert_eq!(extents(&lines), extents(&again));

    // Not onto a disk, and not onto a file that is no device of the set, unless it is confirmed;
    // never half.
    let before = sha256_of(&backing);
    run(ubcache().arg("restore").arg(&lines).arg(&backing).arg("--confirm").arg(&backing), 2);
    assert_eq!(sha256_of(&backing), before);
    let text = std::fs::read_to_string(&lines).expect("a dump");
    std::fs::write(&lines, &text[..text.len() / 2]).expect("room");
    let other = directory.path().join("other");
    let said = restore(&other, 2).stderr;
    assert!(String::from_utf8_lossy(&said).contains("line "), "{}", String::from_utf8_lossy(&said));
    assert!(!other.exists());
    run(ubcache().arg("dump").arg(&cache).args(["--format", "restore", "--what", "btree"]), 2);
}

/// Data that was only in the cache is read from it again, by the daemon that wrote it.
#[test]
fn a_set_is_served_after_a_restore() {
    each_io("a_set_is_served_after_a_restore", |io, directory| {
        let (cache, backings) = make_set(directory, &[64], &[]);
        let lines = directory.join("cache.dump");
        let mut written = vec![0; 4 << 20];
        pseudo_random(7, &mut written);
        let mode = ["--mode", "writeback"];
        let daemon = Daemon::start(io, directory, &cache, &backings, &mode);
        let mut client = daemon.client("disk0.img");
        for (index, piece) in written.chunks(16 << 10).enumerate() {
            client.write(3 * (index as u64) * (16 << 10), piece, false).expect("a write");
        }
        client.disconnect().expect("a connection");
        daemon.stop();
        dump(&cache, &lines);
        let dirty = json(&run(
            ubcache().args(["check", "--json"]).arg(&cache).arg("-B").args(&backings),
            0,
        ));
        assert!(dirty["stats"]["dirty_sectors"].as_u64().expect("a number") > 0);

        let end = end_of_journal(&cache);
        let mut image = std::fs::read(&cache).expect("an image");
        image[4096..end].iter_mut().step_by(3).for_each(|byte| *byte ^= 0xff);
        std::fs::write(&cache, &image).expect("room");
        run(ubcache().arg("check").arg(&cache), 1);
        run(ubcache().arg("restore").arg(&lines).arg(&cache).arg("--confirm").arg(&cache), 0);
        let report = json(&run(
            ubcache().args(["check", "--json"]).arg(&cache).arg("-B").args(&backings),
            0,
        ));
        assert_eq!(report["stats"]["dirty_sectors"], dirty["stats"]["dirty_sectors"]);

        let daemon = Daemon::start(io, directory, &cache, &backings, &mode);
        let mut client = daemon.client("disk0.img");
        let mut found = vec![0; 16 << 10];
        for (index, piece) in written.chunks(16 << 10).enumerate() {
            client.read(3 * (index as u64) * (16 << 10), &mut found).expect("a read");
            assert!(found == piece, "piece {index}");
        }
        client.disconnect().expect("a connection");
        daemon.stop();
    });
}
