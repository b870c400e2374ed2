//! Disks that are taken as they are (`make --adopt`): an ext4 with files is served, written under
//! load, killed, served again, and released; what is on it then is what a disk without ubcache
//! would have. And what is refused: disks that somebody else wrote to, headers of other disks.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use support::adopted::{Adopted, DISK_MIB, MIB, said};
use support::file_system::{ext4_of, files};
use support::{
    Daemon, STAYS_DIRTY, each_io, have, must, names_in, pseudo_random, sha256_of, sparse, text,
    tool, ubcache,
};

#[test]
fn a_file_system_outlives_adoption_kills_and_release() {
    const TEST: &str = "a_file_system_outlives_adoption_kills_and_release";
    if !have(TEST, &["mkfs.ext4", "e2fsck", "debugfs"]) {
        return;
    }
    each_io(TEST, |io, directory| {
        let (disk, files) = (directory.join("disk.img"), files(directory, 12, MIB));
        ext4_of(&files, &disk, DISK_MIB * MIB, DISK_MIB * MIB);
        let set = Adopted::over(io, directory, disk.clone());

        // The same changes, to the disk by way of the cache and to a copy of it. They are made by
        // debugfs on the copy; its changed blocks are written through NBD, while a reader goes on.
        let copy = directory.join("copy.img");
        std::fs::copy(&disk, &copy).expect("a copy");
        let mut served = set.serve(&STAYS_DIRTY);
        for round in 0..3 {
            let new = directory.join("new");
            let mut content = vec![0; MIB as usize];
            pseudo_random(100 + round, &mut content);
            std::fs::write(&new, &content).expect("a file");
            let write = format!("write {} new{round}", new.display());
            must(tool("debugfs").args(["-w", "-R", &write]).arg(&copy));
            must(tool("debugfs").args(["-w", "-R", &format!("rm file{round}")]).arg(&copy));
            let newest = std::fs::read(&copy).expect("the copy");
            let stop = AtomicBool::new(false);
            let seen = set.content(&served);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut reader = served.client("data");
                    let mut block = vec![0; 65_536];
                    let mut at = 0;
                    while !stop.load(Ordering::Relaxed) {
                        reader.read(at, &mut block).expect("a read");
                        at = (at + 7 * 65_536) % (DISK_MIB * MIB);
                    }
                });
                let mut writer = served.client("data");
                let blocks = newest.chunks(4096).zip(seen.chunks(4096));
                for (at, (new, old)) in (0..).step_by(4096).zip(blocks) {
                    if new != old {
                        writer.write(at, new, false).expect("a write");
                    }
                }
                writer.flush().expect("a flush");
                stop.store(true, Ordering::Relaxed);
            });
            served.kill();
            let writeback: &[&str] = &["--mode", "writeback", "--set", "sequential_cutoff=0"];
            served = set.serve(if round == 1 { writeback } else { &STAYS_DIRTY });
            assert!(set.content(&served) == newest, "kill {round}: something else is read");
        }
        assert!(set.log().contains("did not end with a clean stop"), "{}", set.log());
        served.stop();
        let released = set.release();
        assert!(released.status.success(), "{}", said(&released));
        assert!(names_in(&set.headers()).is_empty());
        assert!(std::fs::read(&disk).expect("the disk") == std::fs::read(&copy).expect("the copy"));
        must(tool("e2fsck").arg("-fn").arg(&disk));
        for number in 3..12 {
            let out = directory.join("out");
            let dump = format!("dump file{number} {}", out.display());
            must(tool("debugfs").args(["-R", &dump]).arg(&disk));
            assert_eq!(sha256_of(&out), sha256_of(&files.join(format!("file{number}"))));
        }
        let again = set.release();
        assert!(said(&again).contains("nothing to release"), "{}", said(&again));
    });
}

