//! Requests in flight, in memory that outlives this process: after a crash the monitor passes it
//! to the next one, which carries out again what was taken and not answered.
//!
//! The layout is that of the vhost-user protocol for split rings. For each queue: a header of 16
//! bytes, then an entry of 16 bytes for each descriptor; each queue begins at a multiple of 64.
//! Behind the queues are notes of this program: the writeback setting, which the monitor does not
//! repeat, and what the next process has to have of the writes that were answered.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use vm_memory::{ByteValued, MmapRegion, VolatileMemory};

const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
const QUEUE_ALIGN_BYTES: usize = 64;
/// Room for this program's own notes.
const NOTES_BYTES: usize = 64;
const NOTES_MAGIC: u32 = 0x3242_6275;
const VERSION: u16 = 1;

// Fields of the header of a queue.
const VERSION_AT: usize = 8;
const SIZE_AT: usize = 10;
const LAST_HEAD_AT: usize = 12;
const USED_AT: usize = 14;
// Fields of an entry.
const INFLIGHT_AT: usize = 0;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;

/// Memory with the requests in flight of all queues.
#[derive(Clone, Debug)]
pub struct InflightRegion {
    mapping: Arc<MmapRegion>,
    queues: u16,
    size: u16,
}

impl InflightRegion {
    /// Bytes for so many queues of a size.
    pub fn bytes(queues: u16, size: u16) -> usize {
        usize::from(queues) * Self::queue_bytes(size) + NOTES_BYTES
    }

    fn queue_bytes(size: u16) -> usize {
        (HEADER_BYTES + ENTRY_BYTES * usize::from(size)).next_multiple_of(QUEUE_ALIGN_BYTES)
    }

    /// The region in mapped memory; none if that is too short.
    pub fn over(mapping: Arc<MmapRegion>, queues: u16, size: u16) -> Option<InflightRegion> {
        let fits = mapping.size() >= Self::bytes(queues, size);
        fits.then_some(InflightRegion { mapping, queues, size })
    }

    /// The part of a queue; none if there is none of that number, or it is for smaller queues.
    pub(crate) fn queue(self: &Rc<Self>, index: u16, size: u16) -> Option<InflightQueue> {
        if index >= self.queues || size > self.size {
            return None;
        }
        let at = usize::from(index) * Self::queue_bytes(self.size);
        Some(InflightQueue { region: self.clone(), at, size, counter: 0 })
    }

    fn load<T: ByteValued>(&self, at: usize) -> T {
        let place = self.mapping.get_ref::<T>(at).expect("the region has room for all queues");
        place.load()
    }

    fn store<T: ByteValued>(&self, at: usize, value: T) {
        let place = self.mapping.get_ref::<T>(at).expect("the region has room for all queues");
        place.store(value);
    }

    fn notes_at(&self) -> usize {
        usize::from(self.queues) * Self::queue_bytes(self.size)
    }

    /// Writes the notes.
    pub(crate) fn note(&self, notes: Notes) {
        let at = self.notes_at();
        self.store(at + 4, u8::from(notes.writeback));
        self.store(at + 5, u8::from(notes.durable));
        self.store(at + 6, u8::from(notes.lineage.is_some()));
        self.store(at + 8, notes.lineage.unwrap_or_default());
        compiler_fence(Ordering::SeqCst);
        self.store(at, NOTES_MAGIC);
    }

    /// The notes of an earlier process.
    pub(crate) fn noted(&self) -> Option<Notes> {
        let at = self.notes_at();
        (self.load::<u32>(at) == NOTES_MAGIC).then(|| Notes {
            writeback: self.load::<u8>(at + 4) != 0,
            durable: self.load::<u8>(at + 5) != 0,
            lineage: (self.load::<u8>(at + 6) != 0).then(|| self.load(at + 8)),
        })
    }
}

/// Notes for the next process.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Notes {
    /// The guest has not switched writeback off.
    pub(crate) writeback: bool,
    /// Every write that was answered is durable.
    pub(crate) durable: bool,
    /// The chain of starts that the guest counts on; see [`crate::Lineage`].
    pub(crate) lineage: Option<u64>,
}

/// The requests in flight of one queue.
#[derive(Debug)]
pub(crate) struct InflightQueue {
    region: Rc<InflightRegion>,
    at: usize,
    size: u16,
    /// Counts requests, in the order in which they were taken.
    counter: u64,
}

