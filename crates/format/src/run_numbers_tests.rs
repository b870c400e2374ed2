use super::*;
use crate::superblock::{BackingState, CacheMode, Replacement};
use crate::units::{Sector, Uuid};

const SLOT: Inode = Inode(3);

fn members() -> (Superblock, Superblock) {
    let (set, block) = (Uuid([7; 16]), 8);
    let mut cache =
        Superblock::new_cache(Uuid([1; 16]), set, block, 1024, 1024, Replacement::Lru, false);
    cache.mark_started(1000);
    let mut backing = Superblock::new_backing(
        Uuid([2; 16]),
        set,
        block,
        Sector(16),
        CacheMode::Writeback,
        "data",
    );
    backing.set_state(BackingState::Clean);
    backing.last_mount = 1000;
    (cache, backing)
}

fn give(cache: &mut Superblock, number: Option<RunNumber>, next: Option<RunNumber>) {
    let mut runs = cache.runs();
    assert!(runs.set(RunEntry::new(SLOT, number, next)));
    cache.set_runs(&runs);
}

fn number(count: u32) -> RunNumber {
    (0..count)
        .fold(None, |last: Option<RunNumber>, _| Some(RunNumber::after(last, 9)))
        .expect("at least 1")
}

/// The superblock after it was written and read.
fn reread(superblock: &Superblock) -> Superblock {
    Superblock::parse(&superblock.encode()).expect("it was written by us")
}

fn older(cache: &Superblock, backing: &Superblock) -> Option<Older> {
    compare_runs(&reread(cache), SLOT, &reread(backing)).err().map(|apart| apart.older)
}

#[test]
fn devices_of_one_run_match_and_older_copies_do_not() {
    let (mut cache, mut backing) = members();
    assert_eq!(older(&cache, &backing), None, "sets without run numbers are taken as they are");
    give(&mut cache, Some(number(5)), None);
    backing.set_run(Some(number(5)));
    assert_eq!(older(&cache, &backing), None);
    for (count, expected) in [(4, Older::Backing), (6, Older::Cache)] {
        backing.set_run(Some(number(count)));
        assert_eq!(older(&cache, &backing), Some(expected));
    }
    backing.set_run(Some(RunNumber::after([number(4)], 10)));
    assert_eq!(older(&cache, &backing), Some(Older::Neither));
    backing.set_run(None);
    assert_eq!(
        older(&cache, &backing),
        Some(Older::Backing),
        "a copy from before there were numbers"
    );
    backing.set_run(Some(number(5)));
    cache.set_runs(&Runs::default());
    assert_eq!(older(&cache, &backing), Some(Older::Cache), "and such a copy of the cache");
    cache.set_runs(&Runs::accepting_any());
    assert_eq!(older(&cache, &backing), None);
}

#[test]
fn both_run_numbers_match_while_they_change() {
    let (mut cache, mut backing) = members();
    give(&mut cache, None, Some(number(1)));
    assert_eq!(older(&cache, &backing), None);
    backing.set_run(Some(number(1)));
    assert_eq!(older(&cache, &backing), None);
    give(&mut cache, Some(number(1)), Some(number(2)));
    assert_eq!(older(&cache, &backing), None);
    backing.set_run(Some(number(2)));
    assert_eq!(older(&cache, &backing), None);
    backing.set_run(Some(number(3)));
    assert_eq!(older(&cache, &backing), Some(Older::Cache));
}

#[test]
fn run_of_the_driver_voids_numbers_and_dates_an_absent_cache() {
    let (mut cache, mut backing) = members();
    cache.sign();
    give(&mut cache, Some(number(5)), None);
    backing.set_run(Some(number(5)));
    let copy = cache.clone();
    // The driver: a start, and a write of the backing superblock.
    cache.seq += 1;
    assert!(!reread(&cache).is_signed() && reread(&copy).is_signed());
    assert_eq!(older(&cache, &backing), None);
    backing.last_mount += 60;
    assert_eq!(reread(&backing).run(), BackingRun::Void(number(5)));
    assert_eq!(older(&cache, &backing), None);
    assert_eq!(older(&copy, &backing), Some(Older::Cache));
    // A start of ubcache without the backing device does not make it older.
    cache.note_driver();
    cache.mark_started(2000);
    assert_eq!(older(&cache, &backing), None);
    give(&mut cache, Some(number(5)), None);
    assert_eq!(older(&cache, &backing), Some(Older::Cache), "told once");
}

/// A void number was taken wherever the driver had run the cache, and blamed on the cache wherever
/// it had not, although it says after which run of ubcache the driver came; it is compared now like
/// one that counts.
#[test]
fn void_run_number_still_orders_copies() {
    let (mut cache, mut backing) = members();
    cache.sign();
    backing.set_run(Some(number(5)));
    backing.last_mount += 60;
    for driver_ran_the_cache in [false, true] {
        cache.seq += u64::from(driver_ran_the_cache);
        for (count, expected) in [(4, Older::Cache), (6, Older::Backing)] {
            give(&mut cache, Some(number(count)), None);
            assert_eq!(older(&cache, &backing), Some(expected), "{count}, {driver_ran_the_cache}");
        }
        // A start that was cut off before the backing device got its next number.
        give(&mut cache, None, Some(number(6)));
        assert_eq!(older(&cache, &backing), None);
    }
    give(&mut cache, Some(number(5)), None);
    assert_eq!(older(&cache, &backing), None);
}

#[test]
fn run_table_is_bounded_and_empty_if_damaged() {
    let (mut cache, _) = members();
    let mut runs = Runs::default();
    for slot in 0..ENTRIES_MAX as u32 {
        assert!(runs.set(RunEntry::new(Inode(slot), Some(number(1)), None)));
    }
    assert!(!runs.set(RunEntry::new(Inode(99), None, None)));
    runs.remove(Inode(5));
    assert!(runs.set(RunEntry::new(Inode(99), None, None)));
    cache.set_runs(&runs);
    assert_eq!(reread(&cache).runs(), runs);
    let mut bytes = cache.encode();
    bytes[RUNS_AT + 60] ^= 1;
    assert_eq!(Superblock::parse(&bytes).expect("outside of its checksum").runs(), Runs::default());
}
