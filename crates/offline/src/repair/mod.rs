//! Repair: the certain part of a damaged set, as a new tree, prio chain, volume table and journal
//! entry.
//!
//! ```text
//!  1  salvage      the walk, on behind what is damaged; older versions of nodes
//!  2  classify     certain: kept. Not certain: listed, with the places of what there is
//!  3  write        tree, prio chain and volume table into free buckets, flush; journal entry;
//!                  superblock if it was damaged
//!  4  check        the result
//! ```
//!
//! Clean data is left out: the backing devices have it. Until the entry of step 3 is durable the
//! set is what it was.

mod claims;
mod options;
mod owners;
mod plan;
mod region;
mod slots;
pub(crate) mod superblock;
mod uncertain;
mod write;

use std::ops::Range;

use serde_json::{Value, json};
use ubcache_env::{Device, Durability, Sector};
use ubcache_format::{Inode, Key, Runs, SECTOR_BYTES, SectorRange, Superblock, Uuid, UuidEntry};

use self::owners::Backing;
use self::plan::{Plan, classify};
use crate::check::{CheckOptions, check};
use crate::error::{OfflineError, On};
use crate::io::progress::{Phase, Watcher};
use crate::io::read::read_around;
use crate::set::{Finding, FindingKind, Report, Severity, Site, View};
use crate::walk::{WalkOptions, missing, read_superblock, walk_from};

pub use self::options::RepairOptions;
pub use self::uncertain::Uncertain;

/// Sectors that are copied at once.
const COPY_SECTORS: u64 = 2048;

/// Result of a survey of a damaged set.
#[derive(Clone, Debug)]
pub struct Repair {
    /// Findings of a check of the set as it is.
    pub report: Report,
    /// The way in which a damaged superblock was found again.
    pub superblock: Option<String>,
    /// Changes of the volume table, one line a slot.
    pub slots: Vec<String>,
    /// Backing devices of the set that have no slot after the repair: no volume shows their cached
    /// data.
    pub without_slot: Vec<Uuid>,
    /// Slots that were given to a device because there was no other choice.
    pub slots_by_choice: usize,
    /// Uncertain ranges, in order. Everything outside of them is as it was.
    pub uncertain: Vec<Uncertain>,
    /// Sectors of certain data of which the cache has the only copy.
    pub kept_sectors: u64,
    /// Sectors of clean data that are left out.
    pub clean_dropped: u64,
    view: View,
    plan: Plan,
    damaged_superblock: bool,
}

impl Repair {
    /// Sectors of dirty data that would be kept and have no owner in the volume table: a new table
    /// replaces the rest of the old one, and older ones.
    pub fn ownerless_sectors(&self) -> u64 {
        let unknown = |key: &&Key| {
            key.dirty && self.view.uuids.get(key.inode.0 as usize).is_none_or(UuidEntry::is_free)
        };
        self.plan.keep.iter().filter(unknown).map(|key| u64::from(key.sectors)).sum()
    }

    /// Returns true if the set has no damage.
    pub fn is_clean(&self) -> bool {
        self.report.is_clean() && self.slots.is_empty()
    }

    /// Returns true if the newest data of a part of a volume, in key sectors, is not certain.
    pub fn is_uncertain(&self, inode: Inode, range: SectorRange) -> bool {
        let next = self
            .uncertain
            .partition_point(|part| (part.inode, part.range.end) <= (inode, range.start));
        self.uncertain
            .get(next)
            .is_some_and(|part| part.inode == inode && part.range.overlaps(&range))
    }

    /// Sectors of which there may be newer data than the backing device has, in one version or
    /// several.
    pub fn claimed_sectors(&self) -> u64 {
        self.uncertain
            .iter()
            .filter(|part| !part.places.is_empty())
            .map(|part| part.range.sectors())
            .sum()
    }

    /// The set as it was found.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The bytes that a cache device has to have.
    pub fn device_bytes(&self) -> u64 {
        u64::from(self.view.geometry.buckets) * self.view.geometry.bucket_bytes()
    }

    /// The report for programs.
    pub fn to_json(&self) -> Value {
        let uncertain = self.uncertain.iter().map(|part| {
            let is_beyond = uncertain::is_beyond(&part.range);
            json!({
                "volume": part.inode.0,
                "first_key_sector": part.range.start.0,
                "sectors": if is_beyond { Value::Null } else { json!(part.range.sectors()) },
                "cache_sectors": part.places.iter().map(|place| place.offset.0).collect::<Vec<_>>(),
            })
        });
        json!({
            "clean": self.is_clean(),
            "superblock": self.superblock,
            "slots": self.slots,
            "without_slot": self.without_slot.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "slots_by_choice": self.slots_by_choice,
            "kept_sectors": self.kept_sectors,
            "clean_sectors_left_out": self.clean_dropped,
            "claimed_sectors": self.claimed_sectors(),
            "uncertain": uncertain.collect::<Vec<_>>(),
            "check": self.report.to_json(),
        })
    }
}

