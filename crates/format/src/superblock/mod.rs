//! Superblocks of cache devices and backing devices (docs/reference/format.md §2): one of 4096
//! bytes at sector 8, no copies.
//!
//! ```text
//!   0      8       16       24     40     56         72      104     112   120        144       184
//!   │ csum │offset │version │magic │ uuid │ set uuid │ label │ flags │ seq │ features │ padding │ nbuckets or
//!
//!        192          194           196         198          200          204            206           208
//!   data │block size │ bucket size │nr in set │ nr this dev │ last mount │ first bucket │ keys = n │ d[0..n] │
//! ```
//!
//! A parsed superblock keeps all of its bytes, and writes back those that mean nothing to it.

mod flags;
mod parse;
#[cfg(test)]
mod tests;

use crate::bytes::{put, u16_at, u64_at};
use crate::checksum::crc64_we;
use crate::geometry::{Geometry, MAX_JOURNAL_BUCKETS};
use crate::units::{Sector, Uuid};

pub use flags::{BackingState, CacheMode, Replacement};

/// Place of the superblock, on both kinds of devices.
pub const SUPERBLOCK_SECTOR: Sector = Sector(8);

/// Bytes of a superblock.
pub const SUPERBLOCK_BYTES: usize = 4096;

/// The fewest buckets with which the driver starts a set, although it lets a superblock pass with
/// fewer.
pub const MIN_BUCKETS: u32 = 513;

/// The first sector of the data on a backing device whose superblock does not name another.
pub const DEFAULT_DATA_OFFSET: Sector = Sector(16);

/// The 16 bytes by which a superblock is known.
pub const SUPERBLOCK_MAGIC: [u8; 16] = [
    0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
];

/// Bytes of a volume label.
pub const LABEL_BYTES: usize = 32;

const JOURNAL_BUCKETS: usize = 208;
const BUCKET_SIZE_HIGH: usize = 2256;
const FEATURE_OBSOLETE_LARGE_BUCKET: u64 = 1;
const FEATURE_LARGE_BUCKET: u64 = 2;

/// The superblock of a cache device or of a backing device; [`Superblock::is_cache`] tells which.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// 0, 3 or 5 on a cache device; 1, 4 or 6 on a backing device.
    pub version: u64,
    /// The identity of this device.
    pub uuid: Uuid,
    /// The cache set that the device belongs to; on a backing device zero after a detach.
    pub set_uuid: Uuid,
    /// The name of the volume, padded with zero bytes; on a cache device see
    /// [`Superblock::begins_with`], which the driver ignores.
    pub label: [u8; LABEL_BYTES],
    /// The bits that the accessors take apart; all others are kept as they are.
    pub flags: u64,
    /// Counts the writes of a cache device's superblock; never changes on a backing device.
    pub seq: u64,
    /// Sectors in a block.
    pub block_sectors: u32,
    /// Sectors in a bucket; means nothing on a backing device.
    pub bucket_sectors: u32,
    /// The number of buckets, bucket 0 included; 0 on a backing device.
    pub nbuckets: u32,
    /// When the device was last registered, in seconds since 1970.
    pub last_mount: u32,
    /// The first bucket that may be used for anything (16 bits wide); 0 on a backing device.
    pub first_bucket: u32,
    /// The number of journal buckets, which begin at `first_bucket`; 0 before the first start, and
    /// on a backing device.
    pub journal_buckets: u32,
    data_start: u64,
    raw: Box<[u8; SUPERBLOCK_BYTES]>,
}

impl Superblock {
    /// The superblock of a new cache device: nothing on it is valid yet (SYNC is 0), the first
    /// start makes the rest. Buckets of more than 65535 sectors lead to version 5, which older
    /// drivers do not know.
    pub fn new_cache(
        uuid: Uuid,
        set_uuid: Uuid,
        block_sectors: u32,
        bucket_sectors: u32,
        nbuckets: u32,
        replacement: Replacement,
        discard: bool,
    ) -> Self {
        let large = bucket_sectors > u32::from(u16::MAX);
        let mut new = Self::empty(if large { 5 } else { 0 }, uuid, set_uuid, block_sectors);
        if large {
            put(&mut *new.raw, 128, &FEATURE_LARGE_BUCKET.to_le_bytes());
        }
        put(&mut *new.raw, 196, &1_u16.to_le_bytes());
        new.bucket_sectors = bucket_sectors;
        new.nbuckets = nbuckets;
        new.first_bucket = 23 / bucket_sectors.max(1) + 1;
        new.set_replacement(replacement);
        new.set_discard(discard);
        new
    }

    /// The superblock of a new backing device, not attached to its set yet. A label longer than 32
    /// bytes is cut at a character boundary.
    pub fn new_backing(
        uuid: Uuid,
        set_uuid: Uuid,
        block_sectors: u32,
        data_offset: Sector,
        mode: CacheMode,
        label: &str,
    ) -> Self {
        let version = if data_offset == DEFAULT_DATA_OFFSET { 1 } else { 4 };
        let mut new = Self::empty(version, uuid, set_uuid, block_sectors);
        // Tools fill the size of buckets in here too, where it means nothing; 1024 is their
        // default.
        new.bucket_sectors = 1024;
        if version != 1 {
            new.data_start = data_offset.0;
        }
        new.set_cache_mode(mode);
        new.set_label(label);
        new
    }

    fn empty(version: u64, uuid: Uuid, set_uuid: Uuid, block_sectors: u32) -> Self {
        Self {
            version,
            uuid,
            set_uuid,
            label: [0; LABEL_BYTES],
            flags: 0,
            seq: 0,
            block_sectors,
            bucket_sectors: 0,
            nbuckets: 0,
            last_mount: 0,
            first_bucket: 0,
            journal_buckets: 0,
            data_start: 0,
            raw: Box::new([0; SUPERBLOCK_BYTES]),
        }
    }

