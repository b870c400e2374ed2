//! The tree, level by level, with the keys of the journal laid over the leaves
//! (docs/reference/format.md §5, §6.6).

use std::sync::Arc;

use ubcache_env::{Device, Sector};
use ubcache_format::{
    Generation, Geometry, Inode, Key, ParsedNode, Pointer, SECTOR_BYTES, SalvagedNode, SectorRange,
    combine_interior, combine_leaf, parse_node, salvage_node,
};

use super::leaf::{LeafContent, Leaves, Replay, between, cut};
use super::leaf_batch::{Item, LeafBatch, Looked};
use super::totals::TotalsBuilder;
use super::visitor::{NodeVisit, Visitor};
use crate::io::progress::{Phase, Watcher};
use crate::io::read_ahead::{Inspect, RangeBytes, ReadAhead, ReadOptions};
use crate::set::{
    END, Extent, Finding, FindingKind, GenerationSnapshot, Location, Lost, Owner, STALE_NOTE,
    START, Site, View, VolumeTotals, add_volumes,
};

type Position = (Inode, Sector);

/// Bytes of an extent in a leaf.
const EXTENT_BYTES: usize = 24;

/// The tree by the newest entry of the journal, and options of reading it.
pub(crate) struct Tree<'a> {
    /// The key of the root.
    pub root: &'a Key,
    /// Its level.
    pub level: u16,
    /// The extents of the journal.
    pub replay: Arc<Replay>,
    /// Use the readable part of damaged nodes.
    pub salvage: bool,
    /// Add extents up instead of keeping them, if possible.
    pub totals_only: bool,
}

struct Walk<'a, V: Visitor + ?Sized> {
    geometry: Geometry,
    view: &'a mut View,
    visitor: &'a mut V,
    replay: Arc<Replay>,
    /// Extents of the journal up to here are in the view.
    replayed: Position,
    seen: Vec<(Pointer, Lost)>,
    salvage: bool,
    leaves: Arc<Leaves>,
    /// True if a generation was raised since the snapshot with which leaves are read.
    raised: bool,
    /// Totals of the volumes, if extents are added up.
    volumes: Vec<VolumeTotals>,
}

