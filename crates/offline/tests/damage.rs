//! Damage to every structure: nothing panics, and a set of which the content is called certain has the content that it
//! had before the damage.

mod support;

use std::ops::Range;

use support::damage::{BUCKET, Random, Structures, damage};
use support::{MemDevice, frozen, run};
use ubcache_offline::{Outcome, RecoverOptions, Segment, check_set, map_backed, open_set, recover, walk};

#[test]
fn no_damage_changes_what_is_called_certain() {
    let rounds: u64 = std::env::var("UBCACHE_DAMAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let case = frozen("writeback-crash");
    let backing = MemDevice::new(case.volumes()[0].backing.clone().expect("a backing device"));
    let cache = MemDevice::new(case.cache.clone());
    let mut structures = Structures::default();
    let view = run(walk(&cache, &mut structures, &())).expect("a set");
    assert_eq!(view.geometry.bucket_bytes() as usize, BUCKET);
    structures.list.push(("superblock", 4096..4096 + 208 + 8 * view.geometry.journal_buckets as usize));
    let newest = view.journal.newest().expect("an entry").place;
    for found in view.journal.entries.iter().filter(|found| found.place.seq != newest.seq) {
        let bucket = view.geometry.journal_bucket(found.place.index).0 as usize * BUCKET;
        let at = bucket + found.place.offset as usize;
        structures.list.push(("journal entry", at..at + found.place.bytes as usize));
    }
    let newest_at = view.geometry.journal_bucket(newest.index).0 as usize * BUCKET + newest.offset as usize;
    let newest_at = newest_at..newest_at + newest.bytes as usize;
    let whole: Vec<Segment> = run(map_backed(&view, &backing, false)).expect("a volume").segments;

    let (mut reported, mut harmless) = (0, 0);
    for seed in 0..rounds {
        let mut random = Random(seed);
        // Every structure as often as any other, however many there are of it.
        let mut kinds: Vec<&str> = structures.list.iter().map(|(kind, _)| *kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let kind = kinds[random.below(kinds.len())];
        let ranges: Vec<&Range<usize>> =
            structures.list.iter().filter(|(k, _)| *k == kind).map(|(_, range)| range).collect();
        let range = ranges[random.below(ranges.len())];
        let what = {
            let mut what = "";
            cache.change(|image| what = damage(image, range, &mut random));
            what
        };

        let report = run(check_set(&cache, &[&backing]));
        let strict = run(async {
            let (view, _) = open_set(&cache, false, &()).await?;
            map_backed(&view, &backing, false).await
        });
        let cut_off = structures.last_appends.iter().any(|&at| {
            let mut found = [0; 8];
            cache.change(|image| found.copy_from_slice(&image[at..at + 8]));
            found != case.cache[at..at + 8]
        });
        let mut torn = false;
        cache.change(|image| torn = image[newest_at.clone()] != case.cache[newest_at.clone()]);
        if let Ok(map) = &strict
            && !cut_off
            && !torn
        {
            assert_eq!(map.segments, whole, "seed {seed}: {what} in a {kind} at {range:?} went unnoticed");
        }
        assert!(
            strict.is_ok() || !report.is_clean(),
            "seed {seed}: {what} in a {kind} at {range:?} is refused, and not reported: {strict:?}"
        );
        if report.is_clean() {
            harmless += 1
        } else {
            reported += 1
        }
        // Going on in spite of it does not panic either, and a recovery writes nothing that is not certain.
        let _ = run(async {
            let (view, _) = open_set(&cache, true, &()).await?;
            map_backed(&view, &backing, true).await
        });
        if strict.is_err() {
            let refused = run(recover(&cache, &backing, RecoverOptions::default(), &()));
            assert!(refused.is_err(), "seed {seed}: {refused:?}");
            assert_eq!(cache.writes() + backing.writes(), 0, "seed {seed}");
        }
        let (from, to) = (range.start / 4096 * 4096, (range.end + 8192).min(case.cache.len()));
        cache.change(|image| image[from..to].copy_from_slice(&case.cache[from..to]));
    }
    println!("{rounds} damages: {reported} reported, {harmless} without effect");
    assert!(reported > harmless);
    let told = run(recover(&cache, &backing, RecoverOptions { dry_run: true, ..Default::default() }, &()));
    assert_eq!(told.expect("the set is whole again").0.outcome, Outcome::DryRun);
}

/// The newest entry of the journal, torn: as if it had never been written.
#[test]
fn a_torn_end_of_the_journal_is_no_damage() {
    let case = frozen("writeback-crash");
    let cache = MemDevice::new(case.cache.clone());
    let view = run(walk(&cache, &mut (), &())).expect("a set");
    let newest = view.journal.newest().expect("an entry").place;
    let at = view.geometry.bucket_start(view.geometry.journal_bucket(newest.index)).bytes() as usize
        + newest.offset as usize;
    cache.change(|image| image[at + newest.bytes as usize / 2..at + newest.bytes as usize].fill(0));
    let report = run(check_set(&cache, &[]));
    assert!(report.is_clean(), "{:?}", report.errors());
}

/// Bytes that were never a set, and devices that are cut off.
#[test]
fn anything_can_be_checked() {
    let case = frozen("writeback-crash");
    for bytes in [0, 512, 4096, 8192, 1 << 20, 20 << 20] {
        let mut image = case.cache.clone();
        image.truncate(bytes);
        let report = run(check_set(&MemDevice::new(image), &[]));
        assert!(!report.is_clean());
    }
    let mut random = Random(1);
    let mut image = case.cache.clone();
    image[8192..].chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
    assert!(!run(check_set(&MemDevice::new(image), &[])).is_clean());
}
