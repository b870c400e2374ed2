//! Units: every number on the disk that means something gets a type of its own, so that a sector
//! can not be passed where a bucket is wanted (docs/reference/format.md §1.1).

use core::fmt;
use core::ops::{Add, AddAssign, Sub};
use core::str::FromStr;

/// Bytes in one sector: always 512, whatever the device's logical block size is.
pub const SECTOR_BYTES: u64 = 512;

/// A position in units of 512-byte sectors, counted from the start of a device or of a volume's key
/// space.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Sector(pub u64);

impl Sector {
    /// The position in bytes; saturates for positions that no device can have.
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(SECTOR_BYTES)
    }
}

impl Add<u64> for Sector {
    type Output = Sector;
    fn add(self, sectors: u64) -> Sector {
        Sector(self.0.saturating_add(sectors))
    }
}

impl Sub<u64> for Sector {
    type Output = Sector;
    fn sub(self, sectors: u64) -> Sector {
        Sector(self.0.saturating_sub(sectors))
    }
}

impl AddAssign<u64> for Sector {
    fn add_assign(&mut self, sectors: u64) {
        *self = *self + sectors;
    }
}

/// The distance from `other` up to `self` in sectors, 0 when `other` is ahead.
impl Sub<Sector> for Sector {
    type Output = u64;
    fn sub(self, other: Sector) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl fmt::Display for Sector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The sectors from `start` up to, and not including, `end`. A range whose end is not after its
/// start is empty.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default)]
pub struct SectorRange {
    /// The first sector in the range.
    pub start: Sector,
    /// The first sector after the range.
    pub end: Sector,
}

impl SectorRange {
    /// The range of `sectors` sectors that begins at `start`.
    pub const fn new(start: Sector, sectors: u64) -> Self {
        Self { start, end: Sector(start.0.saturating_add(sectors)) }
    }

    /// The range from `start` up to, and not including, `end`.
    pub const fn from_bounds(start: Sector, end: Sector) -> Self {
        Self { start, end }
    }

    /// The length in sectors.
    pub const fn sectors(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// The length in bytes.
    pub const fn bytes(&self) -> u64 {
        self.sectors().saturating_mul(SECTOR_BYTES)
    }

    /// Returns true if the range has no sector at all.
    pub const fn is_empty(&self) -> bool {
        self.sectors() == 0
    }

    /// Returns true if `sector` lies in the range.
    pub const fn contains(&self, sector: Sector) -> bool {
        self.start.0 <= sector.0 && sector.0 < self.end.0
    }

    /// Returns true if every sector of `other` lies in the range; an empty `other` always does.
    pub const fn covers(&self, other: &SectorRange) -> bool {
        other.is_empty() || (self.start.0 <= other.start.0 && other.end.0 <= self.end.0)
    }

    /// Returns true if the two ranges have a sector in common.
    pub const fn overlaps(&self, other: &SectorRange) -> bool {
        !self.intersect(other).is_empty()
    }

    /// The sectors that both ranges have; an empty range if there are none.
    pub const fn intersect(&self, other: &SectorRange) -> SectorRange {
        let start = if self.start.0 > other.start.0 { self.start } else { other.start };
        let end = if self.end.0 < other.end.0 { self.end } else { other.end };
        if start.0 < end.0 { SectorRange { start, end } } else { SectorRange { start, end: start } }
    }

    /// The parts before and from `at` on. A point outside the range leaves one of the parts empty.
    pub fn split_at(&self, at: Sector) -> (Self, Self) {
        let end = self.end.max(self.start);
        let at = at.clamp(self.start, end);
        (Self { start: self.start, end: at }, Self { start: at, end })
    }

    /// The same range moved by `sectors` (negative: towards 0); saturates at the ends of the number
    /// line.
    pub const fn shift(&self, sectors: i64) -> Self {
        Self {
            start: Sector(self.start.0.saturating_add_signed(sectors)),
            end: Sector(self.end.0.saturating_add_signed(sectors)),
        }
    }
}

impl fmt::Display for SectorRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}

impl fmt::Debug for SectorRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The number of a bucket, counted from the start of the cache device; bucket 0 is never used for
/// data.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct BucketNr(pub u32);

impl fmt::Display for BucketNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The generation of a bucket, or the one that a pointer remembers (docs/reference/format.md §4.7).
/// Generations live on a circle of 256 and have no order of their own; ask for
/// [`Generation::staleness_of`].
#[derive(Copy, Clone, Eq, PartialEq, Hash, Default, Debug)]
pub struct Generation(pub u8);

impl Generation {
    /// The generation that a bucket has after being reused once more.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// The generation this many further on the circle.
    #[must_use]
    pub const fn raised(self, by: u8) -> Self {
        Self(self.0.wrapping_add(by))
    }