/// Surveys a set and finds out what can be kept. Only reads. `backing` are some or all of its
/// backing devices: with them, a lost superblock or volume table can be restored.
pub async fn survey<D: Device>(
    cache: &D,
    backing: &[&D],
    options: RepairOptions,
    watcher: &dyn Watcher,
) -> Result<Repair, OfflineError> {
    let mut named: Vec<Backing<'_, D>> = Vec::new();
    for (index, device) in backing.iter().enumerate() {
        if let Ok(superblock) = read_superblock(*device, Site::Backing(index)).await
            && !superblock.is_cache()
        {
            named.push(Backing { device: *device, superblock });
        }
    }
    let backings: Vec<Superblock> =
        named.iter().map(|backing| backing.superblock.clone()).collect();
    let check_options = CheckOptions { data: !options.without_data, view: false, watcher };
    let report = check(cache, backing, None, check_options).await.report;
    let (superblock, origin) = match read_superblock(cache, Site::Cache).await {
        Ok(superblock) if superblock.is_cache() => (superblock, None),
        Ok(_) => return Err(wrong_kind(&report)),
        Err(finding) => {
            let found = superblock::search(cache, &backings, watcher).await;
            let (superblock, how) = found.ok_or_else(|| match finding.kind {
                FindingKind::SuperblockDamaged
                | FindingKind::SuperblockMissing
                | FindingKind::Unreadable => OfflineError::SuperblockLost {
                    finding: Box::new(finding),
                    with_backing: !backings.is_empty(),
                },
                _ => OfflineError::Damaged(Box::new(finding)),
            })?;
            (superblock, Some(how))
        }
    };
    let mut view = walk_from(cache, superblock, WalkOptions::SALVAGE, &mut (), watcher).await;
    let slots = slots::repair(&mut view, cache, &named, options, watcher).await;
    if !slots.said.is_empty() {
        // The run numbers in the superblock belong to the slots as they were.
        view.superblock.set_runs(&Runs::accepting_any());
    }
    let is_uncertain = !view.lost.is_empty()
        || !view.uncertainty.tree.is_empty()
        || view.uncertainty.journal.is_some();
    let (found, nodes) = if is_uncertain || view.journal.newest().is_none() {
        claims::scan(cache, &view, watcher).await
    } else {
        (Vec::new(), Vec::new())
    };
    view.uncertainty.nodes = nodes;
    let plan = classify(&view, &found, options.use_uncertain);
    Ok(Repair {
        report,
        damaged_superblock: origin.is_some(),
        superblock: origin,
        slots: slots.said,
        without_slot: slots.without,
        slots_by_choice: slots.by_choice,
        uncertain: plan.uncertain.clone(),
        kept_sectors: plan.keep.iter().map(|key| u64::from(key.sectors)).sum(),
        clean_dropped: plan.clean_dropped,
        view,
        plan,
    })
}

/// Writes the repaired set over `target`, which is the damaged set itself or a copy of it, and
/// checks it. `unreadable` are sectors that the copy does not have: what was in them is listed as
/// uncertain. On a copy everything that is not needed may be overwritten; on the set itself only
/// what is free.
pub async fn write_repaired<D: Device>(
    repair: &mut Repair,
    target: &D,
    unreadable: &[SectorRange],
    is_copy: bool,
    watcher: &dyn Watcher,
) -> Result<(), OfflineError> {
    let found = target.limits().sectors;
    if missing(target, &repair.view.superblock) > 0 {
        return Err(OfflineError::TooSmall { found, needed: repair.device_bytes() / SECTOR_BYTES });
    }
    without_unreadable(repair, unreadable);
    let with_superblock = repair.damaged_superblock || !repair.slots.is_empty();
    write::write(&repair.view, &repair.plan, target, with_superblock, is_copy, watcher).await?;
    let after =
        check(target, &[], None, CheckOptions { watcher, ..CheckOptions::default() }).await.report;
    // Data without a slot is no failure of the repair: it is kept until a backing device claims it.
    let is_error = |finding: &&Finding| {
        finding.severity() == Severity::Error && finding.kind != FindingKind::SlotLost
    };
    match after.findings.iter().find(is_error) {
        None => Ok(()),
        Some(finding) => Err(OfflineError::Damaged(Box::new(finding.clone()))),
    }
}

