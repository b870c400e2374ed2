//! Reading nodes, and forgetting leaves that have not been used for a while.

use std::rc::Rc;

use ubcache_env::Env;
use ubcache_format::{Key, ParsedNode, combine_leaf, parse_node};

use super::leaf::{Body, Extent, FIRST, Hold, Leaf};
use super::tree::ClockHand;
use crate::errors::EngineError;
use crate::mutants::Mutant;
use crate::set::Set;

impl<E: Env> Set<E> {
    /// Reads and verifies a node.
    pub(crate) async fn read_node(&self, key: &Key) -> Result<ParsedNode, EngineError> {
        let pointer = key.pointer().expect("checked: a node key has a pointer");
        let buf = self
            .cache
            .read(pointer.offset, u64::from(key.sectors))
            .await
            .map_err(EngineError::io("reading an index node"))?;
        parse_node(&self.geometry, key, buf.as_slice())
            .map_err(EngineError::format("index node", pointer.offset))
    }

    /// Brings a leaf into memory. Does nothing if it is, or if it has been replaced: look it up
    /// again then.
    pub(crate) async fn load_leaf(&self, leaf: &Rc<Leaf>) -> Result<(), EngineError> {
        let _hold = Hold::new(leaf);
        let _io = leaf.io.lock().await;
        {
            let state = leaf.state.borrow();
            if state.body.is_some() || state.retired {
                return Ok(());
            }
        }
        let node = self.read_node(&leaf.key()).await?;
        let mut extents = Vec::new();
        let mut hollow = Vec::new();
        for key in combine_leaf(node.bsets) {
            key.check_extent(&self.geometry)
                .map_err(EngineError::format("index leaf", leaf.pointer.offset))?;
            let inside = (key.inode, key.start()) >= leaf.low && key.position() <= leaf.end;
            let Some(pointer) = key.pointer().filter(|_| inside) else {
                hollow.push((key.inode, key.range()));
                continue;
            };
            extents.push(Extent { inode: key.inode, range: key.range(), dirty: key.dirty, pointer });
        }
        {
            let mut buckets = self.buckets.borrow_mut();
            let mut state = leaf.state.borrow_mut();
            for extent in &extents {
                buckets.note_pointer(extent.pointer);
            }
            if !state.counted {
                let mut inodes = self.inodes.borrow_mut();
                for extent in
                    extents.iter().filter(|extent| buckets.is_live(extent.pointer)).collect::<Vec<_>>()
                {
                    buckets.add_live(extent.pointer, extent.range.sectors(), extent.dirty);
                    if extent.dirty {
                        inodes.entry(extent.inode).or_default().dirty_sectors += extent.range.sectors();
                    }
                }
                state.counted = true;
            }
            let mut body = Body::from_extents(extents);
            hollow.into_iter().for_each(|(inode, range)| body.note_hollow(inode, range));
            self.tree.borrow_mut().loaded_extents += body.len();
            state.dirty_entries = body.dirty_entries();
            state.seq = node.seq;
            state.used_bytes = node.used_bytes;
            state.body = Some(body);
        }
        leaf.referenced.set(true);
        self.forget_leaves();
        Ok(())
    }

    /// The node cache keeps to its limit: a clock hand goes over the leaves and lets go of those
    /// that were not used since its last round and have nothing to write.
    pub(crate) fn forget_leaves(&self) {
        let mut tree = self.tree.borrow_mut();
        let mut rounds = 0;
        while tree.loaded_extents > self.tuning.extents_in_memory_max && rounds < 3 {
            let ClockHand(hand) = tree.clock_hand;
            let mut forgotten = 0;
            let mut stop = None;
            let mut lost = Vec::new();
            for leaf in tree.leaves_after(hand) {
                let Ok(mut state) = leaf.state.try_borrow_mut() else { continue };
                let held = leaf.holds.get() > 0 || leaf.io.is_locked();
                let careless = self.mutant(Mutant::NodeCacheDropsChanges);
                let idle = (careless || state.pin.is_none()) && state.writing_pin.is_none() && !held;
                let Some(body) = state.body.as_ref() else { continue };
                if leaf.referenced.replace(false) || !idle || (body.is_touched() && !careless) {
                    continue;
                }
                forgotten += body.len();
                state.body = None;
                if careless && state.pin.is_some() {
                    lost.push(leaf.clone());
                }
                stop = Some(leaf.end);
                if tree.loaded_extents - forgotten <= self.tuning.extents_in_memory_max {
                    break;
                }
            }
            for leaf in lost {
                tree.unpin(&leaf, &mut leaf.state.borrow_mut());
            }
            if forgotten > 0 {
                self.env.mark("leaf_forgotten");
            }
            tree.loaded_extents -= forgotten;
            tree.clock_hand = ClockHand(stop.unwrap_or(FIRST));
            rounds += u32::from(stop.is_none());
        }
    }
}
