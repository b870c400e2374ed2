//! The guest: memory, rings, and the driver that fills them.
//!
//! Each queue has slots: a part of the table of descriptors and of the memory. A request takes a
//! slot until it has its answer.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use ubcache_env::local::{Notify, first};
use ubcache_env::{Bell, Env, ForeignMemory, Nanos, Priority, StreamId, Volume};
use ubcache_vhost::{Device, InflightRegion, Ring};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::bell::SimBell;
use crate::executor::SimEnv;
use crate::plan::VhostShape;

/// Descriptors of a slot.
const SLOT_DESCRIPTORS: u16 = 8;
/// Memory of a slot: the longest request of a plan, and room around its pieces.
const SLOT_BYTES: u64 = 34 << 20;
/// Memory of the rings of a queue.
const RING_BYTES: u64 = 0x1_0000;
const AVAILABLE_AT: u64 = 0x8000;
const USED_AT: u64 = 0xc000;
const HEADER_BYTES: u64 = 16;
/// Place of the status in a slot, behind the header.
const STATUS_AT: u64 = HEADER_BYTES;
/// Place of an indirect table in a slot.
const TABLE_AT: u64 = 0x100;
/// Place of the data in a slot.
const DATA_AT: u64 = 0x1000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const F_VERSION_1: u64 = 1 << 32;
const F_EVENT_IDX: u64 = 1 << 29;
const F_INDIRECT: u64 = 1 << 28;
const F_FLUSH: u64 = 1 << 9;
const F_CONFIG_WCE: u64 = 1 << 11;

/// Time between two changes of the memory of a write, at most.
const SCRIBBLE_PAUSE_MAX: u64 = 200_000;

/// Status of a request that was carried out.
pub const OK: u8 = 0;

/// Kinds of requests.
pub mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// See the module.
pub struct Guest {
    env: SimEnv,
    memory: GuestMemoryMmap,
    queues: Vec<Rc<Queue>>,
    event_idx: bool,
    indirect: bool,
    pieces: u16,
}

struct Queue {
    memory: GuestMemoryMmap,
    /// Place of its rings.
    at: u64,
    /// Place of its first slot.
    slots_at: u64,
    size: u16,
    event_idx: bool,
    free: RefCell<Vec<u16>>,
    /// Requests that were offered.
    offered: Cell<u16>,
    /// Answers that were seen.
    seen: Cell<u16>,
    /// Answers by slot that nobody has taken yet.
    answered: RefCell<BTreeMap<u16, u32>>,
    changed: Notify,
    kick: SimBell,
    call: SimBell,
    ending: Cell<bool>,
}

