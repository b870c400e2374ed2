//! A request of the guest: from its header to its status.

use ubcache_env::bytes::{self, ByteRange};
use ubcache_env::local::Permit;
use ubcache_env::{Buf, Env, IoVec, Sector, SectorRange, StreamId, Volume};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use crate::chain::{Chain, HEADER_BYTES};
use crate::config::{RANGE_SECTORS_MAX, RANGES_MAX};
use crate::device::Shared;
use crate::regions::{Memory, OutsideMemory};

const SECTOR_BYTES: u32 = 512;
const RANGE_BYTES: u32 = 16;
const ID_BYTES: u32 = 20;
/// A longer request is carried out in pieces: its data takes no more memory than one of them.
pub(crate) const PIECE_BYTES: u32 = 4 << 20;
/// Flag of a range of zeroes: space may be given back.
const FLAG_UNMAP: u32 = 1;

/// A request was not carried out: its status.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Refused(u32);

const IO_ERROR: Refused = Refused(VIRTIO_BLK_S_IOERR);
const UNSUPPORTED: Refused = Refused(VIRTIO_BLK_S_UNSUPP);

impl From<OutsideMemory> for Refused {
    fn from(_: OutsideMemory) -> Refused {
        IO_ERROR
    }
}

impl From<ubcache_env::VolumeError> for Refused {
    fn from(_: ubcache_env::VolumeError) -> Refused {
        IO_ERROR
    }
}

/// A request with what it needs.
pub(crate) struct Request<'a, E, V> {
    pub(crate) shared: &'a Shared<E, V>,
    pub(crate) memory: &'a Memory,
    pub(crate) stream: StreamId,
    pub(crate) chain: &'a Chain,
}

fn u32_of(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_of(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_of(bytes, at)) | u64::from(u32_of(bytes, at + 4)) << 32
}

