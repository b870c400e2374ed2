//! The conformance script over every backend and every kind of device that this machine has.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use ubcache_env::erased::AnyDevice;
use ubcache_env::testing::{DEVICE_BYTES_MIN, device_conformance};
use ubcache_env::{Buf, Device, Durability, Env, IoError, IoVec, Priority, Sector};
use ubcache_host::{Host, HostDisk, HostFile, IoBackend, OpenError, OpenOptions, PageCache};

const WRITE: OpenOptions =
    OpenOptions { page_cache: PageCache::Never, write: true, exclusive: true };

/// A host, or a printed reason why the test is skipped.
fn host(backend: IoBackend) -> Option<Host> {
    match Host::new(backend) {
        Ok(host) => Some(host),
        Err(error) => {
            println!("SKIPPED: no {backend:?} backend here: {error}");
            None
        }
    }
}

/// A directory on a real file system (/tmp may be a tmpfs).
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch directory")
}

fn image(directory: &Path, bytes: u64) -> PathBuf {
    let path = directory.join("image");
    std::fs::File::create(&path).and_then(|file| file.set_len(bytes)).expect("a scratch file");
    path
}

fn conformance_of(backend: IoBackend, path: &Path, options: OpenOptions) {
    let Some(host) = host(backend) else { return };
    let env = host.env();
    let device = Rc::new(HostFile::open(&env, path, options).expect("the device opens"));
    println!("{} {device:?}", host.backend_name());
    host.block_on(device_conformance(&env, device));
}

