//! A guest: memory, rings and the messages of its monitor.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{Ordering, fence};

use rustix::event::{PollFd, PollFlags, poll};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const MEMORY_BYTES: u64 = 32 << 20;
/// Places from here on are for data.
pub const DATA: u64 = 1 << 20;
/// The rings of a queue are in so many bytes.
const RING_BYTES: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x8000;
const USED: u64 = 0xc000;
/// The guest's address 0, as the monitor knows it.
const USER: u64 = 0x7f00_0000_0000;
/// The file has something else before the memory of the guest.
const FILE_FROM: u64 = 0x20_0000;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

const F_RING_EVENT_IDX: u64 = 1 << 29;

/// A guest's memory, and its queues. It outlives connections.
pub struct Guest {
    file: File,
    pub memory: GuestMemoryMmap,
    pub queues: Vec<Ring>,
    pub event_idx: bool,
}

/// A queue as the guest has it.
pub struct Ring {
    at: u64,
    pub size: u16,
    pub next: u16,
    pub seen: u16,
    pub kick: EventFd,
    pub call: EventFd,
    pub error: EventFd,
}

/// A connection of the monitor.
pub struct Monitor {
    pub frontend: Frontend,
    pub features: u64,
    pub inflight: Option<(VhostUserInflight, File)>,
}

impl Guest {
    pub fn new(queues: u64, size: u16, event_idx: bool) -> Guest {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(FILE_FROM + MEMORY_BYTES).expect("it grows");
        let offset = FileOffset::new(file.try_clone().expect("a copy"), FILE_FROM);
        let parts = [(GuestAddress(0), MEMORY_BYTES as usize, Some(offset))];
        let memory = GuestMemoryMmap::from_ranges_with_files(parts).expect("mapped");
        let event = || EventFd::new(0).expect("an eventfd");
        let queues = (0..queues)
            .map(|index| Ring {
                at: index * RING_BYTES,
                size,
                next: 0,
                seen: 0,
                kick: event(),
                call: event(),
                error: event(),
            })
            .collect();
        Guest { file, memory, queues, event_idx }
    }

    /// Connects and sets everything up. `inflight`: what an earlier connection had.
    pub fn connect(
        &self,
        path: &std::path::Path,
        inflight: Option<(VhostUserInflight, File)>,
    ) -> Monitor {
        let socket = UnixStream::connect(path).expect("the server listens");
        let mut frontend = Frontend::from_stream(socket, 64);
        frontend.set_owner().expect("set");
        let mut features = frontend.get_features().expect("features");
        if !self.event_idx {
            features &= !F_RING_EVENT_IDX;
        }
        let protocol = frontend.get_protocol_features().expect("protocol features");
        let wanted = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        assert!(protocol.contains(wanted), "{protocol:?}");
        frontend.set_protocol_features(wanted).expect("set");
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(features).expect("set");
        let mut monitor = Monitor { frontend, features, inflight };
        self.start(&mut monitor);
        monitor
    }

    /// Connects with the notes of an earlier connection; returns true if the disk goes on with
    /// them.
    pub fn is_taken_back(
        &self,
        path: &std::path::Path,
        (place, file): (VhostUserInflight, File),
    ) -> bool {
        let socket = UnixStream::connect(path).expect("the server listens");
        let mut frontend = Frontend::from_stream(socket, 64);
        frontend.set_owner().expect("set");
        let features = frontend.get_features().expect("features");
        let protocol = frontend.get_protocol_features().expect("protocol features");
        let wanted = VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        assert!(protocol.contains(wanted), "{protocol:?}");
        frontend.set_protocol_features(wanted).expect("set");
        frontend.set_features(features).expect("set");
        // Without acknowledgements, as QEMU does it: a refusal ends the connection.
        let _ = frontend.set_inflight_fd(&place, file.as_raw_fd());
        frontend.get_features().is_ok()
    }