/// Copies a device to another one, as large or larger, that is all zeroes. Gives the ranges that
/// could not be read.
pub async fn copy_device<D: Device>(
    from: &D,
    to: &D,
    watcher: &dyn Watcher,
) -> Result<Vec<SectorRange>, OfflineError> {
    let io = |error: String| OfflineError::Io { on: On::Cache, doing: "copying the cache", error };
    let all = from.limits().sectors.min(to.limits().sectors);
    let phase = Phase::new(watcher, "copying the cache", all * SECTOR_BYTES);
    let mut unreadable = Vec::new();
    let mut at = Sector(0);
    while at.0 < all {
        let sectors = COPY_SECTORS.min(all - at.0);
        let (bytes, holes) = read_around(from, at, sectors).await.map_err(io)?;
        // Unreadable and empty parts are not written.
        if bytes.as_slice().iter().any(|byte| *byte != 0) {
            let written = to.write(at, bytes.into(), Durability::Volatile).await;
            written.map_err(|error| io(error.to_string()))?;
        }
        unreadable.extend(holes.iter().map(|hole| in_sectors(at, hole)));
        phase.add(sectors * SECTOR_BYTES);
        at += sectors;
    }
    if to.limits().sectors > all {
        unreadable.push(SectorRange::from_bounds(at, Sector(to.limits().sectors)));
    }
    Ok(unreadable)
}

/// The parts of the data that is going to be kept that can't be read: for a repair in place, what
/// [`copy_device`] gives for a copy.
pub async fn unreadable_data<D: Device>(
    repair: &Repair,
    cache: &D,
    watcher: &dyn Watcher,
) -> Result<Vec<SectorRange>, OfflineError> {
    let phase = Phase::new(watcher, "reading dirty data", repair.kept_sectors * SECTOR_BYTES);
    let mut unreadable = Vec::new();
    for key in &repair.plan.keep {
        let Some(pointer) = key.pointer() else { continue };
        let (_, holes) =
            read_around(cache, pointer.offset, u64::from(key.sectors)).await.map_err(|error| {
                OfflineError::Io { on: On::Cache, doing: "reading dirty data", error }
            })?;
        unreadable.extend(holes.iter().map(|hole| in_sectors(pointer.offset, hole)));
        phase.add(u64::from(key.sectors) * SECTOR_BYTES);
    }
    Ok(unreadable)
}

fn in_sectors(from: Sector, bytes: &Range<u64>) -> SectorRange {
    SectorRange::from_bounds(
        from + bytes.start / SECTOR_BYTES,
        from + bytes.end.div_ceil(SECTOR_BYTES),
    )
}

/// Removes unreadable data from the data that is kept, and lists it. The rest of such an extent
/// stays.
fn without_unreadable(repair: &mut Repair, unreadable: &[SectorRange]) {
    let mut holes = unreadable.to_vec();
    holes.sort_unstable_by_key(|hole| hole.start);
    let mut keep = Vec::with_capacity(repair.plan.keep.len());
    let mut lost = Vec::new();
    for key in std::mem::take(&mut repair.plan.keep) {
        let Some(pointer) = key.pointer() else { continue };
        let (place, range) =
            (SectorRange::new(pointer.offset, u64::from(key.sectors)), key.range());
        let first = holes.partition_point(|hole| hole.end <= place.start);
        let mut from = range.start;
        for hole in
            holes.get(first..).unwrap_or_default().iter().take_while(|hole| hole.start < place.end)
        {
            let hole = hole.intersect(&place);
            let start = range.start + (hole.start - place.start);
            let gone = SectorRange::new(start, hole.sectors());
            if from < start {
                keep.push(key.cut_to(SectorRange::from_bounds(from, start)));
            }
            from = gone.end.max(from);
            repair.kept_sectors -= gone.sectors();
            // Kept data that is not certain is in the list already.
            if !repair.is_uncertain(key.inode, gone) {
                let places = vec![pointer.advance(start - range.start)];
                lost.push(Uncertain { inode: key.inode, range: gone, places });
            }
        }
        if from == range.start {
            keep.push(key);
        } else if from < range.end {
            keep.push(key.cut_to(SectorRange::from_bounds(from, range.end)));
        }
    }
    repair.plan.keep = keep;
    repair.uncertain.extend(lost);
    repair.uncertain.sort_by_key(|part| (part.inode, part.range.start));
    repair.plan.uncertain = repair.uncertain.clone();
}

fn wrong_kind(report: &Report) -> OfflineError {
    match report.findings.first() {
        Some(finding) => OfflineError::Damaged(Box::new(finding.clone())),
        None => OfflineError::Io {
            on: On::Cache,
            doing: "reading the set",
            error: "no superblock".to_owned(),
        },
    }
}
