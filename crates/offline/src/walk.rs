//! The walk over a set: superblock, journal, prio chain, volume table, every node, and what follows from all of them
//! together (docs/reference/format.md §12).
//!
//! Damage does not stop it as long as there is something left to read: a [`Visitor`] is told of everything that was
//! found, and the [`View`] says which intervals of keys are lost.
//!
//! Memory, all bounded by the size of the device: 8 bytes a bucket; 24 bytes an extent, and 16 more while extents are
//! compared with each other, so about 40 MB a million extents, unless they are only added up; 96 bytes a node; the journal
//! entries that replay needs; 9 MiB of what is read ahead.

use std::sync::Arc;

use ubcache_env::{Device, Sector};
use ubcache_format::{
    BucketNr, Generation, Geometry, JournalEntry, Key, PrioEntry, Reach, SECTOR_BYTES, SUPERBLOCK_BYTES,
    SUPERBLOCK_SECTOR, SectorRange, Superblock, UuidEntry, parse_prio, parse_uuids, parse_uuids_v0,
};

use crate::account::account;
use crate::ahead::{Manner, SPARE_BYTES};
use crate::crew::Crew;
use crate::disk::{Early, Phase, Spare, Watcher, read, read_around};
use crate::finding::{Finding, Kind, Place, Site};
use crate::journal::{Journal, Reading, read_journal};
use crate::leaf::Replay;
use crate::tree::{NodeVisit, Tree, walk_tree};
use crate::view::{Bucket, Extent, Owner, View};

/// Somebody who is shown everything that a walk comes across, in the order in which it is read.
pub trait Visitor {
    /// The superblock of the cache device.
    fn superblock(&mut self, _superblock: &Superblock) {}
    /// The journal.
    fn journal(&mut self, _geometry: &Geometry, _journal: &Journal) {}
    /// An element of the prio chain.
    fn prio(&mut self, _element: &PrioElement<'_>) {}
    /// The volume table, and where it is.
    fn uuids(&mut self, _key: &Key, _slots: &[UuidEntry]) {}
    /// A node of the tree, level by level from the root, in order of keys.
    fn node(&mut self, _node: &NodeVisit<'_>) {}
    /// Whether [`node`](Visitor::node) has to be called for leaves, too. If not, most of them are read faster.
    fn sees_leaves(&self) -> bool {
        true
    }
    /// Something that is worth telling.
    fn finding(&mut self, _finding: Finding) {}
}

/// Nobody.
impl Visitor for () {
    fn sees_leaves(&self) -> bool {
        false
    }
}

/// An element of the prio chain.
#[derive(Debug)]
pub struct PrioElement<'a> {
    /// Where it is.
    pub bucket: BucketNr,
    /// Its number.
    pub seq: u64,
    /// Where the next one is; meaningless in the last.
    pub next: BucketNr,
    /// The bucket that its first entry is about.
    pub first: BucketNr,
    /// The entries, those past the last bucket left out.
    pub entries: &'a [PrioEntry],
}

/// Reads a superblock; the finding says what is wrong with it.
pub(crate) async fn read_superblock<D: Device>(device: &D, site: Site) -> Result<Superblock, Finding> {
    let place = Place { byte: Some(SUPERBLOCK_SECTOR.bytes()), ..Place::on(site) };
    let damaged = |error: ubcache_format::FormatError| {
        Finding::new(Kind::SuperblockDamaged, place.plus(error.at), error)
    };
    let bytes = read(device, SUPERBLOCK_SECTOR, SUPERBLOCK_BYTES as u64 / SECTOR_BYTES)
        .await
        .map_err(|error| Finding::new(Kind::Unreadable, place, format_args!("superblock: {error}")))?;
    let superblock = Superblock::parse(bytes.as_slice()).map_err(damaged)?;
    let geometry = device.geometry();
    let missing = missing(device, &superblock);
    superblock.check_device(geometry.sectors + missing, geometry.logical_block_bytes).map_err(damaged)?;
    if missing > geometry.sectors.saturating_mul(MISSING_MAX) {
        return Err(short(device, &superblock));
    }
    Ok(superblock)
}

/// How much of a cache device may be missing, as a multiple of what is there: memory is asked for by the number of buckets,
/// and the superblock alone is not believed how many there are.
const MISSING_MAX: u64 = 15;

/// The sectors of a cache device that its superblock names, and that are beyond its end.
pub(crate) fn missing<D: Device>(device: &D, superblock: &Superblock) -> u64 {
    if !superblock.is_cache() {
        return 0;
    }
    let needed = u64::from(superblock.nbuckets) * u64::from(superblock.bucket_sectors);
    needed.saturating_sub(device.geometry().sectors)
}

fn short<D: Device>(device: &D, superblock: &Superblock) -> Finding {
    let found = device.geometry().sectors;
    let detail = format!(
        "the device has {found} sectors, and the buckets of the set take {}: {} bytes are missing at its end",
        found + missing(device, superblock),
        missing(device, superblock) * SECTOR_BYTES
    );
    Finding::new(
        Kind::DeviceShort,
        Place { byte: Some(found * SECTOR_BYTES), ..Place::on(Site::Cache) },
        detail,
    )
}

/// What a device is, by its superblock.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    /// A cache device.
    Cache,
    /// A backing device.
    Backing,
    /// Its superblock does not say.
    Unknown,
    /// There is no room for a superblock.
    TooShort {
        /// Its size in bytes.
        bytes: u64,
        /// The least size in bytes.
        needed: u64,
    },
}

