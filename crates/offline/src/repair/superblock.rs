//! Finds a lost superblock again, from everything else on the device.
//!
//! The magic numbers of journal entries give half of the set's UUID, and a backing device, or what
//! is left of the superblock, all of it. Sizes are tried: with the right ones the newest entry's
//! prio chain has a right checksum, and its root is where nodes are.

use std::collections::BTreeMap;

use ubcache_env::Device;
use ubcache_format::{
    Geometry, JournalEntry, Key, Replacement, Runs, SECTOR_BYTES, SUPERBLOCK_BYTES,
    SUPERBLOCK_SECTOR, Sector, Superblock, Uuid, crc64_we, parse_entry, parse_node, parse_prio,
    scan_bucket,
};

use crate::io::progress::{Phase, Watcher};
use crate::io::read::{read, read_around};

/// Bytes that are searched for the journal: 256 buckets of 4 MiB would be more, but then the first
/// ones will do.
const SEARCHED_BYTES: u64 = 1 << 30;
const PIECE_SECTORS: u64 = 2048;
/// Sizes of blocks, in sectors. Where several fit, all that was ever written fits the largest.
const BLOCKS: [u32; 4] = [8, 4, 2, 1];

/// Looks for a superblock that fits the rest of the device. Returns it with the way in which it was
/// found.
pub(crate) async fn search<D: Device>(
    cache: &D,
    backings: &[Superblock],
    watcher: &dyn Watcher,
) -> Option<(Superblock, String)> {
    let bytes = read_around(cache, SUPERBLOCK_SECTOR, SUPERBLOCK_BYTES as u64 / SECTOR_BYTES).await;
    let left: Vec<u8> =
        bytes.map(|read| read.0.as_slice().to_vec()).unwrap_or(vec![0; SUPERBLOCK_BYTES]);
    let found = journal_entries(cache, watcher).await;
    // Entries of an earlier set may be left over; those of this one are more.
    let (&magic, most) = found.iter().max_by_key(|(_, set)| set.entries)?;
    let newest = (most.at, &most.newest);
    let set = backings.iter().map(|backing| backing.set_uuid).chain([uuid_at(&left, 56)]);
    let set_uuid = set.into_iter().find(|uuid| uuid.set_magic() == magic)?;
    let uuid = Some(uuid_at(&left, 40)).filter(|uuid| !uuid.is_zero()).unwrap_or(set_uuid);
    let sectors = cache.limits().sectors;
    let left_block = u16::from_le_bytes([
        left.get(192).copied().unwrap_or(0),
        left.get(193).copied().unwrap_or(0),
    ]);
    let (device, backing_block) =
        (cache.limits(), backings.iter().map(|backing| backing.block_sectors).min());
    let mut best: Option<(usize, Superblock)> = None;
    for bucket_log in 3..20 {
        let bucket_sectors = 1_u32 << bucket_log;
        let Ok(buckets) = u32::try_from(sectors / u64::from(bucket_sectors)) else { continue };
        for buckets in [number_at(&left, 184).min(buckets), buckets] {
            for block_sectors in [u32::from(left_block)].into_iter().chain(BLOCKS) {
                let Some(superblock) =
                    build(uuid, set_uuid, block_sectors, bucket_sectors, buckets, &left)
                else {
                    continue;
                };
                let possible =
                    superblock.check_device(device.sectors, device.logical_block_bytes).is_ok();
                if !possible || backing_block.is_some_and(|limit| block_sectors > limit) {
                    continue;
                }
                let fits = fitness(cache, &superblock, newest.1, newest.0).await;
                if fits > best.as_ref().map_or(0, |best| best.0) {
                    best = Some((fits, superblock));
                }
            }
        }
    }
    let (_, superblock) = best?;
    let how = format!(
        "found again: blocks of {} and buckets of {} sectors, {} buckets, set {set_uuid}",
        superblock.block_sectors, superblock.bucket_sectors, superblock.nbuckets
    );
    Some((superblock, how))
}

fn number_at(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 8).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
    u32::try_from(word.map_or(0, u64::from_le_bytes)).unwrap_or(u32::MAX)
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    let bytes = bytes.get(at..at + 16).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    Uuid(bytes.unwrap_or_default())
}

/// A superblock with these sizes; all else is as it was made first.
fn build(
    uuid: Uuid,
    set_uuid: Uuid,
    block_sectors: u32,
    bucket_sectors: u32,
    buckets: u32,
    left: &[u8],
) -> Option<Superblock> {
    let mut superblock = Superblock::new_cache(
        uuid,
        set_uuid,
        block_sectors,
        bucket_sectors,
        buckets,
        Replacement::Lru,
        false,
    );
    superblock.version = superblock.version.max(3);
    superblock.set_sync(true);
    superblock.seq = u64::from(number_at(left, 112)).saturating_add(1).min(1 << 20);
    // Run numbers of the disks are unknown: accept any.
    superblock.set_runs(&Runs::accepting_any());
    superblock.journal_buckets = Geometry::default_journal_buckets(buckets);
    Superblock::parse(&superblock.encode()).ok()
}

