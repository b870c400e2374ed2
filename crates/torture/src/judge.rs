//! Requirements for a set that was damaged.
//!
//! * Nothing panics, and every tool ends.
//! * A check reports the damage, or all content is as before.
//! * Data that `open_set` calls certain is as before; a recovery of a set that it refuses is
//!   refused, and writes nothing.
//! * A repair, to a copy and in place, leaves a set without damage. Every range that then reads
//!   otherwise than before, or can't be read, is in its list; the same holds with uncertain data
//!   taken in.

use ubcache_env::{Sector, SectorRange};
use ubcache_offline::{
    CheckOptions, FindingKind, OfflineError, RecoverOptions, Repair, RepairOptions, check,
    copy_device, map_backed, open_set, recover, survey, unreadable_data, write_repaired,
};

use crate::device::{Image, MemDevice, run};
use crate::sets::{Base, content, map};

/// The sets have one backing device, and it is named.
pub const ALL: RepairOptions =
    RepairOptions { use_uncertain: false, without_data: false, all_disks: true };

/// Verdict on a damaged set.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The check has no finding, and all reads as before.
    Harmless,
    /// Repaired, to a copy and in place.
    Repaired,
    /// Repaired to a copy. In place there is no room.
    OnlyCopied,
    /// Not repairable, and the check reports that.
    Unrepairable,
}

/// Judges a damaged set; an error is a requirement that does not hold. `strict` compares content,
/// `with_uncertain` repairs the set with uncertain data as well.
pub fn judge(
    base: &Base,
    damaged: &Image,
    strict: bool,
    with_uncertain: bool,
) -> Result<Verdict, String> {
    let cache = MemDevice::new(damaged.clone(), base.block);
    let backing = MemDevice::new(base.backing.clone(), base.block);
    let report = run(check(&cache, &[&backing], None, CheckOptions::default())).report;
    certain_is_as_before(base, &cache, &backing, report.is_clean(), strict)?;
    let found = run(survey(&cache, &[&backing], ALL, &()));
    let mut repair = match found {
        Ok(repair) => repair,
        Err(error) if report.is_clean() => {
            return Err(format!("{error}, and the check says nothing"));
        }
        Err(_) => return Ok(Verdict::Unrepairable),
    };
    if repair.is_clean() {
        if !report.is_clean() {
            return Err(format!("nothing to repair, and the check says {:?}", report.errors()));
        }
        if strict {
            compare(base, &cache, &backing, |_| false)?;
        }
        return Ok(Verdict::Harmless);
    }
    let copy = copied(&mut repair, &cache).map_err(|error| format!("to a copy: {error}"))?;
    outcome(base, &repair, &copy, &backing, strict)
        .map_err(|error| format!("to a copy: {error}"))?;

    if with_uncertain {
        let options = RepairOptions { use_uncertain: true, ..ALL };
        let mut best =
            run(survey(&cache, &[&backing], options, &())).map_err(|error| error.to_string())?;
        let copy =
            copied(&mut best, &cache).map_err(|error| format!("with uncertain data: {error}"))?;
        outcome(base, &best, &copy, &backing, strict)
            .map_err(|error| format!("with uncertain data: {error}"))?;
    }

    for use_uncertain in [false, true].into_iter().take(1 + usize::from(with_uncertain)) {
        let cache = MemDevice::new(damaged.clone(), base.block);
        let options = RepairOptions { use_uncertain, ..ALL };
        match in_place(&cache, &backing, options) {
            Ok(repair) => outcome(base, &repair, &cache, &backing, strict)
                .map_err(|error| format!("in place, use-uncertain {use_uncertain}: {error}"))?,
            Err(OfflineError::NoRoom(_)) => return Ok(Verdict::OnlyCopied),
            Err(error) => return Err(format!("in place, use-uncertain {use_uncertain}: {error}")),
        }
    }
    Ok(Verdict::Repaired)
}

