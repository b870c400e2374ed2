//! Reading from devices: bounds, errors in words, progress.

use std::ops::Range;

use ubcache_env::{Buf, Device};
use ubcache_format::{SECTOR_BYTES, Sector, SectorRange};

use super::buffer_pool::BufferPool;

/// Reads `sectors` sectors; the error is in words.
pub(crate) async fn read<D: Device>(device: &D, at: Sector, sectors: u64) -> Result<Buf, String> {
    read_into(device, at, sectors, &BufferPool::new(0)).await
}

/// The same, into buffers memory if there is any.
pub(crate) async fn read_into<D: Device>(
    device: &D,
    at: Sector,
    sectors: u64,
    buffers: &BufferPool,
) -> Result<Buf, String> {
    let all = device.limits().sectors;
    let range = SectorRange::new(at, sectors);
    if range.end.0 > all || sectors > u64::from(u32::MAX) {
        return Err(format!("sectors {range} are not on the device, which has {all}"));
    }
    let (buf, result) = device.read(at, buffers.take((sectors * SECTOR_BYTES) as usize)).await;
    match result {
        Ok(()) => Ok(buf),
        Err(error) => {
            buffers.give(buf);
            Err(format!("reading sectors {range}: {error}"))
        }
    }
}

/// The longest read around holes, in sectors: longer than any part of a set.
const MOST_AROUND: u64 = 1 << 20;

/// Reads what can be read. Where nothing can be, there are zeroes; these holes are listed, in bytes
/// from the start, in order. What is beyond the end of the device can't be read.
pub(crate) async fn read_around<D: Device>(
    device: &D,
    at: Sector,
    sectors: u64,
) -> Result<(Buf, Vec<Range<u64>>), String> {
    let limits = device.limits();
    if sectors > MOST_AROUND {
        return read(device, at, sectors).await.map(|bytes| (bytes, Vec::new()));
    }
    let block = u64::from(limits.logical_block_bytes).div_ceil(SECTOR_BYTES).max(1);
    let mut buf = Buf::zeroed((sectors * SECTOR_BYTES) as usize);
    let mut holes: Vec<Range<u64>> = Vec::new();
    let mut parts = vec![(0, sectors)];
    while let Some((from, count)) = parts.pop() {
        let bytes = from * SECTOR_BYTES..(from + count) * SECTOR_BYTES;
        match read(device, at + from, count).await {
            Ok(part) => {
                if let Some(into) =
                    buf.as_mut_slice().get_mut(bytes.start as usize..bytes.end as usize)
                {
                    into.copy_from_slice(part.as_slice());
                }
            }
            Err(_) if count <= block => match holes.last_mut() {
                Some(last) if last.end == bytes.start => last.end = bytes.end,
                _ => holes.push(bytes),
            },
            Err(_) => {
                let half = (count / 2).next_multiple_of(block).min(count - 1).max(1);
                parts.push((from + half, count - half));
                parts.push((from, half));
            }
        }
    }
    Ok((buf, holes))
}
