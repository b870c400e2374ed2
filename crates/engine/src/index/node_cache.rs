//! Reading nodes, and forgetting leaves that have not been used for a while.

use std::rc::Rc;

use ubcache_env::{Buf, Env, Sector, SectorRange};
use ubcache_format::{
    FormatError, Geometry, Inode, Key, Layer, NodeLog, ParsedNode, Pointer, combine_leaf,
    parse_node, plain_keys, scan_node,
};

use super::Index;
use super::extent::{Extent, FIRST};
use super::leaf::{Body, Hold, Leaf};
use super::tree::ClockHand;
use crate::errors::EngineError;
use crate::rules::Rule;

/// Leaves that one call of [`Index::forget_leaves`] looks at, so that its time is bounded.
const VISITS_MAX: usize = 4096;

/// A leaf's key, reduced to what the index keeps.
struct LeafKey {
    inode: Inode,
    range: SectorRange,
    dirty: bool,
    /// None: nothing is cached there.
    pointer: Option<Pointer>,
}

impl LeafKey {
    /// The keys of a leaf, its bsets combined.
    fn decode(
        geometry: &Geometry,
        node_key: &Key,
        bytes: &[u8],
    ) -> Result<(NodeLog, Vec<LeafKey>), FormatError> {
        let mut bsets = Vec::new();
        let mut plain = true;
        let log = scan_node(geometry, node_key, bytes, |keys| {
            // All but holes take 24 bytes.
            let mut bset = Vec::with_capacity(keys.len() / 24 + 1);
            plain &= plain_keys(keys, |key| {
                plain &= key.is_sound(geometry) && (key.inode, key.end) <= node_key.position();
                if plain && key.sectors > 0 {
                    bset.push(LeafKey {
                        inode: key.inode,
                        range: SectorRange::new(
                            key.end - u64::from(key.sectors),
                            key.sectors.into(),
                        ),
                        dirty: key.dirty,
                        pointer: key.pointer.filter(|pointer| pointer.is_available()),
                    });
                }
            });
            bsets.push(bset);
            Ok(())
        })?;
        if plain {
            return Ok((log, combine_leaf(bsets)));
        }
        // Slow path: several pointers, or an invalid key, which `check_extent` reports.
        let keys = combine_leaf(parse_node(geometry, node_key, bytes)?.bsets);
        keys.iter().try_for_each(|key| key.check_extent(geometry))?;
        let keys = keys.into_iter().map(|key| LeafKey {
            inode: key.inode,
            range: key.range(),
            dirty: key.dirty,
            pointer: key.pointer(),
        });
        Ok((log, keys.collect()))
    }
}

impl Layer for LeafKey {
    fn inode(&self) -> Inode {
        self.inode
    }
    fn range(&self) -> SectorRange {
        self.range
    }
    fn part(&self, range: SectorRange) -> LeafKey {
        let pointer = self.pointer.map(|pointer| pointer.advance(range.start - self.range.start));
        LeafKey { range, pointer, ..*self }
    }
}

impl<E: Env> Index<E> {
    async fn read_node_bytes(&self, key: &Key) -> Result<(Sector, Buf), EngineError> {
        let at = key.pointer().expect("checked: a node key has a pointer").offset;
        let read = self.context.cache.read(at, u64::from(key.sectors)).await;
        Ok((at, read.map_err(EngineError::io("reading an index node"))?))
    }

    /// Reads and verifies a node.
    pub(super) async fn read_node(&self, key: &Key) -> Result<ParsedNode, EngineError> {
        let (at, buf) = self.read_node_bytes(key).await?;
        parse_node(&self.context.geometry, key, buf.as_slice())
            .map_err(EngineError::format("index node", at))
    }

    /// Reads and verifies a leaf: what its bsets combine to.
    async fn read_leaf(&self, key: &Key) -> Result<(NodeLog, Vec<LeafKey>), EngineError> {
        let (at, buf) = self.read_node_bytes(key).await?;
        LeafKey::decode(&self.context.geometry, key, buf.as_slice())
            .map_err(EngineError::format("index leaf", at))
    }

