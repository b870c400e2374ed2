//! The table of shared memory: parts of files that the monitor has passed, by the addresses that
//! the guest knows.

use std::fs::File;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// Reasons why memory can't be shared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    /// The file ends before the memory does: a look at the rest would end this process.
    #[error(
        "a part of {bytes} bytes from byte {from} was announced, the file has {found}: share the \
         whole file"
    )]
    Short {
        /// Beginning of the part.
        from: u64,
        /// Its length.
        bytes: u64,
        /// The length of the file.
        found: u64,
    },
    /// It can't be mapped, or overlaps other memory.
    #[error("memory at {at:#x} can't be mapped: {reason}")]
    Mapping {
        /// The guest's address.
        at: u64,
        /// The reason.
        reason: String,
    },
}

/// Part of the guest's memory.
#[derive(Clone)]
struct Region {
    guest: u64,
    bytes: u64,
    /// Address in the monitor, which names the places of rings by it.
    user: u64,
    mapped: Arc<GuestRegionMmap>,
}

/// Memory that the monitor shares.
#[derive(Clone, Default)]
pub(crate) struct MemoryTable {
    regions: Vec<Region>,
}

/// Maps a part of a file, which has to be long enough.
pub(crate) fn map_file(file: File, from: u64, bytes: u64) -> Result<MmapRegion, MemoryError> {
    let failed = |reason: String| MemoryError::Mapping { at: from, reason };
    let found = file.metadata().map_err(|error| failed(error.to_string()))?.len();
    if from.checked_add(bytes).is_none_or(|end| end > found) {
        return Err(MemoryError::Short { from, bytes, found });
    }
    let len = usize::try_from(bytes).map_err(|error| failed(error.to_string()))?;
    MmapRegion::from_file(FileOffset::new(file, from), len)
        .map_err(|error| failed(error.to_string()))
}

impl MemoryTable {
    /// Adds a part.
    pub(crate) fn add(
        &mut self,
        region: &VhostUserMemoryRegion,
        file: File,
    ) -> Result<(), MemoryError> {
        // The message is packed: copies, no references.
        let (guest, bytes, user) = (region.guest_phys_addr, region.memory_size, region.user_addr);
        let mapping = map_file(file, region.mmap_offset, bytes)?;
        let mapped = GuestRegionMmap::new(mapping, GuestAddress(guest)).ok_or_else(|| {
            MemoryError::Mapping { at: guest, reason: "it is beyond the last address".into() }
        })?;
        let at = self.regions.partition_point(|other| other.guest < guest);
        self.regions.insert(at, Region { guest, bytes, user, mapped: Arc::new(mapped) });
        Ok(())
    }

    /// Removes a part; `false` if there is none like it.
    pub(crate) fn remove(&mut self, guest: u64, bytes: u64, user: u64) -> bool {
        let before = self.regions.len();
        self.regions
            .retain(|region| (region.guest, region.bytes, region.user) != (guest, bytes, user));
        self.regions.len() < before
    }

    /// All of it, as the guest knows it.
    pub(crate) fn memory(&self) -> Result<GuestMemoryMmap, MemoryError> {
        let regions = self.regions.iter().map(|region| region.mapped.clone()).collect();
        GuestMemoryMmap::from_arc_regions(regions).map_err(|error| MemoryError::Mapping {
            at: self.regions.first().map_or(0, |region| region.guest),
            reason: error.to_string(),
        })
    }

    /// Number of parts.
    pub(crate) fn len(&self) -> usize {
        self.regions.len()
    }

    /// The guest's address of an address of the monitor.
    pub(crate) fn guest_address(&self, user: u64) -> Option<u64> {
        let holds = |region: &&Region| user >= region.user && user - region.user < region.bytes;
        self.regions.iter().find(holds).map(|region| region.guest + (user - region.user))
    }
}
