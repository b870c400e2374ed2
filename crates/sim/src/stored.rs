//! A backing device that is a volume on an object store (`crates/objects`).
//!
//! ```text
//! engine ── SimDisk ── StoredDisk ── ObjectDisk ── MemoryStore, which outlives the instances
//!            handle        │             client        busy, lost answers, late requests
//!                          └── SimDisk: its shadow, the content of the volume for the oracle
//! ```
//!
//! The shadow carries out each request after the volume has answered it. When an instance ends, it
//! is made what the root in the store names: what was not flushed was in the memory of the client.
//! A writer of an earlier epoch may go on beside the present one, with garbage.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use ubcache_env::local::Lock;
use ubcache_env::{
    Buf, Device, DeviceLimits, DeviceShape, Durability, Env, IoResult, IoVec, Nanos, Priority,
    Sector, SectorRange,
};
use ubcache_format::SECTOR_BYTES;
use ubcache_objects::manifest::{FORMAT, PAGE_ENTRIES, Page, Root, VERSION};
use ubcache_objects::memory::{Client, Faults, MemoryStore};
use ubcache_objects::names::{ROOT, Version, data_key, page_key};
use ubcache_objects::{ObjectDisk, OpenOptions, Shape, StoreRules};

use crate::disk::SimDisk;
use crate::executor::{SimEnv, SimWorld};
use crate::plan::Stored;
use crate::rng::Rng;

/// Size of an object.
const OBJECT_BYTES: u64 = 64 << 10;
/// Writes of an old writer at most, each with a flush.
const OLD_WRITES: u64 = 20;

type Volume = ObjectDisk<SimEnv, Client<SimEnv>>;

/// A store with one volume. Lives as long as the disk.
pub struct VolumeStore {
    world: SimWorld,
    disk: SimDisk,
    shape: Stored,
    rng: RefCell<Rng>,
    store: Rc<MemoryStore<SimEnv>>,
    rules: StoreRules,
    calm: Cell<bool>,
    /// Tasks of the writer of an earlier epoch.
    old: RefCell<Option<SimEnv>>,
    this: Weak<VolumeStore>,
}

impl VolumeStore {
    /// A store for the content of the disk.
    pub fn new(world: &SimWorld, disk: &SimDisk, shape: Stored, rules: StoreRules) -> Rc<Self> {
        let rng = RefCell::new(Rng::fork(world.env().random(), disk.name()));
        Rc::new_cyclic(|this| VolumeStore {
            world: world.clone(),
            disk: disk.clone(),
            shape,
            rng,
            store: MemoryStore::new(world.env()),
            rules,
            calm: Cell::new(true),
            old: RefCell::default(),
            this: this.clone(),
        })
    }

    /// Attaches the volume, of which the first attachment makes one.
    ///
    /// # Errors
    /// The store has something else.
    pub async fn open(&self, env: &SimEnv) -> Result<SimDisk, String> {
        self.end();
        if !self.is_used() {
            self.create();
        }
        let wanted =
            self.shape.old_writers && !self.calm.get() && self.rng.borrow_mut().chance(1, 2);
        let old = match wanted {
            true => self.old_writer().await,
            false => None,
        };
        let opened = ObjectDisk::open(env, self.store.client(), &self.options()).await;
        let volume = opened.map_err(|failure| failure.to_string())?;
        // A root that an earlier instance had sent may have come meanwhile; none does any more.
        self.take_content();
        if let Some((env, old)) = old {
            let tasks = env.clone();
            tasks.spawn(Priority::Foreground, async move { write_garbage(&env, &old).await });
        }
        let this = self.this.upgrade().expect("it is called through a handle");
        Ok(self.disk.over(StoredDisk {
            volume,
            shadow: self.disk.clone(),
            changing: Lock::default(),
            _store: this,
        }))
    }

    /// The instance is gone, and with it what was in the memory of its client.
    pub fn end(&self) {
        if let Some(env) = self.old.take() {
            self.world.kill(&env);
        }
        if self.is_used() {
            // Nothing of what was in flight to the shadow lands behind this.
            self.disk.host_restart();
            self.take_content();
        }
    }

    /// An instance has attached the volume: some of its writes are in the memory of its client.
    pub fn is_used(&self) -> bool {
        self.store.content(ROOT).is_some()
    }

    /// Lets requests fail from now on, or not.
    pub fn set_calm(&self, calm: bool) {
        self.calm.set(calm);
        let Stored { busy, lost, late, late_max, .. } = self.shape;
        let faults = Faults {
            busy: u64::from(busy),
            lost: u64::from(lost),
            late: u64::from(late),
            late_within: late_max,
        };
        self.store.faults.set(if calm { Faults::default() } else { faults });
    }

    fn options(&self) -> OpenOptions {
        OpenOptions {
            is_gone: Rc::new(|_| true),
            write_memory_bytes: u64::from(self.shape.objects) * (OBJECT_BYTES + 4096),
            read_memory_bytes: 4 * OBJECT_BYTES,
            patience: Nanos(u64::MAX),
            rules: self.rules,
            ..OpenOptions::default()
        }
    }

