//! Scans: extents in order, a leaf at a time.

use std::rc::Rc;

use ubcache_env::{Env, Sector, SectorRange};
use ubcache_format::{Inode, Key, Pointer};

use super::Index;
use super::extent::{Extent, Position};
use super::leaf::Leaf;
use crate::errors::EngineError;

/// A part of the scan for dirty extents.
pub(crate) struct DirtyScan {
    /// Extents of the volume.
    pub extents: Vec<Extent>,
    /// Place to go on from, if the volume does not end before it.
    pub next: Option<Position>,
    /// The leaf before that place can't be read.
    pub unreadable: Option<EngineError>,
}

impl<E: Env> Index<E> {
    /// The leaf that holds what starts at or after this place and ends after it. There is one for
    /// every place but the last.
    pub fn leaf_after(&self, after: Position) -> Rc<Leaf> {
        let tree = self.tree.borrow();
        tree.leaf_after(after).cloned().expect("the last leaf ends at the end")
    }

    /// Dirty extents of a volume from a place on, in the order of the backing device, until the
    /// limits or a leaf that can't be read.
    pub async fn dirty_extents(
        &self,
        inode: Inode,
        from: Position,
        sectors_max: u64,
        extents_max: usize,
    ) -> DirtyScan {
        let mut scan = DirtyScan { extents: Vec::new(), next: None, unreadable: None };
        let mut sectors = 0;
        let mut at = from;
        loop {
            let leaf = self.tree.borrow().leaf_after(at).cloned();
            let Some(leaf) = leaf.filter(|leaf| leaf.low.0 <= inode) else {
                return scan;
            };
            let unknown = !leaf.state.borrow().counted;
            if unknown || leaf.state.borrow().dirty_entries > 0 {
                if let Err(error) = self.load_leaf(&leaf).await {
                    scan.next = (leaf.end.0 <= inode).then_some(leaf.end);
                    scan.unreadable = Some(error);
                    return scan;
                }
                let state = leaf.state.borrow();
                let Some(body) = state.body.as_ref() else { continue };
                let buckets = self.allocator.buckets();
                for extent in body.iter_after(at) {
                    if extent.inode != inode || !extent.dirty || !buckets.is_live(extent.pointer) {
                        continue;
                    }
                    if sectors >= sectors_max || scan.extents.len() >= extents_max {
                        scan.next = Some(at);
                        return scan;
                    }
                    sectors += extent.range.sectors();
                    at = (extent.inode, extent.range.end);
                    scan.extents.push(extent);
                }
            }
            if leaf.end.0 > inode {
                return scan;
            }
            at = leaf.end;
        }
    }

    /// Extents of a volume in a leaf, from a position on, live or stale, and the position of the
    /// next leaf with some of it.
    pub async fn extents_of_leaf(
        &self,
        from: Position,
    ) -> Result<(Vec<Extent>, Option<Position>), EngineError> {
        let inode = from.0;
        loop {
            self.context.env.yield_now().await;
            let leaf = self.leaf_after(from);
            self.load_leaf(&leaf).await?;
            // Replaced or forgotten since: look the place up again.
            let Some(body) = leaf.body() else { continue };
            let rest = SectorRange::from_bounds(from.1, Sector(Key::MAX_END));
            let extents =
                body.overlapping(inode, leaf.clip(inode, rest)).map(|extent| extent.cut(rest));
            let next = (leaf.end.0 == inode && leaf.end.1.0 < Key::MAX_END).then_some(leaf.end);
            return Ok((extents.collect(), next));
        }
    }

    /// The leaf and those after it, with the same parent, that together fill two thirds of a node
    /// at most: no more than so many.
    pub fn mergeable(&self, low: Position, leaf: &Rc<Leaf>, most: usize) -> Vec<Rc<Leaf>> {
        let tree = self.tree.borrow();
        if tree.root_level() == 0 || leaf.state.borrow().retired {
            return Vec::new();
        }
        let fit = self.node_fit() * 2 / 3;
        let (_, parent_end) = tree.parent(1, leaf.end);
        let mut group: Vec<Rc<Leaf>> = Vec::new();
        let mut keys = 0;
        let mut at = low;
        while group.len() < most && at < parent_end {
            let Some(next) = tree.leaf_after(at) else { break };
            let state = next.state.borrow();
            let Some(body) = state.body.as_ref() else { break };
            keys += body.len();
            if keys > fit {
                break;
            }
            at = next.end;
            group.push(next.clone());
        }
        if group.first().is_none_or(|first| first.id != leaf.id) { Vec::new() } else { group }
    }

    /// Shows the pointers that lead to no child any more of the next interior node of `level` ≥ 1,
    /// and says where it ends.
    pub fn former_pointers(
        &self,
        level: usize,
        after: Position,
        show: impl FnOnce(&[Pointer]),
    ) -> Option<Position> {
        let tree = self.tree.borrow();
        let (end, node) = tree.interior_after(level, after)?;
        show(&node.former);
        Some(end)
    }

    /// The next interior node of `level` ≥ 1: where it ends, and whether `test` holds for any
    /// pointer to it or of its log that leads to no child any more.
    pub fn interior_with(
        &self,
        level: usize,
        after: Position,
        test: impl Fn(Pointer) -> bool,
    ) -> Option<(Position, bool)> {
        let tree = self.tree.borrow();
        let (end, node) = tree.interior_after(level, after)?;
        self.context.env.work().add(node.former.len());
        let any = test(node.pointer) || node.former.iter().any(|&pointer| test(pointer));
        Some((end, any))
    }

    /// Calls `visit` with every live extent over the range, as far as leaves are in memory.
    pub fn each_loaded_extent(
        &self,
        inode: Inode,
        range: SectorRange,
        mut visit: impl FnMut(Extent),
    ) {
        let buckets = self.allocator.buckets();
        for leaf in self.tree.borrow().leaves_over(inode, range) {
            let state = leaf.state.borrow();
            let extents = state.body.iter().flat_map(|body| body.overlapping(inode, range));
            extents.filter(|extent| buckets.is_live(extent.pointer)).for_each(&mut visit);
        }
    }
}
