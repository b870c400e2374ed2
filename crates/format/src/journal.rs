//! Journal entries, and finding those to replay (docs/reference/format.md §6).
//!
//! ```text
//!   0      8      16    24       28     32        40           104          168    170      176           240
//!   │ csum │magic │ seq │version │ keys │last_seq │uuid bucket │ btree root │level │padding │prio buckets │ keys… │
//!          └──────────────────────────────── covered by csum ─────────────────────────────────────────────────────┘
//! ```
//!
//! The two keys in the header have room for 8 words each and use 3, so 40 bytes of each are padding
//! that the driver leaves as it finds it. ubcache keeps a stamp of 16 bytes in the first of them.

use crate::bytes::{put, round_up, u16_at, u32_at, u64_at};
use crate::checksum::crc64_we;
use crate::error::{FormatError, Problem, Structure};
use crate::geometry::{Geometry, MAX_JOURNAL_ENTRY_BYTES};
use crate::key::{Key, decode_keys, encode_keys};
use crate::plain_key::are_keys;
use crate::stamp::{Padding, STAMP};
use crate::units::{BucketNr, JournalSeq};

/// Bytes before the first key of a journal entry.
pub const JOURNAL_HEADER_BYTES: u64 = 240;

/// Version of journal entries that are written. With version 0 the volume table has entries of 64
/// bytes.
pub const JOURNAL_VERSION: u32 = 1;

const UUID_KEY: usize = 40;
const ROOT_KEY: usize = 104;
const KEY_AREA: usize = 64;
const PRIO_BUCKETS: usize = 176;

/// One entry: the state of the whole set, and some extents that leaves may not have yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalEntry {
    /// The number of the entry.
    pub seq: JournalSeq,
    /// The oldest entry that was still needed for replay when this one was written.
    pub last_seq: JournalSeq,
    /// Place of the volume table.
    pub uuid_bucket: Key,
    /// The node key of the root.
    pub root: Key,
    /// The level of the root; leaves have level 0.
    pub root_level: u16,
    /// The bucket of the first prio set of the chain.
    pub prio_bucket: BucketNr,
    /// Extents and holes in the order in which they were made.
    pub keys: Vec<Key>,
    /// Padding of the volume table's key: ubcache recognises its own entries by it.
    pub padding: Padding,
}

/// The number of bytes that an entry with these keys takes on disk, padding to whole blocks
/// included.
pub fn entry_bytes(geometry: &Geometry, keys: &[Key]) -> u64 {
    let words: u64 = keys.iter().map(|key| key.words() as u64).sum();
    round_up(JOURNAL_HEADER_BYTES + 8 * words, geometry.block_bytes())
}

/// Number of 8-byte words of keys that fit into one entry of this set.
pub const fn max_entry_words(geometry: &Geometry) -> u64 {
    geometry.max_journal_entry_bytes().saturating_sub(JOURNAL_HEADER_BYTES) / 8
}

/// The entry as it is on disk, padded with zero bytes to whole blocks. Its keys must not take more
/// words than [`max_entry_words`].
pub fn encode_entry(geometry: &Geometry, entry: &JournalEntry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entry_bytes(geometry, &entry.keys) as usize);
    bytes.resize(JOURNAL_HEADER_BYTES as usize, 0);
    encode_keys(&entry.keys, &mut bytes);
    let words = (bytes.len() - JOURNAL_HEADER_BYTES as usize) / 8;
    debug_assert!(
        words as u64 <= max_entry_words(geometry),
        "{words} words do not fit into a journal entry"
    );
    put(&mut bytes, 8, &geometry.journal_magic().to_le_bytes());
    put(&mut bytes, 16, &entry.seq.0.to_le_bytes());
    put(&mut bytes, 24, &JOURNAL_VERSION.to_le_bytes());
    put(&mut bytes, 28, &u32::try_from(words).unwrap_or(u32::MAX).to_le_bytes());
    put(&mut bytes, 32, &entry.last_seq.0.to_le_bytes());
    for (at, key) in [(UUID_KEY, &entry.uuid_bucket), (ROOT_KEY, &entry.root)] {
        let mut words = Vec::with_capacity(KEY_AREA);
        key.encode(&mut words);
        put(&mut bytes, at, &words);
    }
    put(&mut bytes, 168, &entry.root_level.to_le_bytes());
    put(&mut bytes, PRIO_BUCKETS, &u64::from(entry.prio_bucket.0).to_le_bytes());
    if UUID_KEY + 8 * entry.uuid_bucket.words() <= STAMP {
        entry.padding.write(&mut bytes);
    }
    let csum = crc64_we(&bytes[8..]);
    put(&mut bytes, 0, &csum.to_le_bytes());
    bytes.resize(round_up(bytes.len() as u64, geometry.block_bytes()) as usize, 0);
    bytes
}

