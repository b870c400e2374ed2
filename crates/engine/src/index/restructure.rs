//! Replacing nodes: rewriting full ones, splitting, merging.
//!
//! New nodes are written to new buckets beside the old ones. Then, per parent, one bset is
//! appended that names the new children and frees the old ones, which makes the change atomic; a
//! parent without room is replaced in the same way, up to the root, which the journal names.
//! Look-ups and changes go on in the old leaves all the while; what is changed meanwhile stays
//! touched and goes to the new leaves when memory switches over, in one step.

use std::collections::BTreeMap;
use std::rc::Rc;

use ubcache_env::Env;
use ubcache_env::local::Permit;
use ubcache_format::JournalSeq;

use super::Index;
use super::extent::{FIRST, Position};
use super::leaf::{Body, Leaf, LeafState};
use super::restructure_plan::{Group, Grown, NewNode, Plan, Replacement};
use super::tree::Interior;
use crate::alloc::buckets::Purpose;
use crate::errors::EngineError;
use crate::rules::Rule;

/// Rounds of the allocator that a restructuring waits for before it gives up; one that makes room
/// in the journal does not wait.
const PATIENCE: u32 = 3;
/// Nodes to replace by fresh ones.
enum Work {
    /// Groups of neighbouring leaves.
    Leaves(Vec<Vec<Rc<Leaf>>>),
    /// The node of this level that ends here, with the same children.
    Interior(usize, Position),
}

impl<E: Env> Index<E> {
    /// Number of buckets that it takes to replace all these nodes and their parents.
    fn buckets_for(&self, work: &Work) -> usize {
        match work {
            Work::Leaves(groups) => self.buckets_for_leaves(groups),
            // Its parents, and each of them may split.
            Work::Interior(level, _) => 2 * (self.tree.borrow().interior.len() + 2 - level),
        }
    }

    fn buckets_for_leaves(&self, groups: &[Vec<Rc<Leaf>>]) -> usize {
        let keys = |leaf: &Rc<Leaf>| leaf.state.borrow().body.as_ref().map_or(0, |body| body.len());
        let leaves: usize =
            groups.iter().flatten().map(|leaf| keys(leaf) / (self.node_fit() / 2).max(1) + 1).sum();
        let interior: usize = self.tree.borrow().interior.iter().map(|level| level.len()).sum();
        leaves + interior.min(leaves) + leaves / 8 + 2
    }

    /// Replaces groups of neighbouring leaves by fresh ones with the same live content: as many as
    /// it takes. Leaves that were replaced by somebody else meanwhile are left out. It may take
    /// entries of the journal; unless it makes room there, it waits until there is some. If it
    /// does, it begins with as many groups as there are buckets for, and leaves the others to the
    /// next call.
    pub async fn restructure(
        &self,
        groups: Vec<Vec<Rc<Leaf>>>,
        makes_room: bool,
    ) -> Result<(), EngineError> {
        self.replace_nodes(Work::Leaves(groups), makes_room).await?;
        // An index that grows by what is inserted has to keep to the limit as well.
        self.forget_leaves();
        Ok(())
    }

    /// Writes the interior node of `level` ≥ 1 that ends at `end` anew, with nothing but its
    /// children (G2).
    pub async fn rewrite_interior(&self, level: usize, end: Position) -> Result<(), EngineError> {
        self.replace_nodes(Work::Interior(level, end), false).await
    }

    /// Waits until no node is being replaced that was being replaced before.
    pub async fn replacements_end(&self) {
        drop(self.structure.lock().await);
    }

    async fn replace_nodes(&self, mut work: Work, makes_room: bool) -> Result<(), EngineError> {
        let mut rounds = 0;
        let mut packed = false;
        // In order of request: thousands of changes can wait for the same leaf to be split, and
        // all but the first of them find that it was.
        let _turn = if makes_room { None } else { Some(self.replace_queue.lock().await) };
        let (_structure, _granted, _claim) = loop {
            let structure = self.structure.lock().await;
            let needed = self.buckets_for(&work);
            let (enough, freed) = {
                let buckets = self.allocator.buckets();
                (buckets.can_take(Purpose::Restructure, needed), buckets.freed())
            };
            if makes_room {
                // N4: the reserve is for new nodes that take the place of as many.
                packed = !enough && self.context.keeps(Rule::N4ReserveForSameNumber);
                if packed && let Work::Leaves(groups) = &mut work {
                    self.context.env.mark("nodes_not_split");
                    if self.passes_wait_for_count(groups) {
                        drop(structure);
                        self.wait_for_count(groups).await?;
                        continue;
                    }
                    self.gather_and_cut(groups).await?;
                }
                break (structure, self.journal.grant(true), None);
            }
            let granted = self.journal.grant(false);
            if granted.is_some() && enough {
                let claim = self.allocator.claim_for_nodes(needed);
                break (structure, granted, Some(claim));
            }
            // Nobody who makes room waits for this one.
            drop(structure);
            if granted.is_none() {
                self.journal.wait_for_room().await?;
            } else {
                drop(granted);
                // Thousands may wait in the queue: what was in vain for the one before is not
                // tried again before something has changed.
                if rounds == PATIENCE || self.in_vain_at.get() == Some(freed) {
                    self.in_vain_at.set(Some(freed));
                    return Err(EngineError::NoSpace("index nodes"));
                }
                rounds += 1;
                let waited = self.allocator.wait_for_nodes(needed, "index nodes").await;
                if matches!(waited, Err(EngineError::NoSpace(_))) {
                    self.in_vain_at.set(Some(freed));
                }
                waited?;
            }
        };
        let mut plan = Plan { packed, ..Plan::default() };
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
                let left: Option<JournalSeq> = tree.unpin(leaf, &mut state);
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
