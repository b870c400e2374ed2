//! A pack, read as if it were the device.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use ubcache_env::{
    Buf, Device, DeviceLimits, Durability, IoError, IoResult, IoVec, Sector, SectorRange, Witness,
};
use ubcache_format::{SECTOR_BYTES, SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR, Superblock, crc64_we};

use super::layout::{
    BLOCK_BYTES, CHUNK_BYTES, Chunk, Header, PackedRange, Trailer, VERSION, is_pack, read_index,
};
use crate::io::read::read;

/// Chunks that are kept: neighbours of a node are read next.
const KEPT: usize = 32;
/// Largest accepted index in bytes: this many for any pack, and more for each byte of the file. A
/// piece takes 16 bytes in the index, and its row in the packed index, with its part of the chunk,
/// 2 at the very least.
const INDEX_BELIEVED: u64 = 32 << 20;
const INDEX_BYTES_A_BYTE: u64 = 8;
/// More than the packed index or chunk can take that its bytes do.
const PACKED_MORE: u64 = 4096;
/// Largest accepted number of buckets: this many for any superblock (half a GiB of memory), and
/// more for each byte of the file.
const BUCKETS_BELIEVED: u64 = 1 << 26;
const BUCKETS_A_BYTE: u64 = 64;
const BLOCK_SECTORS: u64 = BLOCK_BYTES as u64 / SECTOR_BYTES;

/// Reason why a file that begins like a pack can't be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// Written by a later ubcache.
    #[error("the pack has version {0}, this ubcache reads version {VERSION}")]
    Version(u32),
    /// Truncated, or changed.
    #[error("the pack is damaged or was cut short: {0}")]
    Damaged(&'static str),
    /// Reading it would take more memory than a pack of its size can need.
    #[error("the pack declares {found} {what}; its size allows at most {most}")]
    TooLarge {
        /// The quantity that is too large.
        what: &'static str,
        /// Its value.
        found: u64,
        /// The largest value that is accepted.
        most: u64,
    },
    /// Unreadable.
    #[error("{0}")]
    Io(String),
}

/// Place of a piece in its chunk.
#[derive(Copy, Clone, Debug)]
struct PackedPlace {
    start: u64,
    sectors: u32,
    chunk: u32,
    /// Nothing: it was unreadable.
    offset: Option<u32>,
}

/// A pack, read as if it were the device that was packed. It can't be written.
pub struct Packed<D: Device> {
    file: D,
    header: Header,
    chunks: Vec<Chunk>,
    places: Vec<PackedPlace>,
    kept: RefCell<VecDeque<(u32, Rc<Vec<u8>>)>>,
}

impl<D: Device> Packed<D> {
    /// Opens a pack. Everything but its chunks is checked here; chunks are when they are read.
    async fn open(file: D) -> Result<Packed<D>, PackError> {
        let sectors = file.limits().sectors;
        let block =
            async |at: u64| read(&file, Sector(at), BLOCK_SECTORS).await.map_err(PackError::Io);
        if sectors < 2 * BLOCK_SECTORS {
            return Err(PackError::Damaged("it has no end"));
        }
        let header = Header::decode(block(0).await?.as_slice());
        let header = header.ok_or(PackError::Damaged("the checksum of its header is wrong"))?;
        if header.version != VERSION {
            return Err(PackError::Version(header.version));
        }
        let trailer = Trailer::decode(block(sectors - BLOCK_SECTORS).await?.as_slice());
        let trailer = trailer.ok_or(PackError::Damaged("its end is missing"))?;
        if trailer.file_bytes != sectors * SECTOR_BYTES {
            return Err(PackError::Damaged("it does not have the declared length"));
        }
        believe(
            "bytes of index",
            trailer.index_raw,
            INDEX_BELIEVED + INDEX_BYTES_A_BYTE * trailer.file_bytes,
        )?;
        believe("bytes of packed index", trailer.index_packed, longest_packed(trailer.index_raw))?;
        let wrong = PackError::Damaged("its index is inconsistent");
        let index = read_bytes(&file, trailer.index_offset, trailer.index_packed).await?;
        if crc64_we(&index) != trailer.index_crc {
            return Err(PackError::Damaged("the checksum of its index is wrong"));
        }
        let raw = usize::try_from(trailer.index_raw).map_err(|_| wrong.clone())?;
        let index = zstd::bulk::decompress(&index, raw).map_err(|_| wrong.clone())?;
        let (chunks, places) = places(&index, trailer.chunks, header.device_bytes).ok_or(wrong)?;
        let pack = Packed { file, header, chunks, places, kept: RefCell::default() };
        pack.check_buckets().await?;
        Ok(pack)
    }