#[test]
fn a_clean_stop_keeps_the_cache_warm_and_a_foreign_write_voids_it() {
    each_io("a_clean_stop_keeps_the_cache_warm_and_a_foreign_write_voids_it", |io, directory| {
        let set = Adopted::new(io, directory);
        let mut block = vec![0; 4096];
        for (written, hits) in [(false, 1), (true, 0)] {
            let served = set.serve(&support::NO_BYPASS);
            let mut client = served.client("data");
            client.write(20 * MIB, &vec![5; 4096], false).expect("a write");
            client.flush().expect("a flush");
            client.read(20 * MIB, &mut block).expect("a read");
            served.stop();
            if written {
                set.write_elsewhere(20 * MIB, &[9; 4096]);
                set.write_elsewhere(0, &[9; 512]);
            }
            let served = set.serve(&support::NO_BYPASS);
            served.client("data").read(20 * MIB, &mut block).expect("a read");
            assert_eq!(served.number(0, "/stats/cache_hits"), hits, "{}", served.status());
            assert_eq!(block[0], if written { 9 } else { 5 });
            served.stop();
        }
        assert!(set.log().contains("was written without its cache"), "{}", set.log());
    });
}

/// A set with a dirty block at 20 MiB that was stopped in order.
fn with_dirty_data(io: &str, directory: &Path) -> Adopted {
    let set = Adopted::new(io, directory);
    let served = set.serve(&STAYS_DIRTY);
    served.client("data").write(20 * MIB, &vec![7; 4096], true).expect("a write");
    served.stop();
    set
}

#[test]
fn a_foreign_write_below_dirty_data_is_refused_with_both_ways_out() {
    each_io("a_foreign_write_below_dirty_data_is_refused", |io, directory| {
        let set = with_dirty_data(io, directory);
        set.write_elsewhere(8192, &[1; 512]);
        let before = sha256_of(&set.disk);
        let refused = set.try_serve(&STAYS_DIRTY).err().expect("a refusal");
        for word in ["written without its cache", "hash", "--believe-disk data", "--believe-cache"]
        {
            assert!(refused.contains(word), "{word}: {refused}");
        }
        let released = set.release();
        assert!(said(&released).contains("written without its cache"), "{}", said(&released));
        assert_eq!(sha256_of(&set.disk), before);
        let mut options = STAYS_DIRTY.to_vec();
        options.extend(["--believe-cache", "data"]);
        let served = set.serve(&options);
        let mut block = vec![0; 4096];
        served.client("data").read(20 * MIB, &mut block).expect("a read");
        assert_eq!(block[0], 7);
        served.client("data").read(8192, &mut block).expect("a read");
        assert_eq!(block[0], 1);
        served.stop();
        set.write_elsewhere(8192, &[2; 512]);
        let served = set.serve(&["--believe-disk", "data"]);
        served.client("data").read(20 * MIB, &mut block).expect("a read");
        assert_ne!(block, vec![7; 4096]);
        served.stop();
    });
}

#[test]
fn another_size_is_refused() {
    each_io("another_size_is_refused", |io, directory| {
        let set = with_dirty_data(io, directory);
        let disk = File::options().write(true).open(&set.disk).expect("the disk");
        for (mib, word) in [(DISK_MIB + 1, "has grown"), (DISK_MIB - 1, "has become shorter")] {
            disk.set_len(mib * MIB).expect("another size");
            let refused = set.try_serve(&[]).err().expect("a refusal");
            let (found, expected) = (mib * MIB, DISK_MIB * MIB);
            assert!(refused.contains(word), "{refused}");
            assert!(refused.contains(&found.to_string()), "{refused}");
            assert!(refused.contains(&expected.to_string()), "{refused}");
        }
    });
}

#[test]
fn a_lost_header_is_found_on_the_cache_device() {
    each_io("a_lost_header_is_found_on_the_cache_device", |io, directory| {
        let set = with_dirty_data(io, directory);
        let header = set.header();
        let content = std::fs::read(&header).expect("the header");
        std::fs::remove_file(&header).expect("it goes");
        let served = set.serve(&STAYS_DIRTY);
        let mut block = vec![0; 4096];
        served.client("data").read(20 * MIB, &mut block).expect("a read");
        assert_eq!(block[0], 7);
        served.stop();
        assert!(set.log().contains("the header of the disk was lost"), "{}", set.log());
        // One from a backup is older than the copy, or of an older run.
        std::fs::write(&header, content).expect("an older header");
        let refused = set.try_serve(&STAYS_DIRTY).err().expect("a refusal");
        let older = ["older than its copy", "not of one run"];
        assert!(older.iter().any(|word| refused.contains(word)), "{refused}");
        std::fs::remove_file(&header).expect("it goes");
        set.serve(&STAYS_DIRTY).stop();
    });
}

