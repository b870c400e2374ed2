//! Reading a superblock, with all checks of docs/reference/format.md §2.5.

use super::*;
use crate::bytes::{array, u16_at, u32_at, u64_at};
use crate::checksum::crc64_we;
use crate::error::{FormatError, Problem, Structure};
use crate::geometry::PAGE_BYTES;
use crate::geometry::{MAX_CACHE_SECTORS, MAX_JOURNAL_BUCKETS};
use crate::units::{SECTOR_BYTES, Uuid};

impl Superblock {
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

    /// Returns true if anything in these bytes says that there is, or was, a superblock: its magic
    /// number or its own position.
    pub fn is_there(bytes: &[u8]) -> bool {
        let has = |at: usize, expected: &[u8]| bytes.get(at..at + expected.len()) == Some(expected);
        has(24, &SUPERBLOCK_MAGIC) || has(8, &SUPERBLOCK_SECTOR.0.to_le_bytes())
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

    /// Reads as [`Superblock::read`] does, but a cache device that may have lost its end: see
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
