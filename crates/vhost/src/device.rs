//! The disk: features, configuration and queues. It knows no sockets and no files, so that any
//! world can drive it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ubcache_env::local::Semaphore;
use ubcache_env::{Bell, Env, Nanos, StreamEnd, StreamId, Volume, VolumeInfo};
use vm_memory::GuestMemoryMmap;

use crate::QUEUES_MAX;
use crate::config::{self, CONFIG_WCE, EVENT_IDX, FLUSH, PROTOCOL_FEATURES, WRITEBACK_AT};
use crate::inflight::{InflightRegion, Notes};
use crate::queue::{Queue, QueueError};
use crate::regions::Memory;
use crate::request::PIECE_BYTES;

/// Share that this start has of the writes that starts before it have answered, and that were not
/// flushed.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Lineage {
    /// Everything: none is ever lost.
    Whole,
    /// Those of the chain of starts of this number.
    Of(u64),
    /// Nothing for certain.
    Unknown,
}

/// A guest goes on as if nothing had happened, and writes that it has answers for may be lost.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the former daemon was killed, and what it has answered and not flushed may be lost: power the \
     virtual machine off and on, so that its file systems start from what is there"
)]
pub struct LostWrites;

/// Limits on requests: takes the present moment and the bytes of a request, and gives the moment at
/// which it may start.
pub type Pace = Rc<dyn Fn(Nanos, u64) -> Nanos>;

/// Counts since the start of the process, of all disks that share them.
#[derive(Debug, Default)]
pub struct Counters {
    reissued: Cell<u64>,
}

impl Counters {
    /// Requests of former connections that had no answer and were carried out again.
    pub fn reissued(&self) -> u64 {
        self.reissued.get()
    }

    pub(crate) fn count_reissued(&self) {
        self.reissued.set(self.reissued.get() + 1);
    }
}

/// A disk at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DiskStatus {
    /// Features that the guest's driver and the disk have agreed on.
    pub features: Vec<&'static str>,
    /// Queues that are served.
    pub rings: Vec<RingStatus>,
}

/// A queue that is served.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct RingStatus {
    /// Its number.
    pub queue: u16,
    /// Its descriptors.
    pub size: u16,
    /// Requests that are being carried out.
    pub in_flight: u64,
    /// Nothing is taken from it until the guest resets the disk.
    pub broken: bool,
}

/// Settings of a disk.
#[derive(Clone)]
pub struct Settings {
    /// Queues that the disk offers.
    pub queues: u16,
    /// Memory that the data of requests in flight may take; a longer piece of a request goes alone.
    pub memory_bytes: u64,
    /// Share that this start has of the writes of those before it.
    pub lineage: Lineage,
    /// Limits on requests; none: there are none.
    pub pace: Option<Pace>,
    /// Counts of what this disk does.
    pub counters: Rc<Counters>,
    /// Called when a queue stops because the guest did something wrong: its number and the reason.
    pub report: Rc<dyn Fn(u16, QueueError)>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            queues: QUEUES_MAX,
            memory_bytes: 64 << 20,
            lineage: Lineage::Whole,
            pace: None,
            counters: Rc::default(),
            report: Rc::new(|_, _| ()),
        }
    }
}

/// Addresses of a ring in the memory of the guest.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Ring {
    /// The table of descriptors.
    pub descriptors: u64,
    /// The ring of available requests.
    pub available: u64,
    /// The ring of used ones.
    pub used: u64,
}

/// State that the queues share.
pub(crate) struct Shared<E, V> {
    pub(crate) env: E,
    pub(crate) volume: Rc<V>,
    pub(crate) name: String,
    pub(crate) block_bytes: u32,
    pub(crate) read_only: bool,
    /// Memory for the data of requests.
    pub(crate) memory: Rc<Semaphore>,
    pub(crate) pace: Option<Pace>,
    pub(crate) counters: Rc<Counters>,
    sectors: Cell<u64>,
    features: Cell<u64>,
    writeback: Cell<bool>,
    /// The connection has ended: the guest's memory may belong to others.
    cut: Cell<bool>,
    report: Rc<dyn Fn(u16, QueueError)>,
}

impl<E, V> Shared<E, V> {
    pub(crate) fn sectors(&self) -> u64 {
        self.sectors.get()
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.get()
    }

