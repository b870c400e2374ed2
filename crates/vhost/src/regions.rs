//! Regions of the guest's memory, and ranges in them by the addresses that the guest knows.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, VolatileMemory, VolatileSlice,
};

/// Memory of the guest outside of which something is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct OutsideMemory;

/// Memory of the guest, as it was at one moment. Clones share it.
#[derive(Clone)]
pub(crate) struct Memory(Rc<Regions>);

struct Regions {
    all: GuestMemoryMmap,
    list: Vec<Region>,
    /// The region of the last place: mostly that of the next one, too.
    last: Cell<usize>,
}

struct Region {
    start: u64,
    bytes: u64,
    mapped: Arc<GuestRegionMmap>,
}

impl Region {
    /// Offset of a range, if all of it is in the region.
    fn offset(&self, at: u64, bytes: u64) -> Option<usize> {
        let offset = at.checked_sub(self.start)?;
        let left = self.bytes.checked_sub(offset)?;
        // The region is mapped, so its length fits.
        (bytes <= left).then_some(offset as usize)
    }
}

impl Memory {
    pub(crate) fn new(all: GuestMemoryMmap) -> Memory {
        let region = |known: &GuestRegionMmap| {
            let (start, bytes) = (known.start_addr(), known.len());
            // The one way to a handle of a region.
            let (_, mapped) = all.remove_region(start, bytes).ok()?;
            Some(Region { start: start.raw_value(), bytes, mapped })
        };
        let list = all.iter().filter_map(region).collect();
        Memory(Rc::new(Regions { all, list, last: Cell::new(0) }))
    }

    fn region(&self, at: u64, bytes: u64) -> Option<(&Region, usize)> {
        let Regions { list, last, .. } = &*self.0;
        if let Some(region) = list.get(last.get())
            && let Some(offset) = region.offset(at, bytes)
        {
            return Some((region, offset));
        }
        let mut others = list.iter().enumerate();
        others.find_map(|(index, region)| {
            let offset = region.offset(at, bytes)?;
            last.set(index);
            Some((region, offset))
        })
    }

    /// The range, if it is in one region.
    pub(crate) fn slice(&self, at: u64, bytes: usize) -> Option<VolatileSlice<'_>> {
        let (region, offset) = self.region(at, bytes as u64)?;
        VolatileMemory::get_slice(&**region.mapped, offset, bytes).ok()
    }

    /// A handle of the range, if it is in one region.
    pub(crate) fn area(&self, at: u64, bytes: u64) -> Option<Area> {
        let (region, at) = self.region(at, bytes)?;
        Some(Area { region: region.mapped.clone(), at, bytes: bytes as usize })
    }

    /// Copies from the memory of the guest. Hot: mostly all of it is in one region.
    pub(crate) fn read(&self, at: u64, into: &mut [u8]) -> Result<(), OutsideMemory> {
        let done = match self.slice(at, into.len()) {
            Some(place) => place.read_slice(into, 0).is_ok(),
            None => self.0.all.read_slice(into, GuestAddress(at)).is_ok(),
        };
        done.then_some(()).ok_or(OutsideMemory)
    }

    /// Copies to the memory of the guest, likewise.
    pub(crate) fn write(&self, at: u64, from: &[u8]) -> Result<(), OutsideMemory> {
        let done = match self.slice(at, from.len()) {
            Some(place) => place.write_slice(from, 0).is_ok(),
            None => self.0.all.write_slice(from, GuestAddress(at)).is_ok(),
        };
        done.then_some(()).ok_or(OutsideMemory)
    }
}

/// A range of the guest's memory that was found once, and is used often. It keeps its region.
#[derive(Clone)]
pub(crate) struct Area {
    region: Arc<GuestRegionMmap>,
    at: usize,
    bytes: usize,
}

impl Area {
    /// All of it.
    pub(crate) fn slice(&self) -> Result<VolatileSlice<'_>, OutsideMemory> {
        VolatileMemory::get_slice(&**self.region, self.at, self.bytes).map_err(|_| OutsideMemory)
    }
}
