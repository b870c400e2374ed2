//! The check of a whole set: the walk's findings, the backing devices' superblocks, and whether clean extents are
//! what the backing devices have.
//!
//! Every image that a power failure leaves of a running set is free of errors: a torn end of the journal, unwritten
//! leaves and pointers ahead are in order. Only reads; nothing on any device is changed.

use ubcache_env::local::join_all;
use ubcache_env::{Device, SectorRange};
use ubcache_format::{
    BackingState, Geometry, Inode, Pointer, SECTOR_BYTES, SUPERBLOCK_SECTOR, Sector, Superblock, compare_runs,
};

use crate::disk::{Phase, Watcher, read};
use crate::finding::{Finding, Kind, Place, Report, Site, Stats};
use crate::view::{Extent, Lost, Owner, View, VolumeSums};
use crate::walk::{PrioElement, Visitor, Way, read_superblock, walk, walk_the};
use crate::{Journal, NodeVisit};
use ubcache_format::{Key, UuidEntry};

/// Sectors that are compared in one piece.
const PIECE_SECTORS: u64 = 512;
/// Pieces under way at once.
const PIECES_AT_ONCE: usize = 16;

/// Checks a set. `backing` are some or all of its backing devices; clean extents are compared with them.
pub async fn check_set<D: Device>(cache: &D, backing: &[&D]) -> Report {
    check_report(cache, backing, true, &()).await.0
}

/// As [`check_set`], with somebody who is told how far the work is, and where the tree could not be read; without
/// `with_data` none is read and compared. Where no data has to be, no extent is kept in memory, unless there is something
/// to say of one.
pub async fn check_report<D: Device>(
    cache: &D,
    backing: &[&D],
    with_data: bool,
    watcher: &dyn Watcher,
) -> (Report, Vec<Lost>) {
    if backing.is_empty()
        && let Some(report) = check_sums(cache, watcher).await
    {
        return (report, Vec::new());
    }
    let (report, view) = check(cache, backing, with_data, &mut (), watcher).await;
    (report, view.map(|view| view.lost).unwrap_or_default())
}

/// The check of a set by the sums of its extents; nothing if there is anything to say of one.
async fn check_sums<D: Device>(cache: &D, watcher: &dyn Watcher) -> Option<Report> {
    let mut visitor = Collector { report: Report::default(), next: &mut () };
    let way = Way { sums_only: true, ..Way::default() };
    if let Some(view) = walk_the(way, cache, &mut visitor, watcher).await {
        let named = |volume: &VolumeSums| {
            let slot = view.uuids.get(volume.inode.0 as usize);
            slot.is_some_and(|slot| slot.is_live() && !(slot.flash_only && volume.clean_sectors > 0))
        };
        if view.given_up || !view.complete || !view.volumes.iter().all(named) {
            return None;
        }
        check_absent(&view, &vec![false; view.uuids.len()], &mut visitor);
        visitor.report.stats = stats(&view, 0);
    }
    Some(visitor.report)
}

/// Passes everything on to another visitor and keeps the findings.
struct Collector<'a, V: Visitor + ?Sized> {
    report: Report,
    next: &'a mut V,
}

impl<V: Visitor + ?Sized> Visitor for Collector<'_, V> {
    fn superblock(&mut self, superblock: &Superblock) {
        self.next.superblock(superblock);
    }
    fn journal(&mut self, geometry: &Geometry, journal: &Journal) {
        self.next.journal(geometry, journal);
    }
    fn prio(&mut self, element: &PrioElement<'_>) {
        self.next.prio(element);
    }
    fn uuids(&mut self, key: &Key, slots: &[UuidEntry]) {
        self.next.uuids(key, slots);
    }
    fn node(&mut self, node: &NodeVisit<'_>) {
        self.next.node(node);
    }
    fn sees_leaves(&self) -> bool {
        self.next.sees_leaves()
    }
    fn finding(&mut self, finding: Finding) {
        self.next.finding(finding.clone());
        self.report.push(finding);
    }
}

/// As [`check_set`], with somebody who sees everything, somebody who is told how far the work is, and the view of the
/// set, if it has one.
pub async fn check_set_watched<D: Device, V: Visitor + ?Sized>(
    cache: &D,
    backing: &[&D],
    visitor: &mut V,
    watcher: &dyn Watcher,
) -> (Report, Option<View>) {
    check(cache, backing, true, visitor, watcher).await
}