impl InflightQueue {
    fn entry(&self, head: u16) -> usize {
        self.at + HEADER_BYTES + ENTRY_BYTES * usize::from(head)
    }

    fn is_in_flight(&self, head: u16) -> bool {
        self.region.load::<u8>(self.entry(head) + INFLIGHT_AT) != 0
    }

    /// Brings the notes in line with the ring, of which so many requests are answered, and returns
    /// the requests that were in flight, the oldest first.
    pub(crate) fn recover(&mut self, used: u16) -> Vec<u16> {
        let region = self.region.clone();
        if region.load::<u16>(self.at + VERSION_AT) != VERSION {
            region.store(self.at + SIZE_AT, self.size);
            region.store(self.at + USED_AT, used);
            compiler_fence(Ordering::SeqCst);
            region.store(self.at + VERSION_AT, VERSION);
        }
        if region.load::<u16>(self.at + USED_AT) != used {
            // Answered, but not yet noted as answered.
            let head = region.load::<u16>(self.at + LAST_HEAD_AT);
            if head < self.size {
                region.store(self.entry(head) + INFLIGHT_AT, 0_u8);
            }
            region.store(self.at + USED_AT, used);
        }
        let mut found: Vec<(u64, u16)> = (0..self.size)
            .filter(|head| self.is_in_flight(*head))
            .map(|head| (region.load(self.entry(head) + COUNTER_AT), head))
            .collect();
        found.sort_unstable();
        self.counter = found.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        found.into_iter().map(|(_, head)| head).collect()
    }

    /// The request has been taken from the ring.
    pub(crate) fn begin(&mut self, head: u16) {
        let entry = self.entry(head);
        self.region.store(entry + COUNTER_AT, self.counter);
        self.counter = self.counter.wrapping_add(1);
        compiler_fence(Ordering::SeqCst);
        self.region.store(entry + INFLIGHT_AT, 1_u8);
        compiler_fence(Ordering::SeqCst);
    }

    /// The request is about to be published as answered.
    pub(crate) fn will_publish(&self, head: u16) {
        let last: u16 = self.region.load(self.at + LAST_HEAD_AT);
        self.region.store(self.entry(head) + NEXT_AT, last);
        self.region.store(self.at + LAST_HEAD_AT, head);
        compiler_fence(Ordering::SeqCst);
    }

    /// The request was published, as the one before number `used` of the ring.
    pub(crate) fn published(&self, head: u16, used: u16) {
        compiler_fence(Ordering::SeqCst);
        self.region.store(self.entry(head) + INFLIGHT_AT, 0_u8);
        compiler_fence(Ordering::SeqCst);
        self.region.store(self.at + USED_AT, used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> Rc<InflightRegion> {
        let mapping = Arc::new(MmapRegion::new(InflightRegion::bytes(2, 8)).expect("memory"));
        Rc::new(InflightRegion::over(mapping, 2, 8).expect("it fits"))
    }

    #[test]
    fn requests_without_an_answer_are_found_in_their_order() {
        let region = region();
        let mut queue = region.queue(1, 8).expect("the second queue");
        assert_eq!(queue.recover(5), Vec::<u16>::new());
        for head in [3, 1, 7] {
            queue.begin(head);
        }
        queue.will_publish(1);
        queue.published(1, 6);
        assert_eq!(region.queue(1, 8).expect("there").recover(6), [3, 7]);
        assert_eq!(region.queue(0, 8).expect("there").recover(0), Vec::<u16>::new());
    }

    #[test]
    fn a_crash_between_publishing_and_noting_does_not_repeat_the_request() {
        let region = region();
        let mut queue = region.queue(0, 8).expect("there");
        queue.recover(0);
        queue.begin(2);
        queue.begin(4);
        queue.will_publish(2);
        assert_eq!(region.queue(0, 8).expect("there").recover(0), [2, 4], "not in the ring yet");
        assert_eq!(region.queue(0, 8).expect("there").recover(1), [4], "in the ring");
        assert_eq!(region.queue(0, 8).expect("there").recover(1), [4], "and again");
    }

    #[test]
    fn a_region_that_is_too_short_is_refused() {
        let mapping = Arc::new(MmapRegion::new(4096).expect("memory"));
        assert!(InflightRegion::over(mapping, 64, 1024).is_none());
        assert!(region().queue(2, 8).is_none());
        assert!(region().queue(0, 16).is_none());
    }
}
