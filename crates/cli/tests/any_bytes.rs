//! Clients that know nothing of blocks: requests for any bytes, through nbdfuse and libnbd.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::os::unix::fs::FileExt;

use support::{Daemon, each_io, export_as_file, have, make_set, nbdsh, pseudo_random, skipped};

const MODES: [&str; 3] = ["writethrough", "writeback", "none"];

/// Bug: `nbdfuse` made a file that refused every write of a part of a block. Fix: requests for any
/// bytes are served, beside one another as well.
#[test]
fn nbdfuse_makes_a_file() {
    let test = "nbdfuse_makes_a_file";
    if !have(test, &["nbdfuse", "fusermount3"]) {
        return;
    }
    each_io(test, |io, directory| {
        for mode in MODES {
            let (cache, backings) = make_set(directory, &[16], &["--force"]);
            let daemon = Daemon::start(io, directory, &cache, &backings, &["--mode", mode]);
            let Some((fuse, guard, path)) = export_as_file(&daemon, directory, "disk0.img") else {
                return skipped(test, "nbdfuse can't mount here (no /dev/fuse?)");
            };
            let file = std::fs::OpenOptions::new().read(true).write(true).open(&path);
            let file = file.expect("a file");
            let mut expected = vec![0; 1 << 20];
            pseudo_random(9, &mut expected);
            // Each piece by a thread of its own: neighbours share blocks.
            std::thread::scope(|scope| {
                for thread in 0..8 {
                    let (file, expected) = (&file, &expected);
                    scope.spawn(move || {
                        for (number, piece) in expected.chunks(777).enumerate().skip(thread) {
                            if number % 8 == thread {
                                let at = number as u64 * 777;
                                file.write_all_at(piece, at).expect("a write");
                            }
                        }
                    });
                }
            });
            file.sync_all().expect("a flush");
            let mut found = vec![0; expected.len()];
            file.read_exact_at(&mut found, 0).expect("a read");
            assert!(found == expected, "{mode}");
            drop(file);
            fuse.unmount();
            drop(guard);
            daemon.kill();
            let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
            daemon.client("disk0.img").read(0, &mut found).expect("a read");
            assert!(found == expected, "{mode}, after a kill");
            daemon.stop();
        }
    });
}

/// Writes of FUA, of zeroes and discards at odd places; the last ones first to be killed.
#[test]
fn libnbd_writes_any_bytes_durably() {
    let test = "libnbd_writes_any_bytes_durably";
    if !have(test, &["nbdsh"]) {
        return;
    }
    each_io(test, |io, directory| {
        for mode in MODES {
            let (cache, backings) = make_set(directory, &[16], &["--force"]);
            let daemon = Daemon::start(io, directory, &cache, &backings, &["--mode", mode]);
            let script = "
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
assert h.get_block_size(nbd.SIZE_PREFERRED) >= 4096
h.pwrite(b'a' * 10000, 5)
h.zero(3000, 1000)
h.trim(700, 4097)
h.pwrite(b'b', 4095, nbd.CMD_FLAG_FUA)
expected = b'a' * 995 + b'\\0' * 3000 + b'a' * 95 + b'b' + b'a' * 5909
found = h.pread(10000, 5)
assert found == expected, [(n, f, e) for n, (f, e) in enumerate(zip(found, expected)) if f != e][:9]
h.flush()
";
            if !nbdsh(&daemon.uri("disk0.img"), script) {
                return skipped(test, "no libnbd for Python");
            }
            daemon.kill();
            let daemon = Daemon::start(io, directory, &cache, &backings, &[]);
            let again = "
found = h.pread(10006, 0)
assert found[:5] == b'\\0' * 5 and found[5:1000] == b'a' * 995
assert found[1000:4000] == b'\\0' * 3000 and found[4095:4096] == b'b'
assert found[4096:10005] == b'a' * 5909 and found[10005:] == b'\\0'
";
            nbdsh(&daemon.uri("disk0.img"), again);
            daemon.stop();
        }
    });
}
