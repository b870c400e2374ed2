//! Upgrades as clients see them: a pause, and no error.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::Path;
use std::process::{Output, Stdio};

use support::{Daemon, each_io, have, make_set, tool, ubcache};

const EXPORT: &str = "disk0.img";

/// `ubcache upgrade`, with its output.
fn upgrade(daemon: &Daemon, extra: &[&str]) -> Output {
    let mut command = ubcache();
    command.args(["upgrade", "--json", "--control"]).arg(&daemon.control).args(extra);
    command.output().expect("ubcache runs")
}

/// An upgrade that succeeds. Prints the pause.
fn must_upgrade(daemon: &Daemon, extra: &[&str]) -> serde_json::Value {
    let output = upgrade(daemon, extra);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {said}", output.status);
    let done: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    println!("clients {}, pause {} ms", done["clients"], done["pause_ms"]);
    done
}

fn log_of(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("serve.log")).expect("a log")
}

/// fio writes and verifies all the time; its ioengine has no reconnect.
#[test]
fn load_goes_on_over_upgrades() {
    let test = "load_goes_on_over_upgrades";
    if !have(test, &["fio"]) {
        return;
    }
    each_io(test, |io, directory| {
        let (cache, backings) = make_set(directory, &[128], &["--block", "512"]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &["--mode", "writeback"]);
        let mut load = tool("fio")
            .current_dir(directory)
            .args(["--ioengine=nbd", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"])
            .args(["--iodepth=16", "--randrepeat=0", "--output-format=terse", "--loops=8"])
            .args(["--name=load", "--rw=randwrite", "--bsrange=512-64k", "--size=24m"])
            .args(["--numjobs=2", "--offset_increment=32m", "--group_reporting"])
            .arg(format!("--uri={}", daemon.uri(EXPORT)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("fio runs");
        let reads = || {
            let stats = daemon.status()["sets"][0]["volumes"][0]["stats"].clone();
            let count = |name: &str| stats[name].as_u64().expect("a count");
            ["cache_hits", "cache_misses", "cache_bypass_hits", "cache_bypass_misses"]
                .into_iter()
                .map(count)
                .sum::<u64>()
        };
        for number in 0..3 {
            // The load runs: requests come after each upgrade.
            while reads() < 200 {
                if load.try_wait().expect("a child").is_some() {
                    let output = load.wait_with_output().expect("a child");
                    panic!("the load has ended: {output:?}\n{}", log_of(directory));
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            let done = must_upgrade(&daemon, &[]);
            assert_eq!(done["clients"], 2, "{number}: {done}");
        }
        let output = load.wait_with_output().expect("a child can be waited for");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{}", log_of(directory));
        daemon.stop();
        println!("{}", log_of(directory));
    });
}
