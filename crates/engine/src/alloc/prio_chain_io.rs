//! The prio chain on the device: reading and writing it.

use std::ops::Range;

use ubcache_env::{Buf, Durability, Env};
use ubcache_format::{BucketNr, Geometry, PrioSet, SECTOR_BYTES, parse_prio};

use super::buckets::Buckets;
use crate::counted_device::CountedDevice;
use crate::errors::EngineError;
use crate::time_slices::in_slices;

/// A chain as it was found.
pub(crate) struct Chain {
    pub seq: u64,
    pub buckets: Vec<BucketNr>,
}

/// Reads the chain that starts at `first`, and has `buckets` learn what it says.
pub(crate) async fn read_chain<E: Env>(
    env: &E,
    device: &CountedDevice<E>,
    buckets: &mut Buckets,
    slice_steps: usize,
    first: BucketNr,
) -> Result<Chain, EngineError> {
    let geometry = &buckets.geometry.clone();
    let mut chain = Chain { seq: 0, buckets: Vec::new() };
    let mut left = geometry.buckets as usize;
    let mut bucket = first;
    for _ in 0..geometry.prio_buckets() {
        let first = geometry.first_bucket + geometry.journal_buckets;
        if bucket.0 < first || bucket.0 >= geometry.buckets {
            let detail = format!(
                "found bucket {bucket}, expected a bucket from {first} to {}",
                geometry.buckets - 1
            );
            return Err(EngineError::Damaged { what: "prio chain", detail });
        }
        let at = geometry.bucket_start(bucket);
        let sectors = geometry.metadata_bytes() / SECTOR_BYTES;
        let buf =
            device.read(at, sectors).await.map_err(EngineError::io("reading the prio chain"))?;
        let (seq, next, entries) =
            parse_prio(geometry, buf.as_slice()).map_err(EngineError::format("prio chain", at))?;
        chain.seq = chain.seq.max(seq);
        chain.buckets.push(bucket);
        bucket = next;
        let count = entries.len().min(left);
        left -= count;
        in_slices(env, slice_steps, count, 1, |part| buckets.learn(&entries[part])).await;
    }
    let all: std::collections::BTreeSet<BucketNr> = chain.buckets.iter().copied().collect();
    if all.len() < chain.buckets.len() {
        let detail = "it leads to the same bucket twice".to_owned();
        return Err(EngineError::Damaged { what: "prio chain", detail });
    }
    Ok(chain)
}

/// Writes a chain to these buckets, one element after the other; `put` puts the entries of the next
/// few buckets into one. Not durable when it returns.
pub(crate) async fn write_chain<E: Env>(
    env: &E,
    device: &CountedDevice<E>,
    geometry: &Geometry,
    slice_steps: usize,
    (seq, buckets): (u64, &[BucketNr]),
    mut put: impl FnMut(Range<usize>, &mut PrioSet),
) -> Result<(), EngineError> {
    let (each, all) = (geometry.prio_entries_per_bucket() as usize, geometry.buckets as usize);
    for (index, &bucket) in buckets.iter().enumerate() {
        let (first, mut set) = (index * each, PrioSet::new(geometry));
        let count = each.min(all - first);
        in_slices(env, slice_steps, count, 1, |part| {
            put(first + part.start..first + part.end, &mut set)
        })
        .await;
        let next = buckets.get(index + 1).copied().unwrap_or(BucketNr(0));
        let bytes = Buf::from_bytes(&set.seal(seq, next));
        let written =
            device.write(geometry.bucket_start(bucket), bytes.into(), Durability::Volatile).await;
        written.map_err(EngineError::io("writing the prio chain"))?;
    }
    Ok(())
}
