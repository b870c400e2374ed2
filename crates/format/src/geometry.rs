//! Sizes that follow from a cache superblock (docs/reference/format.md §1.5), for machines with 4
//! KiB pages.

use crate::units::{BucketNr, SECTOR_BYTES, Sector};

/// Bytes in a memory page of the machines whose format is described; some sizes depend on it.
pub const PAGE_BYTES: u64 = 4096;

/// The largest part of a bucket that a prio set or the volume table uses, in bytes.
pub const MAX_METADATA_BYTES: u64 = 4 << 20;

/// The largest journal entry, in bytes before rounding up to blocks.
pub const MAX_JOURNAL_ENTRY_BYTES: u64 = 8 * PAGE_BYTES;

/// The largest number of journal buckets.
pub const MAX_JOURNAL_BUCKETS: u32 = 256;

/// The most sectors that the buckets of a cache device have, 4 PiB: a pointer has 43 bits for one.
pub const MAX_CACHE_SECTORS: u64 = 1 << 43;

const JOURNAL_MAGIC: u64 = 0x2452_35c1_a362_5032;
const PRIO_MAGIC: u64 = 0x6750_e15f_8733_7f91;
const BSET_MAGIC: u64 = 0x9013_5c78_b99e_07f5;

/// The shape of a cache device: fields of its superblock that all other structures depend on.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// The first 8 bytes of the set's UUID as a little-endian number (docs/reference/format.md
    /// §1.3).
    pub set_magic: u64,
    /// Sectors in a bucket; a power of two, at least 8.
    pub bucket_sectors: u32,
    /// Sectors in a block; a power of two from 1 to 8.
    pub block_sectors: u32,
    /// Number of buckets, bucket 0 included.
    pub buckets: u32,
    /// The first bucket that may be used for anything; the journal begins there.
    pub first_bucket: u32,
    /// Number of journal buckets.
    pub journal_buckets: u32,
}

impl Geometry {
    /// The part of a bucket, in bytes, that a prio set or the volume table fills.
    pub const fn metadata_bytes(&self) -> u64 {
        let bucket = self.bucket_bytes();
        if bucket < MAX_METADATA_BYTES { bucket } else { MAX_METADATA_BYTES }
    }

    /// The size in bytes of every btree node that is made new. The size of a node that is read is
    /// in the key that points to it.
    pub const fn node_bytes(&self) -> u64 {
        const SMALL: u64 = 256 << 10;
        let metadata = self.metadata_bytes();
        if metadata <= SMALL {
            metadata
        } else if metadata / 4 > SMALL {
            metadata / 4
        } else {
            SMALL
        }
    }

    /// Number of slots in the volume table.
    pub const fn uuid_slots(&self) -> u32 {
        (self.metadata_bytes() / 128) as u32
    }

    /// Number of buckets that one prio set describes.
    pub const fn prio_entries_per_bucket(&self) -> u32 {
        (self.metadata_bytes().saturating_sub(40) / 3) as u32
    }

    /// Number of prio sets in a chain.
    pub const fn prio_buckets(&self) -> u32 {
        let entries = self.prio_entries_per_bucket();
        self.buckets.div_ceil(if entries == 0 { 1 } else { entries })
    }

    /// Bytes in a block: every metadata structure occupies whole blocks.
    pub const fn block_bytes(&self) -> u64 {
        self.block_sectors as u64 * SECTOR_BYTES
    }

    /// Bytes in a bucket.
    pub const fn bucket_bytes(&self) -> u64 {
        self.bucket_sectors as u64 * SECTOR_BYTES
    }

    /// The first sector of a bucket, counted from the start of the cache device.
    pub const fn bucket_start(&self, bucket: BucketNr) -> Sector {
        Sector(bucket.0 as u64 * self.bucket_sectors as u64)
    }

    /// The bucket that holds a sector of the cache device; `u32::MAX`, which no device has, for a
    /// sector too far out to be in any bucket.
    pub const fn bucket_of(&self, sector: Sector) -> BucketNr {
        let sectors = if self.bucket_sectors == 0 { 1 } else { self.bucket_sectors as u64 };
        let bucket = sector.0 / sectors;
        BucketNr(if bucket > u32::MAX as u64 { u32::MAX } else { bucket as u32 })
    }

    /// Returns true if the bucket may be used: it is not before the first usable one, nor after the
    /// last.
    pub const fn is_usable(&self, bucket: BucketNr) -> bool {
        self.first_bucket <= bucket.0 && bucket.0 < self.buckets
    }

    /// The bucket at an index of the journal ring.
    pub const fn journal_bucket(&self, index: u32) -> BucketNr {
        BucketNr(self.first_bucket.saturating_add(index))
    }

