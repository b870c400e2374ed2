//! Reading and recovering what the Linux driver left: the content is that which the driver itself
//! read, and a recovery can be interrupted at every write.

mod support;

use support::{Case, MemDevice, cases, content, digest, frozen, run, view};
use ubcache_format::{BackingState, Inode, SUPERBLOCK_BYTES, Superblock};
use ubcache_offline::{
    CheckOptions, OfflineError, Outcome, RecoverOptions, check, map_backed, map_flash_only, recover,
};

fn superblock(backing: &MemDevice) -> Superblock {
    Superblock::parse(&backing.bytes()[4096..4096 + SUPERBLOCK_BYTES]).expect("a good superblock")
}

fn volume_digest(cache: &MemDevice, backing: &MemDevice) -> String {
    let map = run(map_backed(&view(cache), backing, false)).expect("a volume");
    digest(&content(&map, cache, Some(backing)))
}

#[test]
fn cat_reads_what_the_driver_reads() {
    for case in cases() {
        let cache = MemDevice::new(case.cache.clone());
        let view = view(&cache);
        for volume in case.volumes() {
            let backing = volume.backing.clone().map(MemDevice::new);
            let map = match &backing {
                Some(backing) => run(map_backed(&view, backing, false)).expect("a volume"),
                None => {
                    let slot = view
                        .uuids
                        .iter()
                        .position(|slot| slot.flash_only)
                        .expect("a flash-only volume");
                    map_flash_only(&view, Inode(slot as u32)).expect("a flash-only volume")
                }
            };
            assert_eq!(map.sectors * 512, volume.bytes, "{}", case.name);
            assert_eq!(map.dirty_sectors(), volume.dirty_sectors, "{}", case.name);
            assert_eq!(
                digest(&content(&map, &cache, backing.as_ref())),
                volume.sha256,
                "{}",
                case.name
            );
        }
    }
}

/// After a recovery: the content is there with the cache, and without it; the set has no damage.
fn check_recovered(
    case: &Case,
    cache: &MemDevice,
    backings: &[MemDevice],
    of: usize,
    detached: bool,
) {
    let volumes = case.volumes();
    let backing = &backings[of];
    assert_eq!(volume_digest(cache, backing), volumes[of].sha256, "{}: with the cache", case.name);
    let alone = superblock(backing).data_offset().bytes() as usize;
    assert_eq!(digest(&backing.bytes()[alone..]), volumes[of].sha256, "{}: alone", case.name);
    let state = if detached { BackingState::None } else { BackingState::Clean };
    assert_eq!(superblock(backing).state(), state, "{}", case.name);
    let report =
        run(check(cache, &backings.iter().collect::<Vec<_>>(), None, CheckOptions::default()))
            .report;
    assert!(report.is_clean(), "{}: {:?} {:?}", case.name, report.counts, report.errors());
    if !detached {
        let map = run(map_backed(&view(cache), backing, false)).expect("a volume");
        assert_eq!(map.dirty_sectors(), 0, "{}", case.name);
    }
}

fn backings_of(case: &Case) -> Vec<MemDevice> {
    case.volumes().iter().filter_map(|volume| volume.backing.clone()).map(MemDevice::new).collect()
}

#[test]
fn recovered_volumes_are_complete_without_the_cache() {
    for case in cases().into_iter().filter(|case| case.name != "fresh") {
        for detach in [false, true] {
            let cache = MemDevice::new(case.cache.clone());
            let backings = backings_of(&case);
            for (index, backing) in backings.iter().enumerate() {
                let others: Vec<String> = case
                    .volumes()
                    .iter()
                    .skip(index + 1)
                    .map(|volume| volume.sha256.clone())
                    .collect();
                let dry = RecoverOptions { detach, dry_run: true, damaged: false };
                let (told, _) = run(recover(&cache, backing, dry, &())).expect("a dry run");
                assert_eq!(told.outcome, Outcome::DryRun);
                assert_eq!(told.map.dirty_sectors(), case.volumes()[index].dirty_sectors);
                let before = cache.bytes();
                let options = RecoverOptions { detach, dry_run: false, damaged: false };
                let (done, _) = run(recover(&cache, backing, options, &())).expect("a recovery");
                assert_eq!(done.outcome, if detach { Outcome::Detached } else { Outcome::Clean });
                assert!(!detach || before == cache.bytes(), "a detach does not touch the cache");
                check_recovered(&case, &cache, &backings, index, detach);
                // The other volumes of the set are what they were.
                for (other, digest) in backings.iter().skip(index + 1).zip(others) {
                    assert_eq!(
                        volume_digest(&cache, other),
                        digest,
                        "{}: another volume",
                        case.name
                    );
                }
                let (again, _) =
                    run(recover(&cache, backing, options, &())).expect("a second recovery");
                let expected = if detach { Outcome::AlreadyDetached } else { Outcome::Clean };
                assert_eq!(again.outcome, expected);
                check_recovered(&case, &cache, &backings, index, detach);
            }
        }
    }
}

/// A recovery may be stopped after any number of writes to the cache or to the backing device: the
/// volume reads as before, and the next run finishes.
#[test]
fn a_recovery_can_be_interrupted_at_every_write() {
    let case = frozen("writeback-crash");
    let expected = case.volumes()[0].sha256.clone();
    for detach in [false, true] {
        let options = RecoverOptions { detach, dry_run: false, damaged: false };
        let (cache, backings) = (MemDevice::new(case.cache.clone()), backings_of(&case));
        cache.stop_at(u64::MAX);
        run(recover(&cache, &backings[0], options, &())).expect("a recovery");
        let (cache_writes, backing_writes) = (cache.writes(), backings[0].writes());
        let step = (backing_writes / 12).max(1);
        let mut stops: Vec<(u64, u64)> = (0..cache_writes).map(|k| (k, u64::MAX)).collect();
        stops.extend((0..backing_writes).step_by(step as usize).map(|k| (u64::MAX, k)));
        stops.extend((backing_writes.saturating_sub(6)..backing_writes).map(|k| (u64::MAX, k)));
        println!(
            "detach {detach}: {cache_writes} writes to the cache, {backing_writes} to the backing \
             device"
        );
        for (on_cache, on_backing) in stops {
            let (cache, backings) = (MemDevice::new(case.cache.clone()), backings_of(&case));
            cache.stop_at(on_cache);
            backings[0].stop_at(on_backing);
            let stopped = run(recover(&cache, &backings[0], options, &()));
            assert!(matches!(stopped, Err(OfflineError::Io { .. })), "{stopped:?}");
            cache.stop_at(u64::MAX);
            backings[0].stop_at(u64::MAX);
            assert_eq!(
                volume_digest(&cache, &backings[0]),
                expected,
                "stopped at {on_cache} {on_backing}"
            );
            let report = run(check(&cache, &[&backings[0]], None, CheckOptions::default())).report;
            assert!(report.is_clean(), "stopped at {on_cache} {on_backing}: {:?}", report.errors());
            run(recover(&cache, &backings[0], options, &())).expect("a recovery");
            check_recovered(&case, &cache, &backings, 0, detach);
        }
    }
}
