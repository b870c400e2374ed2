//! Reads and writes of many pieces, several at once.

use ubcache_env::local::join_all;
use ubcache_env::{Buf, Device, Durability, Sector};
use ubcache_format::SECTOR_BYTES;

use crate::io::read::read;

const PIECE_BYTES: usize = 1 << 20;
const AT_ONCE: usize = 16;

/// Reads `sectors` sectors; the error is in words.
pub(super) async fn read_pieces<D: Device>(
    device: &D,
    at: Sector,
    sectors: u64,
) -> Result<Vec<u8>, String> {
    let piece = PIECE_BYTES as u64 / SECTOR_BYTES;
    let starts: Vec<u64> = (0..sectors).step_by(piece as usize).collect();
    let mut bytes = Vec::with_capacity((sectors * SECTOR_BYTES) as usize);
    for some in starts.chunks(AT_ONCE) {
        let reads = some.iter().map(|start| read(device, at + *start, piece.min(sectors - start)));
        for part in join_all(reads.collect::<Vec<_>>()).await {
            bytes.extend_from_slice(part?.as_slice());
        }
    }
    Ok(bytes)
}

/// Writes all bytes; a flush makes them durable. The error is in words.
pub(super) async fn write_pieces<D: Device>(
    device: &D,
    at: Sector,
    bytes: &[u8],
) -> Result<(), String> {
    let pieces: Vec<&[u8]> = bytes.chunks(PIECE_BYTES).collect();
    let mut to = at;
    for some in pieces.chunks(AT_ONCE) {
        let mut writes = Vec::new();
        for piece in some {
            let from = Buf::from_bytes(piece).into();
            writes.push(device.write(to, from, Durability::Volatile));
            to += piece.len() as u64 / SECTOR_BYTES;
        }
        for written in join_all(writes).await {
            written.map_err(|error| format!("from sector {at} on: {error}"))?;
        }
    }
    Ok(())
}