    /// The magic number of this set's journal entries.
    pub const fn journal_magic(&self) -> u64 {
        self.set_magic ^ JOURNAL_MAGIC
    }

    /// The magic number of this set's prio sets.
    pub const fn prio_magic(&self) -> u64 {
        self.set_magic ^ PRIO_MAGIC
    }

    /// The magic number of this set's bsets.
    pub const fn bset_magic(&self) -> u64 {
        self.set_magic ^ BSET_MAGIC
    }

    /// The largest journal entry in bytes: 32 KiB, or a bucket if that is smaller.
    pub const fn max_journal_entry_bytes(&self) -> u64 {
        let bucket = self.bucket_bytes();
        if bucket < MAX_JOURNAL_ENTRY_BYTES { bucket } else { MAX_JOURNAL_ENTRY_BYTES }
    }

    /// The area where extents may lie; nothing if the size of a bucket is no power of two, which no
    /// superblock that was read has.
    pub const fn data_area(&self) -> Option<DataArea> {
        if !self.bucket_sectors.is_power_of_two() {
            return None;
        }
        Some(DataArea {
            first: self.first_bucket as u64 * self.bucket_sectors as u64,
            end: self.buckets as u64 * self.bucket_sectors as u64,
            bucket_sectors: self.bucket_sectors as u64,
            shift: self.bucket_sectors.trailing_zeros(),
        })
    }

    /// Number of journal buckets that a set gets at its first start, from the number of its
    /// buckets.
    pub const fn default_journal_buckets(buckets: u32) -> u32 {
        let share = buckets / 128;
        if share < 2 {
            2
        } else if share > MAX_JOURNAL_BUCKETS {
            MAX_JOURNAL_BUCKETS
        } else {
            share
        }
    }
}

/// The area where the extents of a set may lie. Hot, called for each of millions of keys: avoids
/// divisions.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct DataArea {
    first: u64,
    end: u64,
    bucket_sectors: u64,
    shift: u32,
}

impl DataArea {
    /// The number of the bucket that a sector of the cache device is in, whether or not there is
    /// such a bucket.
    #[inline]
    pub const fn bucket(&self, sector: Sector) -> usize {
        (sector.0 >> self.shift) as usize
    }

    /// Returns true if the `sectors` sectors from `sector` on are all in one usable bucket.
    #[inline]
    pub const fn has_room(&self, sector: Sector, sectors: u64) -> bool {
        let inside = sector.0 & (self.bucket_sectors - 1);
        self.first <= sector.0 && sector.0 < self.end && inside + sectors <= self.bucket_sectors
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The set of the examples in docs/reference/format.md, with buckets of the given size.
    pub(crate) fn example(bucket_sectors: u32) -> Geometry {
        Geometry {
            set_magic: 0x0706_0504_0302_0100,
            bucket_sectors,
            block_sectors: 1,
            buckets: 1024,
            first_bucket: 1,
            journal_buckets: 8,
        }
    }

    #[test]
    fn set_magic_numbers_match_the_example() {
        let geometry = example(1024);
        assert_eq!(geometry.journal_magic(), 0x2354_30c5_a060_5132);
        assert_eq!(geometry.prio_magic(), 0x6056_e45b_8431_7e91);
        assert_eq!(geometry.bset_magic(), 0x9715_597c_ba9c_06f5);
    }

    /// The table of docs/reference/format.md §1.5.
    #[test]
    fn derived_sizes_match_the_example() {
        for (bucket_kib, metadata_kib, node_kib, slots, entries) in [
            (4, 4, 4, 32, 1352),
            (64, 64, 64, 512, 21832),
            (128, 128, 128, 1024, 43677),
            (256, 256, 256, 2048, 87368),
            (512, 512, 256, 4096, 174_749),
            (1024, 1024, 256, 8192, 349_512),
            (2048, 2048, 512, 16384, 699_037),
            (4096, 4096, 1024, 32768, 1_398_088),
            (32768, 4096, 1024, 32768, 1_398_088),
        ] {
            let geometry = example(bucket_kib * 2);
            assert_eq!(geometry.metadata_bytes(), metadata_kib << 10);
            assert_eq!(geometry.node_bytes(), node_kib << 10);
            assert_eq!(geometry.uuid_slots(), slots);
            assert_eq!(geometry.prio_entries_per_bucket(), entries);
        }
        let many = Geometry { buckets: 1353, ..example(8) };
        assert_eq!(many.prio_buckets(), 2);
        assert_eq!(many.max_journal_entry_bytes(), 4096);
        assert_eq!(Geometry::default_journal_buckets(513), 4);
        assert_eq!(Geometry::default_journal_buckets(1 << 20), 256);
        assert_eq!(Geometry::default_journal_buckets(100), 2);
    }
}
