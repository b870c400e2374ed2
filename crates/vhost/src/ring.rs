//! A split ring in the memory of the guest: requests that it makes available, and answers.
//!
//! The three areas of the ring are found in the memory when the ring is set up, not at each access.
//! The guest chooses what stands in them, at any moment: each value is read once and checked, and
//! an access ends within its area, whatever was read.

use std::num::Wrapping;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use vm_memory::{VolatileMemory, VolatileSlice};

use crate::QUEUE_SIZE_MAX;
use crate::device::Ring;
use crate::queue::QueueError;
use crate::regions::{Area, Memory, OutsideMemory};

const DESCRIPTOR_BYTES: u64 = 16;
// The ring of available requests: flags, the index behind the newest one, their first descriptors,
// and the index of an answer that the guest wants to hear of.
const AVAILABLE_INDEX_AT: usize = 2;
const AVAILABLE_AT: usize = 4;
const AVAILABLE_BYTES: usize = 2;
// The ring of answers: flags, the index behind the newest one, pairs of first descriptor and
// length, and the index of a request that the device wants to hear of.
const USED_INDEX_AT: usize = 2;
const USED_AT: usize = 4;
const USED_BYTES: usize = 8;
/// Flags, index and event of a ring.
const EDGE_BYTES: usize = 6;

/// The areas of a ring.
struct Areas {
    descriptors: Area,
    available: Area,
    used: Area,
}

/// A ring.
pub(crate) struct SplitRing {
    size: u16,
    place: Ring,
    areas: Option<Areas>,
    /// Number of the next request to take, and of the next answer.
    next: Wrapping<u16>,
    next_used: Wrapping<u16>,
    /// Requests before this number were available when the guest's index was last read.
    available: Wrapping<u16>,
    /// Answers since the guest was last notified, or needed no notification.
    added: Wrapping<u16>,
    event_idx: bool,
}

impl From<OutsideMemory> for QueueError {
    fn from(OutsideMemory: OutsideMemory) -> QueueError {
        QueueError::Ring("the ring is outside the guest's memory".to_owned())
    }
}

fn index_of(place: &VolatileSlice<'_>, at: usize) -> Result<Wrapping<u16>, OutsideMemory> {
    let index = place.get_atomic_ref::<AtomicU16>(at).map_err(|_| OutsideMemory)?;
    Ok(Wrapping(u16::from_le(index.load(Ordering::Acquire))))
}

fn store_index(
    place: &VolatileSlice<'_>,
    at: usize,
    value: Wrapping<u16>,
) -> Result<(), OutsideMemory> {
    let index = place.get_atomic_ref::<AtomicU16>(at).map_err(|_| OutsideMemory)?;
    index.store(value.0.to_le(), Ordering::Release);
    Ok(())
}

impl SplitRing {
    pub(crate) fn new() -> SplitRing {
        let none = Wrapping(0);
        SplitRing {
            size: QUEUE_SIZE_MAX,
            place: Ring { descriptors: 0, available: 0, used: 0 },
            areas: None,
            next: none,
            next_used: none,
            available: none,
            added: none,
            event_idx: false,
        }
    }

    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    pub(crate) fn set_size(&mut self, size: u16) -> Result<(), QueueError> {
        if size > QUEUE_SIZE_MAX || !size.is_power_of_two() {
            let text = format!(
                "a ring of {size} descriptors: expected a power of two of at most {QUEUE_SIZE_MAX}"
            );
            return Err(QueueError::Ring(text));
        }
        self.size = size;
        Ok(())
    }

    pub(crate) fn set_place(&mut self, place: Ring) -> Result<(), QueueError> {
        for (at, align) in [(place.descriptors, 16), (place.available, 2), (place.used, 4)] {
            if !at.is_multiple_of(align) {
                let text = format!("a part of the ring at {at:#x}: expected a multiple of {align}");
                return Err(QueueError::Ring(text));
            }
        }
        self.place = place;
        Ok(())
    }