/// The entry at the start of `bytes`, which end where the journal bucket ends, and the bytes that
/// it takes on disk.
///
/// A number of the prio bucket that is too large for any device is read as `u32::MAX`. There is no
/// stamp if the key of the volume table is so long that it lies where the stamp would be.
pub fn parse_entry(
    geometry: &Geometry,
    bytes: &[u8],
) -> Result<(JournalEntry, usize), FormatError> {
    let length = check_entry(geometry, bytes)?;
    let key_at = |at: usize, end: usize| {
        Key::decode(&bytes[at..end])
            .map_err(|error| error.within(Structure::JournalEntry, at as u64))
    };
    let (uuid_bucket, uuid_bytes) = key_at(UUID_KEY, UUID_KEY + KEY_AREA)?;
    let (root, _) = key_at(ROOT_KEY, ROOT_KEY + KEY_AREA)?;
    let keys = decode_keys(&bytes[JOURNAL_HEADER_BYTES as usize..length])
        .map_err(|error| error.within(Structure::JournalEntry, JOURNAL_HEADER_BYTES))?;
    let entry = JournalEntry {
        seq: JournalSeq(u64_at(bytes, 16)),
        last_seq: JournalSeq(u64_at(bytes, 32)),
        uuid_bucket,
        root,
        root_level: u16_at(bytes, 168),
        prio_bucket: BucketNr(u32::try_from(u64_at(bytes, PRIO_BUCKETS)).unwrap_or(u32::MAX)),
        keys,
        padding: if UUID_KEY + uuid_bytes <= STAMP {
            Padding::parse(&bytes[..length])
        } else {
            Padding::NONE
        },
    };
    Ok((entry, (round_up(length as u64, geometry.block_bytes()) as usize).min(bytes.len())))
}

/// Header and size of an entry, without its contents.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct EntryHead {
    /// The number of the entry.
    pub seq: JournalSeq,
    /// The oldest entry that was still needed for replay when this one was written.
    pub last_seq: JournalSeq,
    /// The bytes that it takes on disk.
    pub bytes: usize,
    /// Its checksum.
    pub checksum: u64,
}

/// [`parse_entry`] without the contents; it refuses the same entries.
pub fn entry_head(geometry: &Geometry, bytes: &[u8]) -> Result<EntryHead, FormatError> {
    let length = check_entry(geometry, bytes)?;
    let area =
        |at: usize| bytes.get(at..at + KEY_AREA).is_some_and(|area| Key::decode(area).is_ok());
    let keys = bytes.get(JOURNAL_HEADER_BYTES as usize..length).unwrap_or_default();
    if !(area(UUID_KEY) && area(ROOT_KEY) && are_keys(keys)) {
        parse_entry(geometry, bytes)?;
    }
    Ok(EntryHead {
        seq: JournalSeq(u64_at(bytes, 16)),
        last_seq: JournalSeq(u64_at(bytes, 32)),
        bytes: (round_up(length as u64, geometry.block_bytes()) as usize).min(bytes.len()),
        checksum: u64_at(bytes, 0),
    })
}

/// The checksum of the entry at the start of `bytes`.
pub fn entry_checksum(bytes: &[u8]) -> u64 {
    u64_at(bytes, 0)
}

/// Version of the entry at the start of `bytes`; with 0, volume-table entries are 64 bytes long.
pub fn entry_version(bytes: &[u8]) -> u32 {
    u32_at(bytes, 24)
}