    /// Returns true if a write has to be durable when it is answered.
    pub(crate) fn is_writethrough(&self) -> bool {
        match self.features.get() {
            features if features & CONFIG_WCE != 0 => !self.writeback.get(),
            features => features & FLUSH == 0,
        }
    }

    pub(crate) fn report(&self, queue: u16, error: QueueError) {
        (self.report)(queue, error);
    }
}

/// A disk of a virtual machine, over a volume.
pub struct Device<E, V, B> {
    shared: Rc<Shared<E, V>>,
    info: VolumeInfo,
    queues: Vec<Rc<Queue<E, V, B>>>,
    inflight: RefCell<Option<Rc<InflightRegion>>>,
    lineage: Lineage,
    /// A flush at the end failed, and the guest did not hear of it.
    owes_error: Cell<bool>,
}

impl<E: Env, V: Volume, B: Bell> Device<E, V, B> {
    /// A disk whose queues have streams of these numbers.
    pub fn new(
        env: E,
        volume: Rc<V>,
        settings: &Settings,
        mut stream: impl FnMut() -> StreamId,
    ) -> Device<E, V, B> {
        let info = volume.info();
        let shared = Rc::new(Shared {
            env,
            volume,
            name: info.name.clone(),
            block_bytes: info.block_bytes.max(512),
            read_only: info.read_only,
            memory: Rc::new(Semaphore::new(settings.memory_bytes.max(u64::from(PIECE_BYTES)))),
            pace: settings.pace.clone(),
            counters: settings.counters.clone(),
            sectors: Cell::new(info.sectors),
            features: Cell::new(0),
            writeback: Cell::new(true),
            cut: Cell::new(false),
            report: settings.report.clone(),
        });
        let queue = |index| Rc::new(Queue::new(shared.clone(), index, stream()));
        let queues = (0..settings.queues.clamp(1, QUEUES_MAX)).map(queue).collect();
        Device {
            shared,
            info,
            queues,
            inflight: RefCell::default(),
            lineage: settings.lineage,
            owes_error: Cell::new(false),
        }
    }

    /// Features that it offers.
    pub fn offered(&self) -> u64 {
        config::offered(&self.info)
    }

    /// Sets the features of those offered that the guest wants; `false` if there are others.
    pub fn set_features(&self, features: u64) -> bool {
        if features & !self.offered() != 0 {
            return false;
        }
        self.shared.features.set(features);
        if features & PROTOCOL_FEATURES == 0 {
            self.queues.iter().for_each(|queue| queue.set_enabled(true));
        }
        true
    }

    /// The disk now.
    pub fn status(&self) -> DiskStatus {
        DiskStatus {
            features: config::names(self.shared.features.get()),
            rings: self.queues.iter().filter_map(|queue| queue.status()).collect(),
        }
    }

    /// Number of queues.
    pub fn queue_count(&self) -> u16 {
        self.queues.len() as u16
    }

    /// A part of the configuration space.
    pub fn config(&self, offset: u32, size: u32) -> Vec<u8> {
        let (sectors, writeback) = (self.shared.sectors.get(), self.shared.writeback.get());
        config::part(
            &config::space(&self.info, sectors, self.queue_count(), writeback),
            offset,
            size,
        )
    }

    /// Changes the configuration space; `false` if the guest can't change that part.
    pub fn set_config(&self, offset: u32, bytes: &[u8]) -> bool {
        let ([value @ 0..=1], true) = (bytes, offset as usize == WRITEBACK_AT) else {
            return false;
        };
        self.shared.writeback.set(*value != 0);
        self.note(false);
        true
    }

    /// Writes the notes for the next process; `durable`: all writes that were answered are.
    fn note(&self, durable: bool) {
        if let Some(region) = &*self.inflight.borrow() {
            let lineage = match self.lineage {
                Lineage::Of(number) => Some(number),
                // The notes stay true of the cache.
                Lineage::Whole => region.noted().and_then(|notes| notes.lineage),
                Lineage::Unknown => None,
            };
            region.note(Notes { writeback: self.shared.writeback.get(), durable, lineage });
        }
    }

    /// The volume's size may have changed. Returns true if it has.
    pub fn look_at_size(&self) -> bool {
        let sectors = self.shared.volume.info().sectors;
        self.shared.sectors.replace(sectors) != sectors
    }

