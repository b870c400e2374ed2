//! A guest that is not to be trusted: its memory, its rings and the notes of its requests in flight
//! have any bytes, and change while it is served. Nothing may fail but its own requests.
//!
//! An input is a list of steps: a byte for the kind, two for a place, one for a length, and so many
//! bytes. Before it, both rings are set up in good order, with a request to read and one to write.

use std::rc::Rc;
use std::sync::Arc;

use ubcache_env::testing::MemoryVolume;
use ubcache_env::{Bell, Env, Nanos, StreamId};
use ubcache_sim::front::vhost::bell::SimBell;
use ubcache_sim::{SimEnv, SimWorld, WorldConfig};
use ubcache_vhost::{Device, InflightRegion, Ring, Settings};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion, VolatileMemory};

const QUEUES: u16 = 2;
const SIZE: u16 = 16;
const MEMORY_BYTES: u64 = 64 << 10;
const SECTORS: u64 = 64;
/// Memory of a ring: descriptors, then available, then used requests.
const RING_BYTES: u64 = 0x1000;
const AVAILABLE_AT: u64 = 0x400;
const USED_AT: u64 = 0x800;
/// Place of the first request.
const REQUEST_AT: u64 = 0x4000;

type GuestDevice = Device<SimEnv, MemoryVolume, SimBell>;

struct Guest {
    env: SimEnv,
    memory: GuestMemoryMmap,
    notes: Arc<MmapRegion>,
    volume: Rc<MemoryVolume>,
    kicks: Vec<SimBell>,
    device: GuestDevice,
}

/// See the module.
pub fn guest(data: &[u8]) {
    let world = SimWorld::new(WorldConfig::new(1));
    let (env, data) = (world.env(), data.to_vec());
    let run = world.run(async move { Guest::new(env).live(&data).await });
    // Tasks that are left would keep the world, and its memory, for ever.
    world.end();
    assert!(run.is_ok(), "the disk of the guest comes to an end");
}

fn connect(env: &SimEnv, volume: &Rc<MemoryVolume>) -> GuestDevice {
    let settings = Settings { queues: QUEUES, ..Settings::default() };
    let mut stream = 0;
    Device::new(env.clone(), volume.clone(), &settings, || {
        stream += 1;
        StreamId(stream)
    })
}

impl Guest {
    fn new(env: SimEnv) -> Guest {
        let memory = [(GuestAddress(0), MEMORY_BYTES as usize)];
        let memory = GuestMemoryMmap::from_ranges(&memory).expect("memory");
        let bytes = InflightRegion::bytes(QUEUES, SIZE);
        let notes = Arc::new(MmapRegion::new(bytes).expect("memory"));
        let volume = MemoryVolume::new("guest", SECTORS);
        let kicks = (0..QUEUES).map(|_| SimBell::new(&env, Nanos(0))).collect();
        let device = connect(&env, &volume);
        Guest { env, memory, notes, volume, kicks, device }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        // Bytes behind the end are not there.
        let _ = self.memory.write(bytes, GuestAddress(at));
    }

    fn descriptor(&self, ring: u64, index: u64, at: u64, len: u32, flags: u16) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend((index as u16 + 1).to_le_bytes());
        self.put(ring + 16 * index, &bytes);
    }

    /// A read in one ring and a write in the other.
    fn set_up(&self) {
        for queue in 0..u64::from(QUEUES) {
            let (ring, request) = (queue * RING_BYTES, REQUEST_AT + queue * 0x2000);
            self.put(request, &[queue as u8, 0, 0, 0, 0, 0, 0, 0, 8]);
            let writes = if queue == 0 { 2 } else { 0 };
            self.descriptor(ring, 0, request, 16, 1);
            self.descriptor(ring, 1, request + 0x1000, 1024, 1 | writes);
            self.descriptor(ring, 2, request + 0x800, 1, 2);
            self.put(ring + AVAILABLE_AT, &[0, 0, 1, 0]);
        }
    }

    fn start(&self, queue: u32) {
        let ring = u64::from(queue) * RING_BYTES;
        let ring = Ring { descriptors: ring, available: ring + AVAILABLE_AT, used: ring + USED_AT };
        // Any of these may be refused.
        let _ = self.device.set_size(queue, u32::from(SIZE));
        let _ = self.device.set_ring(queue, ring);
        let _ = self.device.set_enabled(queue, true);
        let _ = self.device.start(queue, self.kicks[queue as usize].clone());
    }

    fn plug_in(&self) {
        let features = self.device.offered();
        assert!(self.device.set_features(features), "all that it offers");
        self.device.set_memory(self.memory.clone());
        let notes = InflightRegion::over(self.notes.clone(), QUEUES, SIZE);
        self.device.set_inflight(notes.expect("it is long enough")).expect("nothing is lost");
        (0..u32::from(QUEUES)).for_each(|queue| self.start(queue));
    }

    async fn live(mut self, mut data: &[u8]) {
        self.set_up();
        self.plug_in();
        while let [kind, low, high, len, rest @ ..] = data {
            let (bytes, rest) = rest.split_at(usize::from(*len).min(rest.len()));
            let place = u16::from_le_bytes([*low, *high]);
            self.step(*kind, place, bytes).await;
            data = rest;
        }
        self.kicks.iter().for_each(Bell::ring);
        self.env.yield_now().await;
        self.device.stop_all().await;
        self.device.end().await;
    }

    async fn step(&mut self, kind: u8, place: u16, bytes: &[u8]) {
        let queue = u32::from(place % QUEUES);
        match kind % 8 {
            0..=2 => self.put(u64::from(place), bytes),
            3 => self.kicks[queue as usize].ring(),
            4 => self.env.yield_now().await,
            5 => {
                // There is no other queue.
                let _ = self.device.stop(queue).await;
                self.start(queue);
            }
            6 => {
                let at = usize::from(place) % self.notes.size();
                let len = bytes.len().min(self.notes.size() - at);
                let slice = self.notes.get_slice(at, len).expect("within the notes");
                slice.copy_from(&bytes[..len]);
            }
            _ => {
                self.device.end().await;
                self.device = connect(&self.env, &self.volume);
                self.plug_in();
            }
        }
    }
}