impl Guest {
    /// A guest with memory for all slots.
    ///
    /// # Panics
    /// If there is none.
    pub fn new(shape: &VhostShape, env: &SimEnv) -> Guest {
        let slots = u64::from(shape.slots);
        let rings = RING_BYTES * u64::from(shape.queues);
        let bytes = rings + SLOT_BYTES * slots * u64::from(shape.queues);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)]);
        let memory = memory.expect("the system has addresses");
        let size = (shape.slots * SLOT_DESCRIPTORS).next_power_of_two();
        let queue = |index: u64| Queue {
            memory: memory.clone(),
            at: index * RING_BYTES,
            slots_at: rings + index * slots * SLOT_BYTES,
            size,
            event_idx: shape.event_idx,
            free: RefCell::new((0..shape.slots).collect()),
            offered: Cell::new(0),
            seen: Cell::new(0),
            answered: RefCell::default(),
            changed: Notify::default(),
            kick: SimBell::new(env, shape.delay_max),
            call: SimBell::new(env, shape.delay_max),
            ending: Cell::new(false),
        };
        let queues = (0..u64::from(shape.queues)).map(|index| Rc::new(queue(index))).collect();
        Guest {
            env: env.clone(),
            memory,
            queues,
            event_idx: shape.event_idx,
            indirect: shape.indirect,
            pieces: shape.pieces.clamp(1, SLOT_DESCRIPTORS - 2),
        }
    }

    /// Descriptors of a queue.
    pub fn size(&self) -> u16 {
        self.queues[0].size
    }

    /// Sets a disk up.
    ///
    /// # Panics
    /// If the disk refuses anything.
    pub fn set_up<V: Volume>(&self, device: &Device<SimEnv, V, SimBell>, region: InflightRegion) {
        let mut features = F_VERSION_1 | F_INDIRECT | F_FLUSH | F_CONFIG_WCE;
        features |= if self.event_idx { F_EVENT_IDX } else { 0 };
        assert!(device.set_features(features), "the disk has all of these");
        device.set_memory(self.memory.clone());
        device.set_inflight(region).expect("nothing is lost while the instance lives");
        for (index, queue) in (0..).zip(&self.queues) {
            let ring = Ring {
                descriptors: queue.at,
                available: queue.at + AVAILABLE_AT,
                used: queue.at + USED_AT,
            };
            let set_up = || {
                device.set_size(index, u32::from(queue.size))?;
                device.set_ring(index, ring)?;
                device.set_call(index, Some(queue.call.clone()))?;
                device.set_enabled(index, true)?;
                device.start(index, queue.kick.clone())
            };
            set_up().expect("the rings make sense");
        }
    }

    /// Begins to listen for answers.
    pub fn listen(&self) {
        for queue in &self.queues {
            self.env.spawn(Priority::Foreground, queue.clone().listen());
        }
    }

    /// Ends that.
    pub fn end(&self) {
        for queue in &self.queues {
            queue.ending.set(true);
            queue.call.ring();
        }
    }

    /// Has a request carried out: its status, and what was read. `changing`: the memory of a write
    /// changes under it.
    pub async fn request(
        &self,
        client: StreamId,
        what: (u32, u64),
        (out, room): (&[u8], usize),
        changing: Option<&dyn ForeignMemory>,
    ) -> (u8, Vec<u8>) {
        let queue = &self.queues[client.0 as usize % self.queues.len()];
        let slot = loop {
            let changed = queue.changed.notified();
            let free = queue.free.borrow_mut().pop();
            match free {
                Some(slot) => break slot,
                None => changed.await,
            }
        };
        let pieces = self.cut(out.len().max(room));
        let list = queue.fill(slot, what, (out, room > 0), &pieces);
        queue.describe(slot, &list, self.indirect && self.env.random().is_multiple_of(2));
        queue.offer(slot * SLOT_DESCRIPTORS);
        loop {
            let changed = queue.changed.notified();
            if queue.answered.borrow_mut().remove(&slot).is_some() {
                break;
            }
            let Some(memory) = changing else {
                changed.await;
                continue;
            };
            let pause = Nanos(1 + self.env.random() % SCRIBBLE_PAUSE_MAX);
            first(changed, self.env.sleep(pause)).await;
            queue.put_pieces(slot, memory.copy().as_slice(), &pieces);
        }
        let at = queue.slot(slot);
        let mut content = Vec::with_capacity(room);
        if room > 0 {
            for (place, len) in pieces {
                content.extend(queue.get(at + place, len));
            }
        }
        let status = queue.get(at + STATUS_AT, 1)[0];
        queue.free.borrow_mut().push(slot);
        queue.changed.notify_all();
        (status, content)
    }

    /// Cuts data anywhere: places in a slot and lengths.
    fn cut(&self, len: usize) -> Vec<(u64, usize)> {
        let mut pieces = Vec::new();
        let (mut at, mut left) = (DATA_AT, len);
        while left > 0 {
            let last = pieces.len() + 1 >= usize::from(self.pieces);
            let piece = if last { left } else { 1 + self.env.random() as usize % left };
            pieces.push((at, piece));
            at += piece as u64 + self.env.random() % 100;
            left -= piece;
        }
        pieces
    }
}