impl<E: Env, V: Volume> Request<'_, E, V> {
    /// Carries the request out and writes its status. Returns how many bytes of the guest's memory
    /// were written; none if the connection has ended meanwhile, and nothing was.
    pub(crate) async fn execute(&self) -> Option<u32> {
        let outcome = self.carry_out().await;
        if self.shared.is_cut() {
            return None;
        }
        let (status, written) = match outcome {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Refused(status)) => (status, 0),
        };
        // The guest misses an answer that has no place; the ring goes on.
        let told = self.chain.write_status(self.memory, status as u8).is_ok();
        Some(written + u32::from(told))
    }

    /// Bytes that were written before the status.
    async fn carry_out(&self) -> Result<u32, Refused> {
        // The kind of the request, a priority that is not used, and the first sector.
        let header = self.chain.header(self.memory)?;
        let sector = (header >> 64) as u64;
        match header as u32 {
            VIRTIO_BLK_T_IN => self.read(sector).await,
            VIRTIO_BLK_T_OUT => self.write(sector).await,
            VIRTIO_BLK_T_FLUSH => {
                Box::pin(self.shared.volume.flush(self.stream)).await?;
                Ok(0)
            }
            VIRTIO_BLK_T_GET_ID => self.name(),
            VIRTIO_BLK_T_DISCARD => Box::pin(self.ranges(false)).await,
            VIRTIO_BLK_T_WRITE_ZEROES => Box::pin(self.ranges(true)).await,
            _ => Err(UNSUPPORTED),
        }
    }

    /// The sectors from `start` for so many bytes, if the volume has them.
    fn checked(&self, start: u64, bytes: u32) -> Result<SectorRange, Refused> {
        let sectors = u64::from(bytes / SECTOR_BYTES);
        let end = start.checked_add(sectors).ok_or(IO_ERROR)?;
        if !bytes.is_multiple_of(SECTOR_BYTES) || end > self.shared.sectors() {
            return Err(IO_ERROR);
        }
        Ok(SectorRange::new(Sector(start), sectors))
    }

    /// Permission to hold so many bytes of data.
    async fn permit(&self, bytes: u64) -> Permit {
        let memory = &self.shared.memory;
        // Mostly there is room, and the way through the queue would allocate.
        match memory.try_acquire(bytes) {
            Some(permit) => permit,
            None => Box::pin(memory.acquire(bytes)).await,
        }
    }

    async fn read(&self, start: u64) -> Result<u32, Refused> {
        let bytes = self.chain.write_bytes() - 1;
        let range = self.checked(start, bytes)?;
        if bytes > PIECE_BYTES {
            return Box::pin(self.read_in_pieces(range)).await;
        }
        if bytes > 0 {
            self.read_piece(range, 0).await?;
        }
        Ok(bytes)
    }

    async fn read_in_pieces(&self, range: SectorRange) -> Result<u32, Refused> {
        let mut done = 0;
        while done < range.bytes() {
            let bytes = (range.bytes() - done).min(u64::from(PIECE_BYTES));
            let start = range.start.0 + done / u64::from(SECTOR_BYTES);
            let sectors = bytes / u64::from(SECTOR_BYTES);
            self.read_piece(SectorRange::new(Sector(start), sectors), done as u32).await?;
            done += bytes;
        }
        Ok(done as u32)
    }

    /// Reads the range to byte `at` of what the device writes.
    async fn read_piece(&self, range: SectorRange, at: u32) -> Result<(), Refused> {
        let Shared { volume, block_bytes, .. } = self.shared;
        let _memory = self.permit(range.bytes()).await;
        let wanted = ByteRange::of_sectors(range, u64::from(*block_bytes));
        let content = if wanted.is_whole() {
            volume.read(self.stream, range).await?
        } else {
            Box::pin(bytes::read(&**volume, self.stream, wanted)).await?
        };
        if content.len() as u64 != range.bytes() || self.shared.is_cut() {
            return Err(IO_ERROR);
        }
        let mut place = self.chain.writable(self.memory, at);
        for part in content.parts() {
            place.write(part.as_slice())?;
        }
        Ok(())
    }

    async fn write(&self, start: u64) -> Result<u32, Refused> {
        let bytes = self.chain.read_bytes() - HEADER_BYTES;
        let range = self.checked(start, bytes)?;
        if self.shared.read_only {
            return Err(IO_ERROR);
        }
        if bytes > PIECE_BYTES {
            return Box::pin(self.write_in_pieces(range)).await;
        }
        if bytes > 0 {
            self.write_piece(range, 0).await?;
        }
        Ok(0)
    }

    async fn write_in_pieces(&self, range: SectorRange) -> Result<u32, Refused> {
        let mut done = 0;
        while done < range.bytes() {
            let bytes = (range.bytes() - done).min(u64::from(PIECE_BYTES));
            let start = range.start.0 + done / u64::from(SECTOR_BYTES);
            let sectors = bytes / u64::from(SECTOR_BYTES);
            self.write_piece(SectorRange::new(Sector(start), sectors), done as u32).await?;
            done += bytes;
        }
        Ok(0)
    }

    /// Writes the data from byte `at` behind the header to the range. It is copied once: the guest
    /// may change its memory while the volume works on it (rule T0).
    async fn write_piece(&self, range: SectorRange, at: u32) -> Result<(), Refused> {
        let Shared { volume, block_bytes, .. } = self.shared;
        let _memory = self.permit(range.bytes()).await;
        if self.shared.is_cut() {
            return Err(IO_ERROR);
        }
        let data = self.copy(HEADER_BYTES + at, range.bytes() as usize)?;
        let fua = self.shared.is_writethrough();
        let range = ByteRange::of_sectors(range, u64::from(*block_bytes));
        if range.is_whole() {
            volume.write(self.stream, range.around(), data, fua).await?;
        } else {
            Box::pin(bytes::write(&**volume, self.stream, range, data, fua)).await?;
        }
        Ok(())
    }

    fn copy(&self, from: u32, len: usize) -> Result<IoVec, Refused> {
        let mut data: Buf = self.shared.env.buffers().for_bytes(len).ok_or(IO_ERROR)?;
        self.chain.readable(self.memory, from).read(data.as_mut_slice())?;
        Ok(data.into())
    }

    fn name(&self) -> Result<u32, Refused> {
        let mut name = self.shared.name.as_bytes().to_vec();
        name.resize(ID_BYTES as usize, 0);
        let room = (self.chain.write_bytes() - 1).min(ID_BYTES);
        self.chain.writable(self.memory, 0).write(&name[..room as usize])?;
        Ok(room)
    }

    /// Discards ranges, or makes them read as zeroes. All of them are checked first.
    async fn ranges(&self, zero: bool) -> Result<u32, Refused> {
        let Shared { volume, block_bytes, .. } = self.shared;
        let bytes = self.chain.read_bytes() - HEADER_BYTES;
        let count = bytes / RANGE_BYTES;
        if self.shared.read_only
            || count == 0
            || count > RANGES_MAX
            || !bytes.is_multiple_of(RANGE_BYTES)
        {
            return Err(IO_ERROR);
        }
        let mut list = vec![0; bytes as usize];
        self.chain.readable(self.memory, HEADER_BYTES).read(&mut list)?;
        let mut ranges = Vec::with_capacity(count as usize);
        for entry in list.chunks_exact(RANGE_BYTES as usize) {
            let (sectors, flags) = (u32_of(entry, 8), u32_of(entry, 12));
            if flags & !FLAG_UNMAP != 0 || flags != 0 && !zero {
                return Err(UNSUPPORTED);
            }
            if sectors > RANGE_SECTORS_MAX {
                return Err(IO_ERROR);
            }
            ranges.push((self.checked(u64_of(entry, 0), sectors * SECTOR_BYTES)?, flags != 0));
        }
        let fua = self.shared.is_writethrough();
        for (range, may_unmap) in ranges.into_iter().filter(|(range, _)| !range.is_empty()) {
            let range = ByteRange::of_sectors(range, u64::from(*block_bytes));
            if zero {
                bytes::write_zeroes(&**volume, self.stream, range, fua, may_unmap).await?;
            } else {
                bytes::discard(&**volume, self.stream, range, fua).await?;
            }
        }
        Ok(0)
    }
}
