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

use crate::bytes::{array, put, u16_at, u32_at, u64_at};
use crate::checksum::crc64_we;
use crate::error::{FormatError, Problem, Structure};
use crate::geometry::{Geometry, MAX_CACHE_SECTORS, MAX_JOURNAL_BUCKETS, PAGE_BYTES};
use crate::units::{SECTOR_BYTES, Sector, Uuid};

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

/// The label of a cache device, before the first start of a set whose policy has no number in the
/// superblock. The driver ignores the label.
const SCAN_RESISTANT_LABEL: &str = "scan-resistant";

const JOURNAL_BUCKETS: usize = 208;
const BUCKET_SIZE_HIGH: usize = 2256;
const FEATURE_OBSOLETE_LARGE_BUCKET: u64 = 1;
const FEATURE_LARGE_BUCKET: u64 = 2;

/// The driver's choice of a bucket to reuse.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default, Debug)]
pub enum Replacement {
    /// The one used longest ago.
    #[default]
    Lru,
    /// The one filled longest ago.
    Fifo,
    /// Any.
    Random,
}

/// The use of the cache by writes to a volume.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default, Debug)]
pub enum CacheMode {
    /// Writes go to the cache and to the backing device.
    #[default]
    Writethrough,
    /// Writes go to the cache at first, to the backing device later.
    Writeback,
    /// Writes go to the backing device only.
    Writearound,
    /// Writes go to the backing device only; reads are not cached either.
    None,
}