    /// Brings a leaf into memory. No effect if it is there, or if it has been replaced: then the
    /// caller looks it up again.
    pub async fn load_leaf(&self, leaf: &Rc<Leaf>) -> Result<(), EngineError> {
        let _hold = Hold::new(leaf);
        let _io = leaf.io.lock().await;
        {
            let state = leaf.state.borrow();
            if state.body.is_some() || state.retired {
                return Ok(());
            }
        }
        let (node, keys) = self.read_leaf(&leaf.key()).await?;
        let mut extents = Vec::with_capacity(keys.len());
        let mut hollow = Vec::new();
        for key in keys {
            let inside = key.start() >= leaf.low && key.end() <= leaf.end;
            match key.pointer.filter(|_| inside) {
                Some(pointer) => {
                    let LeafKey { inode, range, dirty, .. } = key;
                    extents.push(Extent { inode, range, dirty, pointer });
                }
                None => hollow.push((key.inode, key.range)),
            }
        }
        {
            let mut buckets = self.allocator.buckets_mut();
            let mut state = leaf.state.borrow_mut();
            for extent in &extents {
                buckets.note_pointer(extent.pointer);
            }
            if !state.counted {
                let mut inodes = self.inodes.borrow_mut();
                for extent in &extents {
                    buckets.check_extent(extent.pointer, extent.range.sectors())?;
                    if buckets.is_live(extent.pointer) {
                        buckets.add_live(extent.pointer, extent.range.sectors(), extent.dirty);
                        if extent.dirty {
                            inodes.entry(extent.inode).or_default().dirty_sectors +=
                                extent.range.sectors();
                        }
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
        // In the same step as the body was set: no reader sees the leaf without its records.
        self.replay_into_loaded(leaf)?;
        leaf.referenced.set(true);
        self.forget_leaves();
        Ok(())
    }

    /// The node cache keeps to its limit: a clock hand goes over the leaves and lets go of those
    /// that were not used since its last round and have nothing to write. If that was not
    /// enough, returns a leaf to write, so that it can go next.
    pub(super) fn forget_leaves(&self) -> Option<Rc<Leaf>> {
        let mut tree = self.tree.borrow_mut();
        let mut unwritten = None;
        let (mut rounds, mut visits) = (0, 0);
        while tree.loaded_extents > self.context.tuning.extents_in_memory_max
            && rounds < 3
            && visits < VISITS_MAX
        {
            let ClockHand(hand) = tree.clock_hand;
            let mut forgotten = 0;
            let mut stop = None;
            let mut lost = Vec::new();
            for leaf in tree.leaves_after(hand) {
                visits += 1;
                if visits > VISITS_MAX {
                    break;
                }
                stop = Some(leaf.end);
                let Ok(mut state) = leaf.state.try_borrow_mut() else { continue };
                let held = leaf.holds.get() > 0 || leaf.io.is_locked();
                let careful = self.context.keeps(Rule::X2ChangedNodesStay);
                let Some(body) = state.body.as_ref() else { continue };
                if leaf.referenced.replace(false) || held || state.writing_pin.is_some() {
                    continue;
                }
                if (state.pin.is_some() || body.is_touched()) && careful {
                    unwritten.get_or_insert_with(|| leaf.clone());
                    continue;
                }
                forgotten += body.len();
                state.body = None;
                if !careful && state.pin.is_some() {
                    lost.push(leaf.clone());
                }
                if tree.loaded_extents - forgotten <= self.context.tuning.extents_in_memory_max {
                    break;
                }
            }
            let at_end = stop == tree.leaves().last().map(|leaf| leaf.end);
            for leaf in lost {
                tree.unpin(&leaf, &mut leaf.state.borrow_mut());
            }
            if forgotten > 0 {
                self.context.env.mark("leaf_forgotten");
            }
            tree.loaded_extents -= forgotten;
            tree.clock_hand = ClockHand(stop.filter(|_| !at_end).unwrap_or(FIRST));
            rounds += u32::from(at_end || stop.is_none());
        }
        drop(tree);
        unwritten.filter(|_| self.index_is_too_large())
    }

    pub(super) fn index_is_too_large(&self) -> bool {
        self.tree.borrow().loaded_extents > self.context.tuning.extents_in_memory_max
    }

    /// Makes the node cache keep to its limit where every leaf has something to write, as when data
    /// is written all over the place: whoever brings a leaf in writes another one, which then goes.
    pub(super) async fn write_and_forget(&self) {
        if let Some(leaf) = self.forget_leaves() {
            self.context.env.mark("leaf_written_to_be_forgotten");
            // Not written is not forgotten. Whoever has to hear of an error does so elsewhere.
            let _ = self.write_leaf(&leaf, false).await;
        }
    }
}
