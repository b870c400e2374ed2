//! The race by which bcache loses a bypassing write: the write is still on its way to a slow
//! backing device when a read of the same block brings the old content into the cache, where it
//! then stays.
//!
//! The backing file is behind `nbdkit --filter=delay`, mounted by nbdfuse: every write takes three
//! seconds.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::time::{Duration, Instant};

use support::devices::filtered;
use support::{Daemon, each_io, have, make_set, skipped};
use ubcache_cli::nbd_client::Client;

const BLOCK: usize = 64 << 10;
const PART: usize = 4 << 10;

/// Reads the block in small parts, the last first: that is not sequential, so misses are filled.
fn read_backwards(client: &mut Client, at: u64, into: &mut [u8]) {
    for (number, part) in into.chunks_mut(PART).enumerate().rev() {
        client.read(at + (number * PART) as u64, part).expect("a read");
    }
}

fn race(test: &str, settings: &[&str]) {
    if !have(test, &["nbdkit", "nbdfuse", "fusermount3"]) {
        return;
    }
    each_io(test, |io, directory| {
        let (cache, backings) = make_set(directory, &[16], &[]);
        let Some((mount, guards, slow)) = filtered(directory, &backings[0], "delay", &["wdelay=3"])
        else {
            skipped(test, "nbdfuse can't mount here (no /dev/fuse?)");
            return;
        };
        let daemon = Daemon::start(io, directory, &cache, &[slow], settings);
        let name = "disk";
        let at = 4 << 20;
        daemon.client(name).write(at, &[0; BLOCK], false).expect("the write of zeroes");
        let mut writer = daemon.client(name);
        let mut reader = daemon.client(name);
        let begin = Instant::now();
        let writing = std::thread::spawn(move || {
            writer.write(at, &[0xff; BLOCK], false).expect("the write of ones");
            begin.elapsed()
        });
        std::thread::sleep(Duration::from_secs(1));
        let mut content = vec![0x55; BLOCK];
        read_backwards(&mut reader, at, &mut content);
        assert!(
            content.chunks(512).all(|sector| sector.iter().all(|byte| *byte == 0)
                || sector.iter().all(|byte| *byte == 0xff)),
            "a read during the write gives the old or the new content of every sector"
        );
        let took = writing.join().expect("the writer does not fail");
        assert!(
            took > Duration::from_secs(2),
            "the layer is slow, or the test tests nothing: {took:?}"
        );
        std::thread::sleep(
            (begin + Duration::from_secs(6)).saturating_duration_since(Instant::now()),
        );
        read_backwards(&mut reader, at, &mut content);
        assert!(content.iter().all(|byte| *byte == 0xff), "the acknowledged write is lost");
        daemon.stop();
        mount.unmount();
        drop(guards);
    });
}

#[test]
fn read_during_a_writearound_write_caches_no_stale_data() {
    race("read_during_a_writearound_write_caches_no_stale_data", &["--mode", "writearound"]);
}

#[test]
fn read_during_a_sequential_bypass_write_caches_no_stale_data() {
    // A cutoff below the size of a write: every write counts as sequential and bypasses; the small
    // reads do not.
    race(
        "read_during_a_sequential_bypass_write_caches_no_stale_data",
        &["--mode", "writethrough", "--set", "sequential_cutoff=32k"],
    );
}
