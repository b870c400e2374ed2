//! Replacing nodes: rewriting full ones, splitting, merging.
//!
//! New nodes are written to new buckets beside the old ones. Then, per parent, one bset is
//! appended that names the new children and frees the old ones, which makes the change atomic; a
//! parent without room is replaced in the same way, up to the root, which the journal names.
//! Look-ups and changes go on in the old leaves all the while; what is changed meanwhile stays
//! touched and goes to the new leaves when memory switches over, in one step.

use std::collections::BTreeMap;
use std::rc::Rc;

use ubcache_env::local::{Permit, join_all};
use ubcache_env::{Buf, Durability, Env, Sector};
use ubcache_format::{
    BucketNr, Key, PackedKey, Pointer, SECTOR_BYTES, bset_bytes, bset_bytes_of_words, encode_bset,
    encode_packed_bset, packed_position,
};

use super::Index;
use super::extent::{FIRST, LAST, Position};
use super::leaf::{Body, Leaf, LeafState};
use super::touched::Touched;
use super::tree::Interior;
use crate::alloc::buckets::Purpose;
use crate::errors::EngineError;
use crate::rules::Rule;

/// Rounds of the allocator that a restructuring waits for before it takes from the reserve.
const PATIENCE: u32 = 3;
/// Rounds after which one that has begun gives up, to try again: what could free a bucket may need
/// its turn.
const ROUNDS_MAX: u32 = 200;

/// A node that was written and is not referred to yet.
#[derive(Clone, Debug)]
struct NewNode {
    end: Position,
    pointer: Pointer,
    sectors: u16,
    seq: u64,
    used_bytes: u64,
}

impl NewNode {
    fn key(&self) -> Key {
        Key::node(self.end.0, self.end.1, self.sectors, self.pointer)
    }
}

/// Children of one level that take the place of others.
#[derive(Clone, Default, Debug)]
struct Replacement {
    old: Vec<Key>,
    new: Vec<NewNode>,
}

/// A group of neighbouring leaves that is being replaced.
struct Group {
    leaves: Vec<Rc<Leaf>>,
    touched: Vec<Touched>,
    replacement: Replacement,
    _io: Vec<Permit>,
}

/// Everything a restructuring has done to the device so far.
#[derive(Default)]
struct Plan {
    /// Buckets of nodes that nothing refers to if this fails.
    taken: Vec<BucketNr>,
    /// Bsets to append to parents, once everything above is written.
    appends: Vec<(Sector, Vec<u8>)>,
    /// Interior nodes that get longer.
    grown: Vec<Grown>,
    /// Replacements by level, from 1.
    interior: Vec<Replacement>,
}

impl Plan {
    /// Interior nodes of `level` ≥ 1 are replaced.
    fn replace(&mut self, level: usize, replacement: &Replacement) {
        if self.interior.len() < level {
            self.interior.resize_with(level, Replacement::default);
        }
        let all = &mut self.interior[level - 1];
        all.old.extend(replacement.old.iter().cloned());
        all.new.extend(replacement.new.iter().cloned());
    }
}

/// An interior node that gets longer.
struct Grown {
    level: usize,
    end: Position,
    bytes: u64,
    /// Children that it names no more.
    freed: Vec<Pointer>,
}

/// Nodes to replace by fresh ones.
enum Work {
    /// Groups of neighbouring leaves.
    Leaves(Vec<Vec<Rc<Leaf>>>),
    /// The node of this level that ends here, with the same children.
    Interior(usize, Position),
}

/// The keys of nodes as they are on disk.
fn packed_nodes(keys: &[Key]) -> Vec<PackedKey> {
    keys.iter().map(|key| key.packed().expect("a node has one place")).collect()
}

impl<E: Env> Index<E> {
    /// Number of keys that fit a node.
    pub(super) fn node_fit(&self) -> usize {
        let fit = ((self.context.geometry.node_bytes() - 32) / 24) as usize;
        self.context.tuning.node_keys_max.map_or(fit, |max| fit.min(max.max(8)))
    }

