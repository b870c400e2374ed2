//! Discards: dirty data that a client trims is not written back any more.
#![allow(clippy::disallowed_methods, reason = "tests live in the real world, with its clock and its threads")]

mod support;

use support::{Daemon, each_io, make_set_sized, pseudo_random};

const DIRTY: u64 = 100 << 20;
const STEP: usize = 1 << 20;

/// A trim left dirty data alone: 100 MiB of deleted files were written to the disk all the same. Now they are zeroed
/// below, durably, and the keys go; what is flushed then stays away over a crash.
#[test]
fn trimmed_dirty_data_is_not_written_back_and_does_not_return() {
    each_io("trimmed_dirty_data_is_not_written_back_and_does_not_return", |io, directory| {
        let (cache, backings) = make_set_sized(directory, 400, &[256], &["--writeback"]);
        let settings = ["writeback_running=0", "sequential_cutoff=0", "congested_write_threshold_us=0"];
        let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        let daemon = Daemon::start(io, directory, &cache, &backings, &settings);
        let mut client = daemon.client("disk0.img");
        let mut data = vec![0; STEP];
        pseudo_random(3, &mut data);
        for at in (0..DIRTY).step_by(STEP) {
            client.write(at, &data, false).expect("a write");
        }
        client.flush().expect("a flush");
        assert_eq!(daemon.number(0, "/dirty_bytes"), DIRTY, "{}", daemon.status());
        let cache_read = || daemon.status()["sets"][0]["cache"]["read_bytes"].as_u64().expect("a number");
        let before = cache_read();

        // All but the last step.
        client.trim(0, (DIRTY - STEP as u64) as u32).expect("a trim");
        client.flush().expect("a flush");
        assert_eq!(daemon.number(0, "/dirty_bytes"), STEP as u64, "{}", daemon.status());
        let read = cache_read() - before;
        assert!(read < STEP as u64, "the data was read to be written back: {read} bytes");
        daemon.kill();

        let daemon = Daemon::start(io, directory, &cache, &backings, &settings);
        let mut client = daemon.client("disk0.img");
        let mut found = vec![0; STEP];
        for at in (0..DIRTY).step_by(STEP) {
            client.read(at, &mut found).expect("a read");
            let kept = at == DIRTY - STEP as u64;
            assert!(if kept { found == data } else { found.iter().all(|byte| *byte == 0) }, "byte {at}");
        }
        client.disconnect().expect("a connection");
        daemon.stop();
    });
}
