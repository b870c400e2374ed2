//! Copies of headers on the cache device: a cache that takes the place of another one has them
//! before it has dirty data, each disk has its own, and one that can't be written is logged.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use support::adopted::{Adopted, MIB};
use support::{Daemon, STAYS_DIRTY, each_io, must, names_in, sparse, text};

fn new_cache(set: &Adopted, bucket: &str) -> PathBuf {
    let cache = set.directory.join("new.img");
    sparse(&cache, 64 << 20);
    must(set.ubcache("make").args(["--bucket", bucket, "-C"]).arg(&cache));
    cache
}

fn attach(set: &Adopted, daemon: &Daemon, cache: &Path) {
    let mut command = set.ubcache("attach");
    must(command.arg("--cache").arg(cache).arg("--control").arg(&daemon.control));
}

/// A set whose cache is about to be replaced: it was detached, or is missing.
fn without_cache(set: &Adopted, missing: bool) -> Daemon {
    let mut options = STAYS_DIRTY.to_vec();
    options.push("--cache-optional");
    if missing {
        std::fs::remove_file(&set.cache).expect("the cache is dead");
        return set.serve(&options);
    }
    let daemon = set.serve(&options);
    must(set.ubcache("detach").arg("data").arg("--control").arg(&daemon.control));
    daemon
}

/// The copy stayed on the former cache: a header that was lost after its cache was replaced left
/// dirty data on the new one that nobody could find a disk for.
#[test]
fn a_lost_header_is_found_on_the_cache_that_replaced_another() {
    each_io("a_lost_header_is_found_on_the_cache_that_replaced_another", |io, directory| {
        for (missing, killed) in [(false, false), (false, true), (true, false), (true, true)] {
            let directory = directory.join(format!("{missing}-{killed}"));
            std::fs::create_dir(&directory).expect("a directory");
            let mut set = Adopted::new(io, &directory);
            let daemon = without_cache(&set, missing);
            let new = new_cache(&set, "64k");
            attach(&set, &daemon, &new);
            daemon.client("data").write(20 * MIB, &[7; 4096], true).expect("a write");
            assert_eq!(daemon.number(0, "/dirty_bytes"), 4096);
            if killed {
                daemon.kill()
            } else {
                daemon.stop()
            }

            std::fs::remove_file(set.header()).expect("it is lost");
            if !missing {
                // The former cache does not take the disk for its own.
                let refused = set.try_serve(&[]).err().expect("a refusal");
                assert!(refused.contains("another cache set"), "{refused}");
                assert!(names_in(&set.headers()).is_empty(), "nothing is made of an older copy");
            }
            set.cache = new;
            let daemon = set.serve(&STAYS_DIRTY);
            let mut block = vec![0; 4096];
            daemon.client("data").read(20 * MIB, &mut block).expect("a read");
            assert_eq!(block, vec![7; 4096]);
            daemon.stop();
            let said = set.log();
            assert!(said.contains("the header of the disk was lost"), "{said}");
            assert!(!said.contains("is not written any more"), "{said}");
        }
    });
}

/// The copy of a cache that was away said that nothing was written since, and the cache served what
/// it had.
#[test]
fn a_header_made_again_from_an_older_copy_does_not_vouch_for_the_cache() {
    let test = "a_header_made_again_from_an_older_copy_does_not_vouch_for_the_cache";
    each_io(test, |io, directory| {
        let set = Adopted::new(io, directory);
        let write_and_stop = |daemon: Daemon, byte| {
            daemon.client("data").write(20 * MIB, &[byte; 4096], true).expect("a write");
            daemon.stop();
        };
        write_and_stop(set.serve(&["--mode", "writethrough"]), 1);
        let aside = directory.join("aside.img");
        std::fs::rename(&set.cache, &aside).expect("the cache is away");
        write_and_stop(set.serve(&["--cache-optional"]), 2);
        std::fs::rename(&aside, &set.cache).expect("it is back");
        std::fs::remove_file(set.header()).expect("it is lost");
        let daemon = set.serve(&[]);
        let mut block = vec![0; 4096];
        daemon.client("data").read(20 * MIB, &mut block).expect("a read");
        assert_eq!(block, vec![2; 4096]);
        daemon.stop();
        assert!(set.log().contains("clean data in the cache is dropped"), "{}", set.log());
    });
}

#[test]
fn a_cache_without_room_for_a_copy_is_logged_once() {
    each_io("a_cache_without_room_for_a_copy_is_logged_once", |io, directory| {
        let set = Adopted::new(io, directory);
        let daemon = without_cache(&set, false);
        attach(&set, &daemon, &new_cache(&set, "16k"));
        let mut client = daemon.client("data");
        for at in 1..4 {
            client.write(at * MIB, &[7; 4096], true).expect("a write");
        }
        daemon.stop();
        assert_eq!(set.log().matches("has no room for a copy").count(), 1, "{}", set.log());
    });
}

/// Two disks that had no copy on the cache device got the same place, and one of them had none.
#[test]
fn each_disk_gets_a_copy_where_all_are_missing() {
    each_io("each_disk_gets_a_copy_where_all_are_missing", |io, directory| {
        let set = Adopted::new(io, directory);
        let other = directory.join("other.img");
        std::fs::write(&other, vec![9; MIB as usize]).expect("a file");
        must(set.ubcache("make").args(["--label", "other", "--adopt", text(&other)]));
        let cache = File::options().write(true).open(&set.cache).expect("the cache");
        cache.write_all_at(&[0; 48 << 10], 16 << 10).expect("no copies");
        let serve = || {
            let served = set.start_with(&[set.disk.clone(), other.clone()], &STAYS_DIRTY);
            served.unwrap_or_else(|(_, said)| panic!("serve: {said}"))
        };
        let daemon = serve();
        for (export, byte) in [("data", 1), ("other", 2)] {
            daemon.client(export).write(0, &[byte; 4096], true).expect("a write");
        }
        daemon.kill();
        for name in names_in(&set.headers()) {
            std::fs::remove_file(set.headers().join(name)).expect("it is lost");
        }
        let daemon = serve();
        for (export, byte) in [("data", 1), ("other", 2)] {
            let mut block = vec![0; 4096];
            daemon.client(export).read(0, &mut block).expect("a read");
            assert_eq!(block, vec![byte; 4096], "{export}");
        }
        daemon.stop();
    });
}