/// Checks that the driver would accept an entry at the start of `bytes`; returns its length in
/// bytes.
fn check_entry(geometry: &Geometry, bytes: &[u8]) -> Result<usize, FormatError> {
    let room = bytes.len() as u64;
    if room < JOURNAL_HEADER_BYTES {
        return Err(FormatError::too_short(
            Structure::JournalEntry,
            bytes.len(),
            JOURNAL_HEADER_BYTES,
        ));
    }
    let (found, expected) = (u64_at(bytes, 8), geometry.journal_magic());
    if found != expected {
        return Err(FormatError::new(
            Structure::JournalEntry,
            8,
            Problem::Magic { found, expected },
        ));
    }
    let words = u64::from(u32_at(bytes, 28));
    let length = JOURNAL_HEADER_BYTES + 8 * words;
    let most = room.min(MAX_JOURNAL_ENTRY_BYTES);
    if length > most {
        let most = format_args!("at most {}", (most - JOURNAL_HEADER_BYTES) / 8);
        return Err(FormatError::value(
            Structure::JournalEntry,
            28,
            "number of words",
            words,
            most,
        ));
    }
    let (found, expected) = (u64_at(bytes, 0), crc64_we(&bytes[8..length as usize]));
    if found != expected {
        let problem = Problem::Checksum { found, expected, bytes: length - 8 };
        return Err(FormatError::new(Structure::JournalEntry, 0, problem));
    }
    Ok(length as usize)
}

/// All entries of a journal bucket with their offsets in bytes, up to the first place where there
/// is none (docs/reference/format.md §6.2). The last of them may be left over from an earlier lap
/// of the ring.
///
/// An entry that has a right checksum but keys that can not be decoded ends the list too. That is
/// damage, and not the end of a log; [`scan_bucket_strictly`] reports it.
pub fn scan_bucket(geometry: &Geometry, bytes: &[u8]) -> Vec<(u32, JournalEntry)> {
    scan(geometry, bytes).0
}

/// Scans like [`scan_bucket`], but returns an error if an entry has a right checksum and contents
/// that can not be decoded.
pub fn scan_bucket_strictly(
    geometry: &Geometry,
    bytes: &[u8],
) -> Result<Vec<(u32, JournalEntry)>, FormatError> {
    match scan(geometry, bytes) {
        (entries, None) => Ok(entries),
        (_, Some(error)) => Err(error),
    }
}

/// [`scan_bucket_strictly`] without the contents; it refuses the same entries.
pub fn scan_heads_strictly(
    geometry: &Geometry,
    bytes: &[u8],
) -> Result<Vec<(u32, EntryHead)>, FormatError> {
    match scan_with(geometry, bytes, |rest| {
        entry_head(geometry, rest).map(|head| (head, head.bytes))
    }) {
        (heads, None) => Ok(heads),
        (_, Some(error)) => Err(error),
    }
}

fn scan(geometry: &Geometry, bytes: &[u8]) -> (Vec<(u32, JournalEntry)>, Option<FormatError>) {
    scan_with(geometry, bytes, |rest| parse_entry(geometry, rest))
}

/// Scans a bucket. `take` returns the wanted part of an entry, and the entry's length on disk in
/// bytes.
fn scan_with<T>(
    geometry: &Geometry,
    bytes: &[u8],
    take: impl Fn(&[u8]) -> Result<(T, usize), FormatError>,
) -> (Vec<(u32, T)>, Option<FormatError>) {
    let mut entries = Vec::new();
    let mut at = 0;
    while let Some(rest) = bytes.get(at..) {
        match take(rest) {
            Ok((entry, used)) => {
                entries.push((u32::try_from(at).unwrap_or(u32::MAX), entry));
                at += used;
            }
            // End at the first place without an entry; an entry that can't be decoded is an error.
            Err(_) if check_entry(geometry, rest).is_err() => break,
            Err(error) => return (entries, Some(error.within(Structure::JournalEntry, at as u64))),
        }
    }
    (entries, None)
}