    /// Distance by which `pointer` is behind this bucket generation, if it is known not to be
    /// ahead.
    pub const fn distance_from(self, pointer: Generation) -> u8 {
        self.0.wrapping_sub(pointer.0)
    }

    /// Number of reuses by which `pointer` is behind this bucket generation; 0 when it is equal or
    /// ahead. A pointer is stale if and only if this is not 0.
    pub const fn staleness_of(self, pointer: Generation) -> u8 {
        let distance = self.0.wrapping_sub(pointer.0);
        if distance > 128 { 0 } else { distance }
    }

    /// Returns true if `pointer` is ahead of this bucket generation: it is valid, and the bucket
    /// has to be raised to it.
    pub const fn is_ahead(self, pointer: Generation) -> bool {
        self.0.wrapping_sub(pointer.0) > 128
    }
}

/// Distance by which a pointer may be ahead of its bucket. A pointer that seems farther ahead is
/// behind: the bucket has been reused so often that more than half of the circle lies between them
/// (docs/reference/format.md §4.7).
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Reach(u8);

impl Reach {
    /// The reach in the format, which holds for any set that the driver ran last.
    pub const FORMAT: Reach = Reach(127);
    /// A chain of ubcache's lags by a few generations at most.
    const OWN: Reach = Reach(16);

    /// The reach of a set. Each generation needs a prio chain, so no bucket has gone half round
    /// before as many chains were written.
    pub const fn of_set(own_chain: bool, chains: u64) -> Reach {
        if own_chain && chains > 128 { Reach::OWN } else { Reach::FORMAT }
    }

    /// Returns true if `pointer` is ahead of `bucket`: it is valid, and the bucket has to be raised
    /// to it.
    pub const fn is_ahead(self, bucket: Generation, pointer: Generation) -> bool {
        bucket.0 != pointer.0 && pointer.0.wrapping_sub(bucket.0) <= self.0
    }

    /// Number of reuses by which `pointer` is behind `bucket`; 0 when it is equal or ahead.
    pub const fn staleness_of(self, bucket: Generation, pointer: Generation) -> u8 {
        if self.is_ahead(bucket, pointer) { 0 } else { bucket.distance_from(pointer) }
    }

    /// Returns true if `pointer` is behind by the reach of this set, and ahead by that of the
    /// format: a reader that does not know who wrote the chain takes the pointer for valid.
    pub const fn is_outrun(self, bucket: Generation, pointer: Generation) -> bool {
        Reach::FORMAT.is_ahead(bucket, pointer) && !self.is_ahead(bucket, pointer)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a journal entry: 1, 2, 3, … for the life of a cache set, without gaps.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Default, Debug)]
pub struct JournalSeq(pub u64);

impl JournalSeq {
    /// The number of the entry that follows.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for JournalSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A volume inside a cache set: its slot in the volume table. 20 bits wide on disk.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Default, Debug)]
pub struct Inode(pub u32);

impl fmt::Display for Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The 16 bytes of a UUID in the order in which they are printed.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// UUID of a volume-table slot after its volume was detached (docs/reference/format.md §8): the
    /// slot is dead, not free.
    pub const INVALIDATED: Uuid = Uuid([
        0xa0, 0x3e, 0xf8, 0xed, 0x3e, 0xe1, 0xb8, 0x78, 0xc8, 0x50, 0xfc, 0x5e, 0xcb, 0x16, 0xcd,
        0x99,
    ]);