/// As [`check_set_watched`], but no data is read and compared: what can be checked of a pack.
pub async fn check_set_metadata<D: Device, V: Visitor + ?Sized>(
    cache: &D,
    backing: &[&D],
    visitor: &mut V,
    watcher: &dyn Watcher,
) -> (Report, Option<View>) {
    check(cache, backing, false, visitor, watcher).await
}

async fn check<D: Device, V: Visitor + ?Sized>(
    cache: &D,
    backing: &[&D],
    with_data: bool,
    visitor: &mut V,
    watcher: &dyn Watcher,
) -> (Report, Option<View>) {
    let mut visitor = Collector { report: Report::default(), next: visitor };
    let view = walk(cache, &mut visitor, watcher).await;
    if let Some(view) = &view {
        let mut given = vec![false; view.uuids.len()];
        for (index, device) in backing.iter().enumerate() {
            let attached = check_backing(view, *device, index, &mut visitor).await;
            if let Some((inode, superblock, apart)) = attached {
                if let Some(given) = given.get_mut(inode.0 as usize) {
                    *given = true;
                }
                let inside = inside(*device, &superblock);
                check_bounds(view, inode, inside, &mut visitor);
                if with_data && !apart {
                    compare(view, cache, *device, index, inode, inside, &mut visitor, watcher).await;
                }
            }
        }
        check_absent(view, &given, &mut visitor);
        if with_data {
            read_dirty(view, cache, &given, &mut visitor, watcher).await;
        }
        let stats = stats(view, visitor.report.stats.compared_sectors);
        visitor.report.stats = stats;
    }
    (visitor.report, view)
}

fn stats(view: &View, compared_sectors: u64) -> Stats {
    let first = view.geometry.first_bucket as usize;
    let free = view.buckets.iter().skip(first).filter(|bucket| bucket.owner == Owner::Free);
    let mut stats = Stats {
        journal_entries: view.journal.entries.len() as u64,
        nodes: view.nodes,
        compared_sectors,
        free_buckets: free.count() as u64,
        buckets: view.buckets.len() as u64,
        oldest_data_pointer: view.ages.extents,
        oldest_node_pointer: view.ages.nodes,
        ..Stats::default()
    };
    for volume in &view.volumes {
        stats.extents += volume.extents;
        stats.cached_sectors += volume.clean_sectors + volume.dirty_sectors;
        stats.dirty_sectors += volume.dirty_sectors;
    }
    stats
}

/// Looks at the superblock of a backing device. If what is cached of it counts: its inode, and whether one of the two
/// is a copy of an earlier state.
async fn check_backing<D: Device, V: Visitor + ?Sized>(
    view: &View,
    device: &D,
    index: usize,
    visitor: &mut Collector<'_, V>,
) -> Option<(Inode, Superblock, bool)> {
    let site = Site::Backing(index);
    let place = Place { byte: Some(SUPERBLOCK_SECTOR.bytes()), ..Place::on(site) };
    let superblock = match read_superblock(device, site).await {
        Ok(superblock) => superblock,
        Err(finding) => {
            visitor.finding(finding);
            return None;
        }
    };
    if superblock.is_cache() {
        let detail = format!("a cache device (superblock version {})", superblock.version);
        visitor.finding(Finding::new(Kind::WrongKind, place, detail));
        return None;
    }
    let slot = view.slot(superblock.uuid);
    let dirty = slot.map_or(0, |inode| view.live_of(inode).dirty_sectors);
    let state = superblock.state();
    let here = superblock.set_uuid == view.superblock.set_uuid;
    match state {
        BackingState::Clean | BackingState::Dirty if here => {}
        _ => {
            let set = superblock.set_uuid;
            let detail = format!("its state is {}, its set {set}", state_word(state));
            if dirty > 0 {
                let detail = format!("{detail}; the cache has {dirty} dirty sectors of it");
                visitor.finding(Finding::new(Kind::DirtyVoid, place, detail));
            } else {
                visitor.finding(Finding::new(Kind::BackingElsewhere, place, detail));
            }
            return None;
        }
    }
    if superblock.block_sectors < view.geometry.block_sectors {
        let detail = format!(
            "blocks of {} sectors, those of the cache have {}",
            superblock.block_sectors, view.geometry.block_sectors
        );
        visitor.finding(Finding::new(Kind::BlockTooSmall, place, detail));
    }
    let Some(inode) = slot else {
        // An attach that was cut off leaves the table without the device only if the device does not say "clean" yet.
        if state == BackingState::Dirty {
            let detail = format!("{} has no slot in the volume table", superblock.uuid);
            visitor.finding(Finding::new(Kind::BackingNoSlot, place, detail));
        }
        return None;
    };
    let apart = compare_runs(&view.superblock, inode, &superblock).err();
    if let Some(apart) = apart {
        let detail = format!("{apart}; the cache has {dirty} dirty sectors of it");
        visitor.finding(Finding::new(Kind::OlderCopy, place, detail));
    } else if state == BackingState::Clean && dirty > 0 {
        let detail = format!("its state is clean, and the cache has {dirty} dirty sectors of it");
        visitor.finding(Finding::new(Kind::DirtyUnderClean, place, detail));
    }
    Some((inode, superblock, apart.is_some()))
}