    /// Finds its areas; `false`: they are not in the memory of the guest. Each has to be in one
    /// region.
    pub(crate) fn map(&mut self, memory: &Memory) -> bool {
        let Ring { descriptors, available, used } = self.place;
        let size = usize::from(self.size);
        let area = |at, bytes: usize| memory.area(at, bytes as u64);
        let descriptors = area(descriptors, size * DESCRIPTOR_BYTES as usize);
        let available = area(available, EDGE_BYTES + size * AVAILABLE_BYTES);
        let used = area(used, EDGE_BYTES + size * USED_BYTES);
        self.areas = match (descriptors, available, used) {
            (Some(descriptors), Some(available), Some(used)) => {
                Some(Areas { descriptors, available, used })
            }
            _ => None,
        };
        self.areas.is_some()
    }

    /// Lets go of the memory.
    pub(crate) fn unmap(&mut self) {
        self.areas = None;
    }

    pub(crate) fn set_event_idx(&mut self, event_idx: bool) {
        self.event_idx = event_idx;
    }

    /// Number of the next request that is taken.
    pub(crate) fn next(&self) -> u16 {
        self.next.0
    }

    pub(crate) fn set_next(&mut self, next: u16) {
        self.next = Wrapping(next);
        self.available = self.next;
    }

    /// Number of the next answer.
    pub(crate) fn next_used(&self) -> u16 {
        self.next_used.0
    }

    fn areas(&self) -> Result<&Areas, OutsideMemory> {
        self.areas.as_ref().ok_or(OutsideMemory)
    }

    /// Goes on behind the answers that the ring has; returns their number.
    pub(crate) fn resume(&mut self) -> Result<u16, QueueError> {
        self.next_used = index_of(&self.areas()?.used.slice()?, USED_INDEX_AT)?;
        self.added = Wrapping(0);
        Ok(self.next_used.0)
    }

    /// The table of descriptors.
    pub(crate) fn descriptors(&self) -> Result<VolatileSlice<'_>, OutsideMemory> {
        self.areas()?.descriptors.slice()
    }

    /// Takes the next request: its first descriptor, which may be any number.
    pub(crate) fn take(&mut self) -> Result<Option<u16>, QueueError> {
        let ring = self.areas()?.available.slice()?;
        let mut available = self.available;
        if available == self.next {
            available = index_of(&ring, AVAILABLE_INDEX_AT)?;
            let count = (available - self.next).0;
            if count > self.size {
                let text = format!("{count} requests in a ring of {} descriptors", self.size);
                return Err(QueueError::Ring(text));
            }
            if count == 0 {
                return Ok(None);
            }
        }
        let slot = usize::from(self.next.0 % self.size);
        let head = ring.get_ref::<u16>(AVAILABLE_AT + slot * AVAILABLE_BYTES);
        let head = u16::from_le(head.map_err(|_| OutsideMemory)?.load());
        self.available = available;
        self.next += 1;
        Ok(Some(head))
    }

    /// Asks for a notification of the next request; `true`: there is one already.
    pub(crate) fn enable_notification(&mut self) -> Result<bool, QueueError> {
        let areas = self.areas()?;
        let used = areas.used.slice()?;
        if self.event_idx {
            store_index(&used, USED_AT + usize::from(self.size) * USED_BYTES, self.next)?;
        } else {
            store_index(&used, 0, Wrapping(0))?;
        }
        // A request that the guest makes after this is announced; one before it is seen here.
        fence(Ordering::SeqCst);
        Ok(index_of(&areas.available.slice()?, AVAILABLE_INDEX_AT)? != self.next)
    }

    /// Publishes an answer.
    pub(crate) fn add_used(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        let used = self.areas()?.used.slice()?;
        let slot = usize::from(self.next_used.0 % self.size);
        let answer = used.get_ref::<u64>(USED_AT + slot * USED_BYTES).map_err(|_| OutsideMemory)?;
        answer.store((u64::from(head) | u64::from(written) << 32).to_le());
        let next = self.next_used + Wrapping(1);
        store_index(&used, USED_INDEX_AT, next)?;
        self.next_used = next;
        self.added += 1;
        Ok(())
    }

    /// Returns true if the guest wants to hear of the answers since the last call.
    pub(crate) fn needs_notification(&mut self) -> Result<bool, QueueError> {
        // The guest writes its event before it looks for answers.
        fence(Ordering::SeqCst);
        let added = std::mem::take(&mut self.added);
        if !self.event_idx {
            return Ok(true);
        }
        let available = self.areas()?.available.slice()?;
        let event = index_of(&available, AVAILABLE_AT + usize::from(self.size) * AVAILABLE_BYTES)?;
        Ok(self.next_used - event - Wrapping(1) < added)
    }
}
