//! `ubcache scrub`: what somebody wrote to a disk without ubcache is found, told and dropped.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::os::unix::fs::FileExt;

use support::{Daemon, each_io, http, make_set, must, text, ubcache};

/// Bytes of the volume that are cached.
const CACHED: usize = 8 << 20;

#[test]
fn a_disk_that_was_written_without_ubcache_is_found_and_its_data_is_read() {
    each_io("a_disk_that_was_written_without_ubcache", |io, directory| {
        let (cache, backings) = make_set(directory, &[64], &["--label", "data"]);
        let options = ["--set", "sequential_cutoff=0"];
        let daemon = Daemon::start(io, directory, &cache, &backings, &options);
        let mut client = daemon.client("data");
        let mut read = |at: u64, bytes: usize| {
            let mut data = vec![0; bytes];
            client.read(at, &mut data).expect("reads");
            data
        };
        for at in (0..CACHED).step_by(64 << 10) {
            read(at as u64, 64 << 10);
        }
        must(ubcache().args(["flush", "--control"]).arg(&daemon.control));
        while daemon.number(0, "/stats/cache_hits") == 0 {
            read(5 << 20, 4096);
        }
        let scrub = |options: &[&str]| {
            let mut command = ubcache();
            command.args(["scrub", "--control", text(&daemon.control)]).args(options);
            let output = command.output().expect("it runs");
            let words = String::from_utf8(output.stdout).expect("UTF-8");
            (output.status.code(), words, String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let (code, said, _) = scrub(&["--wait"]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.starts_with("data: complete, "), "{said}");
        let disk = std::fs::OpenOptions::new().write(true).open(&backings[0]).expect("opens");
        disk.write_all_at(&[7; 4096], 8192 + (5 << 20)).expect("writes");
        assert_eq!(read(5 << 20, 4096), vec![0; 4096], "the cache has the former data");
        let (code, said, why) = scrub(&["data", "--wait", "--json"]);
        assert_eq!(code, Some(1), "{said}{why}");
        let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(said["volumes"]["data"]["differing_bytes"], 4096, "{said}");
        assert!(why.contains("the log names the places"), "{why}");
        assert_eq!(read(5 << 20, 4096), vec![7; 4096]);
        let (health, status) = daemon.look(&[]);
        assert_eq!(health, 1, "{status}");
        assert!(status.contains("found 4k of cached data that differed"), "{status}");
        // The next pass finds nothing more, and the warning stays.
        assert_eq!(scrub(&["--wait"]).0, Some(0));
        assert_eq!(daemon.number(0, "/scrub/all_differing_bytes"), 4096);

        daemon.set("scrub_rate=1k");
        let (code, said, _) = scrub(&[]);
        assert!(code == Some(0) && said.contains("data: running"), "{said}");
        let (_, said, _) = scrub(&["--stop"]);
        assert!(said.contains("data: stopped"), "{said}");
        must(ubcache().args(["detach", "--control"]).arg(&daemon.control));
        let (code, _, why) = scrub(&["data"]);
        assert!(code == Some(1) && why.contains("not attached"), "{why}");
        assert_eq!(scrub(&[]).1, "no volume has a cache\n");
        let missing = http::ask(&daemon.control, "POST", "/v1/volumes/none/scrub", "");
        assert_eq!(missing.status, 404);
        daemon.stop();
    });
}
