//! Fresh nodes: buckets for them, and writing them.

use ubcache_env::local::join_all;
use ubcache_env::{Buf, Durability, Env};
use ubcache_format::{
    BucketNr, PackedKey, Pointer, SECTOR_BYTES, bset_bytes_of_words, encode_packed_bset,
    packed_position,
};

use super::Index;
use super::extent::Position;
use super::node_capacity::node_room;
use super::restructure_plan::{NewNode, Plan};
use crate::alloc::buckets::Purpose;
use crate::errors::EngineError;
use crate::rules::Rule;

/// Rounds of the allocator after which a restructuring that has begun gives up, and is tried again:
/// it holds the lock of the structure and those of its leaves, and whoever could free a bucket may
/// need one of them.
const ROUNDS_MAX: u32 = 200;

impl<E: Env> Index<E> {
    /// Number of keys that fit a node, and leave room for a change (N4).
    pub(super) fn node_fit(&self) -> usize {
        let fit = self.leaf_keys_max;
        self.context.tuning.node_keys_max.map_or(fit, |max| fit.min(max.max(8)))
    }

    /// Minimum number of nodes for so many keys: one for a leaf that keeps to its limit.
    pub(super) fn nodes_at_least(&self, keys: usize) -> usize {
        keys.div_ceil(node_room(&self.context.geometry)).max(1)
    }

    /// Number of nodes for so many keys, with room for later changes.
    pub(super) fn nodes_for(&self, keys: usize) -> usize {
        let fit = self.node_fit();
        if keys <= fit * 4 / 5 { 1 } else { keys.div_ceil((fit * 3 / 5).max(2)) }
    }

    async fn take_metadata(
        &self,
        plan: &mut Plan,
        count: usize,
    ) -> Result<Vec<BucketNr>, EngineError> {
        let mut taken = Vec::with_capacity(count);
        if let Err(error) = self.take_buckets(&mut taken, count).await {
            // Nothing was written there. To give them up instead would take a prio chain, and with
            // it a block of the ring.
            let mut buckets = self.allocator.buckets_mut();
            taken.into_iter().for_each(|bucket| buckets.give_back(bucket));
            return Err(error);
        }
        plan.taken.extend(&taken);
        self.allocator.check(&self.allocator.buckets());
        Ok(taken)
    }

    async fn take_buckets(
        &self,
        taken: &mut Vec<BucketNr>,
        count: usize,
    ) -> Result<(), EngineError> {
        let mut rounds = 0;
        while taken.len() < count {
            match self.allocator.take_with_room(Purpose::Metadata).await {
                Some(bucket) => taken.push(bucket),
                None if rounds == ROUNDS_MAX => return Err(EngineError::NoSpace("an index node")),
                None => {
                    rounds += 1;
                    self.wait_for_nodes(count - taken.len(), "an index node").await?;
                }
            }
        }
        Ok(())
    }

    /// Writes fresh nodes, cut from `keys` (which are in order); the last one gets `end`.
    pub(super) async fn write_nodes(
        &self,
        plan: &mut Plan,
        keys: &[PackedKey],
        end: Position,
    ) -> Result<Vec<NewNode>, EngineError> {
        let count = match plan.packed {
            true => self.nodes_at_least(keys.len()),
            false => self.nodes_for(keys.len()),
        };
        let buckets = self.take_metadata(plan, count).await?;
        let size = keys.len().div_ceil(count).max(1);
        let mut chunks: Vec<&[PackedKey]> = keys.chunks(size).collect();
        if chunks.is_empty() {
            chunks.push(&[]);
        }
        // Rounding can leave the last bucket without keys.
        for unused in &buckets[chunks.len()..] {
            plan.taken.retain(|bucket| bucket != unused);
            self.allocator.buckets_mut().give_back(*unused);
        }
        let sectors = (self.context.geometry.node_bytes() / SECTOR_BYTES) as u16;
        let mut nodes = Vec::new();
        let mut writes = Vec::new();
        for (index, chunk) in chunks.iter().enumerate() {
            let bucket = buckets[index];
            let pointer = Pointer {
                device: 0,
                offset: self.context.geometry.bucket_start(bucket),
                generation: self.allocator.buckets().generation(bucket),
            };
            let seq = self.context.env.random().max(1);
            let lost = usize::from(
                !self.context.keeps(Rule::X1SplitKeepsAll) && index > 0 && chunk.len() > 1,
            );
            let kept = &chunk[lost..];
            let mut buf = Buf::zeroed(bset_bytes_of_words(
                &self.context.geometry,
                3 * kept.len() as u64,
            ) as usize);
            encode_packed_bset(&self.context.geometry, pointer, seq, kept, buf.as_mut_slice());
            let last = index + 1 == chunks.len();
            nodes.push(NewNode {
                end: if last {
                    end
                } else {
                    packed_position(chunk.last().expect("chunks are not empty"))
                },
                pointer,
                sectors,
                seq,
                used_bytes: buf.len() as u64,
            });
            writes.push(self.context.cache.write(pointer.offset, buf.into(), Durability::Volatile));
        }
        for result in join_all(writes).await {
            result.map_err(|source| {
                self.context.note_cache_error("writing an index node", &source);
                EngineError::Io { what: "writing an index node", source }
            })?;
        }
        Ok(nodes)
    }

    /// Waits until this many buckets are free for nodes, for a while, or until nothing more can be
    /// given up.
    pub(super) async fn gather_buckets(&self, needed: usize) -> Result<(), EngineError> {
        for _ in 0..3 {
            if self.allocator.buckets().can_take(Purpose::Metadata, needed) {
                break;
            }
            match self.wait_for_nodes(needed, "index nodes").await {
                Err(EngineError::NoSpace(_)) => break,
                waited => waited?,
            }
        }
        Ok(())
    }

    /// Waits for free buckets. Meanwhile prio chains may use the reserve of the journal.
    async fn wait_for_nodes(&self, needed: usize, what: &'static str) -> Result<(), EngineError> {
        self.journal.put_chains_first(true);
        let waited = self.allocator.wait_for_nodes(needed, what).await;
        self.journal.put_chains_first(false);
        waited
    }
}
