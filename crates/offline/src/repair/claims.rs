//! Versions of the parts that are not certain, from damaged nodes and from nodes that nothing names
//! any more.

use ubcache_env::local::join_all;
use ubcache_env::{Device, SectorRange};
use ubcache_format::{BucketNr, Generation, Key, Pointer, SECTOR_BYTES, combine_leaf, parse_node};

use super::region::Region;
use super::uncertain::Uncertain;
use crate::io::progress::{Phase, Watcher};
use crate::io::read::read;
use crate::set::{Extent, Owner, View};

/// Buckets that are looked at together.
const AT_ONCE: u32 = 64;

/// A node names this extent.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    pub extent: Extent,
}

/// Looks for nodes in all buckets that nothing names: older versions, and nodes whose parents are
/// lost. Returns the extents that they name as dirty, and the buckets of the nodes.
pub(crate) async fn scan<D: Device>(
    cache: &D,
    view: &View,
    watcher: &dyn Watcher,
) -> (Vec<Claim>, Vec<BucketNr>) {
    let geometry = view.geometry;
    let block = u64::from(geometry.block_sectors.max(1));
    let first = geometry.first_bucket;
    let phase = Phase::new(
        watcher,
        "looking for lost nodes",
        u64::from(geometry.buckets.saturating_sub(first)) * block * SECTOR_BYTES,
    );
    let magic = geometry.bset_magic().to_le_bytes();
    let (mut claims, mut nodes) = (Vec::new(), Vec::new());
    let mut start = first;
    while start < geometry.buckets {
        let end = (start + AT_ONCE).min(geometry.buckets);
        let wanted: Vec<u32> = (start..end)
            .filter(|number| {
                let owner = view.buckets.get(*number as usize).map(|bucket| bucket.owner);
                !matches!(owner, Some(Owner::Node | Owner::Journal | Owner::Prio | Owner::Uuids))
            })
            .collect();
        let reads = wanted
            .iter()
            .map(|number| read(cache, geometry.bucket_start(BucketNr(*number)), block));
        for (number, bytes) in wanted.iter().zip(join_all(reads.collect::<Vec<_>>()).await) {
            phase.add(block * SECTOR_BYTES);
            let bucket = BucketNr(*number);
            let seems =
                bytes.is_ok_and(|bytes| bytes.as_slice().get(8..16) == Some(magic.as_slice()));
            let sectors = geometry.node_bytes() / SECTOR_BYTES;
            if seems && let Ok(bytes) = read(cache, geometry.bucket_start(bucket), sectors).await {
                let found = of_node(view, bucket, bytes.as_slice());
                if !found.is_empty() {
                    nodes.push(bucket);
                    claims.extend(found);
                }
            }
        }
        start = end;
    }
    (claims, nodes)
}

/// Returns the extents that a node names as dirty, unless the generation of its bucket shows that
/// it is an older version.
fn of_node(view: &View, bucket: BucketNr, bytes: &[u8]) -> Vec<Claim> {
    let geometry = &view.geometry;
    let Some(known) = view.buckets.get(bucket.0 as usize) else { return Vec::new() };
    let sectors = u16::try_from(geometry.node_bytes() / SECTOR_BYTES).unwrap_or(u16::MAX);
    let node = (0..=u8::MAX).map(Generation).find_map(|generation| {
        if known.known && known.generation.staleness_of(generation) > 0 {
            return None;
        }
        let pointer = Pointer { device: 0, offset: geometry.bucket_start(bucket), generation };
        parse_node(geometry, &Key::max_node(sectors, pointer), bytes).ok()
    });
    let Some(node) = node else { return Vec::new() };
    let keys = combine_leaf(node.bsets).into_iter();
    keys.filter(|key| key.dirty && key.pointer().is_some() && key.check_extent(geometry).is_ok())
        .map(|key| Claim { extent: Extent::new(&key, false) })
        .collect()
}

/// The uncertain parts of all volumes, each with the places that are claimed for it.
pub(crate) fn pieces(view: &View, doubtful: &Region, mut claims: Vec<Claim>) -> Vec<Uncertain> {
    claims.sort_by_key(|claim| (claim.extent.inode(), claim.extent.range().start));
    let live = view.uuids.iter().enumerate().filter(|(_, slot)| slot.is_live());
    let mut inodes: Vec<_> = live.map(|(slot, _)| ubcache_format::Inode(slot as u32)).collect();
    inodes.extend(claims.iter().map(|claim| claim.extent.inode()));
    inodes.sort_unstable();
    inodes.dedup();
    let mut result = Vec::new();
    for inode in inodes {
        let from = claims.partition_point(|claim| claim.extent.inode() < inode);
        let upto = claims.partition_point(|claim| claim.extent.inode() <= inode);
        let mut next = claims[from..upto].iter().peekable();
        let mut open: Vec<Extent> = Vec::new();
        for range in doubtful.in_volume(inode) {
            let mut at = range.start;
            while at < range.end {
                while let Some(claim) = next.next_if(|claim| claim.extent.range().start <= at) {
                    open.push(claim.extent);
                }
                open.retain(|extent| extent.range().end > at);
                let ends = open.iter().map(|extent| extent.range().end).min().unwrap_or(range.end);
                let begins = next.peek().map_or(range.end, |claim| claim.extent.range().start);
                let end = ends.min(begins).min(range.end);
                push(&mut result, inode, SectorRange::from_bounds(at, end), &open);
                at = end;
            }
        }
    }
    result
}

fn push(
    result: &mut Vec<Uncertain>,
    inode: ubcache_format::Inode,
    range: SectorRange,
    open: &[Extent],
) {
    let mut places: Vec<Pointer> = open
        .iter()
        .filter_map(|extent| Some(extent.pointer()?.advance(range.start - extent.range().start)))
        .collect();
    places.sort_unstable_by_key(|pointer| pointer.word());
    places.dedup();
    result.push(Uncertain { inode, range, places });
}
