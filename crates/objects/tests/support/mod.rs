//! A load on a volume, and what each block of it may hold.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ubcache_env::{Buf, Device, Durability, Env, IoError, IoVec, Nanos, Sector, SectorRange};
use ubcache_objects::memory::{Client, MemoryStore};
use ubcache_objects::{ObjectDisk, OpenFailure, OpenOptions, Shape, StoreEvent};
use ubcache_sim::{SimEnv, SimWorld, WorldConfig};

pub type Disk = ObjectDisk<SimEnv, Client<SimEnv>>;
pub type Memory = MemoryStore<SimEnv>;

pub const BLOCK: u64 = 4096;
pub const OBJECT: u64 = 64 << 10;
const BLOCKS_OF_OBJECT: u64 = OBJECT / BLOCK;
/// The objects of the load: neighbours, and others on three pages.
const OBJECTS: [u64; 6] = [0, 1, 2, 1023, 1024, 3000];
pub const SHAPE: Shape = Shape { size_bytes: 3100 * OBJECT, object_bytes: OBJECT };
pub const BLOCKS: usize = OBJECTS.len() * BLOCKS_OF_OBJECT as usize;

/// First sector of a block of the load.
pub fn sector(block: usize) -> Sector {
    let (object, within) = (block as u64 / BLOCKS_OF_OBJECT, block as u64 % BLOCKS_OF_OBJECT);
    Sector((OBJECTS[object as usize] * OBJECT + within * BLOCK) / 512)
}

/// Options with memory for a few objects, and a list of the events.
pub fn options() -> (OpenOptions, Rc<RefCell<Vec<StoreEvent>>>) {
    let events: Rc<RefCell<Vec<StoreEvent>>> = Rc::default();
    let into = events.clone();
    let options = OpenOptions {
        holder: "a test".to_owned(),
        is_gone: Rc::new(|_| true),
        write_memory_bytes: 4 * (OBJECT + 4096),
        read_memory_bytes: 4 * OBJECT,
        patience: Nanos::from_secs(30),
        events: Rc::new(move |event| into.borrow_mut().push(event)),
        ..OpenOptions::default()
    };
    (options, events)
}

/// Runs a test in a world of its own.
pub fn run<F: Future<Output = ()> + 'static>(
    seed: u64,
    test: impl FnOnce(Rc<SimWorld>, Rc<Memory>) -> F,
) {
    let world = Rc::new(SimWorld::new(WorldConfig::new(seed)));
    let store = MemoryStore::new(world.env());
    let ended = world.run(test(world.clone(), store));
    if let Err(stuck) = ended {
        panic!("seed {seed}: {stuck}");
    }
    world.end();
}

pub async fn create(env: &SimEnv, store: &Rc<Memory>) {
    let created = ubcache_objects::create(env, store.client(), SHAPE, &options().0).await;
    created.expect("creates");
}

pub async fn open(env: &SimEnv, store: &Rc<Memory>) -> Result<Disk, OpenFailure> {
    ObjectDisk::open(env, store.client(), &options().0).await
}

pub fn pattern(tag: u64) -> Buf {
    let mut buf = Buf::zeroed(BLOCK as usize);
    for word in buf.as_mut_slice().chunks_mut(8) {
        word.copy_from_slice(&tag.to_le_bytes());
    }
    buf
}

/// Tag of a block; panics if it is mixed.
pub fn tag_of(block: &[u8]) -> u64 {
    let tag = u64::from_le_bytes(block[..8].try_into().expect("8 bytes"));
    let same = block.chunks(8).all(|word| word == tag.to_le_bytes());
    assert!(same, "a block has the content of several writes");
    tag
}

#[derive(Clone, Default, Debug)]
struct Block {
    /// After the last flush, or before all writes.
    durable: u64,
    /// Written since.
    since: Vec<u64>,
    /// Writes before those.
    before: usize,
    /// The last write failed: any of them may be there.
    unsure: bool,
}

/// Contents that each block of the load may have.
#[derive(Default)]
pub struct Model {
    blocks: RefCell<Vec<Block>>,
    next_tag: RefCell<u64>,
}

impl Model {
    pub fn new() -> Rc<Model> {
        let model = Model::default();
        model.blocks.borrow_mut().resize(BLOCKS, Block::default());
        Rc::new(model)
    }