    /// Refuses a superblock that names more buckets than a pack of this size can have: the reader
    /// of a pack allocates memory for each, and the device that could confirm the number is not
    /// there.
    async fn check_buckets(&self) -> Result<(), PackError> {
        let buf = Buf::zeroed(SUPERBLOCK_BYTES);
        let (bytes, result) = self.read(SUPERBLOCK_SECTOR, buf).await;
        let Some(superblock) = result.ok().and_then(|()| Superblock::parse(bytes.as_slice()).ok())
        else {
            return Ok(());
        };
        let most = BUCKETS_BELIEVED + BUCKETS_A_BYTE * self.file.limits().sectors * SECTOR_BYTES;
        let buckets = if superblock.is_cache() { superblock.nbuckets.into() } else { 0 };
        believe("buckets", buckets, most)
    }

    /// The bytes of a chunk.
    async fn chunk(&self, number: u32) -> Result<Rc<Vec<u8>>, IoError> {
        let kept = self
            .kept
            .borrow()
            .iter()
            .find(|(kept, _)| *kept == number)
            .map(|(_, bytes)| bytes.clone());
        if let Some(bytes) = kept {
            return Ok(bytes);
        }
        let damaged = || IoError::Os(EBADMSG);
        let chunk = self.chunks.get(number as usize).ok_or_else(damaged)?;
        let packed = read_bytes(&self.file, chunk.offset, chunk.packed.into())
            .await
            .map_err(|_| damaged())?;
        if crc64_we(&packed) != chunk.crc {
            return Err(damaged());
        }
        let bytes = zstd::bulk::decompress(&packed, chunk.raw as usize).map_err(|_| damaged())?;
        if bytes.len() != chunk.raw as usize {
            return Err(damaged());
        }
        let bytes = Rc::new(bytes);
        let mut kept = self.kept.borrow_mut();
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back((number, bytes.clone()));
        Ok(bytes)
    }

    async fn fill(&self, at: Sector, into: &mut [u8]) -> IoResult {
        let mut at = at.0;
        let mut rest = into;
        let mut next =
            self.places.partition_point(|place| place.start + u64::from(place.sectors) <= at);
        while !rest.is_empty() {
            let place =
                self.places.get(next).filter(|place| place.start <= at).ok_or(IoError::Absent)?;
            let skipped = ((at - place.start) * SECTOR_BYTES) as usize;
            let offset = place.offset.ok_or(IoError::Os(EIO))? as usize + skipped;
            let count = (place.sectors as usize * SECTOR_BYTES as usize - skipped).min(rest.len());
            let chunk = self.chunk(place.chunk).await?;
            let bytes = chunk.get(offset..offset + count).ok_or(IoError::Os(EBADMSG))?;
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(bytes);
            rest = later;
            at += count as u64 / SECTOR_BYTES;
            next += 1;
        }
        Ok(())
    }
}

const EIO: i32 = 5;
const EBADMSG: i32 = 74;

fn believe(what: &'static str, found: u64, most: u64) -> Result<(), PackError> {
    if found > most { Err(PackError::TooLarge { what, found, most }) } else { Ok(()) }
}

/// The most bytes that so many take when they are packed.
fn longest_packed(raw: u64) -> u64 {
    raw + raw / 128 + PACKED_MORE
}

/// Decodes an index. `None` if it is impossible.
fn places(index: &[u8], chunks: u64, device_bytes: u64) -> Option<(Vec<Chunk>, Vec<PackedPlace>)> {
    let mut places: Vec<PackedPlace> = Vec::new();
    let mut all: Vec<Chunk> = Vec::new();
    let mut free = 0;
    read_index(index, chunks, |chunk: Chunk, pieces: &[PackedRange]| {
        let mut offset = 0;
        for piece in pieces {
            let end = piece.start.checked_add(piece.sectors.into())?;
            if piece.start < free || piece.sectors == 0 || end > device_bytes / SECTOR_BYTES {
                return None;
            }
            free = end;
            let place = PackedPlace {
                start: piece.start,
                sectors: piece.sectors,
                chunk: u32::try_from(all.len()).ok()?,
                offset: (!piece.unreadable).then_some(offset),
            };
            if !piece.unreadable {
                offset = offset.checked_add(piece.sectors.checked_mul(SECTOR_BYTES as u32)?)?;
            }
            places.push(place);
        }
        let is_possible = chunk.raw as usize <= CHUNK_BYTES
            && u64::from(chunk.packed) <= longest_packed(chunk.raw.into())
            && offset == chunk.raw;
        all.push(chunk);
        is_possible.then_some(())
    })?;
    Some((all, places))
}

