use ubcache_format::{BucketNr, Inode, JournalSeq, Key, Pointer, Sector, crc64_we, encode_entry};

use super::*;
use crate::walk::driver_journal::driver_entries;
use crate::walk::journal_bucket::senseless;

fn ring(buckets: &[&[(u64, u64)]]) -> Vec<Vec<EntryPlace>> {
    let place = |index: usize, at: usize, &(seq, last_seq): &(u64, u64)| EntryPlace {
        index: index as u32,
        offset: at as u32 * 512,
        bytes: 512,
        seq,
        last_seq,
    };
    let entries = |(index, entries): (usize, &&[(u64, u64)])| {
        entries.iter().enumerate().map(|(at, entry)| place(index, at, entry)).collect()
    };
    buckets.iter().enumerate().map(entries).collect()
}

#[test]
fn search_of_the_driver_finds_a_wrapped_range() {
    let places =
        ring(&[&[(9, 7), (10, 7)], &[(11, 8)], &[(4, 3)], &[(6, 3)], &[(7, 5)], &[(8, 6)]]);
    assert_eq!(driver_entries(&places).iter().map(|e| e.0).collect::<Vec<_>>(), [8, 9, 10, 11]);
}

#[test]
fn search_of_the_driver_misses_entries_after_a_skipped_bucket() {
    let places = ring(&[&[(1, 1)], &[(2, 1)], &[], &[(3, 1)], &[], &[], &[], &[]]);
    assert!(driver_entries(&places).last().is_some_and(|e| e.0 < 3));
}

const GEOMETRY: Geometry = Geometry {
    set_magic: 7,
    bucket_sectors: 128,
    block_sectors: 1,
    buckets: 1024,
    first_bucket: 1,
    journal_buckets: 8,
};

fn entry(seq: u64) -> Vec<u8> {
    let key = Key::node(Inode(0), Sector(0), 128, Pointer::from_word(0x0005_8001));
    let entry = JournalEntry {
        seq: JournalSeq(seq),
        last_seq: JournalSeq(1),
        uuid_bucket: key.clone(),
        root: key,
        root_level: 0,
        prio_bucket: BucketNr(9),
        keys: Vec::new(),
        padding: ubcache_format::Padding::NONE,
    };
    encode_entry(&GEOMETRY, &entry)
}

/// An entry with a right checksum and a key of seven pointers.
fn undecodable(seq: u64) -> Vec<u8> {
    let mut bytes = entry(seq);
    bytes[28..32].copy_from_slice(&2_u32.to_le_bytes());
    bytes[240..248].copy_from_slice(&(7_u64 << 60).to_le_bytes());
    let csum = crc64_we(&bytes[8..256]);
    bytes[..8].copy_from_slice(&csum.to_le_bytes());
    bytes
}

/// Only the first was written over by a repair: the next one was the end of the journal from then
/// on.
#[test]
fn all_invalid_entries_of_a_bucket_are_found() {
    let mut torn = entry(4);
    torn[100] ^= 1;
    let blocks = [
        entry(1),
        undecodable(2),
        entry(3),
        torn,
        entry(SEQ_MAX + 1),
        vec![0; 512],
        undecodable(u64::MAX),
        entry(SEQ_MAX),
    ];
    let bytes = blocks.concat();
    assert_eq!(bytes.len(), blocks.len() * 512);
    let found: Vec<u64> = senseless(&GEOMETRY, &bytes, SEQ_MAX).collect();
    assert_eq!(found, [512, 4 * 512, 6 * 512]);
    // With a lower limit, a number that leaves none for the entry of the repair makes no sense
    // either.
    let found: Vec<u64> = senseless(&GEOMETRY, &bytes, SEQ_MAX_WITHOUT_THE_LAST).collect();
    assert_eq!(found, [512, 4 * 512, 6 * 512, 7 * 512]);
}