    fn tag(&self) -> u64 {
        *self.next_tag.borrow_mut() += 1;
        *self.next_tag.borrow()
    }

    pub async fn write(&self, disk: &Disk, block: usize, durability: Durability) -> bool {
        let tag = self.tag();
        self.begin(block, tag);
        let data: IoVec = pattern(tag).into();
        let snapshot = self.flush_begins();
        let result = disk.write(sector(block), data, durability).await;
        self.end(block, &result);
        if result.is_ok() && durability == Durability::Fua {
            self.flush_ends(snapshot);
        }
        result.is_ok()
    }

    pub async fn zero(&self, disk: &Disk, block: usize) -> bool {
        self.begin(block, 0);
        let range = SectorRange::new(sector(block), BLOCK / 512);
        let result = disk.write_zeroes(range).await;
        self.end(block, &result);
        result.is_ok()
    }

    fn begin(&self, block: usize, tag: u64) {
        self.blocks.borrow_mut()[block].since.push(tag);
    }

    fn end(&self, block: usize, result: &Result<(), IoError>) {
        self.blocks.borrow_mut()[block].unsure = result.is_err();
    }

    fn flush_begins(&self) -> Vec<usize> {
        self.blocks.borrow().iter().map(|block| block.before + block.since.len()).collect()
    }

    fn flush_ends(&self, counts: Vec<usize>) {
        for (block, count) in self.blocks.borrow_mut().iter_mut().zip(counts) {
            // The last of them may have been under way: it may or may not be in the flush.
            let count = count.saturating_sub(block.before);
            if !block.unsure && count > 1 {
                block.durable = block.since[count - 2];
                block.since.drain(..count - 1);
                block.before += count - 1;
            }
        }
    }

    pub async fn flush(&self, disk: &Disk) -> bool {
        let snapshot = self.flush_begins();
        let result = disk.flush().await;
        if result.is_ok() {
            self.flush_ends(snapshot);
        }
        result.is_ok()
    }

    /// All writes have ended and a flush has succeeded after them.
    pub fn settle(&self) {
        for block in self.blocks.borrow_mut().iter_mut().filter(|block| !block.unsure) {
            block.durable = block.since.last().copied().unwrap_or(block.durable);
            block.since.clear();
        }
    }

    /// Reads a block, which nobody writes meanwhile. `crashed`: any write since the last flush may
    /// be there.
    pub async fn read(&self, disk: &Disk, block: usize, crashed: bool) -> bool {
        let (buf, result) = disk.read(sector(block), Buf::zeroed(BLOCK as usize)).await;
        if result.is_err() {
            return false;
        }
        let found = tag_of(buf.as_slice());
        let mut blocks = self.blocks.borrow_mut();
        let state = &mut blocks[block];
        let any = found == state.durable || state.since.contains(&found);
        let newest = state.since.last().copied().unwrap_or(state.durable);
        let right = if crashed || state.unsure { any } else { found == newest };
        assert!(right, "block {block} has {found}, and should have one of {state:?}");
        if crashed {
            *state = Block { durable: found, ..Block::default() };
        }
        true
    }

    pub async fn verify(&self, disk: &Disk, crashed: bool) {
        for block in 0..BLOCKS {
            assert!(self.read(disk, block, crashed).await, "block {block} can't be read");
        }
    }
}

/// Several tasks write, read and flush; each block has one task. Returns false if anything failed.
pub async fn load(env: &SimEnv, disk: &Disk, model: &Rc<Model>, steps: u64) -> bool {
    const TASKS: usize = 4;
    let fine = Rc::new(Cell::new(true));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (disk, model, fine, env) = (disk.clone(), model.clone(), fine.clone(), env.clone());
            env.clone().spawn(ubcache_env::Priority::Foreground, async move {
                for _ in 0..steps {
                    let any = env.random() as usize % (BLOCKS / TASKS);
                    let block = any * TASKS + task;
                    let done = match env.random() % 16 {
                        0..8 => model.write(&disk, block, Durability::Volatile).await,
                        8 => model.write(&disk, block, Durability::Fua).await,
                        9 => model.zero(&disk, block).await,
                        10..14 => model.read(&disk, block, false).await,
                        _ => model.flush(&disk).await,
                    };
                    if !done {
                        fine.set(false);
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.join().await;
    }
    fine.get()
}
