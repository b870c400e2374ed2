//! Descriptors of a request: checked, and copied out of the guest's memory once.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, ByteValued, VolatileMemory, VolatileSlice};

use crate::regions::{Memory, OutsideMemory};

/// Bytes of the header of a request.
pub(crate) const HEADER_BYTES: u32 = 16;
/// Bytes of a descriptor.
const DESCRIPTOR_BYTES: u64 = 16;
/// Descriptors of one request, at most. The device offers fewer; some drivers exceed that.
const SEGMENTS_MAX: usize = 1026;

/// Reasons why a chain of descriptors makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChainError {
    /// The index is outside the table.
    #[error("descriptor {index} is outside a table of {count}")]
    Index {
        /// Index that was found.
        index: u16,
        /// Descriptors of the table.
        count: u32,
    },
    /// The table is not in the memory of the guest.
    #[error("the descriptor at {0:#x} is outside the guest's memory")]
    Outside(u64),
    /// A loop, or very many.
    #[error("the chain has more than {0} descriptors")]
    TooLong(u32),
    /// An indirect table of no whole descriptors, of none, in another one, or with a successor.
    #[error("an indirect table of {bytes} bytes is not permitted there")]
    Indirect {
        /// Its length.
        bytes: u32,
    },
    /// Parts that the device reads have to come first.
    #[error("a descriptor for reading follows one for writing")]
    Order,
    /// The chain is longer than 4 GiB.
    #[error("the chain has more than 4 GiB")]
    TooManyBytes,
    /// There is no byte for the status.
    #[error("the chain has no room for the status")]
    NoStatus,
}

/// Part of a request in the memory of the guest.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Segment {
    at: u64,
    len: u32,
}

/// A table of descriptors.
#[derive(Copy, Clone)]
enum Table<'a> {
    /// In one region of the memory, where it was found.
    Place(VolatileSlice<'a>),
    /// Across several.
    Parts(u64),
}

/// The descriptors of a request: first those that the device reads, then those that it writes.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    head: u16,
    /// Used again for the next request: its memory is allocated once.
    segments: Vec<Segment>,
    /// Segments that the device reads.
    readable: usize,
    read_bytes: u32,
    write_bytes: u32,
}

impl Chain {
    /// Becomes the chain that begins with descriptor `head` of the table of a ring.
    pub(crate) fn collect(
        &mut self,
        memory: &Memory,
        table: VolatileSlice<'_>,
        head: u16,
    ) -> Result<(), ChainError> {
        self.segments.clear();
        (self.head, self.readable, self.read_bytes, self.write_bytes) = (head, 0, 0, 0);
        let count = (table.len() as u64 / DESCRIPTOR_BYTES) as u32;
        let (mut table, mut count, mut index) = (Table::Place(table), count, head);
        let mut is_indirect = false;
        let mut limit = (count as usize).min(SEGMENTS_MAX);
        loop {
            if u32::from(index) >= count {
                return Err(ChainError::Index { index, count });
            }
            let descriptor = table.descriptor(memory, index)?;
            if descriptor.refers_to_indirect_table() {
                let bytes = descriptor.len();
                let is_whole = bytes > 0 && u64::from(bytes).is_multiple_of(DESCRIPTOR_BYTES);
                if is_indirect || descriptor.has_next() || !is_whole {
                    return Err(ChainError::Indirect { bytes });
                }
                is_indirect = true;
                table = Table::find(memory, descriptor.addr().raw_value(), bytes);
                (count, index) = (bytes / DESCRIPTOR_BYTES as u32, 0);
                limit = SEGMENTS_MAX;
                continue;
            }
            if self.segments.len() >= limit {
                return Err(ChainError::TooLong(limit as u32));
            }
            self.push(&descriptor)?;
            if !descriptor.has_next() {
                break;
            }
            index = descriptor.next();
        }
        if self.write_bytes == 0 { Err(ChainError::NoStatus) } else { Ok(()) }
    }

    fn push(&mut self, descriptor: &Descriptor) -> Result<(), ChainError> {
        let len = descriptor.len();
        let total = if descriptor.is_write_only() {
            &mut self.write_bytes
        } else {
            if self.readable < self.segments.len() {
                return Err(ChainError::Order);
            }
            self.readable += 1;
            &mut self.read_bytes
        };
        *total = total.checked_add(len).ok_or(ChainError::TooManyBytes)?;
        self.segments.push(Segment { at: descriptor.addr().raw_value(), len });
        Ok(())
    }

    /// Index of the first descriptor: the name of the request.
    pub(crate) fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the device reads.
    pub(crate) fn read_bytes(&self) -> u32 {
        self.read_bytes
    }

    /// Bytes that the device writes; at least one, the last of which is the status.
    pub(crate) fn write_bytes(&self) -> u32 {
        self.write_bytes
    }