/// The number of an entry whose beginning is all that `bytes` hold, which end where the journal
/// bucket ends: its write was cut off, or it is what a later entry has left of an older one.
pub fn torn_entry(geometry: &Geometry, bytes: &[u8]) -> Option<JournalSeq> {
    let header =
        bytes.len() as u64 >= JOURNAL_HEADER_BYTES && u64_at(bytes, 8) == geometry.journal_magic();
    (header && check_entry(geometry, bytes).is_err()).then(|| JournalSeq(u64_at(bytes, 16)))
}

/// Result of scanning the journal: the entries to replay, and the place where the ring can be
/// written next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplayRange {
    /// The entries that replay needs, in ascending order; the last one is the newest, and describes
    /// the set.
    pub entries: Vec<JournalEntry>,
    /// The index in the journal ring of the bucket that holds the newest entry.
    pub newest_bucket_index: u32,
    /// For every index of the ring, the greatest sequence number found in that bucket. A bucket may
    /// be overwritten when this is less than the `last_seq` of the newest durable entry.
    pub bucket_max_seq: Vec<Option<JournalSeq>>,
}

impl ReplayRange {
    /// The newest entry.
    pub fn newest(&self) -> Option<&JournalEntry> {
        self.entries.last()
    }
}

/// Selects, from all entries of all journal buckets, by index in the ring, those from `last_seq` of
/// the newest entry to the newest (docs/reference/format.md §6.3). `discard` is the flag of the
/// superblock: with it, entries at the beginning of the range may be missing.
pub fn select_replay(
    geometry: &Geometry,
    scanned: Vec<Vec<(u32, JournalEntry)>>,
    discard: bool,
) -> Result<ReplayRange, FormatError> {
    let bucket_max_seq: Vec<_> =
        scanned.iter().map(|entries| entries.iter().map(|(_, entry)| entry.seq).max()).collect();
    let newest = scanned
        .iter()
        .zip(0_u32..)
        .flat_map(|(bucket, index)| bucket.iter().map(move |(_, e)| (e, index)));
    let Some((newest, newest_bucket_index)) = newest.max_by_key(|(entry, _)| entry.seq) else {
        let problem = Problem::NoEntries { buckets: u64::from(geometry.journal_buckets) };
        return Err(FormatError::new(Structure::Journal, 0, problem));
    };
    let (first, last) = (newest.last_seq, newest.seq);
    if first > last {
        let most = format_args!("at most the entry's own number, {last}");
        return Err(FormatError::value(
            Structure::JournalEntry,
            32,
            "last_seq of the newest entry",
            first,
            most,
        ));
    }
    let mut entries: Vec<_> = scanned
        .into_iter()
        .flatten()
        .map(|(_, entry)| entry)
        .filter(|entry| entry.seq >= first)
        .collect();
    entries.sort_by_key(|entry| entry.seq);
    entries.dedup_by_key(|entry| entry.seq);
    check_complete(&entries, first, discard)?;
    Ok(ReplayRange { entries, newest_bucket_index, bucket_max_seq })
}