/// Looks at the superblock of a device, whatever else is wrong with it.
pub async fn kind_of<D: Device>(device: &D) -> DeviceKind {
    let bytes = device.geometry().sectors * SECTOR_BYTES;
    let needed = SUPERBLOCK_SECTOR.bytes() + SUPERBLOCK_BYTES as u64;
    if bytes < needed {
        return DeviceKind::TooShort { bytes, needed };
    }
    match read(device, SUPERBLOCK_SECTOR, SUPERBLOCK_BYTES as u64 / SECTOR_BYTES).await {
        Ok(bytes) => match Superblock::parse(bytes.as_slice()) {
            Ok(superblock) if superblock.is_cache() => DeviceKind::Cache,
            Ok(_) => DeviceKind::Backing,
            Err(_) => DeviceKind::Unknown,
        },
        Err(_) => DeviceKind::Unknown,
    }
}

/// Walks over the set of a cache device, which is only read. Nothing comes back if there is no superblock to begin
/// with.
pub async fn walk<D: Device, V: Visitor + ?Sized>(
    cache: &D,
    visitor: &mut V,
    watcher: &dyn Watcher,
) -> Option<View> {
    walk_the(Way::default(), cache, visitor, watcher).await
}

/// The same in another way.
pub(crate) async fn walk_the<D: Device, V: Visitor + ?Sized>(
    way: Way,
    cache: &D,
    visitor: &mut V,
    watcher: &dyn Watcher,
) -> Option<View> {
    let superblock = match read_superblock(cache, Site::Cache).await {
        Ok(superblock) if superblock.is_cache() => superblock,
        Ok(superblock) => {
            let detail = format!("a backing device (superblock version {})", superblock.version);
            visitor.finding(Finding::new(Kind::WrongKind, Place::on(Site::Cache), detail));
            return None;
        }
        Err(finding) => {
            visitor.finding(finding);
            return None;
        }
    };
    Some(walk_from(cache, superblock, way, visitor, watcher).await)
}

/// How to walk.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Way {
    /// Go on behind what is damaged as far as there is anything to be read, and keep what is found there apart (see
    /// `Doubt`).
    pub salvage: bool,
    /// Do not keep extents, but add them up. The walk may give up, where there is anything to say of one.
    pub sums_only: bool,
}

impl Way {
    /// As much as there is to be read.
    pub const SALVAGE: Way = Way { salvage: true, sums_only: false };
}

