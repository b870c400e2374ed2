//! Prio sets: the generation and the priority of every bucket, as a chain of buckets
//! (docs/reference/format.md §7).
//!
//! ```text
//!   0      8      16     24       28        32           40                        M
//!   │ csum │magic │ seq  │version │ padding │next bucket │ E × (u16 prio, u8 gen) │ tail │
//!          └────────────────────── covered by csum ──────────────────────────────┴──────┘
//! ```

use crate::bytes::{put, u16_at, u64_at};
use crate::checksum::crc64_we;
use crate::error::{FormatError, Problem, Structure};
use crate::geometry::Geometry;
use crate::units::{BucketNr, Generation};

/// The priority of buckets that hold metadata.
pub const METADATA_PRIORITY: u16 = 65535;

/// The priority that a data bucket has when it is taken and whenever it is hit.
pub const INITIAL_PRIORITY: u16 = 32768;

/// Bytes before the first entry of a prio set.
pub const PRIO_HEADER_BYTES: u64 = 40;

/// The record of one bucket.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct PrioEntry {
    /// Value of the bucket's content for replacement; may be lost without harm.
    pub priority: u16,
    /// The bucket's generation; losing it loses data.
    pub generation: Generation,
}

/// One element of the chain, which takes its entries bit by bit: there may be hundreds of
/// thousands. Element `k` describes the buckets from `k · E` on, `E` being
/// [`Geometry::prio_entries_per_bucket`]; entries that are missing are zero.
#[derive(Debug)]
pub struct PrioSet {
    bytes: Vec<u8>,
    /// Offset of the next entry.
    end: usize,
}

impl PrioSet {
    /// A set without entries, as large as the metadata area of its bucket.
    pub fn new(geometry: &Geometry) -> PrioSet {
        let mut bytes = vec![0; geometry.metadata_bytes() as usize];
        put(&mut bytes, 8, &geometry.prio_magic().to_le_bytes());
        PrioSet { bytes, end: PRIO_HEADER_BYTES as usize }
    }

    /// Adds an entry; what does not fit is left out.
    #[inline]
    pub fn push(&mut self, entry: PrioEntry) {
        if let Some(place) = self.bytes.get_mut(self.end..self.end + 3) {
            let [low, high] = entry.priority.to_le_bytes();
            place.copy_from_slice(&[low, high, entry.generation.0]);
            self.end += 3;
        }
    }

    /// Its bytes, with the place of the next element.
    pub fn seal(mut self, seq: u64, next: BucketNr) -> Vec<u8> {
        put(&mut self.bytes, 16, &seq.to_le_bytes());
        put(&mut self.bytes, 32, &u64::from(next.0).to_le_bytes());
        let csum = crc64_we(self.bytes.get(8..).unwrap_or_default());
        put(&mut self.bytes, 0, &csum.to_le_bytes());
        self.bytes
    }
}

/// One element of the chain, see [`PrioSet`]; entries after the first `E` are left out.
pub fn encode_prio(
    geometry: &Geometry,
    seq: u64,
    next: BucketNr,
    entries: &[PrioEntry],
) -> Vec<u8> {
    debug_assert!(entries.len() as u64 <= u64::from(geometry.prio_entries_per_bucket()));
    let mut set = PrioSet::new(geometry);
    entries.iter().for_each(|&entry| set.push(entry));
    set.seal(seq, next)
}

/// Reads one element of the chain from the metadata area of its bucket: its sequence number, the
/// bucket of the next element (meaningless in the last one, whose place follows from the count of
/// buckets alone; `u32::MAX`, which no device has, if the number is too large for any device), and
/// all `E` entries, of which those past the last bucket of the device are arbitrary.
pub fn parse_prio(
    geometry: &Geometry,
    bytes: &[u8],
) -> Result<(u64, BucketNr, Vec<PrioEntry>), FormatError> {
    let area = geometry.metadata_bytes().max(PRIO_HEADER_BYTES);
    let bytes = bytes
        .get(..area as usize)
        .ok_or_else(|| FormatError::too_short(Structure::PrioSet, bytes.len(), area))?;
    let (magic, expected) = (u64_at(bytes, 8), geometry.prio_magic());
    if magic != expected {
        return Err(FormatError::new(
            Structure::PrioSet,
            8,
            Problem::Magic { found: magic, expected },
        ));
    }
    let (found, expected) = (u64_at(bytes, 0), crc64_we(&bytes[8..]));
    if found != expected {
        let problem = Problem::Checksum { found, expected, bytes: area - 8 };
        return Err(FormatError::new(Structure::PrioSet, 0, problem));
    }
    let next = BucketNr(u32::try_from(u64_at(bytes, 32)).unwrap_or(u32::MAX));
    let entry =
        |bytes: &[u8]| PrioEntry { priority: u16_at(bytes, 0), generation: Generation(bytes[2]) };
    let entries = bytes[PRIO_HEADER_BYTES as usize..].chunks_exact(3).map(entry).collect();
    Ok((u64_at(bytes, 16), next, entries))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::tests::example;
    use proptest::prelude::*;

    /// The example of docs/reference/format.md §7.1.
    #[test]
    fn example_chain_element_encodes() {
        let geometry = example(8);
        let entries =
            vec![PrioEntry { priority: INITIAL_PRIORITY, generation: Generation(1) }; 1352];
        let bytes = encode_prio(&geometry, 1, BucketNr(0), &entries);
        assert_eq!(u64_at(&bytes, 0), 0x7144_a63c_4c3b_c944);
        assert_eq!(parse_prio(&geometry, &bytes), Ok((1, BucketNr(0), entries)));
    }

    #[test]
    fn every_changed_byte_is_detected() {
        let geometry = example(8);
        let good = encode_prio(&geometry, 3, BucketNr(7), &[]);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(parse_prio(&geometry, &bad).is_err(), "byte {at}");
        }
        assert!(parse_prio(&geometry, &good[..4095]).is_err());
    }

    proptest! {
        #[test]
        fn round_trip(seq: u64, next: u32, entries in proptest::collection::vec((any::<u16>(),
            any::<u8>()), 0..1352)) {
            let geometry = example(8);
            let mut entries: Vec<_> = entries
                .into_iter()
                .map(|(priority, generation)| PrioEntry { priority,
                    generation: Generation(generation) })
                .collect();
            let bytes = encode_prio(&geometry, seq, BucketNr(next), &entries);
            entries.resize(1352, PrioEntry::default());
            prop_assert_eq!(parse_prio(&geometry, &bytes), Ok((seq, BucketNr(next), entries)));
        }
    }
}
