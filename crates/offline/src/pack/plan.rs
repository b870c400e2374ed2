//! Parts of a device that have metadata: those that the walk has named, and those that look like
//! it.

use ubcache_env::Device;
use ubcache_env::local::join_all;
use ubcache_format::{
    BucketNr, SECTOR_BYTES, SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR, Sector, SectorRange, parse_prio,
};

use super::blank;
use crate::io::progress::{Phase, Watcher};
use crate::io::read::read;
use crate::set::{Owner, View};

/// Buckets that are looked at together.
const AT_ONCE: u32 = 64;
/// Bytes of a bucket by which a volume table is known.
const LOOKED_AT: u64 = 4096;

/// Kind of a part of the device.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Part {
    Superblock,
    Journal,
    Prio,
    Table,
    Node,
    /// A prio set that nothing names; so with the next two.
    FoundPrio,
    FoundTable,
    FoundNode,
}

/// A part of the device, and what it is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Planned {
    pub part: Part,
    pub range: SectorRange,
}

/// The superblock, which is there even where nothing else is known.
pub(super) fn of_superblock() -> Planned {
    let range = SectorRange::new(SUPERBLOCK_SECTOR, SUPERBLOCK_BYTES as u64 / SECTOR_BYTES);
    Planned { part: Part::Superblock, range }
}

/// All parts, in order and without overlaps. Memory: 24 bytes a bucket of metadata.
pub(super) async fn plan<D: Device>(cache: &D, view: &View, watcher: &dyn Watcher) -> Vec<Planned> {
    let geometry = view.geometry;
    let mut planned = vec![of_superblock()];
    let from_start = |number: u32, sectors: u64| {
        SectorRange::new(
            geometry.bucket_start(BucketNr(number)),
            sectors.min(geometry.bucket_sectors.into()),
        )
    };
    let metadata = geometry.metadata_bytes() / SECTOR_BYTES;
    let node = (geometry.node_bytes() / SECTOR_BYTES).max(view.node_sectors);
    let looked_at = (LOOKED_AT / SECTOR_BYTES).min(geometry.bucket_sectors.into());
    let total = u64::from(geometry.buckets.saturating_sub(geometry.first_bucket))
        * looked_at
        * SECTOR_BYTES;
    let phase = Phase::new(watcher, "looking for more metadata", total);
    let mut start = geometry.first_bucket;
    while start < geometry.buckets {
        let end = start.saturating_add(AT_ONCE).min(geometry.buckets);
        let mut parts: Vec<Planned> = Vec::new();
        let mut unknown = Vec::new();
        for number in start..end {
            let owner =
                view.buckets.get(number as usize).map_or(Owner::Free, |bucket| bucket.owner);
            let (part, sectors) = match owner {
                Owner::Journal => (Part::Journal, geometry.bucket_sectors.into()),
                Owner::Prio => (Part::Prio, metadata),
                Owner::Uuids => (Part::Table, table_sectors(view, metadata)),
                Owner::Node => (Part::Node, node),
                Owner::Free | Owner::Clean | Owner::Dirty => {
                    unknown.push(number);
                    continue;
                }
            };
            parts.push(Planned { part, range: from_start(number, sectors) });
        }
        let reads = unknown
            .iter()
            .map(|number| read(cache, geometry.bucket_start(BucketNr(*number)), looked_at));
        let blocks = join_all(reads.collect::<Vec<_>>()).await;
        for (number, block) in unknown.into_iter().zip(blocks) {
            let Ok(block) = block else { continue };
            let block = block.as_slice();
            let word = block.get(8..16).unwrap_or_default();
            let (part, sectors) = if word == geometry.bset_magic().to_le_bytes() {
                (Part::FoundNode, node)
            } else if word == geometry.prio_magic().to_le_bytes() {
                let whole = read(cache, geometry.bucket_start(BucketNr(number)), metadata).await;
                if !whole.is_ok_and(|bytes| parse_prio(&geometry, bytes.as_slice()).is_ok()) {
                    continue;
                }
                (Part::FoundPrio, metadata)
            } else if blank::seems_table(block) {
                (Part::FoundTable, metadata)
            } else {
                continue;
            };
            parts.push(Planned { part, range: from_start(number, sectors) });
        }
        parts.sort_unstable_by_key(|part| part.range.start);
        planned.append(&mut parts);
        phase.add(u64::from(end - start) * looked_at * SECTOR_BYTES);
        start = end;
    }
    planned
}

/// Returns the sectors of its bucket that the volume table takes, at any place that its key may
/// name.
fn table_sectors(view: &View, metadata: u64) -> u64 {
    let key = view.journal.newest().map(|newest| &newest.entry.uuid_bucket);
    let named = key.and_then(|key| {
        let pointer = key.pointer()?;
        let start = view.geometry.bucket_start(pointer.bucket(view.geometry.bucket_sectors));
        Some(pointer.offset - start + u64::from(key.sectors))
    });
    named.unwrap_or(0).max(metadata)
}

/// The pieces of a range that go into chunks.
pub(super) fn cut(range: SectorRange, sectors: u64) -> impl Iterator<Item = SectorRange> {
    (0..range.sectors().div_ceil(sectors)).map(move |index| {
        let start = range.start.0 + index * sectors;
        SectorRange::from_bounds(Sector(start), Sector((start + sectors).min(range.end.0)))
    })
}