    /// Returns true if all 16 bytes are zero, which means "none" everywhere in the format.
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 16]
    }

    /// The first 8 bytes as a little-endian number: of a set's UUID, the value that all magic
    /// numbers of the set are made from (docs/reference/format.md §1.3).
    pub fn set_magic(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        u64::from_le_bytes(first)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a UUID.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("\"{0}\" is not a UUID: expected 32 hexadecimal digits, hyphens and colons aside")]
pub struct UuidError(
    /// The text as it was given.
    pub String,
);

impl FromStr for Uuid {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Self, UuidError> {
        let wrong = || UuidError(text.to_owned());
        let mut bytes = [0_u8; 16];
        let mut digits = 0;
        for character in text.chars().filter(|c| !matches!(c, '-' | ':')) {
            let digit =
                character.to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or_else(wrong)?;
            let byte = bytes.get_mut(digits / 2).ok_or_else(wrong)?;
            *byte = *byte << 4 | digit;
            digits += 1;
        }
        if digits == 32 { Ok(Uuid(bytes)) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_print_and_parse() {
        let text = "00010203-0405-0607-0809-0a0b0c0d0e0f";
        let uuid: Uuid = text.parse().expect("a good UUID");
        assert_eq!(uuid.to_string(), text);
        assert_eq!(uuid.set_magic(), 0x0706_0504_0302_0100);
        assert_eq!("0001:0203:04050607:08090a0b0c0d0e0f".parse(), Ok(uuid));
        for bad in [
            "",
            "00",
            "x0010203-0405-0607-0809-0a0b0c0d0e0f",
            "00010203-0405-0607-0809-0a0b0c0d0e0f0",
        ] {
            assert_eq!(bad.parse::<Uuid>(), Err(UuidError(bad.to_owned())));
        }
    }

    /// The table of docs/reference/format.md §4.7.
    #[test]
    fn staleness_wraps_at_256_generations() {
        for (bucket, pointer, staleness, ahead) in [
            (7, 7, 0, false),
            (7, 5, 2, false),
            (2, 255, 3, false),
            (5, 6, 0, true),
            (130, 2, 128, false),
        ] {
            let (bucket, pointer) = (Generation(bucket), Generation(pointer));
            assert_eq!(bucket.staleness_of(pointer), staleness);
            assert_eq!(bucket.is_ahead(pointer), ahead);
        }
        assert_eq!(Generation(255).next(), Generation(0));
    }

    #[test]
    fn pointer_far_ahead_is_stale_in_a_set_of_ubcache() {
        let own = Reach::of_set(true, 129);
        for other in [Reach::of_set(true, 128), Reach::of_set(false, 1000)] {
            assert_eq!(other, Reach::FORMAT);
        }
        for distance in 0..=u8::MAX {
            for bucket in [Generation(0), Generation(200)] {
                let pointer = bucket.raised(distance);
                assert_eq!(Reach::FORMAT.is_ahead(bucket, pointer), bucket.is_ahead(pointer));
                assert_eq!(
                    Reach::FORMAT.staleness_of(bucket, pointer),
                    bucket.staleness_of(pointer)
                );
                assert_eq!(own.is_ahead(bucket, pointer), (1..=16).contains(&distance));
                assert_eq!(own.is_outrun(bucket, pointer), (17..=127).contains(&distance));
                let stale = if distance <= 16 { 0 } else { 0_u8.wrapping_sub(distance) };
                assert_eq!(own.staleness_of(bucket, pointer), stale);
            }
        }
    }

    #[test]
    fn ranges_are_half_open() {
        let range = SectorRange::new(Sector(8), 8);
        assert_eq!(format!("{range:?}"), "[8, 16)");
        assert!(range.contains(Sector(8)) && !range.contains(Sector(16)));
        assert!(!range.overlaps(&SectorRange::new(Sector(16), 4)));
        assert!(range.intersect(&SectorRange::new(Sector(20), 4)).is_empty());
        assert_eq!(
            range.split_at(Sector(10)),
            (SectorRange::new(Sector(8), 2), SectorRange::new(Sector(10), 6))
        );
        assert_eq!(range.split_at(Sector(99)).1.sectors(), 0);
        assert_eq!(range.shift(-8), SectorRange::new(Sector(0), 8));
        assert!(
            range.covers(&SectorRange::new(Sector(9), 7))
                && !range.covers(&SectorRange::new(Sector(9), 8))
        );
    }
}
