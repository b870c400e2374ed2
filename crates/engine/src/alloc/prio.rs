//! The prio chain: the generations of all buckets, made durable.

use ubcache_env::local::join_all;
use ubcache_env::{Buf, Durability, Env};
use ubcache_format::{BucketNr, Geometry, PrioEntry, SECTOR_BYTES, encode_prio, parse_prio};

use super::buckets::Purpose;
use crate::errors::EngineError;
use crate::meter::Meter;
use crate::mutants::Mutant;
use crate::set::Set;

/// A chain as it was found.
pub(crate) struct Chain {
    pub seq: u64,
    pub buckets: Vec<BucketNr>,
    pub entries: Vec<PrioEntry>,
}

/// Reads the chain that starts at `first`.
pub(crate) async fn read_chain<E: Env>(
    device: &Meter<E>,
    geometry: &Geometry,
    first: BucketNr,
) -> Result<Chain, EngineError> {
    let mut chain = Chain { seq: 0, buckets: Vec::new(), entries: Vec::new() };
    let mut bucket = first;
    for _ in 0..geometry.prio_buckets() {
        let within = bucket.0 >= geometry.first_bucket && bucket.0 < geometry.buckets;
        if !within {
            let detail = format!(
                "found bucket {bucket}, expected a bucket from {} to {}",
                geometry.first_bucket,
                geometry.buckets - 1
            );
            return Err(EngineError::Damaged { what: "prio chain", detail });
        }
        let at = geometry.bucket_start(bucket);
        let sectors = geometry.metadata_bytes() / SECTOR_BYTES;
        let buf = device.read(at, sectors).await.map_err(EngineError::io("reading the prio chain"))?;
        let (seq, next, entries) =
            parse_prio(geometry, buf.as_slice()).map_err(EngineError::format("prio chain", at))?;
        chain.seq = chain.seq.max(seq);
        chain.buckets.push(bucket);
        chain.entries.extend(entries);
        bucket = next;
    }
    chain.entries.truncate(geometry.buckets as usize);
    Ok(chain)
}

/// Writes a chain to these buckets. Not durable when it returns.
pub(crate) async fn write_chain<E: Env>(
    device: &Meter<E>,
    geometry: &Geometry,
    seq: u64,
    buckets: &[BucketNr],
    entries: &[PrioEntry],
) -> Result<(), EngineError> {
    let each = geometry.prio_entries_per_bucket() as usize;
    let writes = entries.chunks(each).enumerate().map(|(index, part)| {
        let next = buckets.get(index + 1).copied().unwrap_or(BucketNr(0));
        let bytes = encode_prio(geometry, seq, next, part);
        let at = geometry.bucket_start(buckets[index]);
        device.write(at, Buf::from_bytes(&bytes).into(), Durability::Volatile)
    });
    for result in join_all(writes.collect::<Vec<_>>()).await {
        result.map_err(EngineError::io("writing the prio chain"))?;
    }
    Ok(())
}

impl<E: Env> Set<E> {
    /// Makes the present generations durable; what was given up before becomes free (J2).
    pub(crate) async fn write_prios(&self) -> Result<(), EngineError> {
        let _one = self.allocator.chain_lock.lock().await;
        let _granted = self.journal_room_for_chain().await?;
        self.env.mark("prio_write");
        let count = self.geometry.prio_buckets() as usize;
        let (taken, snapshot) = {
            let mut buckets = self.buckets.borrow_mut();
            if !buckets.can_take(Purpose::Prio, count) {
                self.env.mark("prio_chain_without_room");
                return Err(EngineError::NoSpace("the prio chain"));
            }
            let taken: Vec<BucketNr> =
                (0..count).map(|_| buckets.take(Purpose::Prio).expect("checked above")).collect();
            (taken, buckets.snapshot())
        };
        let seq = self.allocator.chain.borrow().seq + 1;
        write_chain(&self.cache, &self.geometry, seq, &taken, &snapshot.entries).await.inspect_err(
            |error| {
                self.fail(error.to_string());
            },
        )?;
        {
            let mut state = self.journal.state.borrow_mut();
            state.header.prio_bucket = taken[0];
            state.header.mark.own_chain = true;
        }
        // The entry comes after every record that gave one of these buckets up (I10), and after
        // the parents' bsets that freed nodes among them.
        if !self.mutant(Mutant::ChainNotNamed) {
            self.journal_force().await?;
        }
        let mut chain = self.allocator.chain.borrow_mut();
        chain.seq = seq;
        let former = std::mem::replace(&mut chain.buckets, taken);
        let mut buckets = self.buckets.borrow_mut();
        former.into_iter().for_each(|bucket| buckets.free_former_chain(bucket));
        buckets.chain_durable(snapshot);
        if buckets.pending_len() > 0 {
            self.env.mark("bucket_waits_for_its_pin");
        }
        Ok(())
    }
}