/// Bytes of a file, wherever they begin and end.
async fn read_bytes<D: Device>(file: &D, at: u64, bytes: u64) -> Result<Vec<u8>, PackError> {
    let end = at.checked_add(bytes).filter(|end| *end <= file.limits().sectors * SECTOR_BYTES);
    let end = end.ok_or(PackError::Damaged("its index points outside of the file"))?;
    let first = at / SECTOR_BYTES;
    let sectors = end.div_ceil(SECTOR_BYTES) - first;
    let around = read(file, Sector(first), sectors).await.map_err(PackError::Io)?;
    let skipped = (at % SECTOR_BYTES) as usize;
    let wanted = around.as_slice().get(skipped..skipped + bytes as usize);
    Ok(wanted.unwrap_or_default().to_vec())
}

impl<D: Device> Device for Packed<D> {
    fn limits(&self) -> DeviceLimits {
        DeviceLimits {
            sectors: self.header.device_bytes / SECTOR_BYTES,
            logical_block_bytes: self.header.block_bytes,
            volatile_cache: false,
            discard: false,
            ..self.file.limits()
        }
    }

    async fn read(&self, at: Sector, mut into: Buf) -> (Buf, IoResult) {
        let result = self.fill(at, into.as_mut_slice()).await;
        (into, result)
    }

    async fn write(&self, _: Sector, _: IoVec, _: Durability) -> IoResult {
        Err(IoError::NotSupported)
    }

    async fn flush(&self) -> IoResult {
        Err(IoError::NotSupported)
    }

    async fn discard(&self, _: SectorRange) -> IoResult {
        Err(IoError::NotSupported)
    }

    async fn write_zeroes(&self, _: SectorRange) -> IoResult {
        Err(IoError::NotSupported)
    }
}

/// A device, or a pack of one: what the tools that only read are given.
pub enum Cache<D: Device> {
    /// The device itself.
    Device(D),
    /// Its metadata.
    Pack(Box<Packed<D>>),
}

impl<D: Device> Cache<D> {
    /// Recognises the device by its first bytes.
    pub async fn open(device: D) -> Result<Cache<D>, PackError> {
        match read(&device, Sector(0), 1).await {
            Ok(bytes) if is_pack(bytes.as_slice()) => {
                Ok(Cache::Pack(Box::new(Packed::open(device).await?)))
            }
            _ => Ok(Cache::Device(device)),
        }
    }

    /// Returns true for a pack, which has only metadata.
    pub fn is_pack(&self) -> bool {
        matches!(self, Cache::Pack(_))
    }
}

impl<D: Device> Device for Cache<D> {
    fn limits(&self) -> DeviceLimits {
        match self {
            Cache::Device(device) => device.limits(),
            Cache::Pack(pack) => pack.limits(),
        }
    }

    async fn read(&self, at: Sector, into: Buf) -> (Buf, IoResult) {
        match self {
            Cache::Device(device) => device.read(at, into).await,
            Cache::Pack(pack) => pack.read(at, into).await,
        }
    }

    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        match self {
            Cache::Device(device) => device.write(at, from, durability).await,
            Cache::Pack(pack) => pack.write(at, from, durability).await,
        }
    }

    async fn flush(&self) -> IoResult {
        match self {
            Cache::Device(device) => device.flush().await,
            Cache::Pack(pack) => pack.flush().await,
        }
    }

    async fn discard(&self, range: SectorRange) -> IoResult {
        match self {
            Cache::Device(device) => device.discard(range).await,
            Cache::Pack(pack) => pack.discard(range).await,
        }
    }

    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        match self {
            Cache::Device(device) => device.write_zeroes(range).await,
            Cache::Pack(pack) => pack.write_zeroes(range).await,
        }
    }

    async fn witness(&self) -> IoResult<Witness> {
        match self {
            Cache::Device(device) => device.witness().await,
            Cache::Pack(_) => Ok(Witness::Unneeded),
        }
    }

    async fn seal(&self) -> IoResult {
        match self {
            Cache::Device(device) => device.seal().await,
            Cache::Pack(_) => Ok(()),
        }
    }
}