#[test]
fn headers_and_disks_are_not_mixed_up() {
    each_io("headers_and_disks_are_not_mixed_up", |io, directory| {
        let set = with_dirty_data(io, directory);
        let again = set.ubcache("make").arg("--adopt").arg(&set.disk).output().expect("it runs");
        assert!(said(&again).contains("adopted already"), "{}", said(&again));
        // Another disk with the header of this one.
        let other = Adopted { disk: directory.join("other.img"), ..Adopted { ..set } };
        sparse(&other.disk, DISK_MIB * MIB);
        let header = other.header();
        let refused = other.try_serve(&["--header", text(&header)]).err().expect("a refusal");
        assert!(refused.contains("the header is of another disk"), "{refused}");
        let refused = other.try_serve(&[]).err().expect("a refusal");
        assert!(refused.contains("make --adopt"), "{refused}");
        // A disk and a copy of it at once.
        std::fs::copy(directory.join("disk.img"), &other.disk).expect("a copy");
        let disk = directory.join("disk.img");
        let refused = other.try_serve(&["-B", text(&disk)]).err().expect("a refusal");
        assert!(refused.contains("given twice") || refused.contains("same name"), "{refused}");
    });
}

/// Each of two headers could be the newer one: with the older one, dirty data would be lost.
#[test]
fn two_headers_of_one_disk_are_refused_until_one_is_named() {
    each_io("two_headers_of_one_disk_are_refused_until_one_is_named", |io, directory| {
        let set = with_dirty_data(io, directory);
        let header = set.header();
        let other = header.with_file_name("zz.header");
        std::fs::copy(&header, &other).expect("a second header");
        let before = (sha256_of(&set.disk), sha256_of(&header), sha256_of(&set.cache));
        let two = ["--header", text(&header), "--header", text(&other)];
        for options in [&[][..], &two] {
            let (status, refused) = set.start(options).err().expect("a refusal");
            assert_eq!(status.code(), Some(1), "{refused}");
            for words in
                ["more than one header is of this disk", text(&header), text(&other), "--header"]
            {
                assert!(refused.contains(words), "{words}: {refused}");
            }
        }
        let released = set.release();
        assert_eq!(released.status.code(), Some(1), "{}", said(&released));
        assert!(said(&released).contains("more than one header is of this disk"));
        let after = (sha256_of(&set.disk), sha256_of(&header), sha256_of(&set.cache));
        assert_eq!(after, before, "nothing is changed");

        let mut options = STAYS_DIRTY.to_vec();
        options.extend(["--header", text(&header)]);
        let served = set.serve(&options);
        let mut block = vec![0; 4096];
        served.client("data").read(20 * MIB, &mut block).expect("a read");
        assert_eq!(block[0], 7);
        served.stop();
        std::fs::remove_file(&other).expect("it goes, as the message says");
        set.serve(&STAYS_DIRTY).stop();
    });
}

/// A clean stop vouches for every byte that the witness has, so a disk may have another path. After
/// a kill a copy of the disk may be older than the disk.
#[test]
fn a_copy_of_a_disk_is_taken_for_it_after_a_clean_stop_only() {
    each_io("a_copy_of_a_disk_is_taken_for_it_after_a_clean_stop_only", |io, directory| {
        let set = with_dirty_data(io, directory);
        let served = set.serve(&STAYS_DIRTY);
        served.set("cache_mode=writethrough");
        served.client("data").write(30 * MIB, &vec![5; 4096], true).expect("a write to the disk");
        served.kill();
        let copy = directory.join("copy.img");
        std::fs::copy(&set.disk, &copy).expect("a copy");
        let of_copy = Adopted { disk: copy.clone(), ..set.clone() };
        let (status, refused) = of_copy.start(&STAYS_DIRTY).err().expect("a refusal");
        assert_eq!(status.code(), Some(1), "{refused}");
        for words in [
            "written without its cache, or is another one",
            text(&copy),
            text(&set.disk),
            "no clean stop vouches for a copy",
            "--believe-disk data",
            "--believe-cache data",
        ] {
            assert!(refused.contains(words), "{words}: {refused}");
        }
        // The disk itself is taken with its dirty data; and after a clean stop, so is the copy.
        let mut block = vec![0; 4096];
        for set in [&set, &of_copy] {
            let served = set.serve(&STAYS_DIRTY);
            let mut client = served.client("data");
            client.read(20 * MIB, &mut block).expect("a read");
            assert_eq!(block, vec![7; 4096]);
            client.read(30 * MIB, &mut block).expect("a read");
            assert_eq!(block, vec![5; 4096]);
            served.stop();
        }
    });
}