/// The word for a state of a backing device.
pub(crate) fn state_word(state: BackingState) -> &'static str {
    match state {
        BackingState::None => "none",
        BackingState::Clean => "clean",
        BackingState::Dirty => "dirty",
        BackingState::Stale => "stale",
    }
}

fn check_absent<V: Visitor + ?Sized>(view: &View, given: &[bool], visitor: &mut Collector<'_, V>) {
    for ((slot, entry), given) in view.uuids.iter().enumerate().zip(given) {
        let inode = Inode(slot as u32);
        if !entry.is_live() || *given {
            continue;
        }
        if entry.flash_only {
            let clean = view.volume(inode).find(|(extent, _)| !extent.is_dirty());
            if let Some((extent, pointer)) = clean {
                let place = Place::cache(&view.geometry, pointer.offset).of_volume(inode, extent.range());
                visitor.finding(Finding::new(
                    Kind::FlashClean,
                    place,
                    "a clean extent of a flash-only volume",
                ));
            }
            continue;
        }
        let dirty = view.live_of(inode).dirty_sectors;
        if dirty > 0 {
            let detail =
                format!("{dirty} dirty sectors of volume {inode}, whose backing device is {}", entry.uuid);
            visitor.finding(Finding::new(Kind::BackingAbsent, Place::on(Site::Cache), detail));
        }
    }
}

/// Whether the data can be read that only the cache has, of the volumes whose backing devices are `given`.
async fn read_dirty<D: Device, V: Visitor + ?Sized>(
    view: &View,
    cache: &D,
    given: &[bool],
    visitor: &mut Collector<'_, V>,
    watcher: &dyn Watcher,
) {
    if !given.contains(&true) {
        return;
    }
    let live = |extent: &Extent| {
        extent.is_dirty() && given.get(extent.inode().0 as usize).is_some_and(|given| *given)
    };
    let dirty = || view.extents.iter().filter(|extent| live(extent));
    let all = dirty().filter(|extent| view.live(extent).is_some());
    let phase = Phase::new(watcher, "reading dirty data", all.map(|extent| extent.range().bytes()).sum());
    let mut pieces =
        dirty().filter_map(|extent| Some((extent, view.live(extent)?))).flat_map(|(extent, at)| {
            let range = extent.range();
            (0..range.sectors().div_ceil(PIECE_SECTORS)).map(move |index| {
                let start = range.start + index * PIECE_SECTORS;
                let end = (start + PIECE_SECTORS).min(range.end);
                let pointer = at.advance(start - range.start);
                Piece { inode: extent.inode(), range: SectorRange::from_bounds(start, end), pointer }
            })
        });
    loop {
        let some: Vec<Piece> = pieces.by_ref().take(PIECES_AT_ONCE).collect();
        if some.is_empty() {
            return;
        }
        let reads = some.iter().map(|piece| read(cache, piece.pointer.offset, piece.range.sectors()));
        for (piece, bytes) in some.iter().zip(join_all(reads.collect::<Vec<_>>()).await) {
            phase.add(piece.range.bytes());
            if let Err(error) = bytes {
                let place = Place::cache(&view.geometry, piece.pointer.offset);
                let place = place.of_volume(piece.inode, piece.range);
                visitor.finding(Finding::new(Kind::Unreadable, place, format_args!("dirty data: {error}")));
            }
        }
    }
}

/// A piece of an extent.
struct Piece {
    inode: Inode,
    range: SectorRange,
    pointer: Pointer,
}

