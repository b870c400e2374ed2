//! fio writes and verifies: random and sequential, 512 bytes to 1 MiB, in every mode and across
//! mode switches.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use support::{Daemon, each_io, have, make_set, must, tool};

const EXPORT: &str = "disk0.img";

/// A job: what it does, with which block sizes.
const JOBS: &[(&str, &str, &str)] = &[
    ("randwrite", "512-4k", "12m"),
    ("randwrite", "4k-128k", "80m"),
    ("write", "1m-1m", "96m"),
    ("write", "16k-16k", "24m"),
];

fn fio(
    daemon: &Daemon,
    directory: &Path,
    name: &str,
    pattern: &str,
    blocks: &str,
    size: &str,
) -> std::process::Command {
    let mut command = tool("fio");
    command
        .current_dir(directory)
        .args([
            "--ioengine=nbd",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--iodepth=16",
        ])
        .args(["--randrepeat=0", "--group_reporting", "--output-format=terse"])
        .arg(format!("--name={name}"))
        .arg(format!("--uri={}", daemon.uri(EXPORT)))
        .arg(format!("--rw={pattern}"))
        .arg(format!("--bsrange={blocks}"))
        .arg(format!("--size={size}"));
    command
}

#[test]
fn fio_verifies_in_every_mode() {
    if !have("fio_verifies_in_every_mode", &["fio"]) {
        return;
    }
    each_io("fio_verifies_in_every_mode", |io, directory| {
        let (cache, backings) = make_set(directory, &[128], &["--block", "512"]);
        for mode in ["writethrough", "writeback", "writearound", "none"] {
            let daemon = Daemon::start(io, directory, &cache, &backings, &["--mode", mode]);
            for (number, (pattern, blocks, size)) in JOBS.iter().enumerate() {
                must(&mut fio(
                    &daemon,
                    directory,
                    &format!("{mode}{number}"),
                    pattern,
                    blocks,
                    size,
                ));
            }
            daemon.stop();
        }
    });
}

#[test]
fn fio_verifies_across_mode_switches() {
    if !have("fio_verifies_across_mode_switches", &["fio"]) {
        return;
    }
    each_io("fio_verifies_across_mode_switches", |io, directory| {
        let (cache, backings) = make_set(directory, &[128], &["--block", "512", "--writeback"]);
        let daemon =
            Daemon::start(io, directory, &cache, &backings, &["--set", "writeback_delay=0"]);
        for round in 0..2 {
            let mut command =
                fio(&daemon, directory, &format!("switch{round}"), "randwrite", "512-64k", "64m");
            let mut child = command
                .args(["--verify_backlog=512"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("fio runs");
            let mut modes = ["writethrough", "none", "writeback", "writearound"].iter().cycle();
            while child.try_wait().expect("a child can be waited for").is_none() {
                daemon.set(&format!("cache_mode={}", modes.next().expect("a cycle has no end")));
                std::thread::sleep(Duration::from_millis(150));
            }
            let output = child.wait_with_output().expect("fio ends");
            assert!(
                output.status.success(),
                "fio: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        daemon.stop();
    });
}
