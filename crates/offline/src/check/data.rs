//! Data: dirty data is read, clean data is compared with the backing device.

use ubcache_env::local::join_all;
use ubcache_env::{Buf, Device, SectorRange};
use ubcache_format::{Inode, Pointer, SECTOR_BYTES};

use super::collector::Collector;
use crate::io::progress::{Phase, Watcher};
use crate::io::read::read;
use crate::set::{Extent, Finding, FindingKind, Location, Site, View};
use crate::walk::Visitor;

/// Sectors that are compared in one part.
const PART_SECTORS: u64 = 512;
/// Parts under way at once.
const PARTS_AT_ONCE: usize = 16;

/// Reads all dirty data of the volumes whose backing devices are `given`; an unreadable part is a
/// finding.
pub(super) async fn read_dirty<D: Device>(
    view: &View,
    cache: &D,
    given: &[bool],
    visitor: &mut Collector<'_>,
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
    let phase =
        Phase::new(watcher, "reading dirty data", all.map(|extent| extent.range().bytes()).sum());
    let mut parts =
        dirty().filter_map(|extent| Some((extent, view.live(extent)?))).flat_map(|(extent, at)| {
            let range = extent.range();
            (0..range.sectors().div_ceil(PART_SECTORS)).map(move |index| {
                let start = range.start + index * PART_SECTORS;
                let end = (start + PART_SECTORS).min(range.end);
                let pointer = at.advance(start - range.start);
                ExtentPart {
                    inode: extent.inode(),
                    range: SectorRange::from_bounds(start, end),
                    pointer,
                }
            })
        });
    loop {
        let some: Vec<ExtentPart> = parts.by_ref().take(PARTS_AT_ONCE).collect();
        if some.is_empty() {
            return;
        }
        let reads = some.iter().map(|part| read(cache, part.pointer.offset, part.range.sectors()));
        for (part, bytes) in some.iter().zip(join_all(reads.collect::<Vec<_>>()).await) {
            phase.add(part.range.bytes());
            if let Err(error) = bytes {
                let place = Location::cache(&view.geometry, part.pointer.offset);
                let place = place.of_volume(part.inode, part.range);
                visitor.finding(Finding::new(
                    FindingKind::Unreadable,
                    place,
                    format_args!("dirty data: {error}"),
                ));
            }
        }
    }
}

/// A part of an extent.
struct ExtentPart {
    inode: Inode,
    range: SectorRange,
    pointer: Pointer,
}

/// One backing device, and what the cache has of it.
pub(super) struct Comparison<'a, D: Device> {
    pub view: &'a View,
    pub cache: &'a D,
    pub backing: &'a D,
    /// Number of the backing device in the list that the caller gave.
    pub index: usize,
    pub inode: Inode,
    /// Data of the backing device.
    pub inside: SectorRange,
}

impl<D: Device> Comparison<'_, D> {
    /// Compares all clean extents.
    pub async fn run(&self, visitor: &mut Collector<'_>, watcher: &dyn Watcher) {
        let Comparison { view, inode, inside, .. } = *self;
        let clean: u64 =
            view.volume(inode).filter(|(e, _)| !e.is_dirty()).map(|(e, _)| e.range().bytes()).sum();
        let phase = Phase::new(watcher, "comparing with the backing device", clean);
        let mut parts: Vec<ExtentPart> = Vec::new();
        for (extent, pointer) in view.volume(inode) {
            let range = extent.range();
            let both = range.intersect(&inside);
            let mut at = both.start;
            while !extent.is_dirty() && at < both.end {
                let end = (at + PART_SECTORS).min(both.end);
                let pointer = pointer.advance(at - range.start);
                parts.push(ExtentPart { inode, range: SectorRange::from_bounds(at, end), pointer });
                at = end;
                if parts.len() == PARTS_AT_ONCE {
                    self.compare(&mut parts, visitor, &phase).await;
                }
            }
        }
        self.compare(&mut parts, visitor, &phase).await;
    }

    async fn compare(
        &self,
        parts: &mut Vec<ExtentPart>,
        visitor: &mut Collector<'_>,
        phase: &Phase<'_>,
    ) {
        let reads = parts.iter().map(async |part| {
            let sectors = part.range.sectors();
            let cached = read(self.cache, part.pointer.offset, sectors).await;
            (cached, read(self.backing, part.range.start, sectors).await)
        });
        let results = join_all(reads.collect::<Vec<_>>()).await;
        for (part, (cached, backed)) in parts.drain(..).zip(results) {
            phase.add(part.range.bytes());
            match (cached, backed) {
                (Ok(cached), Ok(backed)) => self.compare_bytes(&part, &cached, &backed, visitor),
                (Err(error), _) => {
                    let place = self.place(&part);
                    let detail = format_args!("cached data: {error}");
                    visitor.finding(Finding::new(FindingKind::Unreadable, place, detail));
                }
                (_, Err(error)) => {
                    let site = Location::on(Site::Backing(self.index));
                    let place = Location { byte: Some(part.range.start.bytes()), ..site };
                    let place = place.of_volume(part.inode, part.range);
                    let detail = format_args!("backing data: {error}");
                    visitor.finding(Finding::new(FindingKind::Unreadable, place, detail));
                }
            }
        }
    }

    fn compare_bytes(
        &self,
        part: &ExtentPart,
        cached: &Buf,
        backed: &Buf,
        visitor: &mut Collector<'_>,
    ) {
        visitor.report.stats.compared_sectors += part.range.sectors();
        let pairs = cached.as_slice().chunks(512).zip(backed.as_slice().chunks(512));
        let wrong: Vec<usize> =
            pairs.enumerate().filter(|(_, (a, b))| a != b).map(|(sector, _)| sector).collect();
        if let (Some(&first), Some(&last)) = (wrong.first(), wrong.last()) {
            let start = part.range.start + first as u64;
            let range = SectorRange::from_bounds(start, part.range.start + last as u64 + 1);
            let detail = format!(
                "{} of the sectors {range} differ between cache and backing device {}",
                wrong.len(),
                self.index + 1
            );
            let place =
                self.place(part).plus(first as u64 * SECTOR_BYTES).of_volume(part.inode, range);
            visitor.finding(Finding::new(FindingKind::CleanDiffers, place, detail));
        }
    }

    fn place(&self, part: &ExtentPart) -> Location {
        Location::cache(&self.view.geometry, part.pointer.offset).of_volume(part.inode, part.range)
    }
}