/// The walk from a superblock on.
pub(crate) async fn walk_from<D: Device, V: Visitor + ?Sized>(
    cache: &D,
    superblock: Superblock,
    Way { salvage, sums_only }: Way,
    visitor: &mut V,
    watcher: &dyn Watcher,
) -> View {
    let crew = Crew::new();
    let spare = Spare::new(SPARE_BYTES);
    let early = Early::default();
    let manner = Manner { crew: &crew, spare: &spare, early: &early, around: salvage };
    visitor.superblock(&superblock);
    if missing(cache, &superblock) > 0 {
        visitor.finding(short(cache, &superblock));
    }
    let mut view = View::new(superblock);
    let geometry = view.geometry;
    view.buckets = vec![
        Bucket {
            stored: Generation(0),
            generation: Generation(0),
            priority: 0,
            owner: Owner::Free,
            known: false,
            named: false,
        };
        geometry.buckets as usize
    ];
    if !view.superblock.sync() {
        let place = Place { byte: Some(SUPERBLOCK_SECTOR.bytes()), ..Place::on(Site::Cache) };
        visitor.finding(Finding::new(Kind::NeverStarted, place, "the cache has never been started"));
        return view;
    }
    for index in 0..geometry.journal_buckets {
        let _ = view.own(geometry.journal_bucket(index), Owner::Journal);
    }
    let discard = view.superblock.discard();
    let reading = Reading { discard, salvage };
    view.journal =
        read_journal(cache, &geometry, reading, (manner, watcher), &mut |finding| visitor.finding(finding))
            .await;
    view.doubt.journal = view.journal.missing;
    visitor.journal(&geometry, &view.journal);
    view.complete &= !view.journal.incomplete;
    let Some(newest) = view.journal.newest() else { return view };
    let (newest, version) = (newest.entry.clone(), newest.version);
    early.read_all(cache, named_by(&geometry, &newest)).await;
    read_prios(cache, &early, &mut view, newest.prio_bucket, visitor, watcher).await;
    read_table(cache, &early, &mut view, (&newest.uuid_bucket, version), salvage, visitor).await;
    let replay = Arc::new(take_replay(&mut view, visitor));
    let tree = Tree { root: &newest.root, level: newest.root_level, replay, salvage, sums_only };
    walk_tree(cache, &mut view, &tree, visitor, (manner, watcher)).await;
    if view.given_up {
        return view;
    }
    // Raised only now: by what the tree says, a key of the journal is not ahead of itself.
    let entries = std::mem::take(&mut view.journal.entries);
    for key in entries.iter().rev().flat_map(|found| &found.entry.keys) {
        if key.check_journaled(&geometry).is_ok() {
            // What was added up went by other generations.
            view.given_up |= view.raise_key(key) && view.sums.is_some();
        }
    }
    view.journal.entries = entries;
    if !view.given_up {
        account(&mut view, &crew, visitor);
    }
    view
}

/// Where an entry of the journal says that the first prio set, the volume table and the root are.
pub(crate) fn named_by(geometry: &Geometry, entry: &JournalEntry) -> Vec<SectorRange> {
    let sectors = geometry.metadata_bytes() / SECTOR_BYTES;
    let prio = geometry
        .is_usable(entry.prio_bucket)
        .then(|| SectorRange::new(geometry.bucket_start(entry.prio_bucket), sectors));
    let node = |key: &Key| {
        let pointer = key.pointer().filter(|_| key.check_node(geometry).is_ok())?;
        Some(SectorRange::new(pointer.offset, key.sectors.into()))
    };
    prio.into_iter().chain([&entry.uuid_bucket, &entry.root].into_iter().filter_map(node)).collect()
}

/// The extents of the replay range.
fn take_replay<V: Visitor + ?Sized>(view: &mut View, visitor: &mut V) -> Replay {
    let geometry = view.geometry;
    let mut extents = Vec::new();
    for found in &view.journal.entries {
        let bucket = geometry.journal_bucket(found.place.index);
        let place = Place::bucket(&geometry, bucket).plus(u64::from(found.place.offset));
        for key in &found.entry.keys {
            match key.check_journaled(&geometry) {
                Ok(()) => extents.push(Extent::new(key, true)),
                Err(error) => {
                    let detail = format!("entry {}: {error}", found.place.seq);
                    visitor.finding(Finding::new(
                        Kind::JournalKey,
                        place.of_volume(key.inode, key.range()),
                        detail,
                    ));
                    view.complete = false;
                    view.doubt.journal = view.doubt.journal.max(Some(found.place.seq));
                }
            }
        }
    }
    Replay::new(extents)
}

