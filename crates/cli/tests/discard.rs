//! Discards: dirty data that a client trims is not written back any more.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use support::{Daemon, each_io, make_set, make_set_sized, must, pseudo_random, skipped, ubcache};

const DIRTY: u64 = 100 << 20;
const STEP: usize = 1 << 20;
/// A place where no client has written.
const AT: u64 = 32 << 20;

/// A trim left dirty data alone: 100 MiB of deleted files were written to the disk all the same.
/// Now they are zeroed below, durably, and the keys go; what is flushed then stays away over a
/// crash.
#[test]
fn trimmed_dirty_data_is_not_written_back_and_does_not_return() {
    each_io("trimmed_dirty_data_is_not_written_back_and_does_not_return", |io, directory| {
        let (cache, backings) = make_set_sized(directory, 400, &[256], &["--writeback"]);
        let settings =
            ["writeback_running=0", "sequential_cutoff=0", "congested_write_threshold_us=0"];
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
        let cache_read =
            || daemon.status()["sets"][0]["cache"]["read_bytes"].as_u64().expect("a number");
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
            assert!(
                if kept { found == data } else { found.iter().all(|byte| *byte == 0) },
                "byte {at}"
            );
        }
        client.disconnect().expect("a connection");
        daemon.stop();
    });
}

/// A block device in memory that is no loop device, and takes discards; gone at the end.
struct Zram(u32);

impl Zram {
    fn new(bytes: u64) -> Option<Zram> {
        let number = std::fs::read_to_string("/sys/class/zram-control/hot_add").ok()?;
        let zram = Zram(number.trim().parse().ok()?);
        std::fs::write(format!("/sys/block/zram{}/disksize", zram.0), bytes.to_string()).ok()?;
        zram.path().exists().then_some(zram)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/zram{}", self.0))
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let _ = std::fs::write("/sys/class/zram-control/hot_remove", self.0.to_string());
    }
}

/// A block device makes no promise that discarded sectors read the same every time.
#[test]
fn block_devices_get_discards_only_with_trust_discards() {
    let test = "block_devices_get_discards_only_with_trust_discards";
    each_io(test, |io, directory| {
        let Some(disk) = Zram::new(64 << 20) else { return skipped(test, "no zram devices here") };
        let (cache, _) = make_set(directory, &[], &[]);
        must(ubcache().args(["make", "--label", "data", "-B"]).arg(disk.path()));
        let said = |log: &Path| {
            let text = std::fs::read_to_string(log).expect("a log");
            let line = text.lines().find(|line| line.contains("discards are not passed on"));
            line.is_some_and(|line| {
                line.contains(&disk.path().display().to_string())
                    && line.contains("--trust-discards")
            })
        };
        let device =
            std::fs::OpenOptions::new().read(true).write(true).open(disk.path()).expect("a device");
        let mut data = vec![0; STEP];
        pseudo_random(9, &mut data);
        device.write_all_at(&data, AT + 8192).expect("a write");
        device.sync_all().expect("a flush");
        let log = directory.join("serve.log");
        for (options, trusted) in [(&[][..], false), (&["--trust-discards"], true)] {
            let _ = std::fs::remove_file(&log);
            let daemon = Daemon::start(io, directory, &cache, &[disk.path()], options);
            assert_eq!(said(&log), !trusted, "{options:?}");
            let mut client = daemon.client("data");
            // Nothing is cached there: a discard need not wait until a removal is durable.
            client.trim(AT, STEP as u32).expect("a trim");
            client.flush().expect("a flush");
            daemon.stop();
            let mut found = vec![0; STEP];
            device.read_exact_at(&mut found, AT + 8192).expect("a read");
            assert_eq!(found != data, trusted, "{options:?}");
        }
    });
}