impl Queue {
    fn slot(&self, slot: u16) -> u64 {
        self.slots_at + u64::from(slot) * SLOT_BYTES
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).expect("the guest has this memory");
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).expect("the guest has this memory");
        bytes
    }

    fn load(&self, at: u64) -> u16 {
        let value = self.memory.load(GuestAddress(at), Ordering::Acquire);
        u16::from_le(value.expect("the guest has this memory"))
    }

    fn store(&self, at: u64, value: u16) {
        let stored = self.memory.store(value.to_le(), GuestAddress(at), Ordering::Release);
        stored.expect("the guest has this memory");
    }

    /// Puts a request into its slot. Its descriptors: place, length, flags.
    fn fill(
        &self,
        slot: u16,
        (kind, sector): (u32, u64),
        (out, reads): (&[u8], bool),
        pieces: &[(u64, usize)],
    ) -> Vec<(u64, u32, u16)> {
        let at = self.slot(slot);
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.put(at, &header);
        self.put(at + STATUS_AT, &[0xff]);
        if !reads {
            self.put_pieces(slot, out, pieces);
        }
        let flags = if reads { WRITE } else { 0 };
        let mut list = vec![(at, HEADER_BYTES as u32, 0)];
        list.extend(pieces.iter().map(|(place, len)| (at + place, *len as u32, flags)));
        list.push((at + STATUS_AT, 1, WRITE));
        list
    }

    /// Puts the data of a write into its slot.
    fn put_pieces(&self, slot: u16, data: &[u8], pieces: &[(u64, usize)]) {
        let mut left = data;
        for (place, len) in pieces {
            let (piece, rest) = left.split_at(*len);
            self.put(self.slot(slot) + place, piece);
            left = rest;
        }
    }

    fn describe(&self, slot: u16, list: &[(u64, u32, u16)], indirect: bool) {
        let first = slot * SLOT_DESCRIPTORS;
        let place = self.at + u64::from(first) * 16;
        let (table, start) = match indirect {
            true => (self.slot(slot) + TABLE_AT, 0),
            false => (place, first),
        };
        for (index, (at, len, flags)) in (0..).zip(list) {
            let last = usize::from(index) + 1 == list.len();
            let flags = flags | if last { 0 } else { NEXT };
            self.put(
                table + u64::from(index) * 16,
                &descriptor(*at, *len, flags, if last { 0 } else { start + index + 1 }),
            );
        }
        if indirect {
            self.put(place, &descriptor(table, 16 * list.len() as u32, INDIRECT, 0));
        }
    }

    /// Makes a request available, and announces it if the disk wants that.
    fn offer(&self, head: u16) {
        let (before, after) = (self.offered.get(), self.offered.get().wrapping_add(1));
        self.store(self.at + AVAILABLE_AT + 4 + 2 * u64::from(before % self.size), head);
        self.store(self.at + AVAILABLE_AT + 2, after);
        self.offered.set(after);
        let event = self.load(self.at + USED_AT + 4 + 8 * u64::from(self.size));
        let is_wanted = after.wrapping_sub(event).wrapping_sub(1) < after.wrapping_sub(before);
        if !self.event_idx || is_wanted {
            self.kick.ring();
        }
    }

    async fn listen(self: Rc<Self>) {
        while !self.ending.get() {
            let seen = self.seen.get();
            // Asks for a call at the next answer, then looks.
            self.store(self.at + AVAILABLE_AT + 4 + 2 * u64::from(self.size), seen);
            if self.load(self.at + USED_AT + 2) == seen {
                // The disk goes on in another process when its connection breaks.
                let _ = self.call.rung().await;
                continue;
            }
            let entry = self.get(self.at + USED_AT + 4 + 8 * u64::from(seen % self.size), 8);
            let head = u16::from_le_bytes([entry[0], entry[1]]);
            let former = self.answered.borrow_mut().insert(head / SLOT_DESCRIPTORS, 0);
            assert!(former.is_none(), "one answer to each request");
            self.seen.set(seen.wrapping_add(1));
            self.changed.notify_all();
        }
    }
}

fn descriptor(at: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = at.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}