/// Checks that ascending entries have no gap between them, and none before them either unless
/// `headless` is allowed.
fn check_complete(
    entries: &[JournalEntry],
    first: JournalSeq,
    headless: bool,
) -> Result<(), FormatError> {
    let newest = entries.last().map_or(first, |entry| entry.seq);
    let missing = |from: JournalSeq, to: JournalSeq| {
        let problem = Problem::EntriesMissing {
            first: from.0,
            last: to.0 - 1,
            oldest: first.0,
            newest: newest.0,
        };
        Err(FormatError::new(Structure::Journal, 0, problem))
    };
    match entries.first() {
        Some(entry) if entry.seq > first && !headless => return missing(first, entry.seq),
        _ => {}
    }
    for pair in entries.windows(2) {
        if pair[0].seq.next() != pair[1].seq {
            return missing(pair[0].seq.next(), pair[1].seq);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::tests::example;
    use crate::pointer::Pointer;
    use crate::units::{Inode, Sector, SectorRange};

    use proptest::prelude::*;

    proptest! {
        /// A head is refused for the same reasons as its entry, and has the same numbers.
        #[test]
        fn head_agrees_with_the_parsed_entry(
            words in proptest::collection::vec(
                prop_oneof![Just(1_u64 << 63), Just(9_u64 << 60), (0_u64..16)
                    .prop_map(|n| n << 60), any::<u64>()],
                0..20,
            ),
            areas in [0_u64..8, 0_u64..8],
            numbers in any::<[u64; 2]>(),
            cut in 0_usize..600,
        ) {
            let geometry = example(128);
            let mut bytes = encode_entry(&geometry, &entry(numbers[0], numbers[1]));
            bytes.resize(1024, 0);
            put(&mut bytes, 28, &(words.len() as u32).to_le_bytes());
            for (at, count) in [UUID_KEY, ROOT_KEY].into_iter().zip(areas) {
                put(&mut bytes, at, &(1 << 63 | count << 60).to_le_bytes());
            }
            for (index, word) in words.iter().enumerate() {
                put(&mut bytes, JOURNAL_HEADER_BYTES as usize + 8 * index, &word.to_le_bytes());
            }
            let csum = crc64_we(&bytes[8..JOURNAL_HEADER_BYTES as usize + 8 * words.len()]);
            put(&mut bytes, 0, &csum.to_le_bytes());
            bytes.truncate(1024 - cut);
            let head = entry_head(&geometry, &bytes).map(|head| (head.seq, head.last_seq,
                head.bytes));
            let parsed = parse_entry(&geometry, &bytes);
            prop_assert_eq!(head, parsed.map(|(entry, used)| (entry.seq, entry.last_seq, used)));
            let places = |scanned: Vec<(u32, JournalEntry)>| {
                scanned.into_iter().map(|(at, entry)| (at, entry.seq, entry.last_seq))
                    .collect::<Vec<_>>()
            };
            let heads = scan_heads_strictly(&geometry, &bytes);
            let heads = heads.map(|heads| heads.into_iter().map(|(at, head)| (at, head.seq,
                head.last_seq)).collect());
            prop_assert_eq!(heads, scan_bucket_strictly(&geometry, &bytes).map(places));
        }
    }

    /// The example of docs/reference/format.md §6.8 is this entry with number 1.
    fn entry(seq: u64, last_seq: u64) -> JournalEntry {
        JournalEntry {
            seq: JournalSeq(seq),
            last_seq: JournalSeq(last_seq),
            uuid_bucket: Key::node(Inode(0), Sector(0), 128, Pointer::from_word(0x0005_8001)),
            root: Key::max_node(128, Pointer::from_word(0x0005_0001)),
            root_level: 0,
            prio_bucket: BucketNr(9),
            keys: Vec::new(),
            padding: Padding::NONE,
        }
    }

    #[test]
    fn example_entry_encodes() {
        let geometry = example(128);
        let bytes = encode_entry(&geometry, &entry(1, 1));
        assert_eq!(bytes.len(), 512);
        assert_eq!(u64_at(&bytes, 0), 0xbc7a_e244_323a_0bfe);
        assert_eq!(parse_entry(&geometry, &bytes), Ok((entry(1, 1), 512)));
        let padded = JournalEntry { padding: Padding::Other(*b"0123456789abcdef"), ..entry(1, 1) };
        let bytes = encode_entry(&geometry, &padded);
        assert_eq!(&bytes[64..80], b"0123456789abcdef");
        assert_eq!(parse_entry(&geometry, &bytes), Ok((padded, 512)));
        assert_eq!(entry_version(&bytes), 1);
    }

    #[test]
    fn a_full_entry_takes_32_kib() {
        let geometry = example(128);
        let key = Key::extent(
            Inode(1),
            SectorRange::new(Sector(16), 8),
            true,
            Pointer::from_word(0x0005_0001),
        );
        let full = JournalEntry { keys: vec![key; 4066 / 3], ..entry(1, 1) };
        assert_eq!(max_entry_words(&geometry), 4066);
        let bytes = encode_entry(&geometry, &full);
        assert_eq!((bytes.len(), entry_bytes(&geometry, &full.keys)), (32768, 32768));
        assert_eq!(parse_entry(&geometry, &bytes).map(|(entry, _)| entry), Ok(full));
    }

    #[test]
    fn scan_of_a_bucket_ends_at_the_first_non_entry() {
        let geometry = example(128);
        let mut bucket = vec![0; 65536];
        for (index, seq) in [7, 8, 3].into_iter().enumerate() {
            put(&mut bucket, index * 512, &encode_entry(&geometry, &entry(seq, seq)));
        }
        put(&mut bucket, 4 * 512, &encode_entry(&geometry, &entry(9, 9)));
        let found: Vec<_> =
            scan_bucket(&geometry, &bucket).into_iter().map(|(at, e)| (at, e.seq.0)).collect();
        assert_eq!(found, [(0, 7), (512, 8), (1024, 3)]);
        bucket[512 + 100] ^= 1;
        assert_eq!(scan_bucket(&geometry, &bucket).len(), 1);
        assert!(scan_bucket(&geometry, &[]).is_empty());
    }

    /// A right checksum over keys that make no sense is damage, and must not pass for the end of
    /// the journal.
    #[test]
    fn undecodable_keys_are_not_taken_for_the_end() {
        let geometry = example(128);
        let mut bytes = encode_entry(&geometry, &entry(1, 1));
        put(&mut bytes, 28, &2_u32.to_le_bytes());
        put(&mut bytes, 240, &(7_u64 << 60).to_le_bytes());
        let csum = crc64_we(&bytes[8..256]);
        put(&mut bytes, 0, &csum.to_le_bytes());
        assert!(scan_bucket(&geometry, &bytes).is_empty());
        let error = scan_bucket_strictly(&geometry, &bytes).expect_err("damage");
        assert_eq!(
            error.to_string(),
            "journal entry, byte 240: number of pointers is 7, expected at most 6"
        );
    }

    fn ring(seqs: &[&[(u64, u64)]]) -> Vec<Vec<(u32, JournalEntry)>> {
        seqs.iter()
            .map(|bucket| bucket.iter().map(|&(seq, last)| (0, entry(seq, last))).collect())
            .collect()
    }

    fn selected(seqs: &[&[(u64, u64)]], discard: bool) -> Result<(Vec<u64>, u32), FormatError> {
        let range = select_replay(&example(128), ring(seqs), discard)?;
        Ok((range.entries.iter().map(|entry| entry.seq.0).collect(), range.newest_bucket_index))
    }

    #[test]
    fn replay_range_is_that_of_the_newest_entry() {
        let wrapped: [&[_]; 4] =
            [&[(9, 6), (10, 7), (2, 1)], &[(5, 3)], &[(6, 5), (7, 6)], &[(8, 6)]];
        assert_eq!(selected(&wrapped, false), Ok((vec![7, 8, 9, 10], 0)));
        let range = select_replay(&example(128), ring(&wrapped), false).expect("a whole range");
        assert_eq!(range.bucket_max_seq, [10, 5, 7, 8].map(|seq| Some(JournalSeq(seq))));
        assert_eq!(range.newest(), Some(&entry(10, 7)));
        assert_eq!(selected(&[&[], &[(1, 1)]], false), Ok((vec![1], 1)));
    }

    #[test]
    fn gap_in_the_journal_is_reported() {
        let gap: [&[_]; 2] = [&[(5, 5), (9, 5)], &[]];
        let error = selected(&gap, true).expect_err("a gap in the middle");
        assert_eq!(
            error.to_string(),
            "journal, byte 0: entries 6 to 8 are missing, expected all of 5 to 9"
        );
        let headless: [&[_]; 1] = [&[(9, 5)]];
        let error = selected(&headless, false).expect_err("a gap at the beginning");
        assert_eq!(
            error.problem,
            Problem::EntriesMissing { first: 5, last: 8, oldest: 5, newest: 9 }
        );
        assert_eq!(selected(&headless, true), Ok((vec![9], 0)));
        assert!(selected(&[&[(9, 0)]], false).is_err());
        assert!(selected(&[&[(9, 10)]], true).is_err());
        assert!(selected(&[&[], &[]], true).is_err());
        assert!(selected(&[&[(u64::MAX, 0), (u64::MAX, 0)]], false).is_err());
    }
}
