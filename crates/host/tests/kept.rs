//! Kept memory in a file.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ubcache_env::KeptMemory;
use ubcache_host::HostKept;

const SET: [u8; 16] = [7; 16];
const CAPACITY: usize = 4096;

/// Opens a file that this process has closed. A child of another test has it until it runs its own
/// program.
fn open_again(path: &Path, set: [u8; 16], capacity: usize) -> HostKept {
    loop {
        match HostKept::open(path, set, capacity) {
            Err(error) if error.is_in_use() => std::thread::yield_now(),
            opened => return opened.expect("opens"),
        }
    }
}

#[test]
fn bytes_are_there_when_the_file_is_opened_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("kept");
    let kept = HostKept::open(&path, SET, CAPACITY).expect("opens");
    assert_eq!(kept.read(), [0_u8; 0]);
    // Round the ring, several times.
    let mut expected = Vec::new();
    for round in 0..100_u8 {
        let bytes = vec![round; 500];
        kept.append(&bytes);
        expected.extend(bytes);
        if expected.len() > 3000 {
            kept.drop_front(1100);
            expected.drain(..1100);
        }
    }
    assert_eq!(kept.read(), expected);
    drop(kept);
    let again = open_again(&path, SET, CAPACITY);
    assert_eq!((again.capacity(), again.read()), (CAPACITY, expected));
    assert_eq!(path.metadata().expect("there is a file").permissions().mode() & 0o777, 0o600);
}

#[test]
fn memory_of_another_set_boot_or_size_is_begun_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("kept");
    let fill = || {
        let kept = open_again(&path, SET, CAPACITY);
        kept.drop_front(kept.read().len());
        kept.append(b"something");
    };
    let is_empty = |set, capacity| open_again(&path, set, capacity).read().is_empty();
    fill();
    assert!(!is_empty(SET, CAPACITY));
    assert!(is_empty([8; 16], CAPACITY));
    fill();
    assert!(is_empty(SET, 2 * CAPACITY));
    fill();
    let mut bytes = std::fs::read(&path).expect("reads");
    bytes[32] ^= 1;
    std::fs::write(&path, bytes).expect("writes");
    assert!(is_empty(SET, CAPACITY), "of another boot");
}

#[test]
fn memory_that_somebody_else_has_or_may_write_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("kept");
    let kept = HostKept::open(&path, SET, CAPACITY).expect("opens");
    let error = HostKept::open(&path, SET, CAPACITY).expect_err("it is in use").to_string();
    assert!(error.contains("another process has it"), "{error}");
    drop(kept);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).expect("sets");
    let error = HostKept::open(&path, SET, CAPACITY).expect_err("others may read it").to_string();
    assert!(error.contains("expected a file of mode 600"), "{error}");
}

/// A process that is killed between two instructions leaves what it had put there.
#[test]
fn bytes_of_a_killed_process_are_there() {
    const CHILD: &str = "UBCACHE_TEST_KEPT";
    if let Ok(path) = std::env::var(CHILD) {
        let kept = HostKept::open(path.as_ref(), SET, CAPACITY).expect("opens");
        kept.append(b"here");
        std::process::abort();
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("kept");
    let mut child = std::process::Command::new(std::env::current_exe().expect("a program"));
    child.args(["--exact", "bytes_of_a_killed_process_are_there"]).env(CHILD, &path);
    assert!(!child.output().expect("runs").status.success());
    assert_eq!(HostKept::open(&path, SET, CAPACITY).expect("opens").read(), b"here");
}
