//! Sectors that can't be read: only their content is lost, and no more.

use ubcache_env::{Sector, SectorRange};
use ubcache_offline::{CheckOptions, FindingKind, RepairOptions, check, survey, unreadable_data};
use ubcache_torture::device::{Image, MemDevice, run};
use ubcache_torture::judge::{Verdict, in_place, judge};
use ubcache_torture::sets::{Base, small};

fn bad(base: &Base, from: usize, bytes: usize) -> Image {
    let block = base.block as usize;
    let mut image = base.cache.clone();
    image.make_bad(
        (from / block * block) as u64 / 512..((from + bytes).next_multiple_of(block)) as u64 / 512,
    );
    image
}

/// The list of a repair of this image.
fn listed(base: &Base, image: &Image) -> Vec<SectorRange> {
    let cache = MemDevice::new(image.clone(), base.block);
    let backing = MemDevice::new(base.backing.clone(), base.block);
    let repair = run(survey(&cache, &[&backing], RepairOptions::default(), &())).expect("a survey");
    assert!(!repair.is_clean());
    repair.uncertain.iter().map(|part| part.range).collect()
}

#[test]
fn only_the_sectors_of_dirty_data_that_can_not_be_read_are_given_up() {
    for base in &small() {
        let (range, at) =
            base.dirty.iter().max_by_key(|(range, _)| range.sectors()).expect("dirty data");
        let block = base.block as usize;
        let middle = at.bytes() as usize + range.bytes() as usize / 2 / block * block;
        let image = bad(base, middle, 1);
        let cache = MemDevice::new(image.clone(), base.block);
        let backing = MemDevice::new(base.backing.clone(), base.block);
        let report = run(check(&cache, &[&backing], None, CheckOptions::default())).report;
        assert_eq!(
            report.counts.keys().collect::<Vec<_>>().first(),
            Some(&&FindingKind::Unreadable),
            "{report:?}"
        );
        let repair =
            run(survey(&cache, &[&backing], RepairOptions::default(), &())).expect("a survey");
        let unreadable =
            run(unreadable_data(&repair, &cache, &())).expect("devices in memory are there");
        let sectors = u64::from(base.block) / 512;
        assert_eq!(
            unreadable,
            [SectorRange::new(Sector(middle as u64 / 512), sectors)],
            "{}",
            base.name
        );
        let before = repair.kept_sectors;
        let repair = in_place(&cache, &backing, RepairOptions::default()).expect("a repair");
        assert_eq!(repair.kept_sectors, before - sectors);
        assert_eq!(repair.uncertain.iter().map(|part| part.range.sectors()).sum::<u64>(), sectors);
        assert_eq!(judge(base, &image, true, true), Ok(Verdict::Repaired));
    }
}

#[test]
fn unreadable_unneeded_journal_sectors_are_no_loss() {
    let mut tried = 0;
    for base in &small() {
        let journal = &base.parts.journal;
        let newest = base.parts.ring.last().expect("an entry");
        let bucket = base.bucket();
        let index = |at: usize| (at - journal.start) / bucket;
        let ring = journal.len() / bucket;
        let safe = |at: usize| {
            index(at) != index(newest.start)
                && index(at) != (index(newest.start) + 1) % ring
                && !base.parts.ring.iter().any(|entry| index(entry.start) == index(at))
        };
        for at in journal.clone().step_by(2048).filter(|at| safe(*at)) {
            let image = bad(base, at, 512);
            assert_eq!(listed(base, &image), [], "{}: byte {at}", base.name);
            assert_eq!(
                judge(base, &image, true, true),
                Ok(Verdict::Repaired),
                "{}: byte {at}",
                base.name
            );
            tried += 1;
        }
    }
    assert!(tried > 8, "{tried} places");
}

/// An unreadable entry behind the newest readable one may be newer, so nothing is certain.
#[test]
fn unreadable_newest_entry_makes_everything_uncertain() {
    for base in &small() {
        let newest = base.parts.ring.last().expect("an entry");
        for at in [newest.start, newest.end] {
            let image = bad(base, at, 512);
            assert!(
                listed(base, &image).iter().map(SectorRange::sectors).sum::<u64>() > 1000,
                "{}",
                base.name
            );
            assert_eq!(
                judge(base, &image, true, true),
                Ok(Verdict::Repaired),
                "{}: byte {at}",
                base.name
            );
        }
    }
}

#[test]
fn node_is_read_around_unreadable_sectors() {
    let (mut kept, mut nothing) = (0, 0);
    for base in &small() {
        for node in &base.parts.nodes {
            for at in (node.start..node.start + base.bucket()).step_by(base.block as usize * 2) {
                let image = bad(base, at, 1);
                assert_eq!(
                    judge(base, &image, true, true),
                    Ok(Verdict::Repaired),
                    "{}: byte {at}",
                    base.name
                );
                if at > node.end {
                    // The sector was never written: all bsets of the node were read.
                    assert_eq!(
                        listed(base, &image),
                        [],
                        "{}: byte {at}, the node is {node:?}",
                        base.name
                    );
                    nothing += 1;
                } else {
                    kept += 1;
                }
            }
        }
    }
    assert!(nothing > 20 && kept > 20, "{nothing} {kept}");
}
