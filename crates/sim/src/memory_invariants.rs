//! The invariants of docs/internals/coherence.md §10 that concern what is in memory, asked of a
//! running volume between two of its steps: what it says it has, compared with the disks.

use ubcache_engine::inspect::{CachedCopy, CopyState, InFlightEntry, SetView, VolumeView};
use ubcache_env::{Sector, SectorRange};

use crate::disk::SimDisk;
use crate::oracle::Violation;

/// A broken invariant.
struct Broken {
    invariant: &'static str,
    what: String,
}

type Checked = Result<(), Broken>;

fn broken(invariant: &'static str, what: String) -> Checked {
    Err(Broken { invariant, what })
}

/// A pass that is under way when a bucket is held has not seen its pointers, the next one writes
/// their nodes anew, and the one after that finds none; one more for a pass that was not done.
const HOLDS_MAX: u32 = 4;

/// Checks what a set has in memory beside its volumes.
pub fn check_set_view(view: &SetView) -> Option<Violation> {
    (view.longest_hold > HOLDS_MAX).then(|| Violation {
        kind: "G2: a pass of garbage collection leaves no old pointers".to_owned(),
        report: format!(
            "a bucket was held back {} times in a row for old pointers into it",
            view.longest_hold
        ),
    })
}

/// Checks a volume: what it has in memory, its cache device, its backing device, where its data
/// begins there.
pub fn check_volume(
    view: &VolumeView,
    cache: &SimDisk,
    backing: &SimDisk,
    data_at: Sector,
) -> Option<Violation> {
    if !view.uses_cache {
        return None;
    }
    let checks = [
        backing_equals(view, cache, backing),
        no_copy_below_a_write(view, backing),
        one_writer_each(view),
        unflushed_is_known(view, backing, data_at),
        no_record_of_unflushed(view),
        places_are_not_written(view, cache),
    ];
    let broken = checks.into_iter().find_map(Result::err)?;
    Some(Violation {
        kind: broken.invariant.to_owned(),
        report: format!("{}\n  {}", broken.invariant, broken.what),
    })
}

/// [`check_volume`] where the backing device is the disk of a server. What is in flight there, or
/// not durable, may be what was carried out twice; and a server that has just lost its power lacks
/// what its client is about to write again, of which no key has a record.
pub fn check_remote_volume(
    view: &VolumeView,
    cache: &SimDisk,
    backing: &SimDisk,
    _data_at: Sector,
) -> Option<Violation> {
    if !view.uses_cache {
        return None;
    }
    let mut recorded = view.clone();
    recorded.copies.retain(|copy| copy.state != CopyState::Unpublished);
    let checks = [
        backing_equals(&recorded, cache, backing),
        one_writer_each(view),
        no_record_of_unflushed(view),
        places_are_not_written(view, cache),
    ];
    let broken = checks.into_iter().find_map(Result::err)?;
    Some(Violation {
        kind: broken.invariant.to_owned(),
        report: format!("{}\n  {}", broken.invariant, broken.what),
    })
}

fn is_clean(copy: &&CachedCopy) -> bool {
    copy.state != CopyState::Dirty
}

/// I1, I8: a clean copy is what the backing device returns; one with a record also whatever the
/// backing device loses.
fn backing_equals(view: &VolumeView, cache: &SimDisk, backing: &SimDisk) -> Checked {
    let (mut cached, mut backed) = ([0; 512], [0; 512]);
    for copy in view.copies.iter().filter(is_clean) {
        for index in 0..copy.range.sectors() {
            let (sector, at) = (copy.range.start + index, copy.at + index);
            cache.peek_into(at, &mut cached);
            backing.peek_into(sector, &mut backed);
            let what = || {
                format!("sector {sector} of the backing device, cached in sector {at}: {copy:?}")
            };
            if cached != backed {
                return broken("I1: a clean copy is what the backing device returns", what());
            }
            if copy.state == CopyState::Clean && !backing.holds_only(sector, &cached) {
                return broken(
                    "I8: what is clean in the index is durable on the backing device",
                    what(),
                );
            }
        }
    }
    Ok(())
}

/// I3.
fn no_copy_below_a_write(view: &VolumeView, backing: &SimDisk) -> Checked {
    let writes = backing.writes_in_flight();
    for copy in view.copies.iter().filter(is_clean) {
        if let Some(write) = writes.iter().find(|write| write.overlaps(&copy.range)) {
            let what =
                format!("{copy:?}, and a write to {write} of the backing device is in flight");
            return broken("I3: no clean copy where a backing write is in flight", what);
        }
    }
    Ok(())
}

/// I5.
fn one_writer_each(view: &VolumeView) -> Checked {
    let mut writebacks: Vec<SectorRange> = Vec::new();
    for entry in &view.in_flight {
        if let InFlightEntry::Writeback(range) = entry {
            let twice = writebacks.iter().any(|other| other.overlaps(range));
            let under = view.in_flight.iter().any(|other| {
                matches!(other,
                    InFlightEntry::BackingWrite(other) if other.overlaps(range))
            });
            if twice || under {
                let what = format!("{range}, and in the table: {:?}", view.in_flight);
                return broken("I5: one writeback at most, and none over a backing write", what);
            }
            writebacks.push(*range);
        }
    }
    Ok(())
}

/// I6.
fn unflushed_is_known(view: &VolumeView, backing: &SimDisk, data_at: Sector) -> Checked {
    for sector in backing.unflushed().into_iter().filter(|sector| *sector >= data_at) {
        let range = SectorRange::new(sector, 1);
        let in_table = view.in_flight.iter().any(|entry| match entry {
            InFlightEntry::Fill(_) => false,
            InFlightEntry::Write(other)
            | InFlightEntry::BackingWrite(other)
            | InFlightEntry::Writeback(other) => other.overlaps(&range),
        });
        if !in_table && !view.unflushed.overlaps(range) && !view.suspect.overlaps(range) {
            let what = format!(
                "sector {sector} of the backing device is not durable, and nothing says so"
            );
            return broken(
                "I6: what the backing device may lose is in the un-flushed set or in the table",
                what,
            );
        }
    }
    Ok(())
}

/// I7.
fn no_record_of_unflushed(view: &VolumeView) -> Checked {
    let recorded = view.copies.iter().filter(|copy| copy.state == CopyState::Clean);
    for copy in recorded {
        if view.unflushed.overlaps(copy.range) {
            let what = format!("{copy:?}");
            return broken("I7: no clean key with a record is in the un-flushed set", what);
        }
    }
    Ok(())
}

/// I10, for what is in memory.
fn places_are_not_written(view: &VolumeView, cache: &SimDisk) -> Checked {
    let writes = cache.writes_in_flight();
    for copy in &view.copies {
        let place = SectorRange::new(copy.at, copy.range.sectors());
        if let Some(write) = writes.iter().find(|write| write.overlaps(&place)) {
            let what = format!("{copy:?}, and a write to {write} of the cache device is in flight");
            return broken("I10: no place is written while something points to it", what);
        }
    }
    Ok(())
}