/// A repair of a copy.
fn copied(repair: &mut Repair, cache: &MemDevice) -> Result<MemDevice, OfflineError> {
    let image = cache.image();
    let block = ubcache_env::Device::limits(cache).logical_block_bytes;
    let copy = MemDevice::new(Image::zeroed(image.len()), block);
    let unreadable = run(copy_device(cache, &copy, &()))?;
    run(write_repaired(repair, &copy, &unreadable, true, &()))?;
    Ok(copy)
}

/// A repair in place.
pub fn in_place(
    cache: &MemDevice,
    backing: &MemDevice,
    options: RepairOptions,
) -> Result<Repair, OfflineError> {
    let mut repair = run(survey(cache, &[backing], options, &()))?;
    if !repair.is_clean() {
        let unreadable = run(unreadable_data(&repair, cache, &()))?;
        run(write_repaired(&mut repair, cache, &unreadable, false, &()))?;
    }
    Ok(repair)
}

/// Returns true if a repair may list a key sector of the volume.
pub fn lists(base: &Base, repair: &Repair, key: Sector) -> bool {
    repair.is_uncertain(base.inode, SectorRange::new(key, 1))
}

fn outcome(
    base: &Base,
    repair: &Repair,
    target: &MemDevice,
    backing: &MemDevice,
    strict: bool,
) -> Result<(), String> {
    if !repair.without_slot.is_empty() {
        // The set has no slot for the volume, so its cached data can't be assigned; the repair has
        // reported that.
        let report = run(check(target, &[], None, CheckOptions::default())).report;
        let is_known = report.errors().iter().all(|finding| finding.kind == FindingKind::SlotLost);
        return if is_known { Ok(()) } else { Err(format!("{:?}", report.errors())) };
    }
    let report = run(check(target, &[backing], None, CheckOptions::default())).report;
    if !report.is_clean() {
        return Err(format!("after the repair: {:?}", report.errors()));
    }
    if strict {
        compare(base, target, backing, |key| lists(base, repair, key))?;
    }
    Ok(())
}

/// Checks that data outside `--damaged` is as before the damage, or refused.
fn certain_is_as_before(
    base: &Base,
    cache: &MemDevice,
    backing: &MemDevice,
    clean: bool,
    strict: bool,
) -> Result<(), String> {
    match map(cache, backing) {
        Ok(map) if strict && !map.dirty().eq(base.dirty.iter().copied()) => {
            return Err("what is called certain comes from somewhere else than before".to_owned());
        }
        Ok(_) => {}
        Err(error) if clean => return Err(format!("{error}, and the check says nothing")),
        Err(_) => {
            let before = (cache.log().len(), backing.log().len());
            if run(recover(cache, backing, RecoverOptions::default(), &())).is_ok() {
                return Err("a recovery of a damaged set was not refused".to_owned());
            }
            if (cache.log().len(), backing.log().len()) != before {
                return Err("a recovery was refused, and had written something".to_owned());
            }
        }
    }
    // Going on in spite of it does not panic either.
    let _ = run(async {
        let (view, _) = open_set(cache, true, &()).await?;
        map_backed(&view, backing, true).await
    });
    Ok(())
}

/// Whatever reads otherwise than before, or can't be read, is listed.
pub fn compare(
    base: &Base,
    cache: &MemDevice,
    backing: &MemDevice,
    listed: impl Fn(Sector) -> bool,
) -> Result<(), String> {
    let map = map(cache, backing)?;
    let (now, unreadable) = content(&map, cache, backing);
    let bad = unreadable.iter().flat_map(|range| range.start.0..range.end.0);
    let pairs = now.chunks(512).zip(base.whole.chunks(512)).enumerate();
    let differs = pairs.filter(|(_, (now, whole))| now != whole).map(|(sector, _)| sector as u64);
    for sector in differs.chain(bad) {
        let key = map.data_offset + sector;
        if !listed(key) {
            return Err(format!("key sector {key} reads otherwise and is not listed"));
        }
    }
    Ok(())
}
