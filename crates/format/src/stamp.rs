//! ubcache's additions to journal entries, in padding that the driver ignores
//! (docs/reference/format.md §14): from them a start finds out whether ubcache or the driver ran
//! the set last.
//!
//! ```text
//!  64         72          73           74              75     76      80
//!  │ ubcache1 │ own chain │ to be      │ own policy    │ bound│ check │
//!  │          │           │ dropped    │               │      │       │
//! ```
//!
//! Padding is not private to an entry: the driver's entries carry the padding of entries that it
//! read before. So the stamp has a checksum of the very entry that it is in. Early ubcache did not
//! write one.

use std::fmt;

use crc_fast::{CrcAlgorithm, Digest};

use crate::bytes::{array, put, u32_at};
use crate::journal::JournalEntry;

/// Offset of the stamp in an entry.
pub(crate) const STAMP: usize = 64;
pub(crate) const STAMP_BYTES: usize = 16;

const NAME: [u8; 8] = *b"ubcache1";
const OWN_CHAIN: usize = 8;
const DROPS: usize = 9;
const OWN_POLICY: usize = 10;
const BOUND: usize = 11;
const CHECK: usize = 12;

/// Clean data that is not to be served, and has not all been dropped yet.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Drops {
    /// The driver left this data, or may have left it.
    Driver,
    /// A tool wrote this data again, and can't know how the backing device has changed since.
    Tool,
}

/// Replacement policy of ubcache's own, for which the superblock names lru.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum OwnPolicy {
    /// None: the superblock says it all.
    #[default]
    None,
    /// The bucket goes that is worth least by what buckets like it were used for.
    ScanResistant,
    /// Data that is used again is kept apart from data that is not.
    TwoQueue,
    /// The policy of these, and lru, that would have had most hits of late.
    Adaptive,
}

impl OwnPolicy {
    const ALL: [OwnPolicy; 4] =
        [OwnPolicy::None, OwnPolicy::ScanResistant, OwnPolicy::TwoQueue, OwnPolicy::Adaptive];

    /// Its name; empty for none.
    pub fn word(self) -> &'static str {
        match self {
            OwnPolicy::None => "",
            OwnPolicy::ScanResistant => "scan-resistant",
            OwnPolicy::TwoQueue => "two-queue",
            OwnPolicy::Adaptive => "adaptive",
        }
    }

    /// The policy of that name.
    pub fn named(word: &str) -> Option<OwnPolicy> {
        OwnPolicy::ALL.into_iter().find(|policy| policy.word() == word)
    }

    /// The policy with this number in a stamp; none for one of a later version.
    fn numbered(number: u8) -> OwnPolicy {
        OwnPolicy::ALL.get(usize::from(number)).copied().unwrap_or_default()
    }
}

/// ubcache's statement about the set in an entry.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Stamp {
    /// True if ubcache wrote the prio chain that the entry names; it lists the buckets that are
    /// kept free.
    pub own_chain: bool,
    /// Data that has to be dropped before the set is served.
    pub drops: Option<Drops>,
    /// Replacement policy in force where the superblock names lru.
    pub own_policy: OwnPolicy,
}

impl Stamp {
    /// The stamp in the bytes, not verified: any program may have put it there.
    pub fn claimed(bytes: &[u8; STAMP_BYTES]) -> Option<Stamp> {
        bytes.starts_with(&NAME).then(|| Stamp {
            own_chain: bytes[OWN_CHAIN] == 1,
            drops: match bytes[DROPS] {
                0 => None,
                2 => Some(Drops::Tool),
                _ => Some(Drops::Driver),
            },
            own_policy: OwnPolicy::numbered(bytes[OWN_POLICY]),
        })
    }

    fn bytes(self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[..NAME.len()].copy_from_slice(&NAME);
        bytes[OWN_CHAIN] = u8::from(self.own_chain);
        bytes[DROPS] = match self.drops {
            None => 0,
            Some(Drops::Driver) => 1,
            Some(Drops::Tool) => 2,
        };
        bytes[OWN_POLICY] = self.own_policy as u8;
        bytes
    }
}

/// The place of the stamp in an entry, and its content.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Padding {
    /// A stamp that is bound to the entry: ubcache wrote it.
    Bound(Stamp),
    /// A stamp as early ubcache wrote it. The driver may have carried it over from another entry.
    Unbound(Stamp),
    /// Anything else, the stamp of another entry included.
    Other([u8; STAMP_BYTES]),
}

impl Padding {
    /// No stamp.
    pub const NONE: Padding = Padding::Other([0; STAMP_BYTES]);

    /// Reads that of an entry. `entry` is all that the checksum of the entry covers, and the
    /// checksum.
    pub(crate) fn parse(entry: &[u8]) -> Padding {
        let bytes: [u8; STAMP_BYTES] = array(entry, STAMP);
        match (Stamp::claimed(&bytes), bytes[BOUND]) {
            (Some(stamp), 0) if u32_at(&bytes, CHECK) == 0 => Padding::Unbound(stamp),
            (Some(stamp), 1) if u32_at(&bytes, CHECK) == check(entry) => Padding::Bound(stamp),
            _ => Padding::Other(bytes),
        }
    }

    /// Puts it into an entry that is complete but for this and its checksum.
    pub(crate) fn write(self, entry: &mut [u8]) {
        match self {
            Padding::Other(bytes) => put(entry, STAMP, &bytes),
            Padding::Unbound(stamp) => put(entry, STAMP, &stamp.bytes()),
            Padding::Bound(stamp) => {
                put(entry, STAMP, &stamp.bytes());
                put(entry, STAMP + BOUND, &[1]);
                let check = check(entry);
                put(entry, STAMP + CHECK, &check.to_le_bytes());
            }
        }
    }
}

