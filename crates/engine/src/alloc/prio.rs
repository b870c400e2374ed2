//! The prio chain: the generations of all buckets, made durable.

use std::ops::Range;

use ubcache_env::{Buf, Durability, Env};
use ubcache_format::{BucketNr, Geometry, PrioSet, SECTOR_BYTES, parse_prio};

use super::buckets::{Buckets, Purpose};
use crate::errors::EngineError;
use crate::meter::Meter;
use crate::mutants::Mutant;
use crate::set::Set;
use crate::slices::in_slices;

/// A chain as it was found.
pub(crate) struct Chain {
    pub seq: u64,
    pub buckets: Vec<BucketNr>,
}

/// Reads the chain that starts at `first`, and has `buckets` learn what it says.
pub(crate) async fn read_chain<E: Env>(
    env: &E,
    device: &Meter<E>,
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
            let detail =
                format!("found bucket {bucket}, expected a bucket from {first} to {}", geometry.buckets - 1);
            return Err(EngineError::Damaged { what: "prio chain", detail });
        }
        let at = geometry.bucket_start(bucket);
        let sectors = geometry.metadata_bytes() / SECTOR_BYTES;
        let buf = device.read(at, sectors).await.map_err(EngineError::io("reading the prio chain"))?;
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

/// Writes a chain to these buckets, one element after the other; `put` puts the entries of the next few buckets into one. Not
/// durable when it returns.
pub(crate) async fn write_chain<E: Env>(
    env: &E,
    device: &Meter<E>,
    geometry: &Geometry,
    slice_steps: usize,
    (seq, buckets): (u64, &[BucketNr]),
    mut put: impl FnMut(Range<usize>, &mut PrioSet),
) -> Result<(), EngineError> {
    let (each, all) = (geometry.prio_entries_per_bucket() as usize, geometry.buckets as usize);
    for (index, &bucket) in buckets.iter().enumerate() {
        let (first, mut set) = (index * each, PrioSet::new(geometry));
        let count = each.min(all - first);
        in_slices(env, slice_steps, count, 1, |part| put(first + part.start..first + part.end, &mut set))
            .await;
        let next = buckets.get(index + 1).copied().unwrap_or(BucketNr(0));
        let bytes = Buf::from_bytes(&set.seal(seq, next));
        let written = device.write(geometry.bucket_start(bucket), bytes.into(), Durability::Volatile).await;
        written.map_err(EngineError::io("writing the prio chain"))?;
    }
    Ok(())
}

impl<E: Env> Set<E> {
    /// Makes the present generations durable; what was given up before becomes free (J2).
    pub(crate) async fn write_prios(&self) -> Result<(), EngineError> {
        let _one = self.allocator.chain_lock.lock().await;
        let _granted = self.journal.room_for_chain().await?;
        self.env.mark("prio_write");
        let count = self.geometry.prio_buckets() as usize;
        // The chain promises buckets to the next start, which may find the device full: they have room by now (N2).
        let wanted = count + self.buckets.borrow().room_wanted();
        self.keep_room(wanted).await;
        let taken = {
            let mut buckets = self.buckets.borrow_mut();
            if !buckets.can_take(Purpose::Prio, count) {
                self.env.mark("prio_chain_without_room");
                return Err(EngineError::NoSpace("the prio chain"));
            }
            let taken: Vec<BucketNr> =
                (0..count).map(|_| buckets.take(Purpose::Prio).expect("checked above")).collect();
            buckets.chain_begins();
            taken
        };
        let seq = self.allocator.chain.borrow().seq + 1;
        let steps = self.slice_steps(Mutant::ChainInOnePoll);
        let put =
            |part: Range<usize>, set: &mut PrioSet| self.buckets.borrow_mut().put_chain_entries(part, set);
        let written = write_chain(&self.env, &self.cache, &self.geometry, steps, (seq, &taken), put).await;
        written.inspect_err(|error| self.fail(error.to_string()))?;
        self.journal.set_chain(taken[0]);
        // The entry comes after every record that gave one of these buckets up (I10), and after
        // the parents' bsets that freed nodes among them.
        if !self.mutant(Mutant::ChainNotNamed) {
            self.journal.force().await?;
        }
        let pending = {
            let mut chain = self.allocator.chain.borrow_mut();
            chain.seq = seq;
            let former = std::mem::replace(&mut chain.buckets, taken);
            let mut buckets = self.buckets.borrow_mut();
            former.into_iter().for_each(|bucket| buckets.free_former_chain(bucket));
            buckets.chain_durable()
        };
        let mut behind = false;
        in_slices(&self.env, self.tuning.slice_steps, pending, 4, |part| {
            behind |= self.buckets.borrow_mut().settle_pending(part.len());
        })
        .await;
        if behind {
            self.env.mark("given_up_behind_the_chain");
        }
        if self.buckets.borrow().pending_len() > 0 {
            self.env.mark("bucket_waits_for_its_pin");
        }
        Ok(())
    }
}
