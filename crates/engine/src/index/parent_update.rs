//! Parents of replaced nodes: they name the new children, up to the root.

use std::collections::BTreeMap;

use ubcache_env::Env;
use ubcache_format::{Key, SECTOR_BYTES, bset_bytes, encode_bset};

use super::Index;
use super::extent::{LAST, Position};
use super::restructure_plan::{Group, Grown, NewNode, Plan, Replacement, packed_nodes};
use super::tree::Interior;
use crate::errors::EngineError;

impl<E: Env> Index<E> {
    /// Writes an interior node anew. Nothing, if somebody else has replaced it.
    pub(super) async fn replace_interior(
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
    pub(super) async fn name_new_nodes(
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
}