/// Counts the structures named by the newest entry that are in their place; 0 if the sizes can't be
/// right.
async fn fitness<D: Device>(
    cache: &D,
    superblock: &Superblock,
    newest: &JournalEntry,
    at: Sector,
) -> usize {
    let geometry = superblock.geometry();
    let ring = geometry.bucket_of(at).0.wrapping_sub(geometry.first_bucket);
    if ring >= geometry.journal_buckets || newest.root.check_node(&geometry).is_err() {
        return 0;
    }
    let journal = geometry.journal_bucket(ring);
    let sectors = u64::from(geometry.bucket_sectors);
    let Ok((bytes, _)) = read_around(cache, geometry.bucket_start(journal), sectors).await else {
        return 0;
    };
    // With another size of blocks the way to the newest entry leads past it.
    let mut fits = scan_bucket(&geometry, bytes.as_slice()).len();
    if !scan_bucket(&geometry, bytes.as_slice()).iter().any(|(_, entry)| entry.seq == newest.seq) {
        return 0;
    }
    for index in (0..geometry.journal_buckets).filter(|index| *index != ring) {
        let at = geometry.bucket_start(geometry.journal_bucket(index));
        if let Ok((bytes, _)) = read_around(cache, at, sectors).await {
            fits += scan_bucket(&geometry, bytes.as_slice()).len();
        }
    }
    if !geometry.is_usable(newest.prio_bucket) {
        return 0;
    }
    let sectors = geometry.metadata_bytes() / SECTOR_BYTES;
    if let Ok(bytes) = read(cache, geometry.bucket_start(newest.prio_bucket), sectors).await
        && parse_prio(&geometry, bytes.as_slice()).is_ok()
    {
        fits += 4;
    }
    if let Some(pointer) = newest.root.pointer()
        && u64::from(newest.root.sectors) * SECTOR_BYTES == geometry.node_bytes()
        && let Ok(bytes) = read(cache, pointer.offset, u64::from(newest.root.sectors)).await
    {
        fits += 1;
        if let Ok(node) = parse_node(&geometry, &newest.root, bytes.as_slice()) {
            fits += 2;
            // The children, with the same sizes: a block that is too small or too large fails in
            // one of them.
            for key in node.bsets.iter().flatten().filter(|_| newest.root_level > 0).take(64) {
                fits += 8 * usize::from(parses(cache, &geometry, key).await);
            }
        }
    }
    fits
}

async fn parses<D: Device>(cache: &D, geometry: &Geometry, key: &Key) -> bool {
    let Some(pointer) = key.pointer().filter(|_| key.check_node(geometry).is_ok()) else {
        return false;
    };
    match read(cache, pointer.offset, u64::from(key.sectors)).await {
        Ok(bytes) => parse_node(geometry, key, bytes.as_slice()).is_ok(),
        Err(_) => false,
    }
}

/// The journal entries of one set.
struct Entries {
    entries: u64,
    newest: JournalEntry,
    /// Place of the newest entry.
    at: Sector,
}

/// All that has the checksum of a journal entry, by the first half of the set's UUID.
async fn journal_entries<D: Device>(cache: &D, watcher: &dyn Watcher) -> BTreeMap<u64, Entries> {
    // Any geometry will do to read the entry: its magic number comes from the entry itself.
    let shape = Geometry {
        set_magic: 0,
        bucket_sectors: 64,
        block_sectors: 1,
        buckets: u32::MAX,
        first_bucket: 0,
        journal_buckets: 1,
    };
    let end = cache.limits().sectors.min(SEARCHED_BYTES / SECTOR_BYTES);
    let phase = Phase::new(watcher, "looking for the journal", end * SECTOR_BYTES);
    let mut found: BTreeMap<u64, Entries> = BTreeMap::new();
    let mut at = 8;
    while at < end {
        // An entry may go on in the next piece.
        let sectors = (PIECE_SECTORS + 64).min(cache.limits().sectors - at);
        phase.add(PIECE_SECTORS * SECTOR_BYTES);
        if let Ok((bytes, _)) = read_around(cache, Sector(at), sectors).await {
            let bytes = bytes.as_slice();
            for index in 0..PIECE_SECTORS.min(sectors) {
                let rest = bytes.get((index * SECTOR_BYTES) as usize..).unwrap_or_default();
                let word = |at: usize| {
                    rest.get(at..at + 8)
                        .and_then(|b| <[u8; 8]>::try_from(b).ok())
                        .map_or(0, u64::from_le_bytes)
                };
                let words = word(24) >> 32;
                let length = 240 + 8 * words;
                if word(16) == 0 || length > 32768 || word(24) as u32 > 1 {
                    continue;
                }
                let covered = rest.get(8..length as usize);
                if covered.is_none_or(|covered| crc64_we(covered) != word(0)) {
                    continue;
                }
                let magic = word(8) ^ shape.journal_magic();
                let shape = Geometry { set_magic: magic, ..shape };
                if let Ok((entry, _)) = parse_entry(&shape, rest) {
                    let at = Sector(at + index);
                    let set = found.entry(magic).or_insert(Entries {
                        entries: 0,
                        newest: entry.clone(),
                        at,
                    });
                    set.entries += 1;
                    if entry.seq > set.newest.seq {
                        (set.newest, set.at) = (entry, at);
                    }
                }
            }
        }
        at += PIECE_SECTORS;
    }
    found
}
