//! Damaged sets under the engine: it reports the damage, or serves; it never panics, whatever is on
//! the disk. Content is not compared: the engine can't distinguish rotten data from good data.

use ubcache_format::{Inode, JournalEntry, JournalSeq, Sector, encode_entry};
use ubcache_offline::walk;
use ubcache_torture::damage::damage;
use ubcache_torture::device::{MemDevice, run};
use ubcache_torture::serve::{How, serve};
use ubcache_torture::sets::{bases, small};

#[test]
fn a_damaged_set_is_refused_or_served() {
    let (mut refused, mut total) = (0, 0);
    let (small, large) = (small(), bases());
    for (base, seeds) in
        small.iter().map(|base| (base, 90)).chain(large.iter().map(|base| (base, 15)))
    {
        for seed in 0..seeds {
            let mut image = base.cache.clone();
            damage(base, &mut image, seed);
            let how =
                How { lazy: seed % 2 == 0, collect: seed % 3 == 0, keep_clean: seed % 5 == 0 };
            let served = serve(base, &image, how);
            refused += u32::from(served.refused.is_some());
            total += 1;
        }
    }
    println!("{total} sets, {refused} of them refused");
    assert!(refused > 0 && refused < total);
}

#[test]
fn undamaged_set_is_served_unchanged() {
    for base in &small() {
        for lazy in [false, true] {
            let served = serve(base, &base.cache, How { lazy, collect: true, ..How::default() });
            assert_eq!((served.refused, served.unread), (None, Vec::new()), "{}", base.name);
            assert!(served.content == base.whole, "{}", base.name);
        }
    }
}

/// A journal entry with a right checksum used to be accepted whatever it contained: a root that
/// does not reach to the end of all keys ended in a panic, and so did the greatest number there is.
#[test]
fn an_impossible_newest_entry_is_refused_by_name() {
    type Change = fn(&mut JournalEntry);
    let root_ends_early: Change = |entry: &mut JournalEntry| {
        (entry.root.inode, entry.root.end) = (Inode(3), Sector(5000));
    };
    let last_number: Change = |entry: &mut JournalEntry| {
        (entry.seq, entry.last_seq) = (JournalSeq(u64::MAX), JournalSeq(u64::MAX));
    };
    let table_in_the_root: Change =
        |entry: &mut JournalEntry| entry.uuid_bucket.pointers = entry.root.pointers.clone();
    let cases: [(&str, Change); 3] = [
        ("its root ends at 3:5000", root_ends_early),
        ("its number is 18446744073709551615", last_number),
        ("which has something else already", table_in_the_root),
    ];
    for base in &small() {
        let view = run(walk(&MemDevice::new(base.cache.clone(), base.block), &mut (), &()))
            .expect("a set");
        let newest = view.journal.newest().expect("an entry").entry.clone();
        for (words, change) in cases {
            let (mut image, mut entry) = (base.cache.clone(), newest.clone());
            change(&mut entry);
            image.put(
                base.parts.ring.last().expect("an entry").start,
                &encode_entry(&base.geometry, &entry),
            );
            let refused = serve(base, &image, How::default()).refused.expect("it is not served");
            assert!(refused.contains(words), "{refused}");
        }
    }
}
