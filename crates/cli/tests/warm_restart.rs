//! The cache is warm after a restart: cached data is read from it again.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use support::pieces::{PIECE, read_pieces};
use support::{Daemon, NO_BYPASS, each_io, make_set, pseudo_random};

const WORKING_SET: u64 = 24 << 20;
#[test]
fn third_pass_over_cached_data_reads_nothing_from_the_backing_device() {
    each_io(
        "third_pass_over_cached_data_reads_nothing_from_the_backing_device",
        |io, directory| {
            let (cache, backings) = make_set(directory, &[64], &[]);
            let mut expected = vec![0; WORKING_SET as usize];
            pseudo_random(1, &mut expected);
            let file = std::fs::OpenOptions::new()
                .write(true)
                .open(&backings[0])
                .expect("the backing file");
            std::os::unix::fs::FileExt::write_all_at(&file, &expected, 8192)
                .expect("room in the backing file");
            drop(file);

            let daemon = Daemon::start(io, directory, &cache, &backings, &NO_BYPASS);
            let mut client = daemon.client("disk0.img");
            read_pieces(&mut client, &expected);
            // Fills go on after the reply.
            std::thread::sleep(std::time::Duration::from_millis(500));
            let before = daemon.number(0, "/backing/read_bytes");
            assert!(
                before >= WORKING_SET,
                "the first pass comes from the backing device, {before} bytes"
            );
            read_pieces(&mut client, &expected);
            let second = daemon.number(0, "/backing/read_bytes") - before;
            assert_eq!(second, 0, "bytes that the second pass read from the backing device");
            client.disconnect().expect("a connection");
            daemon.stop();

            let daemon = Daemon::start(io, directory, &cache, &backings, &NO_BYPASS);
            let before = daemon.number(0, "/backing/read_bytes");
            let mut client = daemon.client("disk0.img");
            read_pieces(&mut client, &expected);
            let third = daemon.number(0, "/backing/read_bytes") - before;
            assert_eq!(
                third, 0,
                "bytes that the third pass, after a restart, read from the backing device"
            );
            assert!(daemon.number(0, "/stats/cache_hits") >= WORKING_SET / PIECE as u64);
            daemon.stop();
        },
    );
}
