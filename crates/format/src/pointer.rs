//! Pointers: places on a cache device, with the generation of their bucket.

use core::fmt;

use crate::units::{BucketNr, Generation, Sector};

/// The device number by which the driver marks a placeholder (docs/reference/format.md §11).
pub const PLACEHOLDER_DEVICE: u16 = 4095;

const OFFSET_MASK: u64 = (1 << 43) - 1;
const DEVICE_MASK: u16 = 0xFFF;
/// A place on a cache device, with the generation that its bucket had when the place was written.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pointer {
    /// The number of the cache device in its set: 0, or 4095 in a placeholder. 12 bits wide on
    /// disk.
    pub device: u16,
    /// The first sector, from the start of the cache device. 43 bits wide on disk.
    pub offset: Sector,
    /// The generation of the bucket at the time the pointer was made.
    pub generation: Generation,
}

impl Pointer {
    /// The pointer as it is on disk. Bits that a field has no room for are left out.
    pub const fn word(self) -> u64 {
        self.generation.0 as u64
            | (self.offset.0 & OFFSET_MASK) << 8
            | ((self.device & DEVICE_MASK) as u64) << 51
    }

    /// The pointer that a word on disk stands for. Bit 63, which means nothing, is not kept.
    pub const fn from_word(word: u64) -> Self {
        Self {
            device: (word >> 51) as u16 & DEVICE_MASK,
            offset: Sector(word >> 8 & OFFSET_MASK),
            generation: Generation(word as u8),
        }
    }

    /// Returns true if the pointer is to the cache device. A pointer to no device is neither
    /// followed nor checked.
    pub const fn is_available(self) -> bool {
        self.device == 0
    }

    /// Returns true if the pointer is to another cache device of the set, as in sets of several
    /// cache devices before Linux 5.10; that device is not available here.
    pub const fn is_elsewhere(self) -> bool {
        matches!(self.device, 1..=7)
    }

    /// The bucket that it points into; `u32::MAX`, which no device has, for an offset too far out.
    pub const fn bucket(self, bucket_sectors: u32) -> BucketNr {
        let sectors = if bucket_sectors == 0 { 1 } else { bucket_sectors as u64 };
        let bucket = self.offset.0 / sectors;
        BucketNr(if bucket > u32::MAX as u64 { u32::MAX } else { bucket as u32 })
    }

    /// The pointer to what lies `sectors` sectors further on.
    #[must_use]
    pub fn advance(self, sectors: u64) -> Self {
        Self { offset: self.offset + sectors, ..self }
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} gen {}", self.device, self.offset, self.generation)
    }
}