/// State of a backing device, in its own superblock (docs/reference/format.md §10.1).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default, Debug)]
pub enum BackingState {
    /// It has no cache.
    #[default]
    None,
    /// It has a cache, and all of the data itself.
    Clean,
    /// It has a cache that may hold newer data.
    Dirty,
    /// It was used without its cache; the cached data must not be used any more.
    Stale,
}

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
    /// [`Superblock::begins_scan_resistant`].
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

    /// Reads a superblock from its 4096 bytes, with all checks of docs/reference/format.md §2.5
    /// that need no knowledge of the device; see [`Superblock::check_device`] for the others.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let raw = bytes
            .get(..SUPERBLOCK_BYTES)
            .and_then(|bytes| <[u8; SUPERBLOCK_BYTES]>::try_from(bytes).ok());
        let Some(raw) = raw.map(Box::new) else {
            return Err(FormatError::too_short(
                Structure::Superblock,
                bytes.len(),
                SUPERBLOCK_BYTES as u64,
            ));
        };
        check_seal(&*raw)?;
        let version = u64_at(&*raw, 16);
        let backing = matches!(version, 1 | 4 | 6);
        if !backing && !matches!(version, 0 | 3 | 5) {
            return wrong(16, "version", version, "0, 1, 3, 4, 5 or 6");
        }
        let mut parsed = Self {
            version,
            uuid: Uuid(array(&*raw, 40)),
            set_uuid: Uuid(array(&*raw, 56)),
            label: array(&*raw, 72),
            flags: u64_at(&*raw, 104),
            seq: u64_at(&*raw, 112),
            block_sectors: u32::from(u16_at(&*raw, 192)),
            bucket_sectors: u32::from(u16_at(&*raw, 194)),
            nbuckets: 0,
            last_mount: u32_at(&*raw, 200),
            first_bucket: 0,
            journal_buckets: 0,
            data_start: 0,
            raw,
        };
        if parsed.uuid.is_zero() {
            return wrong(40, "UUID of the device", parsed.uuid, "not zero");
        }
        if parsed.block_sectors == 0 {
            return wrong(192, "block size in sectors", 0, "at least 1");
        }
        if backing {
            parsed.read_backing()?
        } else {
            parsed.read_cache()?
        }
        Ok(parsed)
    }

    /// Reads the superblock of a device that has this size and these logical blocks, with all
    /// checks of docs/reference/format.md §2.5.
    pub fn read(
        bytes: &[u8],
        device_sectors: u64,
        logical_block_bytes: u32,
    ) -> Result<Self, FormatError> {
        let superblock = Self::parse(bytes)?;
        superblock.check_device(device_sectors, logical_block_bytes)?;
        Ok(superblock)
    }

    /// As [`Superblock::read`], of a cache device that may have lost its end: see
    /// [`Superblock::missing_sectors`].
    pub fn read_cut_off(
        bytes: &[u8],
        device_sectors: u64,
        logical_block_bytes: u32,
    ) -> Result<Self, FormatError> {
        let superblock = Self::parse(bytes)?;
        let needed = device_sectors + superblock.missing_sectors(device_sectors);
        superblock.check_device(needed, logical_block_bytes)?;
        Ok(superblock)
    }

    /// The sectors of the buckets that are beyond the end of a cache device of this size.
    pub fn missing_sectors(&self, device_sectors: u64) -> u64 {
        if !self.is_cache() {
            return 0;
        }
        let needed = u64::from(self.nbuckets) * u64::from(self.bucket_sectors);
        needed.saturating_sub(device_sectors)
    }

    fn read_backing(&mut self) -> Result<(), FormatError> {
        self.data_start = u64_at(&*self.raw, 184);
        if self.version != 1 && self.data_start < DEFAULT_DATA_OFFSET.0 {
            return wrong(184, "first sector of the data", self.data_start, "at least 16");
        }
        Ok(())
    }

    fn read_cache(&mut self) -> Result<(), FormatError> {
        self.bucket_sectors = self.read_bucket_sectors()?;
        self.nbuckets = match u64_at(&*self.raw, 184) {
            few if few < u64::from(MIN_BUCKETS) => {
                return wrong(184, "number of buckets", few, "at least 513");
            }
            many => match u32::try_from(many) {
                Ok(buckets) if buckets < u32::MAX => buckets,
                _ => return wrong(184, "number of buckets", many, "less than 4294967295"),
            },
        };
        self.first_bucket = u32::from(u16_at(&*self.raw, 204));
        self.journal_buckets = u32::from(u16_at(&*self.raw, 206));
        let page_sectors = (PAGE_BYTES / SECTOR_BYTES) as u32;
        if !self.block_sectors.is_power_of_two() || self.block_sectors > page_sectors {
            return wrong(192, "block size in sectors", self.block_sectors, "1, 2, 4 or 8");
        }
        if !self.bucket_sectors.is_power_of_two() || self.bucket_sectors < page_sectors {
            return wrong(
                194,
                "bucket size in sectors",
                self.bucket_sectors,
                "a power of two, at least 8",
            );
        }
        if self.set_uuid.is_zero() {
            return wrong(56, "UUID of the set", self.set_uuid, "not zero");
        }
        let sectors = u64::from(self.nbuckets) * u64::from(self.bucket_sectors);
        if sectors > MAX_CACHE_SECTORS {
            let most =
                format_args!("at most {MAX_CACHE_SECTORS}, which is 4 PiB: pointers have 43 bits");
            return wrong(184, "number of sectors in all buckets", sectors, most);
        }
        self.check_layout()
    }

    fn read_bucket_sectors(&self) -> Result<u32, FormatError> {
        let low = u32::from(u16_at(&*self.raw, 194));
        if self.version < 5 {
            return Ok(low);
        }
        let known = FEATURE_OBSOLETE_LARGE_BUCKET | FEATURE_LARGE_BUCKET;
        for (at, field, known) in [
            (120, "compatible features", 0),
            (128, "incompatible features", known),
            (136, "features incompatible for writing", 0),
        ] {
            let found = u64_at(&*self.raw, at);
            if found & !known != 0 {
                return wrong(
                    at as u64,
                    field,
                    format_args!("{found:#x}"),
                    format_args!("no bits but {known:#x}"),
                );
            }
        }
        match u64_at(&*self.raw, 128) {
            features if features & FEATURE_LARGE_BUCKET != 0 => match 1_u32.checked_shl(low) {
                Some(sectors) => Ok(sectors),
                None => wrong(194, "logarithm of the bucket size", low, "less than 32"),
            },
            0 => Ok(low),
            _ => Ok(low | u32::from(u16_at(&*self.raw, BUCKET_SIZE_HIGH)) << 16),
        }
    }

    fn check_layout(&self) -> Result<(), FormatError> {
        let (in_set, this) = (u16_at(&*self.raw, 196), u16_at(&*self.raw, 198));
        if in_set != 1 {
            return wrong(196, "number of cache devices in the set", in_set, "1");
        }
        if this != 0 {
            return wrong(198, "number of this device", this, "0");
        }
        for index in 0..self.journal_buckets as usize {
            let at = JOURNAL_BUCKETS + 8 * index;
            let (found, expected) =
                (u64_at(&*self.raw, at), u64::from(self.first_bucket) + index as u64);
            if found != expected {
                return wrong(at as u64, "journal bucket", found, expected);
            }
        }
        if self.first_bucket + self.journal_buckets > self.nbuckets {
            let most = format_args!("at most {}", self.nbuckets);
            return wrong(
                204,
                "end of the journal buckets",
                self.first_bucket + self.journal_buckets,
                most,
            );
        }
        let first_sector = u64::from(self.first_bucket) * u64::from(self.bucket_sectors);
        if first_sector < DEFAULT_DATA_OFFSET.0 {
            return wrong(204, "first sector of the first bucket", first_sector, "at least 16");
        }
        Ok(())
    }

    /// Checks what depends on the device: that it is large enough, and that its logical blocks are
    /// not larger than the blocks of the format.
    pub fn check_device(
        &self,
        device_sectors: u64,
        logical_block_bytes: u32,
    ) -> Result<(), FormatError> {
        let block_bytes = u64::from(self.block_sectors) * SECTOR_BYTES;
        if block_bytes < u64::from(logical_block_bytes) {
            let least = format_args!(
                "at least {logical_block_bytes}, the logical block size of the device"
            );
            return wrong(192, "block size in bytes", block_bytes, least);
        }
        let data = self.data_offset().bytes();
        if !self.is_cache() && !data.is_multiple_of(u64::from(logical_block_bytes.max(1))) {
            let sectors = u64::from(logical_block_bytes) / SECTOR_BYTES;
            let multiple = format_args!(
                "a multiple of {sectors}, the sectors in a logical block of the device"
            );
            return wrong(
                184,
                "alignment of the data, its first sector",
                self.data_offset(),
                multiple,
            );
        }
        if self.is_cache() {
            let needed = u64::from(self.nbuckets).saturating_mul(u64::from(self.bucket_sectors));
            if needed > device_sectors {
                let most = format_args!("at most the {device_sectors} that the device has");
                return wrong(184, "number of sectors in all buckets", needed, most);
            }
        } else if self.data_offset().0 >= device_sectors {
            let less = format_args!("less than the {device_sectors} sectors that the device has");
            return wrong(184, "first sector of the data", self.data_offset(), less);
        }
        Ok(())
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

    fn bits(&self, shift: u32, width: u32) -> u64 {
        self.flags >> shift & ((1 << width) - 1)
    }

    fn set_bits(&mut self, shift: u32, width: u32, value: u64) {
        let mask = ((1 << width) - 1) << shift;
        self.flags = self.flags & !mask | value << shift & mask;
    }

    /// True if the metadata of a cache device is valid. If not, the set starts empty.
    pub fn sync(&self) -> bool {
        self.bits(0, 1) != 0
    }

    /// Sets [`Superblock::sync`].
    pub fn set_sync(&mut self, sync: bool) {
        self.set_bits(0, 1, u64::from(sync));
    }

    /// True if freed buckets of a cache device are to be discarded.
    pub fn discard(&self) -> bool {
        self.bits(1, 1) != 0
    }

    /// Sets [`Superblock::discard`].
    pub fn set_discard(&mut self, discard: bool) {
        self.set_bits(1, 1, u64::from(discard));
    }

    /// Replacement policy of a cache device; values that mean nothing count as LRU.
    pub fn replacement(&self) -> Replacement {
        match self.bits(2, 3) {
            1 => Replacement::Fifo,
            2 => Replacement::Random,
            _ => Replacement::Lru,
        }
    }

    /// Sets [`Superblock::replacement`].
    pub fn set_replacement(&mut self, replacement: Replacement) {
        self.set_bits(2, 3, replacement as u64);
    }

    /// True if the set of a cache device that was never started begins with the scan-resistant
    /// policy of ubcache; [`Superblock::replacement`] is LRU then (docs/reference/format.md §14).
    pub fn begins_scan_resistant(&self) -> bool {
        self.replacement() == Replacement::Lru && self.label_str() == SCAN_RESISTANT_LABEL
    }

    /// Sets [`Superblock::begins_scan_resistant`]. The label of a cache device is empty otherwise.
    pub fn set_begins_scan_resistant(&mut self, begins: bool) {
        self.set_label(if begins { SCAN_RESISTANT_LABEL } else { "" });
    }

    /// Cache mode of a backing device; values that mean nothing count as [`CacheMode::None`].
    pub fn cache_mode(&self) -> CacheMode {
        match self.bits(0, 4) {
            0 => CacheMode::Writethrough,
            1 => CacheMode::Writeback,
            2 => CacheMode::Writearound,
            _ => CacheMode::None,
        }
    }

    /// Sets [`Superblock::cache_mode`].
    pub fn set_cache_mode(&mut self, mode: CacheMode) {
        self.set_bits(0, 4, mode as u64);
    }

    /// State of a backing device.
    pub fn state(&self) -> BackingState {
        match self.bits(61, 2) {
            0 => BackingState::None,
            1 => BackingState::Clean,
            2 => BackingState::Dirty,
            _ => BackingState::Stale,
        }
    }

    /// Sets [`Superblock::state`].
    pub fn set_state(&mut self, state: BackingState) {
        self.set_bits(61, 2, state as u64);
    }
}

