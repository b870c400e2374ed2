//! Events that an operator wants to read about: changes of state, and errors of devices. The engine
//! puts them in a queue; whoever serves the set takes them out and words them.
//!
//! The queue is bounded, as nobody may be reading: equal errors of a device are one entry with a
//! count, and what finds no room is counted.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use ubcache_env::local::Notify;
use ubcache_env::{IoError, Sector, SectorRange};
use ubcache_format::Uuid;

use crate::stats::scrub::ScrubStatus;

/// Entries that wait.
const ENTRIES_MAX: usize = 256;

/// An event of a set.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SetEvent {
    /// The set has failed, for good.
    Failed {
        /// The first reason.
        reason: String,
    },
    /// Every bucket and all dirty data has been counted since the start.
    Counted,
    /// A volume has changed its state.
    Volume {
        /// UUID of its backing device.
        uuid: Uuid,
        /// The change.
        change: VolumeChange,
    },
    /// A scrub has found clean cached data that differs from the backing device, and dropped it.
    Differs(Difference),
    /// Requests to a device have failed.
    Fault(DeviceFault),
    /// So many events found no room.
    Lost(u64),
}

/// Change of the state of a volume.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum VolumeChange {
    /// The first dirty data: writeback begins after its delay.
    Dirty,
    /// All dirty data is on the backing device.
    Clean,
    /// A detach has begun.
    DrainStarts,
    /// The volume has no cache any more.
    Detached,
    /// The volume has its cache again.
    Attached,
    /// A pass of the scrub has begun.
    ScrubStarts,
    /// A pass of the scrub has ended.
    ScrubEnds(ScrubStatus),
    /// The cache has failed, and had nothing that the backing device lacks: requests go past it.
    CacheLost,
    /// The cache has failed, and had the only copy of so many sectors: these can't be read.
    Failed {
        /// Dirty sectors.
        dirty: u64,
    },
}

/// Clean cached data that differs from the backing device.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// UUID of the backing device.
    pub uuid: Uuid,
    /// Sectors of the backing device, from the first that differs to the last, of the first piece.
    pub range: SectorRange,
    /// Place of that range on the cache device.
    pub cache: Sector,
    /// Number of sectors that differ, of all pieces.
    pub sectors: u64,
}

/// Device of a set.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FaultyDevice {
    /// The cache device.
    Cache,
    /// The backing device with this UUID.
    Backing(Uuid),
}

/// Operation of a device.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush.
    Flush,
    /// A discard.
    Discard,
    /// A write of zeroes.
    WriteZeroes,
}

impl Operation {
    /// The operation in a word or two.
    pub fn word(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Flush => "flush",
            Operation::Discard => "discard",
            Operation::WriteZeroes => "write of zeroes",
        }
    }
}

/// Failed requests to a device, of one kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceFault {
    /// The device.
    pub device: FaultyDevice,
    /// The operation.
    pub operation: Operation,
    /// Range of the first of them; empty for a flush.
    pub range: SectorRange,
    /// Their error.
    pub error: IoError,
    /// Their number.
    pub count: u64,
}

/// The queue.
#[derive(Default)]
pub(crate) struct Events {
    queue: RefCell<VecDeque<SetEvent>>,
    lost: Cell<u64>,
    added: Notify,
}

impl Events {
    pub fn push(&self, event: SetEvent) {
        let mut queue = self.queue.borrow_mut();
        if let SetEvent::Fault(fault) = &event {
            let same = queue.iter_mut().find_map(|entry| match entry {
                SetEvent::Fault(other) if other.is_like(fault) => Some(other),
                _ => None,
            });
            if let Some(same) = same {
                same.count += fault.count;
                return;
            }
        }
        if let SetEvent::Differs(new) = &event {
            let same = queue.iter_mut().find_map(|entry| match entry {
                SetEvent::Differs(other) if other.uuid == new.uuid => Some(other),
                _ => None,
            });
            if let Some(same) = same {
                same.sectors += new.sectors;
                return;
            }
        }
        if queue.len() == ENTRIES_MAX {
            self.lost.set(self.lost.get() + 1);
            return;
        }
        queue.push_back(event);
        self.added.notify_all();
    }

    pub fn differs(&self, uuid: Uuid, range: SectorRange, cache: Sector, sectors: u64) {
        self.push(SetEvent::Differs(Difference { uuid, range, cache, sectors }));
    }

    pub fn volume(&self, uuid: Uuid, change: VolumeChange) {
        self.push(SetEvent::Volume { uuid, change });
    }

    /// Waits for the next event.
    pub async fn next(&self) -> SetEvent {
        loop {
            let added = self.added.notified();
            if let Some(event) = self.take() {
                return event;
            }
            added.await;
        }
    }

    /// The next event, if there is one.
    pub fn take(&self) -> Option<SetEvent> {
        let event = self.queue.borrow_mut().pop_front();
        event.or_else(|| match self.lost.take() {
            0 => None,
            lost => Some(SetEvent::Lost(lost)),
        })
    }
}

impl DeviceFault {
    fn is_like(&self, other: &DeviceFault) -> bool {
        self.device == other.device
            && self.operation == other.operation
            && self.error.errno() == other.error.errno()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(operation: Operation, sector: u64, errno: i32) -> SetEvent {
        SetEvent::Fault(DeviceFault {
            device: FaultyDevice::Cache,
            operation,
            range: SectorRange::new(ubcache_env::Sector(sector), 8),
            error: IoError::Os(errno),
            count: 1,
        })
    }

    #[test]
    fn equal_errors_are_one_event_with_a_count() {
        let events = Events::default();
        for sector in 0..1000 {
            events.push(fault(Operation::Read, sector, 5));
        }
        events.push(fault(Operation::Write, 7, 5));
        events.push(fault(Operation::Read, 8, 28));
        let Some(SetEvent::Fault(first)) = events.take() else { panic!("a fault") };
        assert_eq!((first.count, first.range.start.0), (1000, 0));
        assert_eq!(events.take(), Some(fault(Operation::Write, 7, 5)));
        assert_eq!(events.take(), Some(fault(Operation::Read, 8, 28)));
        assert_eq!(events.take(), None);
    }

    #[test]
    fn a_queue_that_nobody_reads_is_bounded_and_says_what_it_lost() {
        let events = Events::default();
        for _ in 0..ENTRIES_MAX + 7 {
            events.volume(Uuid([1; 16]), VolumeChange::Dirty);
        }
        assert_eq!(std::iter::from_fn(|| events.take()).count(), ENTRIES_MAX + 1);
        events.push(SetEvent::Counted);
        assert_eq!(events.take(), Some(SetEvent::Counted));
    }
}
