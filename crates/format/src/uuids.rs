//! The volume table: which volume has which inode (docs/reference/format.md §8). It has neither
//! magic number nor checksum.
//!
//! ```text
//!   0     16      48         52        56           60      64       72        128
//!   │uuid │ label │first_reg │last_reg │invalidated │ flags │sectors │ padding │
//! ```

use crate::bytes::{array, put, u32_at, u64_at};
use crate::geometry::Geometry;
use crate::units::Uuid;

/// Bytes of one entry.
pub const UUID_ENTRY_BYTES: u64 = 128;

/// Bytes of one entry in sets made before Linux 3.10.
pub const UUID_ENTRY_V0_BYTES: u64 = 64;

const FLASH_ONLY: u32 = 1;

/// One slot of the volume table. The number of the slot is the inode of the volume.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct UuidEntry {
    /// The UUID of the backing device; all zero in a free slot, [`Uuid::INVALIDATED`] in a dead
    /// one.
    pub uuid: Uuid,
    /// The label of the volume, padded with zero bytes.
    pub label: [u8; 32],
    /// When the volume was first attached, in seconds since 1970.
    pub first_reg: u32,
    /// When the volume was last attached, in seconds since 1970.
    pub last_reg: u32,
    /// When the slot was declared dead, in seconds since 1970; else 0.
    pub invalidated: u32,
    /// True if the volume has no backing device, and lives in the cache only.
    pub flash_only: bool,
    /// The size of a flash-only volume in sectors.
    pub sectors: u64,
}

impl UuidEntry {
    /// Returns true if the slot may be given to a new volume. Dead slots may not.
    pub fn is_free(&self) -> bool {
        self.uuid.is_zero()
    }

    /// Returns true if a volume lives in the slot.
    pub fn is_live(&self) -> bool {
        !self.uuid.is_zero() && self.uuid != Uuid::INVALIDATED
    }
}

/// All slots of a volume table, from the bytes that its key spans. An incomplete entry at the end
/// is left out.
pub fn parse_uuids(bytes: &[u8]) -> Vec<UuidEntry> {
    bytes.chunks_exact(UUID_ENTRY_BYTES as usize).map(|bytes| parse_entry(bytes, true)).collect()
}

/// Reads the table of a set made before Linux 3.10: where the newest journal entry has version 0.
pub fn parse_uuids_v0(bytes: &[u8]) -> Vec<UuidEntry> {
    bytes
        .chunks_exact(UUID_ENTRY_V0_BYTES as usize)
        .map(|bytes| parse_entry(bytes, false))
        .collect()
}

fn parse_entry(bytes: &[u8], extended: bool) -> UuidEntry {
    UuidEntry {
        uuid: Uuid(array(bytes, 0)),
        label: array(bytes, 16),
        first_reg: u32_at(bytes, 48),
        last_reg: u32_at(bytes, 52),
        invalidated: u32_at(bytes, 56),
        flash_only: extended && u32_at(bytes, 60) & FLASH_ONLY != 0,
        sectors: if extended { u64_at(bytes, 64) } else { 0 },
    }
}

/// The volume table as it fills the metadata area of its bucket. Missing slots are free; entries
/// that there are no slots for ([`Geometry::uuid_slots`]) are left out.
pub fn encode_uuids(geometry: &Geometry, entries: &[UuidEntry]) -> Vec<u8> {
    debug_assert!(entries.len() as u64 <= u64::from(geometry.uuid_slots()));
    let mut bytes = vec![0; geometry.metadata_bytes() as usize];
    for (slot, entry) in bytes.chunks_exact_mut(UUID_ENTRY_BYTES as usize).zip(entries) {
        put(slot, 0, &entry.uuid.0);
        put(slot, 16, &entry.label);
        put(slot, 48, &entry.first_reg.to_le_bytes());
        put(slot, 52, &entry.last_reg.to_le_bytes());
        put(slot, 56, &entry.invalidated.to_le_bytes());
        put(slot, 60, &u32::from(entry.flash_only).to_le_bytes());
        put(slot, 64, &entry.sectors.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::tests::example;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(
            uuid: [u8; 16], label: [u8; 32], times: [u32; 3], flash_only: bool, sectors: u64,
            slot in 0_usize..32,
        ) {
            let geometry = example(8);
            let [first_reg, last_reg, invalidated] = times;
            let mut table = vec![UuidEntry::default(); 32];
            table[slot] = UuidEntry { uuid: Uuid(uuid), label, first_reg, last_reg, invalidated,
                flash_only, sectors };
            let bytes = encode_uuids(&geometry, &table[..=slot]);
            prop_assert_eq!(bytes.len(), 4096);
            prop_assert_eq!(&parse_uuids(&bytes), &table);
            let old = parse_uuids_v0(&bytes);
            prop_assert_eq!(old.len(), 64);
            prop_assert_eq!(&old[2 * slot], &UuidEntry { flash_only: false, sectors: 0,
                ..table[slot] });
        }
    }

    #[test]
    fn dead_slots_are_not_free() {
        let dead = UuidEntry { uuid: Uuid::INVALIDATED, ..UuidEntry::default() };
        assert!(!dead.is_free() && !dead.is_live());
        assert!(UuidEntry::default().is_free());
    }
}