/// Where the data of a backing device is.
fn inside<D: Device>(device: &D, superblock: &Superblock) -> SectorRange {
    SectorRange::from_bounds(superblock.data_offset(), Sector(device.geometry().sectors))
}

/// Extents that the backing device has no place for.
fn check_bounds<V: Visitor + ?Sized>(
    view: &View,
    inode: Inode,
    inside: SectorRange,
    visitor: &mut Collector<'_, V>,
) {
    for (extent, pointer) in view.volume(inode) {
        let range = extent.range();
        if !inside.covers(&range) {
            let kind = if extent.is_dirty() { Kind::BeyondEndDirty } else { Kind::BeyondEndClean };
            let place = Place::cache(&view.geometry, pointer.offset).of_volume(inode, range);
            let detail = format!("the extent is {range}, the backing device's data {inside}");
            visitor.finding(Finding::new(kind, place, detail));
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "two devices, what is known of them, and who is told")]
async fn compare<D: Device, V: Visitor + ?Sized>(
    view: &View,
    cache: &D,
    backing: &D,
    index: usize,
    inode: Inode,
    inside: SectorRange,
    visitor: &mut Collector<'_, V>,
    watcher: &dyn Watcher,
) {
    let clean: u64 = view.volume(inode).filter(|(e, _)| !e.is_dirty()).map(|(e, _)| e.range().bytes()).sum();
    let phase = Phase::new(watcher, "comparing with the backing device", clean);
    let mut pieces: Vec<Piece> = Vec::new();
    for (extent, pointer) in view.volume(inode) {
        let range = extent.range();
        let both = range.intersect(&inside);
        let mut at = both.start;
        while !extent.is_dirty() && at < both.end {
            let end = (at + PIECE_SECTORS).min(both.end);
            let pointer = pointer.advance(at - range.start);
            pieces.push(Piece { inode, range: SectorRange::from_bounds(at, end), pointer });
            at = end;
            if pieces.len() == PIECES_AT_ONCE {
                compare_pieces(&view.geometry, cache, backing, index, &mut pieces, visitor, &phase).await;
            }
        }
    }
    compare_pieces(&view.geometry, cache, backing, index, &mut pieces, visitor, &phase).await;
}

async fn compare_pieces<D: Device, V: Visitor + ?Sized>(
    geometry: &Geometry,
    cache: &D,
    backing: &D,
    index: usize,
    pieces: &mut Vec<Piece>,
    visitor: &mut Collector<'_, V>,
    phase: &Phase<'_>,
) {
    let reads = pieces.iter().map(async |piece| {
        let sectors = piece.range.sectors();
        let cached = read(cache, piece.pointer.offset, sectors).await;
        (cached, read(backing, piece.range.start, sectors).await)
    });
    let results = join_all(reads.collect::<Vec<_>>()).await;
    for (piece, (cached, backed)) in pieces.drain(..).zip(results) {
        let place = Place::cache(geometry, piece.pointer.offset).of_volume(piece.inode, piece.range);
        phase.add(piece.range.bytes());
        match (cached, backed) {
            (Ok(cached), Ok(backed)) => {
                visitor.report.stats.compared_sectors += piece.range.sectors();
                let pairs = cached.as_slice().chunks(512).zip(backed.as_slice().chunks(512));
                let wrong: Vec<usize> =
                    pairs.enumerate().filter(|(_, (a, b))| a != b).map(|(sector, _)| sector).collect();
                if let (Some(&first), Some(&last)) = (wrong.first(), wrong.last()) {
                    let start = piece.range.start + first as u64;
                    let range = SectorRange::from_bounds(start, piece.range.start + last as u64 + 1);
                    let detail = format!(
                        "{} of the sectors {range} differ between cache and backing device {}",
                        wrong.len(),
                        index + 1
                    );
                    let place = place.plus(first as u64 * SECTOR_BYTES).of_volume(piece.inode, range);
                    visitor.finding(Finding::new(Kind::CleanDiffers, place, detail));
                }
            }
            (Err(error), _) => {
                visitor.finding(Finding::new(Kind::Unreadable, place, format_args!("cached data: {error}")));
            }
            (_, Err(error)) => {
                let place =
                    Place { byte: Some(piece.range.start.bytes()), ..Place::on(Site::Backing(index)) };
                let place = place.of_volume(piece.inode, piece.range);
                visitor.finding(Finding::new(Kind::Unreadable, place, format_args!("backing data: {error}")));
            }
        }
    }
}