/// A loop device over a file; detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn over(path: &Path, block: u32) -> Option<Loop> {
        let block = block.to_string();
        let arguments = ["--find", "--show", "--direct-io=on", "--sector-size", &block];
        let output = Command::new("losetup").args(arguments).arg(path).output();
        match output {
            Ok(output) if output.status.success() => {
                Some(Loop(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())))
            }
            Ok(output) => {
                println!("SKIPPED: losetup: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                println!("SKIPPED: losetup: {error}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn file_over_ring_conforms() {
    let directory = directory();
    conformance_of(IoBackend::Ring, &image(directory.path(), DEVICE_BYTES_MIN), WRITE);
}

#[test]
fn file_over_pool_conforms() {
    let directory = directory();
    conformance_of(IoBackend::Pool, &image(directory.path(), DEVICE_BYTES_MIN), WRITE);
}

#[test]
fn device_of_any_kind_conforms() {
    let directory = directory();
    let path = image(directory.path(), DEVICE_BYTES_MIN);
    let Some(host) = host(IoBackend::Pool) else { return };
    let env = host.env();
    let open = || HostFile::open(&env, &path, WRITE).expect("the device opens");
    let file = HostDisk::from(open());
    assert!(file.file().is_some());
    host.block_on(device_conformance(&env, Rc::new(file)));
    image(directory.path(), 0);
    image(directory.path(), DEVICE_BYTES_MIN);
    let erased = HostDisk::from(AnyDevice::new(open()));
    assert!(erased.file().is_none());
    host.block_on(device_conformance(&env, Rc::new(erased)));
}

#[test]
fn buffered_file_conforms() {
    let directory = directory();
    let path = image(directory.path(), DEVICE_BYTES_MIN);
    for backend in [IoBackend::Ring, IoBackend::Pool] {
        conformance_of(backend, &path, OpenOptions { page_cache: PageCache::Always, ..WRITE });
    }
}

#[test]
fn file_in_memory_conforms() {
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else {
        println!("SKIPPED: no /dev/shm");
        return;
    };
    let path = image(directory.path(), DEVICE_BYTES_MIN);
    for backend in [IoBackend::Ring, IoBackend::Pool] {
        // Kernels before 6.6 have no direct I/O there.
        conformance_of(backend, &path, OpenOptions { page_cache: PageCache::Needed, ..WRITE });
    }
}

#[test]
fn loop_device_conforms() {
    let directory = directory();
    let path = image(directory.path(), DEVICE_BYTES_MIN);
    for block in [512, 4096] {
        let Some(device) = Loop::over(&path, block) else { return };
        for backend in [IoBackend::Ring, IoBackend::Pool] {
            conformance_of(backend, &device.0, WRITE);
        }
        is_refused_while_open(&device.0);
    }
}

#[test]
fn locked_file_is_refused() {
    let directory = directory();
    is_refused_while_open(&image(directory.path(), DEVICE_BYTES_MIN));
}

/// Exclusive use is refused while another open has it, and only then.
fn is_refused_while_open(path: &Path) {
    let host = Host::new(IoBackend::Pool).expect("a host");
    let env = host.env();
    let first = HostFile::open(&env, path, WRITE).expect("the first one gets it");
    for _ in 0..2 {
        let refused = HostFile::open(&env, path, WRITE).expect_err("the second one does not");
        assert!(matches!(refused, OpenError::InUse { .. }), "{refused}");
        let text = refused.to_string();
        assert!(text.contains(&path.display().to_string()) && text.contains("in use by"), "{text}");
    }
    HostFile::open(&env, path, OpenOptions { exclusive: false, ..WRITE })
        .expect("sharing was asked for");
    drop(first);
    HostFile::open(&env, path, WRITE).expect("it is free again");
}

#[test]
fn errors_say_what_was_found() {
    let host = Host::new(IoBackend::Pool).expect("a host");
    let (env, directory) = (host.env(), directory());
    let missing = HostFile::open(&env, directory.path().join("nothing"), WRITE)
        .expect_err("nothing is there");
    assert!(matches!(missing, OpenError::NotFound { .. }), "{missing}");
    let wrong =
        HostFile::open(&env, directory.path(), WRITE).expect_err("a directory is no device");
    assert!(matches!(wrong, OpenError::WrongKind { found: "a directory", .. }), "{wrong}");
    let wrong = HostFile::open(&env, "/dev/null", WRITE)
        .expect_err("a character device is no block device");
    assert!(matches!(wrong, OpenError::WrongKind { .. }), "{wrong}");
}

/// A file that becomes shorter while it is open gives errors, not short reads.
#[test]
fn io_beyond_the_end_of_a_shrunk_file_fails() {
    for backend in [IoBackend::Ring, IoBackend::Pool] {
        let Some(host) = host(backend) else { continue };
        let (env, directory) = (host.env(), directory());
        let path = image(directory.path(), 1 << 20);
        let file = HostFile::open(&env, &path, WRITE).expect("it opens");
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(8192))
            .expect("shrunk");
        host.block_on(async {
            let (_, result) = file.read(Sector(8), Buf::zeroed(65_536)).await;
            assert_eq!(result, Err(IoError::Os(5)));
            assert_eq!(file.read(Sector(8), Buf::zeroed(4096)).await.1, Ok(()));
        });
    }
}

/// A durable write is a write and a flush on many devices. When it failed, the flush after it
/// succeeded, over what the device may have lost with the first one.
#[test]
fn a_failed_durable_write_fails_the_next_flush() {
    for backend in [IoBackend::Ring, IoBackend::Pool] {
        let Some(host) = host(backend) else { continue };
        let (env, directory) = (host.env(), directory());
        let Some(device) = Loop::over(&image(directory.path(), DEVICE_BYTES_MIN), 512) else {
            return;
        };
        let file = HostFile::open(&env, &device.0, WRITE).expect("it opens");
        let data = || IoVec::from(Buf::zeroed(4096));
        let set = |option| {
            let done = Command::new("blockdev").arg(option).arg(&device.0).status();
            assert!(done.is_ok_and(|status| status.success()), "blockdev {option}");
        };
        host.block_on(async {
            file.write(Sector(0), data(), Durability::Volatile).await.expect("a write");
            set("--setro");
            file.write(Sector(8), data(), Durability::Fua)
                .await
                .expect_err("the device takes no writes");
            assert_eq!(file.flush().await, Err(IoError::Os(5)));
            assert_eq!(file.flush().await, Ok(()));
            set("--setrw");
            file.write(Sector(8), data(), Durability::Fua).await.expect("a durable write");
            assert_eq!(file.flush().await, Ok(()));
        });
    }
}

/// Tasks and I/O under way do not outlive their host; a device that does says that it is gone.
#[test]
fn dropping_a_host_drops_tasks_and_io() {
    for backend in [IoBackend::Ring, IoBackend::Pool] {
        let Some(host) = host(backend) else { continue };
        let (env, directory) = (host.env(), directory());
        let path = image(directory.path(), DEVICE_BYTES_MIN);
        let file = Rc::new(HostFile::open(&env, &path, WRITE).expect("it opens"));
        for _ in 0..100 {
            let (file, inner) = (file.clone(), env.clone());
            env.spawn(Priority::Background, async move {
                loop {
                    let data: IoVec = Buf::zeroed(1 << 20).into();
                    if file.write(Sector(0), data, Durability::Volatile).await.is_err() {
                        inner.sleep(ubcache_env::Nanos::from_secs(1000)).await;
                    }
                }
            });
        }
        host.block_on(env.sleep(ubcache_env::Nanos::from_millis(5)));
        drop(host);
        assert_eq!(Rc::strong_count(&file), 1, "every task is dropped with the host");
        let other = Host::new(IoBackend::Pool).expect("a host");
        assert_eq!(other.block_on(file.flush()), Err(IoError::Gone));
    }
}