    /// Into how many fresh nodes so many keys go: what comes later finds room in them.
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
        let mut rounds = 0;
        while taken.len() < count {
            let bucket = self.allocator.take_with_room(Purpose::Metadata).await;
            match bucket {
                Some(bucket) => {
                    taken.push(bucket);
                    plan.taken.push(bucket);
                }
                None if rounds == ROUNDS_MAX => return Err(EngineError::NoSpace("an index node")),
                None => {
                    rounds += 1;
                    self.wait_for_nodes(count - taken.len(), "an index node").await?;
                }
            }
        }
        self.allocator.check(&self.allocator.buckets());
        Ok(taken)
    }

    /// Writes fresh nodes, cut from `keys` (which are in order); the last one gets `end`.
    async fn write_nodes(
        &self,
        plan: &mut Plan,
        keys: &[PackedKey],
        end: Position,
    ) -> Result<Vec<NewNode>, EngineError> {
        let count = self.nodes_for(keys.len());
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

    /// Number of buckets that it takes to replace all these nodes and their parents.
    fn buckets_for(&self, work: &Work) -> usize {
        let groups = match work {
            Work::Leaves(groups) => groups,
            // Its parents, and each of them may split.
            Work::Interior(level, _) => return 2 * (self.tree.borrow().interior.len() + 2 - level),
        };
        let keys = |leaf: &Rc<Leaf>| leaf.state.borrow().body.as_ref().map_or(0, |body| body.len());
        let leaves: usize =
            groups.iter().flatten().map(|leaf| keys(leaf) / (self.node_fit() / 2).max(1) + 1).sum();
        let interior: usize = self.tree.borrow().interior.iter().map(|level| level.len()).sum();
        leaves + interior.min(leaves) + leaves / 8 + 2
    }

    /// Waits until this many buckets are free for nodes, for a while.
    async fn gather_buckets(&self, needed: usize) -> Result<(), EngineError> {
        for _ in 0..3 {
            if self.allocator.buckets().can_take(Purpose::Metadata, needed) {
                break;
            }
            self.wait_for_nodes(needed, "index nodes").await?;
        }
        Ok(())
    }

    /// Waits for free buckets with the right to a prio chain however little room the journal has.
    async fn wait_for_nodes(&self, needed: usize, what: &'static str) -> Result<(), EngineError> {
        self.journal.put_chains_first(true);
        let waited = self.allocator.wait_for_nodes(needed, what).await;
        self.journal.put_chains_first(false);
        waited
    }

    /// Replaces groups of neighbouring leaves by fresh ones with the same live content: as many
    /// as it takes. Leaves that were replaced by somebody else meanwhile are left out. It may take
    /// entries of the journal; unless it makes room there, it waits until there is some.
    pub async fn restructure(
        &self,
        groups: Vec<Vec<Rc<Leaf>>>,
        makes_room: bool,
    ) -> Result<(), EngineError> {
        self.replace_nodes(Work::Leaves(groups), makes_room).await
    }

    /// Writes the interior node of `level` ≥ 1 that ends at `end` anew, with nothing but its
    /// children (G2).
    pub async fn rewrite_interior(&self, level: usize, end: Position) -> Result<(), EngineError> {
        self.replace_nodes(Work::Interior(level, end), false).await
    }

    async fn replace_nodes(&self, work: Work, makes_room: bool) -> Result<(), EngineError> {
        let mut reserve_too = false;
        let mut rounds = 0;
        let (_structure, _granted) = loop {
            let structure = self.structure.lock().await;
            let needed = self.buckets_for(&work);
            let purpose = if makes_room { Purpose::Metadata } else { Purpose::Restructure };
            let enough = self.allocator.buckets().can_take(purpose, needed);
            if makes_room {
                // Gathered first, so that one prio chain is enough.
                if !enough && self.journal.is_tight() {
                    self.gather_buckets(needed).await?;
                }
                break (structure, self.journal.grant(true));
            }
            let granted = self.journal.grant(false);
            if granted.is_some() && (enough || reserve_too) {
                break (structure, granted);
            }
            // Nobody who makes room waits for this one.
            drop(structure);
            if granted.is_none() {
                self.journal.wait_for_progress().await?;
            } else {
                drop(granted);
                let waited = self.allocator.wait_for_nodes(needed, "index nodes").await;
                rounds += 1;
                // Nothing can be given up, or not soon: then the reserve is for this one as well.
                let in_vain = matches!(waited, Err(EngineError::NoSpace(_)));
                reserve_too = in_vain || rounds >= PATIENCE;
                if !in_vain {
                    waited?;
                }
            }
        };
        let mut plan = Plan::default();
        let mut replaced: Vec<Group> = Vec::new();
        let result = self.replace_nodes_locked(work, &mut plan, &mut replaced).await;
        match result {
            Ok(()) => {
                self.switch_over(plan, replaced);
                Ok(())
            }
            Err(error) => {
                self.context.env.mark("restructure_failed");
                let mut buckets = self.allocator.buckets_mut();
                if self.context.failure().is_none() {
                    // Nothing durable refers to them: appends are the last thing done.
                    plan.taken.into_iter().for_each(|bucket| buckets.retire_metadata(bucket));
                }
                for group in replaced {
                    for (leaf, touched) in group.leaves.iter().zip(group.touched) {
                        let mut state = leaf.state.borrow_mut();
                        self.tree.borrow_mut().write_ends(leaf, &mut state, false);
                        state.body.as_mut().expect("it was written from").restore_touched(touched);
                    }
                }
                Err(error)
            }
        }
    }

    async fn replace_nodes_locked(
        &self,
        work: Work,
        plan: &mut Plan,
        replaced: &mut Vec<Group>,
    ) -> Result<(), EngineError> {
        // Of the level below the one that names the new nodes.
        let (below, old_new) = match work {
            Work::Leaves(groups) => (0, self.replace_leaves(groups, plan, replaced).await?),
            Work::Interior(level, end) => (level, self.replace_interior(level, end, plan).await?),
        };
        if old_new.is_empty() {
            return Ok(());
        }
        self.name_new_nodes(below, old_new, plan, replaced).await
    }

    async fn replace_leaves(
        &self,
        groups: Vec<Vec<Rc<Leaf>>>,
        plan: &mut Plan,
        replaced: &mut Vec<Group>,
    ) -> Result<Vec<Replacement>, EngineError> {
        for leaves in groups {
            let mut locks = Vec::new();
            for leaf in &leaves {
                self.load_leaf(leaf).await?;
                locks.push(leaf.io.lock().await);
            }
            let usable = leaves
                .iter()
                .all(|leaf| !leaf.state.borrow().retired && leaf.state.borrow().body.is_some());
            if !usable || leaves.is_empty() || !self.has_one_parent(&leaves) {
                self.context.env.mark("leaf_replaced_by_others");
                continue;
            }
            self.replace_group(leaves, locks, plan, replaced).await?;
        }
        Ok(replaced.iter().map(|group| group.replacement.clone()).collect())
    }

    /// Writes an interior node anew. Nothing, if somebody else has replaced it.
    async fn replace_interior(
        &self,
        level: usize,
        end: Position,
        plan: &mut Plan,
    ) -> Result<Vec<Replacement>, EngineError> {
        let found = {
            let tree = self.tree.borrow();
            let node = tree.interior.get(level - 1).and_then(|nodes| nodes.get(&end));
            node.map(|node| (node.key(end), tree.children(level, tree.parent(level, end).0, end)))
        };
        let Some((old, children)) = found else { return Ok(Vec::new()) };
        let children: Vec<Key> = children.into_iter().map(|(_, key)| key).collect();
        let new = self.write_nodes(plan, &packed_nodes(&children), end).await?;
        self.context.env.mark("interior_rewritten_for_age");
        let replacement = Replacement { old: vec![old], new };
        plan.replace(level, &replacement);
        Ok(vec![replacement])
    }

    /// Makes the nodes above `below` name new nodes of that level instead of old ones, up to the
    /// root.
    async fn name_new_nodes(
        &self,
        below: usize,
        mut old_new: Vec<Replacement>,
        plan: &mut Plan,
        replaced: &[Group],
    ) -> Result<(), EngineError> {
        let levels = usize::from(self.tree.borrow().root_level());
        for level in below + 1..=levels {
            old_new = self.replace_in_parents(level, old_new, plan).await?;
            old_new.iter().for_each(|replacement| plan.replace(level, replacement));
        }
        let new_root = match old_new.pop() {
            None => None,
            Some(root) => {
                assert!(old_new.is_empty(), "there is one root");
                Some(self.grow_root(levels, root.new, plan).await?)
            }
        };
        if !plan.appends.is_empty() {
            let appends = std::mem::take(&mut plan.appends);
            self.write_bsets(appends).await.map_err(|source| {
                // Some parents may name the new nodes and others not: memory can't follow that.
                self.context.fail(format!("an interior index node could not be written: {source}"));
                EngineError::Io { what: "writing an interior index node", source }
            })?;
        }
        if let Some((level, key)) = new_root {
            self.context.env.mark("root_replaced");
            // No await from here to the entry's place in the queue: it names the new root.
            self.journal.set_root(level, key);
            for leaf in replaced.iter().flat_map(|group| &group.leaves) {
                self.tree.borrow_mut().write_is_named(leaf, &mut leaf.state.borrow_mut());
            }
            self.journal.force().await?;
        }
        Ok(())
    }

    /// Returns true if the leaves still have one parent: it may have been split since they were
    /// chosen.
    fn has_one_parent(&self, leaves: &[Rc<Leaf>]) -> bool {
        let tree = self.tree.borrow();
        tree.root_level() == 0
            || leaves
                .windows(2)
                .all(|pair| tree.parent(1, pair[0].end) == tree.parent(1, pair[1].end))
    }

    async fn replace_group(
        &self,
        leaves: Vec<Rc<Leaf>>,
        locks: Vec<Permit>,
        plan: &mut Plan,
        replaced: &mut Vec<Group>,
    ) -> Result<(), EngineError> {
        let mut keys = Vec::new();
        let mut touched = Vec::with_capacity(leaves.len());
        {
            let buckets = self.allocator.buckets();
            let mut tree = self.tree.borrow_mut();
            let mut dropped = 0;
            for leaf in &leaves {
                let mut state = leaf.state.borrow_mut();
                tree.write_begins(&mut state);
                let body = state.body.as_mut().expect("checked by the caller");
                touched.push(body.take_touched());
                // Stale keys go when no crash can make them live again: their generation is
                // durable.
                let before = body.len();
                body.drop_where(|extent| {
                    !buckets.may_return(extent.pointer) && !buckets.is_live(extent.pointer)
                });
                dropped += before - body.len();
                keys.reserve(body.len());
                keys.extend(body.iter().map(|extent| extent.packed_key()));
                state.dirty_entries = state.body.as_ref().map_or(0, Body::dirty_entries);
            }
            if dropped > 0 {
                self.context.env.mark("stale_keys_dropped");
            }
            tree.loaded_extents -= dropped;
        }
        let end = leaves.last().expect("a group is not empty").end;
        let old = leaves.iter().map(|leaf| leaf.key()).collect();
        let group = Group {
            leaves,
            touched,
            replacement: Replacement { old, new: Vec::new() },
            _io: locks,
        };
        replaced.push(group);
        let new = self.write_nodes(plan, &keys, end).await?;
        self.context.env.mark(if new.len() > 1 { "leaf_split" } else { "leaf_rewritten" });
        replaced.last_mut().expect("just pushed").replacement.new = new;
        Ok(())
    }

    /// Makes the nodes of `level` name new children instead of old ones. Says which of these
    /// nodes had to be replaced themselves.
    async fn replace_in_parents(
        &self,
        level: usize,
        replacements: Vec<Replacement>,
        plan: &mut Plan,
    ) -> Result<Vec<Replacement>, EngineError> {
        let mut by_parent: BTreeMap<Position, (Position, Replacement)> = BTreeMap::new();
        for replacement in replacements {
            let place = replacement.old.last().expect("something was replaced").position();
            let (low, end) = self.tree.borrow().parent(level, place);
            let (_, all) = by_parent.entry(end).or_insert((low, Replacement::default()));
            all.old.extend(replacement.old);
            all.new.extend(replacement.new);
        }
        let mut next = Vec::new();
        for (end, (low, change)) in by_parent {
            let step = self.context.tuning.generations.step;
            let mut keys: Vec<Key> = change.old.iter().map(|key| key.freeing_by(step)).collect();
            keys.extend(change.new.iter().map(NewNode::key));
            keys.sort_by_key(Key::position);
            let node_key = {
                let tree = self.tree.borrow();
                let node = &tree.interior[level - 1][&end];
                let node_bytes = u64::from(node.sectors) * SECTOR_BYTES;
                let bytes = bset_bytes(&self.context.geometry, &keys);
                if node.used_bytes + bytes <= node_bytes && self.interior_has_room(node, &keys) {
                    let at = node.pointer.offset + node.used_bytes / SECTOR_BYTES;
                    plan.appends.push((
                        at,
                        encode_bset(&self.context.geometry, node.pointer, node.seq, &keys),
                    ));
                    let freed = change.old.iter().filter_map(Key::pointer).collect();
                    plan.grown.push(Grown { level, end, bytes, freed });
                    self.context.env.mark("interior_appended");
                    continue;
                }
                node.key(end)
            };
            let mut children: BTreeMap<Position, Key> =
                self.tree.borrow().children(level, low, end).into_iter().collect();
            change.old.iter().for_each(|key| drop(children.remove(&key.position())));
            children.extend(change.new.iter().map(|node| (node.end, node.key())));
            let children: Vec<Key> = children.into_values().collect();
            let new = self.write_nodes(plan, &packed_nodes(&children), end).await?;
            self.context.env.mark("interior_rewritten");
            next.push(Replacement { old: vec![node_key], new });
        }
        Ok(next)
    }

    fn interior_has_room(&self, node: &Interior, keys: &[Key]) -> bool {
        let in_use = (node.used_bytes / 24) as usize + keys.len();
        self.context.tuning.node_keys_max.is_none_or(|max| in_use <= max.max(8) * 4)
    }

    /// Puts as many levels on top as it takes until there is one root. Says its level and key.
    async fn grow_root(
        &self,
        levels: usize,
        mut top: Vec<NewNode>,
        plan: &mut Plan,
    ) -> Result<(u16, Key), EngineError> {
        let mut level = levels;
        while top.len() > 1 {
            self.context.env.mark("root_split");
            level += 1;
            let keys: Vec<Key> = top.iter().map(NewNode::key).collect();
            top = self.write_nodes(plan, &packed_nodes(&keys), LAST).await?;
            plan.replace(level, &Replacement { old: Vec::new(), new: top.clone() });
        }
        Ok((level as u16, top.first().expect("there is a root").key()))
    }

    /// Everything is durable: memory follows, in one step.
    fn switch_over(&self, plan: Plan, groups: Vec<Group>) {
        let mut tree = self.tree.borrow_mut();
        let mut retired = Vec::new();
        for (index, replacement) in plan.interior.into_iter().enumerate() {
            if tree.interior.len() <= index {
                tree.interior.push(BTreeMap::new());
            }
            for key in replacement.old {
                tree.interior[index].remove(&key.position());
                retired.push(key);
            }
            for node in replacement.new {
                let NewNode { end, pointer, sectors, seq, used_bytes } = node;
                let node = Interior { pointer, sectors, seq, used_bytes, former: Vec::new() };
                tree.interior[index].insert(end, node);
            }
        }
        for Grown { level, end, bytes, freed } in plan.grown {
            // A parent that was replaced at a higher level does not grow.
            if let Some(node) = tree.interior[level - 1].get_mut(&end) {
                node.used_bytes += bytes;
                node.former.extend(freed);
            }
        }
        for group in groups {
            let mut whole = Body::default();
            let mut low = FIRST;
            let mut pin = None;
            let mut touched_at = self.context.env.now();
            for (index, leaf) in group.leaves.iter().enumerate() {
                let mut state = leaf.state.borrow_mut();
                if index == 0 {
                    low = leaf.low;
                }
                state.retired = true;
                touched_at = touched_at.min(state.touched_at);
                let left: Option<ubcache_format::JournalSeq> = tree.unpin(leaf, &mut state);
                pin = pin.into_iter().chain(left).min();
                whole.append(state.body.take().expect("locked in memory"));
                tree.remove_leaf(leaf);
            }
            retired.extend(group.replacement.old);
            let before = whole.len();
            let mut after = 0;
            for node in group.replacement.new {
                let rest = whole.split_off(node.end);
                let body = std::mem::replace(&mut whole, rest);
                after += body.len();
                let touched = body.is_touched();
                let state = LeafState {
                    seq: node.seq,
                    used_bytes: node.used_bytes,
                    counted: true,
                    dirty_entries: body.dirty_entries(),
                    body: Some(body),
                    touched_at,
                    ..LeafState::default()
                };
                let leaf = tree.make_leaf(low, node.end, node.pointer, node.sectors, state);
                tree.insert_leaf(leaf.clone());
                if touched {
                    self.context.env.mark("leaf_changed_while_replaced");
                }
                let pinned = touched && self.context.keeps(Rule::J5ReplacedLeafPins);
                if let (true, Some(seq)) = (pinned, pin) {
                    tree.pin(&leaf, &mut leaf.state.borrow_mut(), seq);
                }
                low = node.end;
            }
            assert_eq!(whole.len(), 0, "the new leaves hold everything");
            tree.loaded_extents = tree.loaded_extents + after - before;
        }
        let mut buckets = self.allocator.buckets_mut();
        for key in retired {
            let pointer = key.pointer().expect("a node key has a pointer");
            buckets.retire_metadata(pointer.bucket(self.context.geometry.bucket_sectors));
        }
    }
}