    /// The 4096 bytes to write, with a fresh checksum. Everything that has no meaning here is as it
    /// was read.
    pub fn encode(&self) -> Vec<u8> {
        let short = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        let mut bytes = self.raw.to_vec();
        put(&mut bytes, 8, &SUPERBLOCK_SECTOR.0.to_le_bytes());
        put(&mut bytes, 16, &self.version.to_le_bytes());
        put(&mut bytes, 24, &SUPERBLOCK_MAGIC);
        put(&mut bytes, 40, &self.uuid.0);
        put(&mut bytes, 56, &self.set_uuid.0);
        put(&mut bytes, 72, &self.label);
        put(&mut bytes, 104, &self.flags.to_le_bytes());
        put(&mut bytes, 112, &self.seq.to_le_bytes());
        put(&mut bytes, 192, &short(self.block_sectors).to_le_bytes());
        put(&mut bytes, 200, &self.last_mount.to_le_bytes());
        let mut covered = JOURNAL_BUCKETS
            + 8 * usize::from(u16_at(&bytes, 206)).min(MAX_JOURNAL_BUCKETS as usize);
        if self.is_cache() {
            self.encode_bucket_sectors(&mut bytes);
            put(&mut bytes, 184, &u64::from(self.nbuckets).to_le_bytes());
            put(&mut bytes, 204, &short(self.first_bucket).to_le_bytes());
            let journal_buckets = self.journal_buckets.min(MAX_JOURNAL_BUCKETS);
            put(&mut bytes, 206, &short(journal_buckets).to_le_bytes());
            for (index, at) in (0..journal_buckets).zip((JOURNAL_BUCKETS..).step_by(8)) {
                put(
                    &mut bytes,
                    at,
                    &(u64::from(self.first_bucket) + u64::from(index)).to_le_bytes(),
                );
            }
            covered = JOURNAL_BUCKETS + 8 * journal_buckets as usize;
        } else {
            put(&mut bytes, 194, &short(self.bucket_sectors).to_le_bytes());
            put(&mut bytes, 184, &self.data_start.to_le_bytes());
        }
        let csum = crc64_we(&bytes[8..covered]);
        put(&mut bytes, 0, &csum.to_le_bytes());
        bytes
    }

    fn encode_bucket_sectors(&self, bytes: &mut [u8]) {
        let features = if self.version < 5 { 0 } else { u64_at(bytes, 128) };
        let low = if features & FEATURE_LARGE_BUCKET != 0 {
            self.bucket_sectors.checked_ilog2().unwrap_or(0)
        } else if features & FEATURE_OBSOLETE_LARGE_BUCKET != 0 {
            put(bytes, BUCKET_SIZE_HIGH, &((self.bucket_sectors >> 16) as u16).to_le_bytes());
            self.bucket_sectors & 0xFFFF
        } else {
            self.bucket_sectors
        };
        put(bytes, 194, &u16::try_from(low).unwrap_or(u16::MAX).to_le_bytes());
    }

    /// Returns true if this is a cache device; otherwise it is a backing device.
    pub fn is_cache(&self) -> bool {
        matches!(self.version, 0 | 3 | 5)
    }

    /// Returns true if the bucket size is stored in the obsolete way, with which the driver offers
    /// volumes for reading only.
    pub fn has_obsolete_large_buckets(&self) -> bool {
        self.version == 5 && u64_at(&*self.raw, 128) & 3 == FEATURE_OBSOLETE_LARGE_BUCKET
    }

    /// The first sector of the data on a backing device: volume sector 0 (docs/reference/format.md
    /// §10.5).
    pub fn data_offset(&self) -> Sector {
        if matches!(self.version, 4 | 6) { Sector(self.data_start) } else { DEFAULT_DATA_OFFSET }
    }

    /// The shape of the cache device. Before the first start (SYNC is 0), it has the journal that
    /// the first start is going to make. Of a backing device's superblock it has no buckets.
    pub fn geometry(&self) -> Geometry {
        let journal_buckets = match self.journal_buckets {
            0 => Geometry::default_journal_buckets(self.nbuckets),
            some => some,
        };
        Geometry {
            set_magic: self.set_uuid.set_magic(),
            bucket_sectors: self.bucket_sectors,
            block_sectors: self.block_sectors,
            buckets: self.nbuckets,
            first_bucket: self.first_bucket,
            journal_buckets,
        }
    }

    /// The label up to its first zero byte; what is not UTF-8 in it is replaced.
    pub fn label_str(&self) -> String {
        let end = self.label.iter().position(|&byte| byte == 0).unwrap_or(LABEL_BYTES);
        String::from_utf8_lossy(&self.label[..end]).into_owned()
    }

    /// Sets the label, cut at a character boundary to at most 32 bytes.
    pub fn set_label(&mut self, label: &str) {
        self.label = [0; LABEL_BYTES];
        let end = label.floor_char_boundary(LABEL_BYTES);
        put(&mut self.label, 0, &label.as_bytes()[..end]);
    }

    /// Changes the superblock of a cache device as every start of its set does: one more write, a
    /// new time (in seconds since 1970), and no version below 3.
    pub fn mark_started(&mut self, now: u32) {
        self.seq = self.seq.wrapping_add(1);
        self.last_mount = now;
        self.version = self.version.max(3);
        self.sign();
    }

    pub(crate) fn raw(&self) -> &[u8] {
        &*self.raw
    }

    pub(crate) fn raw_mut(&mut self) -> &mut [u8] {
        &mut *self.raw
    }
}
