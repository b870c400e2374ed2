//! Dumps and restoring them: what was dumped is there again, on a new file and over a set of which
//! the metadata is broken; and nothing else is restored.

mod support;

use std::cell::RefCell;
use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::Value;
use support::build::{Built, Numbers, build};
use support::damage::Random;
use support::{MemDevice, cases, content, frozen, run, view};
use ubcache_format::Inode;
use ubcache_offline::{
    Bucket, CheckOptions, Dumped, OfflineError, Owner, Restored, Standing, TargetState, View,
    check, dump_for_restore, look_at_target, map_backed, map_flash_only, read_dump, restore,
};

fn dump(cache: &MemDevice) -> Vec<String> {
    let lines = RefCell::new(Vec::new());
    let sink = |line: &str| {
        lines.borrow_mut().push(line.to_owned());
        Ok(())
    };
    run(dump_for_restore(cache, sink, &())).expect("a set without damage");
    lines.into_inner()
}

fn read(lines: &[String]) -> Dumped {
    read_dump(lines).expect("a dump as it was written")
}

fn onto_new_file(lines: &[String]) -> (MemDevice, Restored) {
    let dumped = read(lines);
    let target = MemDevice::new(vec![0; dumped.device_sectors as usize * 512]);
    let done = run(restore(&dumped, lines, &target, &TargetState::new_file(), &()));
    (target, done.expect("a restored set"))
}

/// The lines of a dump, the number of the journal entry left out, and the generations of buckets
/// without data apart.
fn taken_apart(lines: &[String]) -> (Vec<Value>, Vec<u8>) {
    let mut lines: Vec<Value> =
        lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    lines[0]["journal_seq"] = Value::Null;
    let bucket_sectors = lines[1]["bucket_sectors"].as_u64().expect("a number");
    let mut generations: Vec<u8> = Vec::new();
    for line in lines.iter().filter(|line| line["type"] == "buckets") {
        let numbers = line["generations"].as_array().expect("numbers");
        generations.extend(numbers.iter().map(|number| number.as_u64().expect("a number") as u8));
    }
    let data: BTreeSet<u64> = lines
        .iter()
        .filter_map(|line| {
            let bucket = line["at"].as_u64()? / bucket_sectors;
            let generation = line["generation"].as_u64().expect("a generation") as u8;
            (generations[bucket as usize] == generation).then_some(bucket)
        })
        .collect();
    for line in lines.iter_mut().filter(|line| line["type"] == "buckets") {
        let first = line["first"].as_u64().expect("a number");
        let numbers = line["generations"].as_array_mut().expect("numbers");
        for (bucket, number) in (first..).zip(numbers) {
            if !data.contains(&bucket) {
                *number = Value::Null;
            }
        }
    }
    (lines, generations)
}

/// Asserts that a dump equals an earlier one. A bucket that has got metadata is one generation on.
fn assert_same(before: &[String], after: &[String]) {
    let (before, generations) = taken_apart(before);
    let (after, then) = taken_apart(after);
    assert_eq!(before, after);
    let advanced = generations
        .iter()
        .zip(&then)
        .filter(|(before, then)| **then == before.wrapping_add(1))
        .count();
    let same = generations.iter().zip(&then).filter(|(before, then)| before == then).count();
    assert_eq!(advanced + same, generations.len());
    assert!(advanced > 0, "the metadata of the restored set is somewhere");
}

/// The same, without a dump.
fn assert_same_set(before: &View, after: &View) {
    assert_eq!(before.superblock, after.superblock);
    assert_eq!(before.uuids, after.uuids);
    let extents = |view: &View| {
        let parts = view.extents.iter();
        parts
            .map(|it| (it.inode(), it.range(), it.pointer(), it.is_dirty(), it.csum()))
            .collect::<Vec<_>>()
    };
    assert_eq!(extents(before), extents(after));
    for (number, (old, new)) in before.buckets.iter().zip(&after.buckets).enumerate() {
        if matches!(old.owner, Owner::Clean | Owner::Dirty) {
            let known = |bucket: &Bucket| (bucket.owner, bucket.generation, bucket.priority);
            assert_eq!(known(old), known(new), "bucket {number}");
        } else {
            assert!(!new.generation.is_ahead(old.generation), "bucket {number} goes back in time");
            assert!(
                !matches!(new.owner, Owner::Clean | Owner::Dirty),
                "bucket {number} has no data"
            );
        }
    }
}

