//! Shared parts of the tests: devices in memory, and the frozen images of real sets.

#![allow(dead_code, reason = "every test that includes this module uses its own part of it")]

pub mod build;
pub mod damage;
pub mod power;

use std::cell::{Cell, OnceCell, RefCell};
use std::fs;
use std::future::Future;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use serde_json::Value;
use ubcache_env::{Buf, Device, DeviceLimits, Durability, IoError, IoResult, IoVec, SectorRange};
use ubcache_format::Sector;
use ubcache_offline::{DataPart, View, VolumeMap, open_set, read_volume};

/// A device in memory. It can fail from its n-th write on, flushes included, as if the machine had
/// stopped.
#[derive(Clone)]
pub struct MemDevice {
    image: Rc<RefCell<Vec<u8>>>,
    writes: Rc<Cell<u64>>,
    stop_at: Rc<Cell<u64>>,
    reads: Rc<RefCell<Vec<SectorRange>>>,
    bad: Rc<Cell<Option<Sector>>>,
}

impl MemDevice {
    pub fn new(image: Vec<u8>) -> MemDevice {
        MemDevice {
            image: Rc::new(RefCell::new(image)),
            writes: Rc::default(),
            stop_at: Rc::new(Cell::new(u64::MAX)),
            reads: Rc::default(),
            bad: Rc::default(),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.image.borrow().clone()
    }

    pub fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.image.borrow_mut());
    }

    /// Writes and flushes so far.
    pub fn writes(&self) -> u64 {
        self.writes.get()
    }

    /// A sector that can't be read.
    pub fn fail_reads_of(&self, sector: Sector) {
        self.bad.set(Some(sector));
    }

    /// All reads so far, in their order.
    pub fn reads(&self) -> Vec<SectorRange> {
        self.reads.borrow().clone()
    }

    /// Fails all writes and flushes from the `n`-th on.
    pub fn stop_at(&self, n: u64) {
        self.writes.set(0);
        self.stop_at.set(n);
    }

    fn step(&self) -> IoResult {
        if self.writes.get() >= self.stop_at.get() {
            return Err(IoError::Gone);
        }
        self.writes.set(self.writes.get() + 1);
        Ok(())
    }
}

impl Device for MemDevice {
    fn limits(&self) -> DeviceLimits {
        DeviceLimits {
            sectors: self.image.borrow().len() as u64 / 512,
            logical_block_bytes: 512,
            max_transfer_bytes: 1 << 20,
            volatile_cache: true,
            discard: false,
        }
    }

    async fn read(&self, at: Sector, mut into: Buf) -> (Buf, IoResult) {
        let start = at.bytes() as usize;
        let range = SectorRange::new(at, into.len() as u64 / 512);
        self.reads.borrow_mut().push(range);
        if self.bad.get().is_some_and(|bad| range.start <= bad && bad < range.end) {
            return (into, Err(IoError::Os(5)));
        }
        let image = self.image.borrow();
        match image.get(start..start + into.len()) {
            Some(bytes) => into.as_mut_slice().copy_from_slice(bytes),
            None => return (into, Err(IoError::Os(5))),
        }
        (into, Ok(()))
    }

    async fn write(&self, at: Sector, from: IoVec, _: Durability) -> IoResult {
        self.step()?;
        let start = at.bytes() as usize;
        from.copy_to(&mut self.image.borrow_mut()[start..start + from.len()]);
        Ok(())
    }

    async fn flush(&self) -> IoResult {
        self.step()
    }

    async fn discard(&self, _: SectorRange) -> IoResult {
        Err(IoError::NotSupported)
    }

    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        self.write(range.start, IoVec::zeroes(range.bytes() as usize), Durability::Volatile).await
    }
}

/// Runs what never waits.
pub fn run<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("devices in memory never let anybody wait"),
    }
}

/// One case of real images.
pub struct Case {
    pub name: String,
    pub directory: PathBuf,
    pub manifest: Value,
    pub cache: Vec<u8>,
    volumes: OnceCell<Vec<CaseVolume>>,
}

/// A volume of a case.
#[derive(Clone)]
pub struct CaseVolume {
    pub backing: Option<Vec<u8>>,
    pub bytes: u64,
    pub sha256: String,
    pub dirty_sectors: u64,
}

pub fn unpacked(path: &Path) -> Vec<u8> {
    let packed = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    lzma_rust2::XzReader::new(packed.as_slice(), false)
        .read_to_end(&mut bytes)
        .expect("a whole archive");
    bytes
}

impl Case {
    pub fn open(directory: &Path) -> Case {
        let manifest = fs::read(directory.join("manifest.json")).expect("a manifest");
        Case {
            name: directory.file_name().expect("a name").to_string_lossy().into_owned(),
            manifest: serde_json::from_slice(&manifest).expect("a manifest in JSON"),
            cache: unpacked(&directory.join("cache.img.xz")),
            directory: directory.to_owned(),
            volumes: OnceCell::new(),
        }
    }

    pub fn volumes(&self) -> &[CaseVolume] {
        self.volumes.get_or_init(|| self.unpack_volumes())
    }

    fn unpack_volumes(&self) -> Vec<CaseVolume> {
        let devices = self.manifest["devices"].as_array().expect("devices");
        let volume = |device: &Value| CaseVolume {
            backing: device["backing"]
                .as_str()
                .map(|name| unpacked(&self.directory.join(format!("{name}.xz")))),
            bytes: device["bytes"].as_u64().expect("a size"),
            sha256: device["sha256"].as_str().expect("a digest").to_owned(),
            dirty_sectors: device["dirty_sectors"].as_u64().expect("a number"),
        };
        devices.iter().map(volume).collect()
    }

    pub fn clean_shutdown(&self) -> bool {
        self.manifest["shutdown"] == "clean"
    }
}

/// The frozen cases, and those that the environment names.
pub fn cases() -> Vec<Case> {
    let frozen = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../format/tests/fixtures");
    let mut directories = vec![frozen];
    match std::env::var_os("UBCACHE_KERNEL_IMAGES") {
        Some(more) => directories.push(more.into()),
        None => println!(
            "UBCACHE_KERNEL_IMAGES names no directory with more images: only the frozen ones are \
             read"
        ),
    }
    let mut paths: Vec<PathBuf> = directories
        .iter()
        .flat_map(|directory| fs::read_dir(directory).expect("a directory"))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.join("manifest.json").exists())
        .collect();
    paths.sort();
    paths.iter().map(|path| Case::open(path)).collect()
}

/// A frozen case.
pub fn frozen(name: &str) -> Case {
    Case::open(
        &PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../format/tests/fixtures").join(name),
    )
}

pub fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The whole content of a volume; every sector must be readable.
pub fn content(map: &VolumeMap, cache: &MemDevice, backing: Option<&MemDevice>) -> Vec<u8> {
    let mut bytes = vec![0; map.sectors as usize * 512];
    let unreadable = run(read_volume(map, cache, backing, false, &(), |at, piece| {
        if let DataPart::Bytes(piece) = piece {
            bytes[at as usize..at as usize + piece.len()].copy_from_slice(piece);
        }
        Ok(())
    }));
    assert_eq!(unreadable, Ok(Vec::new()));
    bytes
}

/// A set that has no damage.
pub fn view(cache: &MemDevice) -> View {
    run(open_set(cache, false, &())).expect("a set without damage").0
}
