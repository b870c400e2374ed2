//! Records of the kept memory: what the journal has not written to the device yet.
//!
//! ```text
//! begin │ anchor 7 │ entry 8 │ key │ key │ entry 9 │ key │ anchor 8 │ key │ …
//! ```
//!
//! Each record begins with a word that says its kind. An anchor names an entry that is on the
//! device, or was submitted: its checksum tells it from one that another program wrote. The keys
//! behind the word of an entry are in this entry, in their order; a later entry begins behind all
//! keys of an earlier one. Behind a `begin` a start has written down anew all that counts.

use ubcache_format::{JournalSeq, Key};

const BEGIN: u64 = 1;
const ANCHOR: u64 = 2;
const ENTRY: u64 = 3;
const KEY: u64 = 4;
const GIVEN_UP: u64 = 5;

/// Bytes of the records, by kind; of a key at most.
pub(crate) const BEGIN_BYTES: usize = 8;
pub(crate) const ANCHOR_BYTES: usize = 40;
pub(crate) const ENTRY_BYTES: usize = 16;
pub(crate) const KEY_BYTES: usize = 8 + super::ring::RECORD_BYTES as usize;

/// Names an entry of the journal on the device.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Anchor {
    pub seq: JournalSeq,
    pub checksum: u64,
    /// Number of starts of the set, by its superblock, before the start of the run that wrote the
    /// anchor.
    pub starts: u64,
    /// See [`super::kept::KeptState`].
    pub lineage: u64,
}

/// Appends records to a buffer.
pub(crate) trait Records {
    fn words<const N: usize>(&mut self, words: [u64; N]);
    fn begin(&mut self);
    fn anchor(&mut self, anchor: Anchor);
    fn entry(&mut self, seq: JournalSeq);
    fn key(&mut self, key: &Key);
    fn given_up(&mut self);
}

impl Records for Vec<u8> {
    fn words<const N: usize>(&mut self, words: [u64; N]) {
        self.extend_from_slice(words.map(u64::to_le_bytes).as_flattened());
    }

    fn begin(&mut self) {
        self.words([BEGIN]);
    }

    fn anchor(&mut self, anchor: Anchor) {
        let Anchor { seq, checksum, starts, lineage } = anchor;
        self.words([ANCHOR, seq.0, checksum, starts, lineage]);
    }

    fn entry(&mut self, seq: JournalSeq) {
        self.words([ENTRY, seq.0]);
    }

    fn key(&mut self, key: &Key) {
        self.words([KEY]);
        key.encode(self);
    }

    fn given_up(&mut self) {
        self.words([GIVEN_UP]);
    }
}

/// Keys of the entries behind the newest one on the device.
pub(crate) type Waiting = Vec<Vec<Key>>;

/// Content, as a start finds it.
#[derive(Default, Debug)]
pub(crate) struct Log {
    /// Bytes before the last `begin`: they count no more.
    pub superseded: usize,
    pub anchors: Vec<Anchor>,
    /// Entries in their order, with their keys.
    pub entries: Vec<(JournalSeq, Vec<Key>)>,
    /// The run that left it gave it up.
    pub given_up: bool,
}

/// Reads records; `None` if the bytes are none.
pub(crate) fn parse(bytes: &[u8]) -> Option<Log> {
    let mut log = Log::default();
    let mut at = 0;
    while at < bytes.len() {
        let word = |index: usize| {
            let from = at + 8 * index;
            Some(u64::from_le_bytes(bytes.get(from..from + 8)?.try_into().ok()?))
        };
        at += match word(0)? {
            BEGIN => {
                log = Log { superseded: at, ..Log::default() };
                BEGIN_BYTES
            }
            ANCHOR => {
                let (seq, checksum) = (JournalSeq(word(1)?), word(2)?);
                let anchor = Anchor { seq, checksum, starts: word(3)?, lineage: word(4)? };
                log.anchors.push(anchor);
                ANCHOR_BYTES
            }
            ENTRY => {
                let seq = JournalSeq(word(1)?);
                if log.entries.last().is_some_and(|(last, _)| *last >= seq) {
                    return None;
                }
                log.entries.push((seq, Vec::new()));
                ENTRY_BYTES
            }
            KEY => {
                let (key, length) = Key::decode(bytes.get(at + 8..)?).ok()?;
                log.entries.last_mut()?.1.push(key);
                8 + length
            }
            GIVEN_UP => {
                log.given_up = true;
                8
            }
            _ => return None,
        };
    }
    Some(log)
}

#[cfg(test)]
mod tests {
    use ubcache_format::{Inode, Sector, SectorRange};

    use super::*;

    #[test]
    fn records_are_read_back_in_their_order() {
        let key = |at| Key::hole(Inode(3), SectorRange::new(Sector(at), 8));
        let anchor = Anchor { seq: JournalSeq(7), checksum: 5, starts: 2, lineage: 9 };
        let mut bytes = Vec::new();
        bytes.entry(JournalSeq(99));
        bytes.key(&key(0));
        bytes.given_up();
        let superseded = bytes.len();
        bytes.begin();
        bytes.anchor(anchor);
        bytes.entry(JournalSeq(8));
        bytes.key(&key(8));
        bytes.key(&key(0));
        bytes.entry(JournalSeq(9));
        bytes.key(&key(16));
        let log = parse(&bytes).expect("they are records");
        assert_eq!((log.superseded, log.given_up), (superseded, false));
        assert_eq!(log.anchors, [anchor]);
        let entries = [(JournalSeq(8), vec![key(8), key(0)]), (JournalSeq(9), vec![key(16)])];
        assert_eq!(log.entries, entries);
    }

    #[test]
    fn anything_else_is_refused() {
        let mut good = Vec::new();
        good.begin();
        good.entry(JournalSeq(8));
        for wrong in [0, 6, u64::MAX] {
            let mut bytes = good.clone();
            bytes.words([wrong]);
            assert!(parse(&bytes).is_none(), "{wrong}");
        }
        let mut earlier = good.clone();
        earlier.entry(JournalSeq(8));
        assert!(parse(&earlier).is_none(), "entries have ascending numbers");
        assert!(parse(&good[..good.len() - 1]).is_none(), "a record is whole");
        let mut without = Vec::new();
        without.key(&Key::hole(Inode(3), SectorRange::new(Sector(0), 8)));
        assert!(parse(&without).is_none(), "a key is in an entry");
    }
}
