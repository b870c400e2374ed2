//! Contents of a bucket of the journal: entries, the end of the log, and entries behind it.
//!
//! A bucket is scanned without any other, so that any thread can do it. Keys of entries are not
//! decoded: most entries are older than those that replay needs.

use ubcache_format::{EntryHead, FormatError, Geometry, entry_head};

use crate::set::{EntryPlace, SEQ_MAX};

/// Contents of a bucket.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    /// Entries: those of the log, and in a salvage those behind its end.
    pub places: Vec<EntryPlace>,
    /// Number of entries in the log.
    pub log: usize,
    /// Byte of an entry that can't be decoded, and the reason.
    pub undecodable: Option<(u64, String)>,
    /// The newest entry behind the end of the log: its offset and number.
    pub behind: Option<(u32, u64)>,
    /// Bytes of entries that can't be decoded; only in a salvage.
    pub senseless: Vec<u64>,
}

impl Scanned {
    /// Scans the bucket with this index. No entry can have a number above `limit`.
    pub fn of(
        geometry: &Geometry,
        (index, limit): (u32, u64),
        bytes: &[u8],
        salvage: bool,
    ) -> Scanned {
        let mut scanned = Scanned::log(geometry, (index, limit), bytes);
        scanned.log = scanned.places.len();
        if salvage {
            scanned.behind_the_log(geometry, (index, limit), bytes);
            scanned.senseless = senseless(geometry, bytes, limit).collect();
        }
        scanned
    }

    fn log(geometry: &Geometry, (index, limit): (u32, u64), bytes: &[u8]) -> Scanned {
        let mut scanned = Scanned::default();
        let mut at = 0;
        while let Some(rest) = bytes.get(at..) {
            let why = match entry_head(geometry, rest) {
                Ok(head) if head.seq.0 > limit => {
                    format!("an entry has the number {}, which is out of range", head.seq)
                }
                Ok(head) => {
                    scanned.places.push(place(index, at, head));
                    at += head.bytes.max(1);
                    continue;
                }
                Err(error) if ends_the_log(&error) => {
                    scanned.behind = newest_behind(geometry, bytes, at);
                    return scanned;
                }
                Err(error) => error.to_string(),
            };
            scanned.undecodable = Some((at as u64, why));
            return scanned;
        }
        scanned
    }

    /// Adds valid entries behind the first invalid block of the bucket.
    fn behind_the_log(&mut self, geometry: &Geometry, (index, limit): (u32, u64), bytes: &[u8]) {
        let end = self.places.last().map_or(0, |last| last.offset as usize + last.bytes as usize);
        let block = geometry.block_bytes() as usize;
        let magic = geometry.journal_magic().to_le_bytes();
        let mut at = end;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let head = (rest.get(8..16) == Some(magic.as_slice()))
                .then(|| entry_head(geometry, rest).ok())
                .flatten()
                .filter(|head| head.seq.0 <= limit);
            let Some(head) = head else {
                at += block;
                continue;
            };
            self.places.push(place(index, at, head));
            at += head.bytes.max(block);
        }
    }
}

fn place(index: u32, at: usize, head: EntryHead) -> EntryPlace {
    EntryPlace {
        index,
        offset: at as u32,
        bytes: head.bytes as u32,
        seq: head.seq.0,
        last_seq: head.last_seq.0,
    }
}

/// Returns the bytes at which entries with right checksums can't be decoded. All of them, not only
/// the first: the end of the log before them may be gone after a repair.
pub(crate) fn senseless<'a>(
    geometry: &'a Geometry,
    bytes: &'a [u8],
    limit: u64,
) -> impl Iterator<Item = u64> + 'a {
    let magic = geometry.journal_magic().to_le_bytes();
    let blocks = (0..bytes.len()).step_by(geometry.block_bytes() as usize);
    blocks.filter_map(move |at| {
        let rest = bytes.get(at..).filter(|rest| rest.get(8..16) == Some(magic.as_slice()))?;
        let senseless = match entry_head(geometry, rest) {
            Ok(head) => head.seq.0 > limit,
            Err(error) => !ends_the_log(&error),
        };
        senseless.then_some(at as u64)
    })
}

/// Returns true if a log ends here in order: no magic number, an impossible length, or a torn
/// entry.
fn ends_the_log(error: &FormatError) -> bool {
    matches!(error.at, 0 | 8 | 28)
}

/// The newest valid entry at any block from `end` on. In a bucket that was used before there are
/// many old ones.
fn newest_behind(geometry: &Geometry, bytes: &[u8], end: usize) -> Option<(u32, u64)> {
    let block = geometry.block_bytes() as usize;
    let magic = geometry.journal_magic().to_le_bytes();
    let mut newest: Option<(u32, u64)> = None;
    for at in (end..bytes.len()).step_by(block) {
        let rest = bytes.get(at..).unwrap_or_default();
        if rest.get(8..16) == Some(magic.as_slice())
            && let Ok(head) = entry_head(geometry, rest)
            && head.seq.0 <= SEQ_MAX
            && newest.is_none_or(|(_, seq)| head.seq.0 > seq)
        {
            newest = Some((at as u32, head.seq.0));
        }
    }
    newest
}