    /// Puts the content of the disk into the store, as a volume.
    fn create(&self) {
        let size_bytes = self.disk.limits().sectors * SECTOR_BYTES;
        let shape = Shape { size_bytes, object_bytes: OBJECT_BYTES };
        shape.check().expect("the plan has a size that fits");
        assert_eq!(shape.pages(), 1, "one page is enough");
        let mut objects = vec![None; PAGE_ENTRIES as usize];
        for index in 0..shape.objects() {
            let start = index * OBJECT_BYTES;
            let bytes = OBJECT_BYTES.min(size_bytes - start);
            let range = SectorRange::new(Sector(start / SECTOR_BYTES), bytes / SECTOR_BYTES);
            let mut content = self.disk.peek(range);
            content.resize(OBJECT_BYTES as usize, 0);
            if content.iter().any(|byte| *byte != 0) {
                let version = Version(0, index);
                self.store.tamper(&data_key(index, version), content.into());
                objects[index as usize] = Some(version);
            }
        }
        let name = Version(0, 0);
        self.store.tamper(&page_key(0, name), Page { page: 0, objects }.to_bytes());
        let root = Root {
            format: FORMAT.to_owned(),
            version: VERSION,
            volume: self.disk.name().to_owned(),
            size_bytes,
            object_bytes: OBJECT_BYTES,
            epoch: 0,
            writer: "the world".to_owned(),
            turn: 0,
            pages: vec![Some(name)],
        };
        self.store.tamper(ROOT, root.to_bytes());
    }

    /// Gives the shadow what the root names.
    fn take_content(&self) {
        let object = |key: &str| {
            self.store.content(key).unwrap_or_else(|| panic!("{key} is named and not there"))
        };
        let root = Root::parse(&object(ROOT)).expect("a root");
        let objects = match root.pages[0] {
            Some(name) => Page::parse(&object(&page_key(0, name)), 0).expect("a page").objects,
            None => Vec::new(),
        };
        self.disk.settle();
        for index in 0..root.shape().objects() {
            let bytes = match objects.get(index as usize).copied().flatten() {
                Some(version) => object(&data_key(index, version)),
                None => vec![0; OBJECT_BYTES as usize].into(),
            };
            let start = index * OBJECT_BYTES;
            let here = OBJECT_BYTES.min(root.size_bytes - start) as usize;
            self.disk.poke(Sector(start / SECTOR_BYTES), &bytes[..here]);
        }
    }

    /// Attaches the volume for a writer that the present instance displaces.
    async fn old_writer(&self) -> Option<(SimEnv, Volume)> {
        let env = self.world.new_server();
        *self.old.borrow_mut() = Some(env.clone());
        let volume = ObjectDisk::open(&env, self.store.client(), &self.options()).await.ok()?;
        self.world.env().mark("world_store_old_writer");
        Some((env, volume))
    }
}

/// Writes and flushes until that fails.
async fn write_garbage(env: &SimEnv, old: &Volume) {
    let sectors = old.limits().sectors;
    for _ in 0..OLD_WRITES {
        let mut garbage = Buf::zeroed(4096);
        garbage.as_mut_slice().fill(env.random() as u8 | 1);
        let at = Sector(env.random() % (sectors / 8) * 8);
        let wrote = old.write(at, garbage.into(), Durability::Volatile).await;
        if wrote.is_err() || old.flush().await.is_err() {
            env.mark("world_store_old_writer_refused");
            return;
        }
    }
}

/// The volume and its shadow.
struct StoredDisk {
    volume: Volume,
    shadow: SimDisk,
    /// Changes go one by one: of two to the same sectors, both have to end with the same one.
    changing: Lock,
    _store: Rc<VolumeStore>,
}

impl Device for StoredDisk {
    fn limits(&self) -> DeviceLimits {
        self.volume.limits()
    }

    fn shape(&self) -> DeviceShape {
        Device::shape(&self.volume)
    }

    async fn read(&self, at: Sector, into: Buf) -> (Buf, IoResult) {
        self.volume.read(at, into).await
    }

    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        let _turn = self.changing.lock().await;
        // One content for both, even if the client changes its memory meanwhile.
        let from: IoVec = from.to_buf().into();
        self.volume.write(at, from.clone(), durability).await?;
        self.shadow.write(at, from, durability).await
    }

    async fn flush(&self) -> IoResult {
        self.volume.flush().await?;
        self.shadow.flush().await
    }

    async fn discard(&self, range: SectorRange) -> IoResult {
        let _turn = self.changing.lock().await;
        self.volume.discard(range).await?;
        // Whole objects read as zeroes, and the rest as before.
        let object = OBJECT_BYTES / SECTOR_BYTES;
        let (start, end) = (range.start.0.next_multiple_of(object), range.end.0 / object * object);
        if start >= end {
            return Ok(());
        }
        self.shadow.write_zeroes(SectorRange::from_bounds(Sector(start), Sector(end))).await
    }

    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        let _turn = self.changing.lock().await;
        self.volume.write_zeroes(range).await?;
        self.shadow.write_zeroes(range).await
    }

    async fn holes(&self, range: SectorRange, most: usize) -> IoResult<Vec<(SectorRange, bool)>> {
        self.volume.holes(range, most).await
    }
}