async fn read_prios<D: Device, V: Visitor + ?Sized>(
    cache: &D,
    early: &Early,
    view: &mut View,
    first: BucketNr,
    visitor: &mut V,
    watcher: &dyn Watcher,
) {
    let geometry = view.geometry;
    let sectors = geometry.metadata_bytes() / SECTOR_BYTES;
    let count = geometry.prio_buckets();
    let phase = Phase::new(watcher, "prio chain", u64::from(count) * sectors * SECTOR_BYTES);
    let mut bucket = first;
    let mut chains = 0;
    for element in 0..count {
        if !geometry.is_usable(bucket) {
            let detail = format!(
                "element {} of {count} is said to be in bucket {bucket}, expected {} to {}",
                element + 1,
                geometry.first_bucket,
                geometry.buckets - 1
            );
            visitor.finding(Finding::new(Kind::PrioDamaged, Place::on(Site::Cache), detail));
            view.complete = false;
            return;
        }
        let place = Place::bucket(&geometry, bucket);
        if let Some(owner) = view.own(bucket, Owner::Prio) {
            let detail = format!("a prio set is in a bucket of the {}", owner.word());
            visitor.finding(Finding::new(Kind::BucketTwice, place, detail));
            view.complete = false;
        }
        let bytes = match early.read(cache, geometry.bucket_start(bucket), sectors).await {
            Ok(bytes) => bytes,
            Err(error) => {
                visitor.finding(Finding::new(Kind::Unreadable, place, format_args!("prio set: {error}")));
                view.complete = false;
                return;
            }
        };
        phase.add(sectors * SECTOR_BYTES);
        match parse_prio(&geometry, bytes.as_slice()) {
            Ok((seq, next, entries)) => {
                let each = geometry.prio_entries_per_bucket() as usize;
                let start = element as usize * each;
                let room = view.buckets.get_mut(start..).unwrap_or_default();
                for (bucket, entry) in room.iter_mut().zip(&entries) {
                    bucket.stored = entry.generation;
                    bucket.generation = entry.generation;
                    bucket.priority = entry.priority;
                    bucket.known = true;
                }
                let used = room.len().min(entries.len());
                let first = BucketNr(start as u32);
                visitor.prio(&PrioElement { bucket, seq, next, first, entries: &entries[..used] });
                chains = seq.max(chains);
                bucket = next;
            }
            Err(error) => {
                visitor.finding(Finding::new(Kind::PrioDamaged, place.plus(error.at), &error));
                view.complete = false;
                return;
            }
        }
    }
    // All of the chain is there: what it says of a bucket can be held against a pointer.
    let own_chain = view.journal.last_run.mark().is_some_and(|mark| mark.own_chain);
    view.reach = Reach::of_set(own_chain, chains);
}

async fn read_table<D: Device, V: Visitor + ?Sized>(
    cache: &D,
    early: &Early,
    view: &mut View,
    (key, version): (&Key, u32),
    salvage: bool,
    visitor: &mut V,
) {
    let geometry = view.geometry;
    let place = key.pointer().map_or(Place::on(Site::Cache), |p| Place::cache(&geometry, p.offset));
    let pointer = match (key.check_node(&geometry), key.pointer()) {
        (Ok(()), Some(pointer)) => pointer,
        (Ok(()), None) => {
            visitor.finding(Finding::new(
                Kind::VolumeTable,
                place,
                "the key of the volume table leads nowhere",
            ));
            view.complete = false;
            return;
        }
        (Err(error), _) => {
            visitor.finding(Finding::new(
                Kind::VolumeTable,
                place,
                format_args!("key of the volume table: {error}"),
            ));
            view.complete = false;
            return;
        }
    };
    if let Some(owner) = view.own(pointer.bucket(geometry.bucket_sectors), Owner::Uuids) {
        let detail = format!("the volume table is in a bucket of the {}", owner.word());
        visitor.finding(Finding::new(Kind::BucketTwice, place, detail));
        view.complete = false;
    }
    view.raise(pointer);
    let bytes = match early.read(cache, pointer.offset, u64::from(key.sectors)).await {
        // Slots that can't be read look as if nobody had them.
        Err(_) if salvage => {
            read_around(cache, pointer.offset, u64::from(key.sectors)).await.map(|read| read.0)
        }
        whole => whole,
    };
    match bytes {
        Ok(bytes) if version == 0 => view.uuids = parse_uuids_v0(bytes.as_slice()),
        Ok(bytes) => view.uuids = parse_uuids(bytes.as_slice()),
        Err(error) => {
            visitor.finding(Finding::new(Kind::Unreadable, place, format_args!("volume table: {error}")));
            view.complete = false;
            return;
        }
    }
    for (slot, entry) in view.uuids.iter().enumerate().filter(|(_, entry)| entry.is_live()) {
        if let Some(first) = view.slot(entry.uuid)
            && (first.0 as usize) < slot
        {
            let detail = format!("slots {first} and {slot} both have {}", entry.uuid);
            visitor.finding(Finding::new(Kind::VolumeTwice, place.plus(128 * slot as u64), detail));
        }
    }
    visitor.uuids(key, &view.uuids);
}

/// The first position there is.
pub(crate) const START: (ubcache_format::Inode, Sector) = (ubcache_format::Inode(0), Sector(0));

/// A position behind all keys.
pub(crate) const END: (ubcache_format::Inode, Sector) =
    (ubcache_format::Inode(Key::MAX_INODE), Sector(u64::MAX));