    fn start(&self, monitor: &mut Monitor) {
        let Monitor { frontend, inflight, .. } = monitor;
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY_BYTES,
            userspace_addr: USER,
            mmap_offset: FILE_FROM,
            mmap_handle: self.file.as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).expect("set");
        let size = self.queues[0].size;
        if inflight.is_none() {
            let wanted = VhostUserInflight::new(0, 0, self.queues.len() as u16, size);
            *inflight = Some(frontend.get_inflight_fd(&wanted).expect("memory"));
        }
        let (place, file) = inflight.as_ref().expect("it is there");
        frontend.set_inflight_fd(place, file.as_raw_fd()).expect("set");
        for index in 0..self.queues.len() {
            self.start_queue(monitor, index);
        }
    }

    /// Lets the server serve a queue.
    pub fn start_queue(&self, monitor: &mut Monitor, index: usize) {
        let (ring, frontend) = (&self.queues[index], &mut monitor.frontend);
        frontend.set_vring_num(index, ring.size).expect("set");
        let config = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: USER + ring.at,
            used_ring_addr: USER + ring.at + USED,
            avail_ring_addr: USER + ring.at + AVAILABLE,
            log_addr: None,
        };
        frontend.set_vring_addr(index, &config).expect("set");
        let used: u16 = self.load(ring.at + USED + 2);
        frontend.set_vring_base(index, used).expect("set");
        frontend.set_vring_call(index, &ring.call).expect("set");
        frontend.set_vring_err(index, &ring.error).expect("set");
        frontend.set_vring_kick(index, &ring.kick).expect("set");
        frontend.set_vring_enable(index, true).expect("set");
    }

    pub fn load<T: vm_memory::AtomicAccess>(&self, at: u64) -> T {
        self.memory.load(GuestAddress(at), Ordering::Acquire).expect("in memory")
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).expect("in memory");
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).expect("in memory");
        bytes
    }

    /// A descriptor at any place.
    pub fn put_descriptor(&self, at: u64, (addr, len, flags, next): (u64, u32, u16, u16)) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(at, &bytes);
    }

    /// A descriptor of a queue's table.
    pub fn describe(&self, queue: usize, index: u16, descriptor: (u64, u32, u16, u16)) {
        self.put_descriptor(self.queues[queue].at + u64::from(index) * 16, descriptor);
    }

    /// Makes the chain that begins at `head` available.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.queues[queue];
        let (at, slot) = (ring.at + AVAILABLE, u64::from(ring.next % ring.size));
        ring.next = ring.next.wrapping_add(1);
        let next = ring.next;
        self.put(at + 4 + slot * 2, &head.to_le_bytes());
        self.memory.store(next, GuestAddress(at + 2), Ordering::Release).expect("in memory");
    }

    /// Sets the index of the available ring to anything.
    pub fn jump(&self, queue: usize, index: u16) {
        let at = self.queues[queue].at + AVAILABLE + 2;
        self.memory.store(index, GuestAddress(at), Ordering::Release).expect("in memory");
    }

    pub fn kick(&self, queue: usize) {
        self.queues[queue].kick.write(1).expect("rung");
    }

    /// Waits for the next used entry.
    pub fn used(&mut self, queue: usize) -> (u32, u32) {
        loop {
            if let Some(entry) = self.used_now(queue) {
                return entry;
            }
            let call = &self.queues[queue].call;
            wait(call);
            let _ = call.read();
        }
    }

    /// The next used entry, if it is there.
    pub fn used_now(&mut self, queue: usize) -> Option<(u32, u32)> {
        let ring = &self.queues[queue];
        let (at, size, seen) = (ring.at, ring.size, ring.seen);
        // Asks for a call at the next one.
        let event = GuestAddress(at + AVAILABLE + 4 + u64::from(size) * 2);
        self.memory.store(seen, event, Ordering::Release).expect("in memory");
        fence(Ordering::SeqCst);
        if self.load::<u16>(at + USED + 2) == seen {
            return None;
        }
        let slot = at + USED + 4 + u64::from(seen % size) * 8;
        self.queues[queue].seen = seen.wrapping_add(1);
        Some((self.load(slot), self.load(slot + 4)))
    }

    /// Writes the header of a request.
    pub fn header(&self, at: u64, kind: u32, sector: u64) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        self.put(at, &bytes);
    }

    /// Puts a request together, from descriptor `head` on: header and status are at `place`, its
    /// data where `data` says.
    pub fn request(
        &mut self,
        queue: usize,
        head: u16,
        place: u64,
        (kind, sector): (u32, u64),
        data: &[(u64, u32)],
    ) {
        self.header(place, kind, sector);
        self.put(place + 16, &[0xff]);
        let flags = if matches!(kind, IN | GET_ID) { WRITE } else { 0 };
        self.describe(queue, head, (place, 16, NEXT, head + 1));
        for (index, (at, len)) in (1..).zip(data) {
            self.describe(queue, head + index, (*at, *len, flags | NEXT, head + index + 1));
        }
        self.describe(queue, head + 1 + data.len() as u16, (place + 16, 1, WRITE, 0));
    }

    /// Has a request done on a queue; its status and the number of bytes that were written.
    pub fn carry_out(
        &mut self,
        queue: usize,
        (kind, sector): (u32, u64),
        data: &[(u64, u32)],
    ) -> (u8, u32) {
        let place = DATA - 0x1000 - queue as u64 * 0x100;
        self.request(queue, 0, place, (kind, sector), data);
        self.offer(queue, 0);
        self.kick(queue);
        let (id, len) = self.used(queue);
        assert_eq!(id, 0);
        (self.get(place + 16, 1)[0], len)
    }

    pub fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.put(DATA, bytes);
        self.carry_out(0, (OUT, sector), &[(DATA, bytes.len() as u32)]).0
    }

    pub fn read(&mut self, sector: u64, len: usize) -> (u8, Vec<u8>) {
        self.put(DATA, &vec![0xee; len]);
        let (status, _) = self.carry_out(0, (IN, sector), &[(DATA, len as u32)]);
        (status, self.get(DATA, len))
    }
}

impl Monitor {
    pub fn config(&mut self, offset: u32, len: usize) -> Vec<u8> {
        let flags = VhostUserConfigFlags::empty();
        let (_, bytes) = self
            .frontend
            .get_config(offset, len as u32, flags, &vec![0; len])
            .expect("configuration");
        bytes
    }
}

/// Waits until the event was rung; the server makes its descriptor non-blocking.
pub fn wait(event: &EventFd) {
    // SAFETY: the event lives through the call.
    let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None).expect("it waits");
}

pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed).collect()
}
