//! Reading the tree at start: the interior nodes, and where the leaves are.

use std::collections::BTreeMap;

use ubcache_env::{Env, Sector};
use ubcache_format::{BucketNr, JournalEntry, Key, ParsedNode, Pointer, combine_interior};

use super::Index;
use super::extent::{FIRST, LAST, Position};
use super::leaf::LeafState;
use super::tree::Interior;
use crate::alloc::buckets::Role;
use crate::errors::EngineError;
use crate::time_slices::in_slices;

impl<E: Env> Index<E> {
    /// Reads every interior node and lays out the leaves, which stay on the device until used.
    pub async fn read_tree(&self, newest: &JournalEntry) -> Result<(), EngineError> {
        let uuid_bucket = self.bucket_of_node(&newest.uuid_bucket)?;
        self.claim_metadata(uuid_bucket, "the volume table")?;
        let mut level = vec![self.checked_node(&newest.root)?];
        let mut interior = Vec::new();
        for _ in 0..newest.root_level {
            let mut nodes = BTreeMap::new();
            let mut children = Vec::new();
            let mut low = FIRST;
            for key in &level {
                let mut node = self.read_node(key).await?;
                let found = combine_interior(std::mem::take(&mut node.bsets));
                let pointer = key.pointer().expect("checked: a node key has a pointer");
                let (live, former) = self.live_children(key, low, found)?;
                children.extend(live);
                low = key.position();
                let ParsedNode { seq, used_bytes, .. } = node;
                let node = Interior { pointer, sectors: key.sectors, seq, used_bytes, former };
                nodes.insert(key.position(), node);
            }
            interior.insert(0, nodes);
            level = children;
        }
        self.tree.borrow_mut().interior = interior;
        let mut low = FIRST;
        in_slices(&self.context.env, self.context.tuning.slice_steps, level.len(), 16, |part| {
            let mut tree = self.tree.borrow_mut();
            for key in &level[part] {
                let pointer = key.pointer().expect("checked: a node key has a pointer");
                let leaf =
                    tree.make_leaf(low, key.position(), pointer, key.sectors, LeafState::default());
                tree.insert_leaf(leaf);
                low = key.position();
            }
        })
        .await;
        let last = self.tree.borrow().leaves().last().map(|leaf| leaf.end);
        assert_eq!(last, Some(LAST), "the tree is whole");
        Ok(())
    }

    fn bucket_of_node(&self, key: &Key) -> Result<BucketNr, EngineError> {
        let pointer = key.pointer().ok_or_else(|| EngineError::Damaged {
            what: "journal entry",
            detail: "a node key has no pointer".to_owned(),
        })?;
        Ok(pointer.bucket(self.context.geometry.bucket_sectors))
    }

    /// Checks a node key, raises its bucket's generation and marks it.
    fn checked_node(&self, key: &Key) -> Result<Key, EngineError> {
        key.check_node(&self.context.geometry)
            .map_err(EngineError::format("index node key", Sector(0)))?;
        let bucket = self.bucket_of_node(key)?;
        self.allocator.buckets_mut().note_pointer(key.pointer().expect("checked"));
        self.claim_metadata(bucket, "the root")?;
        Ok(key.clone())
    }

    /// Nobody else has the bucket: who is to be found out after it would be overwritten.
    fn claim_metadata(&self, bucket: BucketNr, what: &str) -> Result<(), EngineError> {
        let mut buckets = self.allocator.buckets_mut();
        if buckets.role(bucket) != Role::Unknown {
            let detail = format!("{what} is in bucket {bucket}, which has something else already");
            return Err(EngineError::Damaged { what: "set", detail });
        }
        buckets.set_metadata(bucket);
        Ok(())
    }

    /// The children that an interior node names, in order, and the pointers that lead to none.
    /// Every pointer, freeing keys included, raises its bucket's generation first; then what is
    /// stale goes (docs/reference/format.md §5.6, §9.2).
    fn live_children(
        &self,
        node: &Key,
        low: Position,
        found: Vec<Key>,
    ) -> Result<(Vec<Key>, Vec<Pointer>), EngineError> {
        let damaged = |detail: String| EngineError::Damaged { what: "interior index node", detail };
        for key in &found {
            key.check_node(&self.context.geometry).map_err(EngineError::format(
                "interior index node",
                node.pointer().expect("checked").offset,
            ))?;
            self.allocator.buckets_mut().note_pointer(key.pointer().expect("checked"));
        }
        let (mut children, mut former): (Vec<Key>, Vec<Pointer>) = Default::default();
        for key in found {
            let pointer = key.pointer().expect("checked");
            if key.is_zero() || !self.allocator.buckets().is_live(pointer) {
                former.push(pointer);
                continue;
            }
            if key.position() <= low || key.position() > node.position() {
                return Err(damaged(format!(
                    "child {:?} is outside of its parent's interval",
                    key.position()
                )));
            }
            if children.last().is_some_and(|last: &Key| last.position() == key.position()) {
                continue;
            }
            self.claim_metadata(
                pointer.bucket(self.context.geometry.bucket_sectors),
                "an index node",
            )?;
            children.push(key);
        }
        if children.last().map(Key::position) != Some(node.position()) {
            return Err(damaged(format!(
                "its last child ends at {:?}, expected {:?}",
                children.last().map(Key::position),
                node.position()
            )));
        }
        Ok((children, former))
    }
}