fn wrong<T>(
    at: u64,
    field: &'static str,
    found: impl core::fmt::Display,
    expected: impl core::fmt::Display,
) -> Result<T, FormatError> {
    Err(FormatError::value(Structure::Superblock, at, field, found, expected))
}

/// Checks the seal of a superblock in 4096 bytes: its own position, the magic bytes, and a right
/// checksum.
fn check_seal(raw: &[u8]) -> Result<(), FormatError> {
    let offset = u64_at(raw, 8);
    if offset != SUPERBLOCK_SECTOR.0 {
        return wrong(8, "sector of the superblock", offset, SUPERBLOCK_SECTOR);
    }
    let magic = Uuid(array(raw, 24));
    if magic.0 != SUPERBLOCK_MAGIC {
        return wrong(24, "magic number", magic, Uuid(SUPERBLOCK_MAGIC));
    }
    // The number of journal buckets determines the length that the checksum covers, so check it
    // first.
    let journal_buckets = u16_at(raw, 206);
    if u32::from(journal_buckets) > MAX_JOURNAL_BUCKETS {
        return wrong(206, "number of journal buckets", journal_buckets, "at most 256");
    }
    let covered = &raw[8..JOURNAL_BUCKETS + 8 * usize::from(journal_buckets)];
    let (found, expected) = (u64_at(raw, 0), crc64_we(covered));
    if found != expected {
        let problem = Problem::Checksum { found, expected, bytes: covered.len() as u64 };
        return Err(FormatError::new(Structure::Superblock, 0, problem));
    }
    Ok(())
}

#[cfg(test)]
#[path = "superblock_tests.rs"]
mod tests;
