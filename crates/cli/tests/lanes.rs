//! Clients that are served by threads beside that of the set (`serve --threads`).
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::process::Stdio;

use support::{
    Daemon, NO_BYPASS, each_io, have, make_set, must, pseudo_random, text, tool, ubcache,
};

const EXPORT: &str = "disk0.img";

/// Time on a processor, in ns, of the daemon's lanes and of the set's thread.
fn time_on_processors(daemon: &Daemon) -> (u64, u64) {
    let (mut lanes, mut set) = (0, 0);
    for task in std::fs::read_dir(format!("/proc/{}/task", daemon.id())).expect("it runs") {
        let task = task.expect("a thread").path();
        let name = std::fs::read_to_string(task.join("comm")).expect("a name");
        let time = std::fs::read_to_string(task.join("schedstat")).expect("times");
        let time: u64 = time.split(' ').next().expect("a number").parse().expect("a number");
        match name.trim() {
            "ubcache" => set += time,
            name if name.starts_with("lane-") => lanes += time,
            _ => {}
        }
    }
    (lanes, set)
}

fn hits(daemon: &Daemon) -> u64 {
    daemon.number(0, "/stats/cache_hits")
}

/// Hits are carried out by lanes, and counted like others; misses and writes are the set's.
#[test]
fn lanes_carry_out_hits() {
    each_io("lanes_carry_out_hits", |io, directory| {
        let (cache, backings) = make_set(directory, &[32], &[]);
        let mut content = vec![0; 8 << 20];
        pseudo_random(7, &mut content);
        let options = [&["--threads", "2"][..], &NO_BYPASS[..]].concat();
        let daemon = Daemon::start(io, directory, &cache, &backings, &options);
        let mut writer = daemon.client(EXPORT);
        let mut readers = [daemon.client(EXPORT), daemon.client(EXPORT)];
        for (index, piece) in content.chunks(64 << 10).enumerate() {
            writer.write((index * piece.len()) as u64, piece, false).expect("a write");
        }
        let mut read = vec![0; 4096];
        let mut read_all = || {
            for (index, piece) in content.chunks(4096).enumerate() {
                let reader = &mut readers[index % 2];
                reader.read((index * 4096) as u64, &mut read).expect("a read");
                assert_eq!(read, piece, "block {index}");
            }
        };
        read_all();
        let (before, count) = (time_on_processors(&daemon), hits(&daemon));
        (0..3).for_each(|_| read_all());
        let after = time_on_processors(&daemon);
        assert_eq!(hits(&daemon) - count, 3 * 2048, "each is counted once");
        let (lanes, set) = (after.0 - before.0, after.1 - before.1);
        assert!(lanes > set, "lanes took {lanes} ns, the set's thread {set} ns");
        // Both read from then on what was written over a hit.
        writer.write(4096, &[9; 8192], true).expect("a write");
        for reader in &mut readers {
            let mut read = vec![0; 16384];
            reader.read(0, &mut read).expect("a read");
            assert_eq!(read[..4096], content[..4096]);
            assert!(read[4096..12288].iter().all(|&byte| byte == 9));
            assert_eq!(read[12288..], content[12288..16384]);
        }
        daemon.stop();
    });
}

/// A load that verifies goes on while clients move between threads, and to other programs.
#[test]
fn load_goes_on_over_upgrades_of_lanes() {
    let test = "load_goes_on_over_upgrades_of_lanes";
    if !have(test, &["fio"]) {
        return;
    }
    each_io(test, |io, directory| {
        let (cache, backings) = make_set(directory, &[256], &["--block", "512"]);
        let options = ["--mode", "writeback", "--threads", "2"];
        let daemon = Daemon::start(io, directory, &cache, &backings, &options);
        let mut load = tool("fio")
            .current_dir(directory)
            .args(["--ioengine=nbd", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"])
            .args(["--iodepth=16", "--randrepeat=0", "--output-format=terse", "--loops=12"])
            .args(["--name=load", "--rw=randwrite", "--bsrange=512-64k", "--size=16m"])
            .args(["--numjobs=4", "--offset_increment=32m", "--group_reporting"])
            .arg(format!("--uri={}", daemon.uri(EXPORT)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("fio runs");
        let mut upgrades = 0;
        while upgrades < 3 && load.try_wait().expect("a child").is_none() {
            if hits(&daemon) < 100 {
                std::thread::sleep(std::time::Duration::from_millis(10));
                continue;
            }
            assert_ne!(time_on_processors(&daemon).0, 0, "the clients are with lanes");
            let mut upgrade = ubcache();
            must(upgrade.args(["upgrade", "--control", text(&daemon.control)]));
            upgrades += 1;
        }
        assert!(upgrades > 0, "the load has ended before it read");
        let output = load.wait_with_output().expect("a child can be waited for");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        daemon.stop();
    });
}

/// A client with a limit stays with the set's thread, which alone keeps limits; a stop and a
/// removed volume end clients of lanes like others.
#[test]
fn clients_of_lanes_end_like_others() {
    each_io("clients_of_lanes_end_like_others", |io, directory| {
        let (cache, backings) = make_set(directory, &[16, 16], &[]);
        let options = ["--threads", "2", "--limit-iops", "disk1.img=100000"];
        let daemon = Daemon::start(io, directory, &cache, &backings, &options);
        let control = ["--control", text(&daemon.control)];
        let mut free = daemon.client(EXPORT);
        let mut limited = daemon.client("disk1.img");
        for client in [&mut free, &mut limited] {
            client.write(0, &[1; 4096], true).expect("a write");
            client.read(0, &mut [0; 4096]).expect("a read");
        }
        let before = time_on_processors(&daemon);
        (0..500).for_each(|_| limited.read(0, &mut [0; 4096]).expect("a read"));
        let after = time_on_processors(&daemon);
        let (lanes, set) = (after.0 - before.0, after.1 - before.1);
        assert!(lanes < set, "lanes took {lanes} ns, the set's thread {set} ns");
        must(ubcache().args(["remove", "disk1.img"]).args(control));
        limited.read(0, &mut [0; 4096]).expect_err("its export is gone");
        must(ubcache().args(["add", "-B"]).arg(&backings[1]).args(control));
        let mut other = daemon.client("disk1.img");
        other.read(0, &mut [0; 4096]).expect("the limit went with the export");
        must(ubcache().args(["remove", "disk1.img"]).args(control));
        other.read(0, &mut [0; 4096]).expect_err("its export is gone");
        free.read(0, &mut [0; 4096]).expect("the other one is there");
        daemon.stop();
        free.read(0, &mut [0; 4096]).expect_err("the daemon has ended");
    });
}

/// A number of threads that can't be is refused before anything starts.
#[test]
fn numbers_of_threads_have_limits() {
    for number in ["0", "65", "many"] {
        let output = ubcache()
            .args(["serve", "-C", "none", "-B", "none", "--threads", number])
            .output()
            .expect("ubcache runs");
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("--threads"), "{said}");
    }
}