    /// Bytes of data: without the header and the status.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.bytes().saturating_sub(u64::from(HEADER_BYTES) + 1)
    }

    /// Bytes of all its parts.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.read_bytes) + u64::from(self.write_bytes)
    }

    /// The first 16 bytes that the device reads, the first one in the lowest place. Hot: mostly
    /// they are one descriptor's.
    pub(crate) fn header(&self, memory: &Memory) -> Result<u128, OutsideMemory> {
        let first = self.segments[..self.readable].first().filter(|first| first.len >= 16);
        if let Some(place) = first.and_then(|first| memory.slice(first.at, 16))
            && let Ok(header) = place.get_ref::<u128>(0)
        {
            return Ok(u128::from_le(header.load()));
        }
        let mut header = [0; 16];
        self.readable(memory, 0).read(&mut header)?;
        Ok(u128::from_le_bytes(header))
    }

    /// A cursor at byte `from` of what the device reads.
    pub(crate) fn readable<'a>(&'a self, memory: &'a Memory, from: u32) -> Cursor<'a> {
        Cursor { memory, segments: &self.segments[..self.readable], offset: 0 }.after(from)
    }

    /// A cursor at byte `from` of what the device writes.
    pub(crate) fn writable<'a>(&'a self, memory: &'a Memory, from: u32) -> Cursor<'a> {
        Cursor { memory, segments: &self.segments[self.readable..], offset: 0 }.after(from)
    }

    /// Writes the status behind everything else.
    pub(crate) fn write_status(&self, memory: &Memory, status: u8) -> Result<(), OutsideMemory> {
        let last = self.segments[self.readable..].iter().rfind(|segment| segment.len > 0);
        let Segment { at, len } = *last.ok_or(OutsideMemory)?;
        let at = at.checked_add(u64::from(len) - 1).ok_or(OutsideMemory)?;
        let place = memory.slice(at, 1).ok_or(OutsideMemory)?;
        place.get_ref::<u8>(0).map_err(|_| OutsideMemory)?.store(status);
        Ok(())
    }
}

impl<'a> Table<'a> {
    fn find(memory: &'a Memory, at: u64, bytes: u32) -> Table<'a> {
        memory.slice(at, bytes as usize).map_or(Table::Parts(at), Table::Place)
    }

    /// A descriptor, copied once; `index` is within the table.
    fn descriptor(&self, memory: &Memory, index: u16) -> Result<Descriptor, ChainError> {
        let offset = u64::from(index) * DESCRIPTOR_BYTES;
        match self {
            Table::Place(place) => {
                let found = place.get_ref::<Descriptor>(offset as usize);
                found.map(|found| found.load()).map_err(|_| ChainError::Outside(offset))
            }
            Table::Parts(table) => {
                let at = table.checked_add(offset).ok_or(ChainError::Outside(*table))?;
                let mut descriptor = Descriptor::default();
                memory
                    .read(at, descriptor.as_mut_slice())
                    .map_err(|OutsideMemory| ChainError::Outside(at))?;
                Ok(descriptor)
            }
        }
    }
}

/// A place in the segments of a request.
pub(crate) struct Cursor<'a> {
    memory: &'a Memory,
    segments: &'a [Segment],
    offset: u32,
}

impl Cursor<'_> {
    fn after(mut self, mut bytes: u32) -> Self {
        while bytes > 0
            && let Some((first, rest)) = self.segments.split_first()
        {
            if bytes < first.len {
                self.offset = bytes;
                break;
            }
            bytes -= first.len;
            self.segments = rest;
        }
        self
    }

    /// The next part of at most so many bytes, which the cursor passes.
    fn step(&mut self, bytes_max: usize) -> Result<(u64, usize), OutsideMemory> {
        loop {
            let (first, rest) = self.segments.split_first().ok_or(OutsideMemory)?;
            let left = (first.len - self.offset) as usize;
            if left == 0 {
                (self.segments, self.offset) = (rest, 0);
                continue;
            }
            let at = first.at.checked_add(u64::from(self.offset)).ok_or(OutsideMemory)?;
            let len = left.min(bytes_max);
            self.offset += len as u32;
            return Ok((at, len));
        }
    }

    /// Copies from the memory of the guest.
    pub(crate) fn read(&mut self, mut into: &mut [u8]) -> Result<(), OutsideMemory> {
        while !into.is_empty() {
            let (at, len) = self.step(into.len())?;
            let (now, rest) = into.split_at_mut(len);
            self.memory.read(at, now)?;
            into = rest;
        }
        Ok(())
    }

    /// Copies to the memory of the guest. Hot: mostly all of it goes to one segment.
    pub(crate) fn write(&mut self, mut from: &[u8]) -> Result<(), OutsideMemory> {
        if let Some(first) = self.segments.first()
            && self.offset == 0
            && from.len() < first.len as usize
        {
            self.offset = from.len() as u32;
            return self.memory.write(first.at, from);
        }
        while !from.is_empty() {
            let (at, len) = self.step(from.len())?;
            let (now, rest) = from.split_at(len);
            self.memory.write(at, now)?;
            from = rest;
        }
        Ok(())
    }
}