#[test]
fn unmake_prints_the_mapping_of_the_data() {
    let scratch = support::scratch();
    let (_, disks) = support::make_set(scratch.path(), &[16], &[]);
    let said = must(ubcache().arg("unmake").arg(&disks[0]));
    let (disk, sectors) = (disks[0].display(), 16 * 2048 - 16);
    assert!(said.contains(&format!("losetup --find --show --offset 8192 {disk}")), "{said}");
    assert!(said.contains(&format!("'0 {sectors} linear {disk} 16'")), "{said}");
}

#[test]
fn a_disk_that_grows_while_it_is_served_is_taken_at_the_next_start() {
    each_io("a_disk_that_grows_while_it_is_served_is_taken_at_the_next_start", |io, directory| {
        let set = Adopted::new(io, directory);
        let served = set.serve(&[]);
        set.grow(&served, DISK_MIB + 16);
        let mut client = served.client("data");
        assert_eq!(client.bytes(), (DISK_MIB + 16) * MIB);
        client.write(DISK_MIB * MIB, &vec![5; MIB as usize], true).expect("a write at the new end");
        served.stop();
        let served = set.serve(&[]);
        let mut data = vec![0; MIB as usize];
        served.client("data").read(DISK_MIB * MIB, &mut data).expect("a read");
        assert!(data == vec![5; MIB as usize]);
        served.stop();
    });
}

#[test]
fn a_disk_that_grew_and_was_not_written_is_taken_at_the_next_start() {
    each_io("a_disk_that_grew_and_was_not_written_is_taken_at_the_next_start", |io, directory| {
        let set = Adopted::new(io, directory);
        let served = set.serve(&[]);
        set.grow(&served, DISK_MIB + 16);
        served.kill();
        let served = set.serve(&[]);
        assert_eq!(served.client("data").bytes(), (DISK_MIB + 16) * MIB);
        served.stop();
    });
}

#[test]
fn a_volume_moves_from_an_adopted_disk_and_goes_on_after_a_stop() {
    each_io("a_volume_moves_from_an_adopted_disk_and_goes_on_after_a_stop", |io, directory| {
        let adopted = Adopted::new(io, directory);
        let new = directory.join("new.img");
        sparse(&new, DISK_MIB * MIB + 8192);
        let move_to_new = |daemon: &Daemon, extra: &[&str]| {
            let mut command = adopted.ubcache("move");
            command.arg("data").arg(&new).args(extra).arg("--control").arg(&daemon.control);
            must(&mut command)
        };
        let moving = |daemon: &Daemon| daemon.status()["sets"][0]["volumes"][0]["moving"].clone();

        let daemon = adopted.serve(&STAYS_DIRTY);
        let mut client = daemon.client("data");
        client.write(5 * MIB, &[0x77; 4096], true).expect("a write");
        move_to_new(&daemon, &["--no-wait", "--rate", "1k"]);
        // The first parts are copied at once, then it waits.
        while moving(&daemon)["copied_bytes"].as_u64().expect("a move") < MIB {
            std::thread::yield_now();
        }
        drop(client);
        // A clean stop: nobody else wrote to the disk, and what was copied counts.
        daemon.stop();
        let daemon = adopted.serve(&STAYS_DIRTY);
        move_to_new(&daemon, &["--no-wait", "--rate", "1k"]);
        let earlier = moving(&daemon)["earlier_bytes"].as_u64().expect("a move");
        assert!((MIB..8 * MIB).contains(&earlier), "{earlier} bytes");
        let said = move_to_new(&daemon, &["--rate", "0"]);
        assert!(said.contains("moved from"), "{said}");
        must(adopted.ubcache("drain").args(["--wait", "--control"]).arg(&daemon.control));
        daemon.stop();

        let mut expected = std::fs::read(&adopted.disk).expect("the old disk");
        expected[5 * MIB as usize..][..4096].fill(0x77);
        let found = std::fs::read(&new).expect("the new disk");
        assert!(found[8192..] == expected, "the data, behind a superblock");
        let said = adopted.try_serve(&[]).err().expect("the old disk is refused");
        assert!(said.contains("a header of this disk"), "its header says no more: {said}");
    });
}