/// Walks over the tree under `root` and collects the extents of all leaves, with `replay` over
/// them.
pub(crate) async fn walk_tree<D: Device, V: Visitor + ?Sized>(
    cache: &D,
    view: &mut View,
    tree: &Tree<'_>,
    visitor: &mut V,
    (options, watcher): (ReadOptions<'_>, &dyn Watcher),
) {
    let geometry = view.geometry;
    let Tree { root, level, salvage, totals_only, .. } = *tree;
    let mut walk = Walk {
        geometry,
        view,
        visitor,
        replay: tree.replay.clone(),
        replayed: START,
        seen: Vec::new(),
        salvage,
        leaves: Arc::default(),
        raised: false,
        volumes: Vec::new(),
    };
    let mut items: Arc<[Item]> = walk.begin(root).into();
    for level in (0..=level).rev() {
        let bytes: u64 = items.iter().map(|item| u64::from(item.key.sectors) * SECTOR_BYTES).sum();
        let phase = Phase::new(
            watcher,
            if level == 0 { "leaves of the tree" } else { "inner nodes of the tree" },
            bytes,
        );
        let mut children = Vec::new();
        let ranges: Vec<SectorRange> = items.iter().map(Item::range).collect();
        let first = (level == 0 && !walk.visitor.sees_leaves()).then(|| walk.snapshot());
        let builder = first.as_ref().filter(|_| totals_only).and_then(|snapshot| {
            let room = bytes as usize / EXTENT_BYTES;
            let builder = TotalsBuilder::new(
                &geometry,
                snapshot.clone(),
                room,
                options.pool.threads_for(usize::MAX, 1),
            )
            .map(Arc::new);
            builder.filter(|builder| builder.detects_shared_sectors())
        });
        let batch = Arc::new(LeafBatch {
            geometry,
            items: items.clone(),
            replay: walk.replay.clone(),
            leaves: walk.leaves.clone(),
            builder: builder.clone(),
        });
        let mut snapshot = 0;
        let inspect: Inspect<Looked> = match first {
            Some(first) => batch.by(snapshot, first),
            None => Arc::new(|_, _| (0, None)),
        };
        let options = ReadOptions { around_errors: salvage, ..options };
        let mut ahead = ReadAhead::new(cache, &ranges, options, inspect);
        walk.raised = false;
        while let Some((index, piece, (by, content))) = ahead.next().await {
            let Some(item) = items.get(index) else { break };
            phase.add(item.range().bytes());
            if by == snapshot && walk.raised && content.is_some() {
                snapshot += 1;
                ahead.set_inspect(batch.by(snapshot, walk.snapshot()));
            }
            // A result with an older snapshot may be wrong.
            let fresh = by == snapshot && !walk.raised;
            walk.node(
                item,
                level,
                &piece.read(),
                (content, fresh),
                builder.as_deref(),
                &mut children,
            );
            ahead.done(piece);
            walk.add_kept(builder.as_deref());
            if let Some(builder) = &builder {
                if walk.raised {
                    // Totals were added up with other generations.
                    builder.abort();
                }
                if builder.aborted() {
                    walk.view.aborted = true;
                    return;
                }
            }
        }
        if let Some(builder) = builder {
            walk.replay_upto(END);
            walk.add_kept(Some(&builder));
            walk.view.totals = builder.totals(std::mem::take(&mut walk.volumes));
            walk.view.aborted = walk.view.totals.is_none();
        }
        items = children.into();
        if items.is_empty() {
            break;
        }
    }
    walk.replay_upto(END);
    walk.end();
}

impl<V: Visitor + ?Sized> Walk<'_, V> {
    fn begin(&mut self, root: &Key) -> Vec<Item> {
        let place = root
            .pointer()
            .map_or(Location::on(Site::Cache), |p| Location::cache(&self.geometry, p.offset));
        let broken = match (root.check_node(&self.geometry), root.pointer()) {
            (Ok(()), Some(pointer)) => {
                self.view.raise(pointer);
                return vec![Item { key: root.clone(), pointer, after: START, certain: true }];
            }
            (Ok(()), None) => "invalid pointer".to_owned(),
            (Err(error), _) => error.to_string(),
        };
        self.visitor.finding(Finding::new(
            FindingKind::NodeKey,
            place,
            format_args!("key of the root: {broken}"),
        ));
        self.lose(START, root.position());
        Vec::new()
    }

    fn lose(&mut self, after: Position, upto: Position) {
        self.view.complete = false;
        self.view.lost.push(Lost { after, upto });
    }

    fn place(&self, item: &Item) -> Location {
        Location::cache(&self.geometry, item.pointer.offset)
    }

    /// The generations of all buckets as they are now.
    fn snapshot(&mut self) -> Arc<GenerationSnapshot> {
        self.raised = false;
        Arc::new(GenerationSnapshot::new(&self.geometry, self.view.reach, &self.view.buckets))
    }

    /// Handles a node. `content` is the result of the fast path; it is `fresh` if no generation was
    /// raised since.
    fn node(
        &mut self,
        item: &Item,
        level: u16,
        bytes: &RangeBytes<'_>,
        (content, fresh): (Option<LeafContent>, bool),
        builder: Option<&TotalsBuilder>,
        children: &mut Vec<Item>,
    ) {
        if level == 0 {
            // Keys of the journal between two leaves count even if that part of the tree is
            // damaged.
            self.replay_upto(item.after);
            self.add_kept(builder);
        }
        let place = self.place(item);
        let entered = self.enter(item);
        let node = match (entered, content) {
            (Err(lost), _) => Err(lost),
            (Ok(()), Some(LeafContent::Unmerged(extents))) => {
                self.view.nodes += 1;
                self.check_place(item, place);
                for pointer in extents.iter().filter_map(Extent::pointer) {
                    self.raised |= self.view.raise(pointer);
                }
                self.merge_journal(item, extents);
                return;
            }
            (Ok(()), Some(LeafContent::Summed(volumes))) if fresh => {
                self.view.nodes += 1;
                self.check_place(item, place);
                add_volumes(&mut self.volumes, &volumes);
                self.replayed = self.replayed.max(item.key.position());
                return;
            }
            (Ok(()), Some(LeafContent::Merged(extents))) if fresh => {
                self.view.nodes += 1;
                self.check_place(item, place);
                self.view.extents.extend_from_slice(&extents);
                self.replayed = self.replayed.max(item.key.position());
                self.leaves.done(extents);
                return;
            }
            // The fast path used old generations.
            (Ok(()), _) => self.parse(item, bytes),
        };
        let lost = match node {
            Ok(node) => {
                self.view.nodes += 1;
                self.check_place(item, place);
                let (key, after) = (&item.key, item.after);
                self.visitor.node(&NodeVisit {
                    geometry: &self.geometry,
                    key,
                    level,
                    after,
                    node: &node,
                });
                if level > 0 {
                    self.interior(item, node, children);
                } else if item.certain {
                    self.leaf(item, node);
                } else {
                    self.claim(item, node.bsets);
                }
                return;
            }
            Err(lost) => lost,
        };
        let twice = lost.kind == FindingKind::NodeTwice;
        self.visitor.finding(lost);
        self.lose(item.after, item.key.position());
        if twice {
            // The right one of the two parents is not known.
            self.mark_uncertain(Lost { after: START, upto: END });
        } else if let Ok((bytes, holes)) = *bytes
            && self.salvage
        {
            let left = salvage_node(&self.geometry, &item.key, bytes, holes);
            if level > 0 {
                self.salvage_interior(item, left, children);
            } else {
                self.salvage_leaf(item, left);
            }
        }
        if level == 0 {
            self.replay_upto(item.key.position());
        }
    }

    fn mark_uncertain(&mut self, interval: Lost) {
        self.view.uncertainty.tree.push(interval);
    }

    fn interval(item: &Item) -> Lost {
        Lost { after: item.after, upto: item.key.position() }
    }

    fn salvage_leaf(&mut self, item: &Item, left: SalvagedNode) {
        if !left.after.is_empty() && item.certain {
            self.leaf(item, ParsedNode { seq: 0, bsets: left.after, used_bytes: 0 });
            self.claim(item, left.before);
        } else {
            self.claim(item, left.before.into_iter().chain(left.after).collect());
        }
    }

    /// Notes the extents of a node that may have been replaced.
    fn claim(&mut self, item: &Item, bsets: Vec<Vec<Key>>) {
        let bucket = item.pointer.bucket(self.geometry.bucket_sectors);
        for key in combine_leaf(bsets) {
            if key.pointer().is_some() && key.check_extent(&self.geometry).is_ok() {
                self.view.uncertainty.claims.push((Extent::new(&key, false), bucket));
            }
        }
        self.replay_upto(item.key.position());
    }

    /// Children that the newest readable part names are in use for certain, others perhaps.
    fn salvage_interior(&mut self, item: &Item, left: SalvagedNode, children: &mut Vec<Item>) {
        let name = |key: &Key| (key.position(), key.pointer().map(Pointer::word));
        let mut certain: Vec<_> = left.after.iter().flatten().map(name).collect();
        certain.sort_unstable();
        let bsets = left.before.into_iter().chain(left.after).collect();
        let from = children.len();
        self.interior(item, ParsedNode { seq: 0, bsets, used_bytes: 0 }, children);
        for child in children.iter_mut().skip(from) {
            child.certain &= certain.binary_search(&name(&child.key)).is_ok();
        }
    }

    /// Notes that there is a node in this bucket.
    fn enter(&mut self, item: &Item) -> Result<(), Finding> {
        let place = self.place(item);
        if let Some(owner) =
            self.view.assign_bucket(item.pointer.bucket(self.geometry.bucket_sectors), Owner::Node)
        {
            let detail = format!("node {} is in a bucket of: {}", item.key, owner.word());
            return Err(Finding::new(FindingKind::NodeTwice, place, detail));
        }
        self.seen.push((item.pointer, Self::interval(item)));
        let start = self.geometry.bucket_start(item.pointer.bucket(self.geometry.bucket_sectors));
        let end = item.pointer.offset - start + u64::from(item.key.sectors);
        self.view.node_sectors = self.view.node_sectors.max(end);
        Ok(())
    }

    fn parse(&self, item: &Item, bytes: &RangeBytes<'_>) -> Result<ParsedNode, Finding> {
        let place = self.place(item);
        let unreadable = |why: &str| {
            Finding::new(FindingKind::Unreadable, place, format_args!("btree node: {why}"))
        };
        let (bytes, holes) = bytes.map_err(unreadable)?;
        let node = parse_node(&self.geometry, &item.key, bytes)
            .map_err(|error| Finding::new(FindingKind::NodeDamaged, place.plus(error.at), error))?;
        // A log ends at a block that is readable and not of it: what can't be read behind that was
        // never written.
        match holes.first() {
            Some(hole) if hole.start <= node.used_bytes => Err(unreadable("a part of it")),
            _ => Ok(node),
        }
    }

    fn check_place(&mut self, item: &Item, place: Location) {
        let start = self.geometry.bucket_start(item.pointer.bucket(self.geometry.bucket_sectors));
        let bytes = u64::from(item.key.sectors) * SECTOR_BYTES;
        if item.pointer.offset != start || bytes != self.geometry.node_bytes() {
            let detail = format!(
                "a node of {bytes} bytes at sector {} of its bucket, expected {} at 0",
                item.pointer.offset - start,
                self.geometry.node_bytes()
            );
            self.visitor.finding(Finding::new(FindingKind::NodeSize, place, detail));
        }
    }

    fn interior(&mut self, item: &Item, node: ParsedNode, children: &mut Vec<Item>) {
        let place = self.place(item);
        if node.bsets.iter().any(|keys| !keys.is_sorted_by_key(Key::position)) {
            self.visitor.finding(Finding::new(
                FindingKind::BsetOrder,
                place,
                "keys of an inner node are not in order",
            ));
            self.mark_uncertain(Self::interval(item));
        }
        let mut keys = combine_interior(node.bsets);
        keys.retain(|key| match key.check_node(&self.geometry) {
            Ok(()) => {
                self.view.raise_key(key);
                true
            }
            Err(error) => {
                self.visitor.finding(Finding::new(
                    FindingKind::NodeKey,
                    place,
                    format_args!("child {key}: {error}"),
                ));
                self.view.uncertainty.tree.push(Self::interval(item));
                self.view.complete = false;
                false
            }
        });
        self.check_ages(&keys, place);
        let mut after = item.after;
        let unexplained = self.stale_without_reason(&keys, node.used_bytes > 0);
        for key in keys.into_iter().filter(|key| !key.is_zero()) {
            let position = key.position();
            let Some(pointer) =
                key.pointer().filter(|pointer| self.view.staleness(*pointer) == Some(0))
            else {
                if position > after
                    && key.pointer().is_some_and(|pointer| unexplained.contains(&pointer))
                {
                    let detail = format!("child {key} is stale, and its parent never freed it");
                    self.visitor.finding(Finding::new(FindingKind::NodeStale, place, detail));
                    self.lose(after, position);
                    self.mark_uncertain(Lost { after, upto: position });
                    after = position;
                }
                continue;
            };
            if position == after && after != item.after {
                let detail = format!("child {key} overlaps another one");
                self.visitor.finding(Finding::new(FindingKind::NodeEqual, place, detail));
                continue;
            }
            if position <= after {
                let detail = format!(
                    "child {key} is outside of its parent, which begins after {}:{}",
                    after.0, after.1
                );
                self.visitor.finding(Finding::new(FindingKind::NodeKey, place, detail));
                self.mark_uncertain(Self::interval(item));
                self.view.complete = false;
                continue;
            }
            children.push(Item { key, pointer, after, certain: item.certain });
            after = position;
        }
        if after != item.key.position() {
            let detail =
                format!("the children of node {} end at {}:{}", item.key, after.0, after.1);
            self.visitor.finding(Finding::new(FindingKind::NodeGap, place, detail));
            self.lose(after, item.key.position());
        }
    }

    /// Checks the age of pointers of an inner node that lead to no child any more.
    fn check_ages(&mut self, keys: &[Key], place: Location) {
        let bucket = |pointer: Pointer| self.view.bucket(pointer).map(|bucket| bucket.generation);
        let age =
            |pointer: Pointer| Some((self.view.staleness(pointer)?, bucket(pointer)?, pointer));
        let pointers = keys.iter().filter_map(Key::pointer).filter_map(age);
        let outrun = |(_, bucket, pointer): &(u8, Generation, Pointer)| {
            self.view.reach.is_outrun(*bucket, pointer.generation)
        };
        let (number, oldest) = pointers
            .clone()
            .filter(outrun)
            .fold((0, 0), |(number, oldest), (age, ..)| (number + 1, age.max(oldest)));
        let age = pointers.map(|(age, ..)| age).max().unwrap_or(0);
        self.view.ages.nodes = self.view.ages.nodes.max(age);
        if number > 0 {
            let detail = format!(
                "{number} pointers to nodes that were freed, behind by up to {oldest} generations"
            );
            self.visitor.finding(Finding::new(FindingKind::NodeOutrun, place, detail));
        } else if age > STALE_NOTE {
            let detail =
                format!("a pointer to a node that was freed is behind by {age} generations");
            self.visitor.finding(Finding::new(FindingKind::NodeNearlyOutrun, place, detail));
        }
    }

    /// Stale children whose parent has no key that says so. A node is freed by a key in its parent,
    /// and a parent that was written anew does not name it any more (docs/reference/format.md
    /// §5.8).
    fn stale_without_reason(&self, keys: &[Key], whole: bool) -> Vec<Pointer> {
        let bucket = |pointer: Pointer| pointer.bucket(self.geometry.bucket_sectors);
        let stale = keys.iter().filter(|key| whole && !key.is_zero()).filter_map(Key::pointer);
        let stale =
            stale.filter(|pointer| self.view.staleness(*pointer).is_some_and(|stale| stale > 0));
        let reason = |child: &Pointer| {
            keys.iter().filter_map(Key::pointer).any(|other| {
                bucket(other) == bucket(*child)
                    && other.generation.staleness_of(child.generation) > 0
            })
        };
        stale.filter(|child| !reason(child)).collect()
    }

    fn leaf(&mut self, item: &Item, node: ParsedNode) {
        let place = self.place(item);
        let ordered = node.bsets.iter().all(|keys| {
            let mut last = START;
            keys.iter().filter(|key| key.sectors > 0).all(|key| {
                let follows = (key.inode, key.start()) >= last;
                last = key.position();
                follows
            })
        });
        if !ordered {
            self.visitor.finding(Finding::new(
                FindingKind::BsetOrder,
                place,
                "extents of a leaf overlap or are not in order",
            ));
            self.mark_uncertain(Self::interval(item));
        }
        let mut keys = combine_leaf(node.bsets);
        keys.retain(|key| match key.check_extent(&self.geometry) {
            Ok(()) => {
                self.raised |= self.view.raise_key(key);
                true
            }
            Err(error) => {
                let place = place.of_volume(key.inode, key.range());
                self.visitor.finding(Finding::new(
                    FindingKind::ExtentInvalid,
                    place,
                    format_args!("{key}: {error}"),
                ));
                self.view.uncertainty.tree.push(Self::interval(item));
                self.view.complete = false;
                false
            }
        });
        let inside = |key: &Key| (key.inode, key.start()) >= item.after;
        for key in keys.iter().filter(|key| !inside(key)) {
            if key.pointer().is_some_and(|pointer| self.view.staleness(pointer) == Some(0)) {
                let detail = format!(
                    "{key} begins before its leaf, which begins at {}:{}",
                    item.after.0, item.after.1
                );
                let place = place.of_volume(key.inode, key.range());
                self.visitor.finding(Finding::new(FindingKind::ExtentOutside, place, detail));
                self.mark_uncertain(Lost { after: (key.inode, key.start()), upto: key.position() });
            }
        }
        let keys = keys.iter().filter_map(|key| cut(key, item.after, item.key.position()));
        self.merge_journal(item, keys.map(|key| Extent::new(&key, false)).collect());
    }

    /// Adds the extents of a leaf, with those of the journal over them.
    fn merge_journal(&mut self, item: &Item, extents: Vec<Extent>) {
        let over: Vec<Extent> =
            between(self.replay.extents(), item.after, item.key.position()).collect();
        if over.is_empty() {
            self.view.extents.extend_from_slice(&extents);
            self.leaves.done(extents);
        } else {
            self.view.extents.extend(combine_leaf(vec![extents, over]));
        }
        self.replayed = self.replayed.max(item.key.position());
    }

    /// Adds up the extents that were kept, and drops them.
    fn add_kept(&mut self, builder: Option<&TotalsBuilder>) {
        let Some(builder) = builder.filter(|_| !self.view.extents.is_empty()) else { return };
        let extents = &self.view.extents;
        let volumes = builder.add(|sink| extents.iter().for_each(|extent| sink.add(extent)));
        add_volumes(&mut self.volumes, &volumes.unwrap_or_default());
        self.view.extents.clear();
    }

    /// Takes the journaled keys up to a position, which have no leaf.
    fn replay_upto(&mut self, upto: Position) {
        if self.replayed < upto {
            self.view.extents.extend(between(self.replay.extents(), self.replayed, upto));
            self.replayed = upto;
        }
    }

    /// Checks that no node that was read is stale, now that all pointers are known.
    fn end(&mut self) {
        for (pointer, interval) in std::mem::take(&mut self.seen) {
            if let Some(stale @ 1..) = self.view.staleness(pointer) {
                let detail = format!("the node at {pointer} is stale by {stale}");
                let place = Location::cache(&self.geometry, pointer.offset);
                self.visitor.finding(Finding::new(FindingKind::NodeStale, place, detail));
                self.mark_uncertain(interval);
            }
        }
    }
}