    /// Sets the memory of the guest.
    pub fn set_memory(&self, memory: GuestMemoryMmap) {
        let memory = Memory::new(memory);
        self.queues.iter().for_each(|queue| queue.set_memory(&memory));
    }

    /// Sets where requests in flight are noted. Queues that start from then on go on with what an
    /// earlier process has left there.
    ///
    /// # Errors
    /// The guest counts on writes that may be lost.
    pub fn set_inflight(&self, region: InflightRegion) -> Result<(), LostWrites> {
        if let Some(notes) = region.noted() {
            let is_same = match self.lineage {
                Lineage::Whole => true,
                Lineage::Of(number) => notes.lineage == Some(number),
                Lineage::Unknown => false,
            };
            if !is_same && !notes.durable {
                return Err(LostWrites);
            }
            self.shared.writeback.set(notes.writeback);
        }
        *self.inflight.borrow_mut() = Some(Rc::new(region));
        self.note(false);
        Ok(())
    }

    /// Stops all queues, with answers, and makes everything durable: any start can go on with the
    /// guest.
    pub async fn settle(&self) {
        self.stop_all().await;
        match self.shared.volume.flush(self.queues[0].stream()).await {
            Ok(()) => self.note(true),
            Err(_) => self.owes_error.set(true),
        }
    }

    fn queue(&self, index: u32) -> Result<&Rc<Queue<E, V, B>>, QueueError> {
        let found = usize::try_from(index).ok().and_then(|index| self.queues.get(index));
        found.ok_or_else(|| QueueError::Ring(format!("there is no queue {index}")))
    }

    /// Sets the number of descriptors of a queue.
    pub fn set_size(&self, index: u32, size: u32) -> Result<(), QueueError> {
        let size = u16::try_from(size)
            .map_err(|_| QueueError::Ring(format!("a queue can't have {size} descriptors")))?;
        self.queue(index)?.set_size(size)
    }

    /// Sets the addresses of a ring.
    pub fn set_ring(&self, index: u32, ring: Ring) -> Result<(), QueueError> {
        self.queue(index)?.set_ring(ring)
    }

    /// Sets the number of the next request that is taken.
    pub fn set_base(&self, index: u32, base: u16) -> Result<(), QueueError> {
        self.queue(index)?.set_base(base)
    }

    /// Sets the event by which the guest hears of answers.
    pub fn set_call(&self, index: u32, call: Option<B>) -> Result<(), QueueError> {
        self.queue(index)?.set_call(call.map(Rc::new));
        Ok(())
    }

    /// Sets the event by which the monitor hears of a broken queue.
    pub fn set_error(&self, index: u32, error: Option<B>) -> Result<(), QueueError> {
        self.queue(index)?.set_error(error.map(Rc::new));
        Ok(())
    }

    /// Lets requests be taken from a queue that runs, or not.
    pub fn set_enabled(&self, index: u32, enabled: bool) -> Result<(), QueueError> {
        self.queue(index)?.set_enabled(enabled);
        Ok(())
    }

    /// Begins to serve a queue; `kick` announces requests.
    pub fn start(&self, index: u32, kick: B) -> Result<(), QueueError> {
        let event_idx = self.shared.features.get() & EVENT_IDX != 0;
        let region = self.inflight.borrow().clone();
        self.queue(index)?.start(Rc::new(kick), region.as_ref(), event_idx)
    }

    /// Stops a queue: waits for its requests in flight, and publishes them. Returns the number of
    /// the next request.
    pub async fn stop(&self, index: u32) -> Result<u16, QueueError> {
        let queue = self.queue(index)?.clone();
        Ok(queue.stop().await)
    }

    /// Returns true if a queue is served.
    pub fn is_running(&self) -> bool {
        self.queues.iter().any(|queue| queue.is_running())
    }

    /// Stops all queues, with answers.
    pub async fn stop_all(&self) {
        for queue in &self.queues {
            queue.stop().await;
        }
    }

    /// The connection has ended. Waits for all requests; if a queue still runs, none of them is
    /// answered any more: they stay noted as in flight.
    pub async fn end(&self) {
        let is_cut = self.is_running() || self.owes_error.get();
        let end = if is_cut { StreamEnd::Cut } else { StreamEnd::Orderly };
        self.shared.cut.set(true);
        self.stop_all().await;
        for queue in &self.queues {
            self.shared.volume.stream_ended(queue.stream(), end);
        }
    }
}
