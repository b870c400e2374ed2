//! Superblocks of cache and backing devices: reading and writing one.

use ubcache_env::{Buf, Durability, Env};
use ubcache_format::{MoveRecord, SECTOR_BYTES, SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR, Superblock};

use crate::counted_device::CountedDevice;
use crate::errors::EngineError;

/// Reads a superblock.
pub(crate) async fn read_superblock<E: Env>(
    device: &CountedDevice<E>,
) -> Result<Superblock, EngineError> {
    let sectors = SUPERBLOCK_BYTES as u64 / SECTOR_BYTES;
    let buf = device
        .read(SUPERBLOCK_SECTOR, sectors)
        .await
        .map_err(EngineError::io("reading the superblock"))?;
    let limits = device.limits();
    Superblock::read(buf.as_slice(), limits.sectors, limits.logical_block_bytes)
        .map_err(EngineError::format("bcache superblock", SUPERBLOCK_SECTOR))
}

/// Writes a superblock so that a torn write can't hurt: first everything but the first sector.
pub(crate) async fn write_superblock<E: Env>(
    device: &CountedDevice<E>,
    superblock: &Superblock,
    what: &'static str,
) -> Result<(), EngineError> {
    let bytes = Buf::from_bytes(&superblock.encode()).freeze();
    let head = SECTOR_BYTES as usize;
    let block = device.limits().logical_block_bytes as usize;
    if block > head {
        // The device writes larger blocks; they are as atomic there.
        device.flush().await.map_err(EngineError::io(what))?;
    } else {
        device
            .write(SUPERBLOCK_SECTOR + 1, bytes.cut(head, bytes.len()).into(), Durability::Volatile)
            .await
            .map_err(EngineError::io(what))?;
        device.flush().await.map_err(EngineError::io(what))?;
    }
    let first = bytes.cut(0, head.max(block).min(bytes.len()));
    device
        .write(SUPERBLOCK_SECTOR, first.into(), Durability::Fua)
        .await
        .map_err(EngineError::io(what))
}

/// Puts a record of a move in the place of a superblock, durably. A device has one of the two.
pub(crate) async fn write_move_record<E: Env>(
    device: &CountedDevice<E>,
    record: &MoveRecord,
    what: &'static str,
) -> Result<(), EngineError> {
    let mut bytes = record.encode();
    bytes.resize(bytes.len().max(device.limits().logical_block_bytes as usize), 0);
    let bytes = Buf::from_bytes(&bytes).into();
    let written = device.write(SUPERBLOCK_SECTOR, bytes, Durability::Fua).await;
    written.map_err(EngineError::io(what))
}