/// Checksum of an entry from its magic number to its last key, but for these four bytes themselves:
/// the CRC of the format, its halves laid over each other.
fn check(entry: &[u8]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64We);
    digest.update(entry.get(8..STAMP + CHECK).unwrap_or_default());
    digest.update(entry.get(STAMP + STAMP_BYTES..).unwrap_or_default());
    let crc = digest.finalize();
    (crc >> 32) as u32 ^ crc as u32
}

impl fmt::Display for Padding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stamp = match self {
            Padding::Other(bytes) => {
                return bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"));
            }
            Padding::Bound(stamp) => {
                f.write_str("ubcache")?;
                stamp
            }
            Padding::Unbound(stamp) => {
                f.write_str("ubcache-0.1")?;
                stamp
            }
        };
        for (said, word) in [
            (stamp.own_chain, ",own-chain"),
            (stamp.drops == Some(Drops::Driver), ",drops-what-the-driver-left"),
            (stamp.drops == Some(Drops::Tool), ",drops-what-a-tool-left"),
        ] {
            f.write_str(if said { word } else { "" })?;
        }
        match stamp.own_policy {
            OwnPolicy::None => Ok(()),
            policy => write!(f, ",{}", policy.word()),
        }
    }
}

/// The program that ran a set last, according to its journal.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum LastRun {
    /// ubcache, with its stamp.
    Ubcache(Stamp),
    /// Early ubcache, or the driver after it: the stamp is the same.
    Unknown(Stamp),
    /// The driver, or some other program.
    #[default]
    Other,
}

impl LastRun {
    /// Decides by the newest entry of the journal, and the entry before it if that ends where the
    /// newest begins.
    ///
    /// A stamp of early ubcache is accepted if both have it and are in one journal bucket. The
    /// driver begins a new bucket after each start, so it wrote either both of them or none; and it
    /// has two buffers for its entries, of which one holds the entry that it read, so of two in a
    /// row it marks one at most.
    pub fn of(newest: &JournalEntry, before: Option<&JournalEntry>) -> LastRun {
        let before = before.filter(|before| before.seq.next() == newest.seq);
        match (newest.padding, before.map(|before| before.padding)) {
            (Padding::Bound(stamp), _)
            | (Padding::Unbound(stamp), Some(Padding::Bound(_) | Padding::Unbound(_))) => {
                LastRun::Ubcache(stamp)
            }
            (Padding::Unbound(stamp), _) => LastRun::Unknown(stamp),
            (Padding::Other(_), _) => LastRun::Other,
        }
    }

    /// Padding for an entry that continues the set with a prio chain that promises nothing.
    pub fn without_promise(self) -> Padding {
        let quiet = |stamp| Stamp { own_chain: false, ..stamp };
        match self {
            LastRun::Ubcache(stamp) => Padding::Bound(quiet(stamp)),
            LastRun::Unknown(stamp) => Padding::Unbound(quiet(stamp)),
            LastRun::Other => Padding::NONE,
        }
    }

    /// Returns ubcache's own policy that was in force: no data depends on it, so an unverified
    /// stamp will do.
    pub fn own_policy(self) -> OwnPolicy {
        match self {
            LastRun::Ubcache(stamp) | LastRun::Unknown(stamp) => stamp.own_policy,
            LastRun::Other => OwnPolicy::None,
        }
    }

    /// The stamp of ubcache; nothing if the driver has changed the set since, or may have.
    pub fn stamp(self) -> Option<Stamp> {
        match self {
            LastRun::Ubcache(stamp) => Some(stamp),
            LastRun::Unknown(_) | LastRun::Other => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Key;
    use crate::pointer::Pointer;
    use crate::units::{BucketNr, Inode, JournalSeq, Sector};

    fn entry(seq: u64, padding: Padding) -> JournalEntry {
        JournalEntry {
            seq: JournalSeq(seq),
            last_seq: JournalSeq(1),
            uuid_bucket: Key::node(Inode(0), Sector(0), 128, Pointer::from_word(0x0005_8001)),
            root: Key::max_node(128, Pointer::from_word(0x0005_0001)),
            root_level: 0,
            prio_bucket: BucketNr(9),
            keys: Vec::new(),
            padding,
        }
    }

    #[test]
    fn stamp_of_version_0_1_is_accepted_after_another_stamp() {
        let stamp = Stamp { own_chain: true, ..Stamp::default() };
        let (old, new, none) = (Padding::Unbound(stamp), Padding::Bound(stamp), Padding::NONE);
        let ran = |newest, before: Option<(u64, Padding)>| {
            let before = before.map(|(seq, padding)| entry(seq, padding));
            LastRun::of(&entry(7, newest), before.as_ref())
        };
        // Bound to its entry it needs no other.
        assert_eq!(ran(new, None), LastRun::Ubcache(stamp));
        assert_eq!(ran(new, Some((6, none))), LastRun::Ubcache(stamp));
        assert_eq!(ran(old, Some((6, old))), LastRun::Ubcache(stamp));
        // Early ubcache again, after a version that binds them.
        assert_eq!(ran(old, Some((6, new))), LastRun::Ubcache(stamp));
        // The driver has two buffers.
        assert_eq!(ran(old, Some((6, none))), LastRun::Unknown(stamp));
        // The first entry of a set, or of a journal bucket: the driver begins one at each start.
        assert_eq!(ran(old, None), LastRun::Unknown(stamp));
        // An entry of an earlier lap is not the one before it.
        assert_eq!(ran(old, Some((5, old))), LastRun::Unknown(stamp));
        assert_eq!(ran(none, Some((6, new))), LastRun::Other);
        assert_eq!((ran(new, None).stamp(), ran(old, None).stamp()), (Some(stamp), None));
    }
}
