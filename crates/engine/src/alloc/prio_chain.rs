//! The prio chain: the generations of all buckets, made durable.

use std::ops::Range;

use ubcache_env::Env;
use ubcache_format::{BucketNr, Geometry, PrioSet};

use super::allocator::Allocator;
use super::buckets::Purpose;
use super::prio_chain_io::write_chain;
use crate::errors::EngineError;
use crate::rules::Rule;
use crate::time_slices::in_slices;

impl<E: Env> Allocator<E> {
    /// Makes the present generations durable; what was given up before becomes free (J2).
    pub async fn write_prios(&self) -> Result<(), EngineError> {
        let _one = self.chain_lock.lock().await;
        let _granted = self.journal.room_for_chain().await?;
        self.context.env.mark("prio_write");
        let entries = self.chain_entries.get();
        let geometry = Geometry { buckets: entries, ..self.context.geometry };
        let count = geometry.prio_buckets() as usize;
        // The chain promises buckets to the next start, which may find the device full: they have
        // room by now (N2).
        let wanted = count + self.buckets.borrow().space_wanted();
        self.keep_space(wanted).await;
        let taken = {
            let mut buckets = self.buckets.borrow_mut();
            if !buckets.can_take(Purpose::Prio, count) {
                self.context.env.mark("prio_chain_without_room");
                return Err(EngineError::NoSpace("the prio chain"));
            }
            let taken: Vec<BucketNr> =
                (0..count).map(|_| buckets.take(Purpose::Prio).expect("checked above")).collect();
            buckets.chain_begins();
            taken
        };
        let seq = self.chain.borrow().seq + 1;
        let steps = self.slice_steps(Rule::S1ChainInSlices);
        let put = |part: Range<usize>, set: &mut PrioSet| {
            self.buckets.borrow_mut().put_chain_entries(part, set)
        };
        let written = write_chain(
            &self.context.env,
            &self.context.cache,
            &geometry,
            steps,
            (seq, &taken),
            put,
        )
        .await;
        written.inspect_err(|error| self.context.health.fail(error.to_string()))?;
        self.journal.set_chain(taken[0]);
        // The entry comes after every record that gave one of these buckets up (FI10), and after
        // the parents' bsets that freed nodes among them.
        if self.keeps(Rule::J2ChainNamedFirst) {
            self.journal.force().await?;
        }
        {
            let mut chain = self.chain.borrow_mut();
            chain.seq = seq;
            let former = std::mem::replace(&mut chain.buckets, taken);
            let mut buckets = self.buckets.borrow_mut();
            former.into_iter().for_each(|bucket| buckets.free_former_chain(bucket));
            buckets.chain_durable();
        }
        if self.settle_pending().await {
            self.context.env.mark("given_up_behind_the_chain");
        }
        if self.buckets.borrow().pending_len() > 0 {
            self.context.env.mark("bucket_waits_for_its_pin");
        }
        Ok(())
    }

    /// A10: writes a chain that has entries for so many buckets, more than there are; later ones
    /// have them as well. One that finds no room changes nothing.
    pub async fn write_longer_chain(&self, buckets: u32) -> Result<(), EngineError> {
        let former = self.chain_entries.replace(buckets);
        let written = self.write_prios().await;
        if written.is_err() {
            self.chain_entries.set(former);
        }
        written
    }

    /// Frees what was given up, as far as its generation is durable and no pin is on it. Says
    /// whether another chain would free more.
    pub(super) async fn settle_pending(&self) -> bool {
        let (pending, mut behind) = (self.buckets.borrow().pending_len(), false);
        in_slices(&self.context.env, self.context.tuning.slice_steps, pending, 4, |part| {
            behind |= self.buckets.borrow_mut().settle_pending(part.len());
        })
        .await;
        behind
    }
}
