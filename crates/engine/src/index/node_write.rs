//! Appending what is touched to the node on the device.

use std::rc::Rc;

use ubcache_env::{Buf, Durability, Env, IoResult, Nanos, Sector};
use ubcache_format::{SECTOR_BYTES, encode_bset};

use super::Index;
use super::leaf::Leaf;
use crate::errors::EngineError;
use crate::rules::Rule;

/// A leaf is written at the latest this long after it was first touched.
const LEAF_AGE_MAX: Nanos = Nanos::from_secs(30);
/// Old leaves are looked for this often.
const LOOK_PERIOD: Nanos = Nanos::from_secs(5);
/// Pause after a leaf that could not be written.
const PAUSE_AFTER_ERROR: Nanos = Nanos::from_millis(100);

impl<E: Env> Index<E> {
    /// Writes bsets to the device so that a crash can't leave a torn one that looks begun: first
    /// everything but the first block of the device, then a flush, which also makes the data that
    /// the keys name durable (J1 for nodes), then the first block (docs/reference/format.md §5.4).
    pub(super) async fn write_bsets(&self, bsets: Vec<(Sector, Vec<u8>)>) -> IoResult {
        let bsets: Vec<_> =
            bsets.into_iter().map(|(at, bytes)| (at, Buf::from_bytes(&bytes).freeze())).collect();
        let head = self.context.cache.limits().logical_block_bytes as usize;
        for (at, bytes) in &bsets {
            if bytes.len() > head {
                let tail = bytes.cut(head, bytes.len());
                self.context
                    .cache
                    .write(*at + head as u64 / SECTOR_BYTES, tail.into(), Durability::Volatile)
                    .await?;
            }
        }
        if self.context.keeps(Rule::J1FlushBeforeNode) {
            self.context.cache.flush().await?;
        }
        for (at, bytes) in &bsets {
            self.context.cache.write(*at, bytes.cut(0, head).into(), Durability::Fua).await?;
        }
        Ok(())
    }

    /// Brings a leaf into memory if records of the journal wait for that.
    pub(super) async fn load_for_replay(&self, leaf: &Rc<Leaf>) -> Result<(), EngineError> {
        if !leaf.state.borrow().replay.is_empty() {
            self.context.env.mark("replayed_to_be_written");
            self.load_leaf(leaf).await?;
        }
        Ok(())
    }

    /// Makes the node of the leaf hold everything that the leaf holds now.
    pub(super) async fn write_leaf(
        &self,
        leaf: &Rc<Leaf>,
        makes_room: bool,
    ) -> Result<(), EngineError> {
        self.load_for_replay(leaf).await?;
        let has_space = self.allocator.node_has_room(leaf.pointer).await;
        let io = leaf.io.lock().await;
        let append = {
            let mut state = leaf.state.borrow_mut();
            if state.retired {
                return Ok(());
            }
            let used = state.used_bytes;
            let seq = state.seq;
            let Some(body) = state.body.as_mut() else { return Ok(()) };
            if !body.is_touched() {
                return Ok(());
            }
            let pending = body.pending();
            assert!(!pending.keys.is_empty(), "what is touched gives keys");
            let bytes = encode_bset(&self.context.geometry, leaf.pointer, seq, &pending.keys);
            let node_bytes = u64::from(leaf.sectors) * SECTOR_BYTES;
            if used + bytes.len() as u64 > node_bytes || !has_space {
                None
            } else {
                self.tree.borrow_mut().write_begins(&mut state);
                let body = state.body.as_mut().expect("seen above");
                let touched = body.take_pending(&pending.holes);
                Some((leaf.pointer.offset + used / SECTOR_BYTES, bytes, touched))
            }
        };
        let Some((at, bytes, touched)) = append else {
            self.context.env.mark("leaf_full");
            drop(io);
            return self.restructure(vec![vec![leaf.clone()]], makes_room).await;
        };
        let len = bytes.len() as u64;
        let result = self.write_bsets(vec![(at, bytes)]).await;
        let mut state = leaf.state.borrow_mut();
        self.tree.borrow_mut().write_ends(leaf, &mut state, result.is_ok());
        match result {
            Ok(()) => {
                state.used_bytes += len;
                drop(state);
                self.context.env.mark("leaf_appended");
                // An index that grows by what is inserted has to keep to the limit as well.
                self.forget_leaves();
                Ok(())
            }
            Err(source) => {
                self.context.env.mark("leaf_write_failed");
                // The first sector may be there or not: the node can't be appended to any more.
                state.used_bytes = u64::from(leaf.sectors) * SECTOR_BYTES;
                state
                    .body
                    .as_mut()
                    .expect("a leaf with pins stays in memory")
                    .restore_touched(touched);
                drop(state);
                self.context.note_cache_error("writing an index node", &source);
                Err(EngineError::Io { what: "writing an index node", source })
            }
        }
    }

    /// The task that writes leaves with much to write at once and the others when they are old.
    pub async fn node_writer_task(&self) {
        while !self.context.is_ending() {
            while let Some(leaf) = self.node_writer.next() {
                if self.write_leaf(&leaf, false).await.is_err() {
                    self.context.env.sleep(PAUSE_AFTER_ERROR).await;
                }
                if self.context.is_ending() {
                    return;
                }
            }
            let wake = self.node_writer.wanted();
            let tick = self.context.env.sleep(LOOK_PERIOD);
            if let ubcache_env::local::Either::Right(()) =
                ubcache_env::local::first(wake, tick).await
            {
                let now = self.context.env.now();
                let old: Vec<_> = {
                    let tree = self.tree.borrow();
                    tree.leaves_pinned_up_to(ubcache_format::JournalSeq(u64::MAX), 64)
                        .into_iter()
                        .filter(|leaf| now.since(leaf.state.borrow().touched_at) >= LEAF_AGE_MAX)
                        .collect()
                };
                old.iter().for_each(|leaf| self.node_writer.request(leaf));
            }
        }
    }
}