/// Returns the contents of all volumes.
fn contents(cache: &MemDevice, backings: &[MemDevice]) -> Vec<Vec<u8>> {
    let view = view(cache);
    let mut all: Vec<Vec<u8>> = backings
        .iter()
        .map(|disk| {
            content(&run(map_backed(&view, disk, false)).expect("a volume"), cache, Some(disk))
        })
        .collect();
    for (slot, _) in
        view.uuids.iter().enumerate().filter(|(_, slot)| slot.is_live() && slot.flash_only)
    {
        let map = map_flash_only(&view, Inode(slot as u32)).expect("a volume");
        all.push(content(&map, cache, None));
    }
    all
}

fn assert_clean(cache: &MemDevice, backings: &[MemDevice]) {
    let report =
        run(check(cache, &backings.iter().collect::<Vec<_>>(), None, CheckOptions::default()))
            .report;
    assert!(report.is_clean(), "{:?}", report.errors());
}

fn numbers() -> impl Strategy<Value = Numbers> {
    let sizes = (
        prop::sample::select(vec![8, 16, 32]),
        prop::sample::select(vec![1, 2, 4, 8]),
        513_u32..700,
    );
    (sizes, 0_usize..4, 0_usize..60, 4_usize..18, any::<u64>()).prop_map(
        |((bucket_sectors, block_sectors, buckets), volumes, extents, keys_in_a_leaf, seed)| {
            Numbers {
                bucket_sectors,
                block_sectors,
                buckets,
                volumes,
                extents,
                keys_in_a_leaf,
                seed,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None,
        ..ProptestConfig::default() })]
    #[test]
    fn what_was_dumped_is_restored(numbers in numbers(), damage: u64) {
        let Built { cache, backings, metadata, .. } = build(&numbers);
        let cache = MemDevice::new(cache);
        let backings: Vec<MemDevice> = backings.into_iter().map(MemDevice::new).collect();
        // Clean extents differ from the backing devices: nothing made them equal.
        assert_clean(&cache, &[]);
        let lines = dump(&cache);
        prop_assert_eq!(cache.writes(), 0);
        let whole = contents(&cache, &backings);
        let set = view(&cache);

        let (new, done) = onto_new_file(&lines);
        assert_clean(&new, &[]);
        assert_same(&lines, &dump(&new));
        assert_same_set(&set, &view(&new));
        prop_assert_eq!(done.extents as usize, lines.iter()
            .filter(|line| line.contains(r#""extent""#)).count());

        // On a copy whose metadata is broken, in part or as a whole.
        let mut random = Random(damage);
        let all = random.below(3) == 0;
        cache.change(|image| for range in metadata {
            match random.below(4) {
                _ if all => image[range].fill(0),
                0 => {}
                1 => image[range].fill(0),
                2 => image[range.start + 8] ^= 1,
                _ => image[range].iter_mut().for_each(|byte| *byte = random.next() as u8),
            }
        });
        let dumped = read(&lines);
        let state = run(look_at_target(&dumped, &cache, &())).expect("a look");
        prop_assert_eq!(cache.writes(), 0);
        let ours = !matches!(state.standing, Standing::Other { .. } | Standing::OtherShape);
        prop_assert!(ours, "the set's own device");
        run(restore(&dumped, lines.as_slice(), &cache, &state, &())).expect("a restored set");
        assert_clean(&cache, &[]);
        assert_same(&lines, &dump(&cache));
        assert_same_set(&set, &view(&cache));
        prop_assert_eq!(contents(&cache, &backings), whole);
    }
}

/// The frozen cases, and those that UBCACHE_KERNEL_IMAGES names.
#[test]
fn images_of_the_driver_are_restored() {
    for case in cases() {
        let cache = MemDevice::new(case.cache.clone());
        let backings: Vec<MemDevice> = case
            .volumes()
            .iter()
            .filter_map(|volume| volume.backing.clone())
            .map(MemDevice::new)
            .collect();
        if case.name == "fresh" {
            let nothing = run(dump_for_restore(&cache, |_| Ok(()), &()));
            assert_eq!(nothing.map(|_| ()), Err(OfflineError::NeverStarted));
            continue;
        }
        let lines = dump(&cache);
        println!("{}: {} lines", case.name, lines.len());
        let whole = contents(&cache, &backings);
        let (new, _) = onto_new_file(&lines);
        assert_clean(&new, &[]);
        assert_same(&lines, &dump(&new));
        // In place, after the loss of all metadata.
        let set = view(&cache);
        let bucket = set.geometry.bucket_bytes() as usize;
        let metadata: Vec<usize> = (set.geometry.first_bucket as usize..set.buckets.len())
            .filter(|number| {
                !matches!(set.buckets[*number].owner.word(), "clean data" | "dirty data")
            })
            .collect();
        cache.change(|image| {
            image[..8192].fill(0);
            metadata
                .iter()
                .for_each(|number| image[number * bucket..(number + 1) * bucket].fill(0xa5));
        });
        assert!(!run(check(&cache, &[], None, CheckOptions::default())).report.is_clean());
        let dumped = read(&lines);
        let state = run(look_at_target(&dumped, &cache, &())).expect("a look");
        assert_eq!(state.standing, Standing::Unknown);
        run(restore(&dumped, lines.as_slice(), &cache, &state, &())).expect("a restored set");
        assert_clean(&cache, &backings);
        assert_same(&lines, &dump(&cache));
        assert_same_set(&set, &view(&cache));
        assert!(contents(&cache, &backings) == whole, "{}", case.name);
    }
}

/// Up to the last step the set is what it was; after it, it is what was dumped.
#[test]
fn restoring_can_be_interrupted_at_every_write() {
    let case = frozen("writeback-crash");
    let image = MemDevice::new(case.cache.clone());
    let backing = MemDevice::new(case.volumes()[0].backing.clone().expect("a backing device"));
    let lines = dump(&image);
    let whole = contents(&image, std::slice::from_ref(&backing));
    let dumped = read(&lines);
    let attempt = |stop: u64| {
        let cache = MemDevice::new(case.cache.clone());
        let state = run(look_at_target(&dumped, &cache, &())).expect("a look");
        assert_eq!(state.standing, Standing::SameSet { newest_seq: dumped.journal_seq });
        cache.stop_at(stop);
        let done = run(restore(&dumped, lines.as_slice(), &cache, &state, &()));
        let writes = cache.writes();
        cache.stop_at(u64::MAX);
        (cache, done, writes)
    };
    let (_, done, writes) = attempt(u64::MAX);
    done.expect("a restored set");
    assert!(writes > 5);
    for stop in 0..writes {
        let (cache, done, _) = attempt(stop);
        assert!(matches!(done, Err(OfflineError::Io { .. })), "{done:?}");
        assert_clean(&cache, std::slice::from_ref(&backing));
        assert!(contents(&cache, std::slice::from_ref(&backing)) == whole, "stopped at {stop}");
    }
}

#[test]
fn target_of_restore_is_classified() {
    let case = frozen("writeback-crash");
    let lines = dump(&MemDevice::new(case.cache.clone()));
    let dumped = read(&lines);
    let look = |image: Vec<u8>| {
        run(look_at_target(&dumped, &MemDevice::new(image), &())).map(|state| state.standing)
    };
    let bytes = case.cache.len();
    assert_eq!(look(vec![0; bytes]), Ok(Standing::Unknown));
    assert!(matches!(look(vec![0; bytes / 2]), Err(OfflineError::TooSmall { .. })));
    let mut backing = case.volumes()[0].backing.clone().expect("a backing device");
    backing.resize(bytes.max(backing.len()), 0);
    assert!(matches!(look(backing), Ok(Standing::Other { is_cache: false, .. })));
    let other = frozen("writeback-clean").cache;
    assert!(matches!(look(other), Ok(Standing::Other { is_cache: true, .. })));
    // With its superblock gone, the journal says whose it is.
    let mut headless = case.cache.clone();
    headless[4096..8192].fill(0);
    assert_eq!(look(headless), Ok(Standing::SameSet { newest_seq: dumped.journal_seq }));
}

/// A dump that was cut short or changed so that it makes no sense is refused, with the line.
#[test]
fn malformed_dump_is_refused() {
    let lines = dump(&MemDevice::new(frozen("writeback-crash").cache));
    let refused = |lines: Vec<String>| match read_dump(lines.as_slice()) {
        Err(OfflineError::Dump { line, .. }) => line as usize,
        other => panic!("{other:?}"),
    };
    for cut in [0, 1, 2, 3, 4, lines.len() / 2, lines.len() - 1] {
        refused(lines[..cut].to_vec());
    }
    let first = lines.iter().position(|line| line.contains(r#""extent""#)).expect("extents");
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut changed = lines.clone();
        change(&mut changed);
        refused(changed)
    };
    assert_eq!(with(&|lines| lines.swap(first, first + 1)), first + 2);
    assert_eq!(with(&|lines| lines.insert(first, lines[first].clone())), first + 2);
    with(&|lines| {
        lines.remove(first);
    });
    let field = |at: usize, name: &str, value: Value| {
        with(&|lines| {
            let mut object: Value = serde_json::from_str(&lines[at]).expect("JSON");
            object[name] = value.clone();
            lines[at] = object.to_string();
        })
    };
    assert_eq!(field(0, "version", 2.into()), 1);
    // Nothing was wrong with such a number but that the restored set was damaged.
    for seq in [u64::MAX, 1 << 63, (1 << 63) - 1] {
        assert_eq!(field(0, "journal_seq", seq.into()), 1);
    }
    assert_eq!(field(1, "buckets", 600.into()), 2);
    assert_eq!(field(1, "uuid", "00010203-0405-0607-0809-0a0b0c0d0e0f".into()), 2);
    let pointed = lines.iter().position(|line| line.contains(r#""at""#)).expect("a pointer");
    assert_eq!(field(pointed, "at", u64::MAX.into()), pointed + 1);
    assert_eq!(field(pointed, "at", 0.into()), pointed + 1);
    assert_eq!(field(pointed, "sectors", 70_000.into()), pointed + 1);
    assert_eq!(field(pointed, "dirty", 1.into()), pointed + 1);
    // Restored all the same, such a pointer was damage on the device that had been overwritten.
    let all: Vec<Value> =
        lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let generation = all[pointed]["generation"].as_u64().expect("a generation");
    assert_eq!(field(pointed, "generation", ((generation + 256 - 97) % 256).into()), pointed + 1);
    // Two extents in one place.
    let other = lines.iter().rposition(|line| line.contains(r#""at""#)).expect("a pointer");
    let place: Value = serde_json::from_str(&lines[pointed]).expect("JSON");
    let twice = with(&|lines| {
        let mut object: Value = serde_json::from_str(&lines[other]).expect("JSON");
        object["at"] = place["at"].clone();
        object["generation"] = place["generation"].clone();
        lines[other] = object.to_string();
    });
    assert!(twice > other);
}

/// Metadata in a bucket is one generation on: a pointer to what the bucket had, as stale as can be,
/// would be too stale then.
#[test]
fn restored_metadata_avoids_buckets_with_old_pointers() {
    let mut lines = dump(&MemDevice::new(frozen("writeback-clean").cache));
    let mut values: Vec<Value> =
        lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let bucket_sectors = values[1]["bucket_sectors"].as_u64().expect("a number");
    let (first, upto) = (read(&lines).superblock().geometry(), 8);
    let data: BTreeSet<u64> =
        values.iter().filter_map(|line| Some(line["at"].as_u64()? / bucket_sectors)).collect();
    // The buckets that would be taken first: a pointer to each, behind all other extents.
    let begin = u64::from(first.first_bucket + first.journal_buckets);
    let stale: Vec<u64> = (begin..).filter(|bucket| !data.contains(bucket)).take(upto).collect();
    let (volume, end) = values
        .iter()
        .filter(|line| line["type"] == "extent")
        .map(|line| {
            let number = |name: &str| line[name].as_u64().expect("a number");
            (number("volume"), number("sector") + number("sectors"))
        })
        .next_back()
        .expect("extents");
    let last = values.len() - 1;
    for (index, bucket) in stale.iter().enumerate() {
        let line = values.iter_mut().find(|line| {
            let first = line["first"].as_u64();
            first.is_some_and(|first| (first..first + 1024).contains(bucket))
        });
        let line = line.expect("a line with the bucket");
        let at = (bucket - line["first"].as_u64().expect("a number")) as usize;
        line["generations"][at] = 100.into();
        let extent = serde_json::json!({
            "type": "extent", "volume": volume, "sector": end + 8 * index as u64, "sectors": 8,
            "dirty": false,
            "at": bucket * bucket_sectors, "generation": 100 - 96,
        });
        values.insert(last + index, extent);
    }
    let count = values.iter().filter(|line| line["type"] == "extent").count();
    values.last_mut().expect("an end")["extents"] = count.into();
    lines = values.iter().map(Value::to_string).collect();
    let (new, done) = onto_new_file(&lines);
    assert_eq!(done.extents as usize, count);
    assert_clean(&new, &[]);
}
