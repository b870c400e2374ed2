//! Take-overs: a cache stays warm if ubcache, or a tool that keeps the rules, ran the set before;
//! if clean data is dropped, the log has the reason.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::Path;

use support::crashed::run;
use support::pieces::{read_pieces, write_pieces};
use support::{Daemon, STAYS_DIRTY, each_io, make_set, pseudo_random, ubcache};

const BYTES: u64 = 12 << 20;

fn expected() -> Vec<u8> {
    let mut bytes = vec![0; BYTES as usize];
    pseudo_random(3, &mut bytes);
    bytes
}

/// Writes everything through a cache in writeback, and stops: nothing of it is on the backing
/// device.
fn write_all(
    io: &str,
    directory: &Path,
    cache: &Path,
    backings: &[std::path::PathBuf],
    expected: &[u8],
) {
    let daemon = Daemon::start(io, directory, cache, backings, &STAYS_DIRTY);
    let mut client = daemon.client("disk0.img");
    write_pieces(&mut client, expected);
    client.disconnect().expect("a connection");
    daemon.stop();
}

/// The log, which is whole when the daemon has ended.
fn log_of(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("serve.log")).expect("a log")
}

/// After a recovery the next start took the set for one that the Linux driver had run, and dropped
/// the whole cache: the entry that the recovery wrote had no mark. Data that was written back is
/// clean now, and stays in the cache.
#[test]
fn set_is_warm_after_recover() {
    each_io("set_is_warm_after_recover", |io, directory| {
        let (cache, backings) = make_set(directory, &[32], &[]);
        let expected = expected();
        write_all(io, directory, &cache, &backings, &expected);
        run(ubcache().arg("recover").arg("-C").arg(&cache).arg("-B").arg(&backings[0]), 0);
        run(ubcache().arg("check").arg(&cache).arg("-B").arg(&backings[0]), 0);

        let daemon = Daemon::start(io, directory, &cache, &backings, &STAYS_DIRTY);
        assert_eq!(daemon.number(0, "/dirty_bytes"), 0);
        let before = daemon.number(0, "/backing/read_bytes");
        let mut client = daemon.client("disk0.img");
        read_pieces(&mut client, &expected);
        assert_eq!(
            daemon.number(0, "/backing/read_bytes") - before,
            0,
            "everything is in the cache"
        );
        client.disconnect().expect("a connection");
        daemon.stop();
        assert!(!log_of(directory).contains("clean data was dropped"), "{}", log_of(directory));
    });
}

/// A set that `repair` or `restore` has written loses its clean data at the next start, and the log
/// blamed the driver.
#[test]
fn log_reports_a_set_written_by_a_tool() {
    each_io("log_reports_a_set_written_by_a_tool", |io, directory| {
        let (cache, backings) = make_set(directory, &[32], &[]);
        let expected = expected();
        write_all(io, directory, &cache, &backings, &expected);
        let dump = directory.join("cache.dump");
        let lines = run(ubcache().arg("dump").arg(&cache).args(["--format", "restore"]), 0).stdout;
        std::fs::write(&dump, lines).expect("room");
        let served = |what: &str| {
            let _ = std::fs::remove_file(directory.join("serve.log"));
            let daemon = Daemon::start(io, directory, &cache, &backings, &STAYS_DIRTY);
            let mut client = daemon.client("disk0.img");
            read_pieces(&mut client, &expected);
            client.disconnect().expect("a connection");
            daemon.stop();
            let log = log_of(directory);
            assert!(
                log.contains("`ubcache repair` or `ubcache restore` wrote this set"),
                "{what}: {log}"
            );
            let _ = std::fs::remove_file(directory.join("serve.log"));
            Daemon::start(io, directory, &cache, &backings, &STAYS_DIRTY).stop();
            assert!(!log_of(directory).contains("wrote this set"), "{what}: it is said once");
        };
        run(ubcache().arg("restore").arg(&dump).arg(&cache).arg("--confirm").arg(&cache), 0);
        served("restore");
        let repaired = directory.join("repaired.img");
        let file = std::fs::OpenOptions::new().write(true).open(&cache).expect("the cache");
        std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], 4096)
            .expect("no superblock any more");
        run(
            ubcache()
                .arg("repair")
                .arg(&cache)
                .arg("-B")
                .arg(&backings[0])
                .arg("--out")
                .arg(&repaired),
            1,
        );
        std::fs::rename(&repaired, &cache).expect("a new name");
        served("repair");
    });
}
