//! Damage: where the structures of an image are, and bytes that are not what they were.

use std::ops::Range;

use ubcache_format::bset_bytes;
use ubcache_offline::{NodeVisit, PrioElement, Visitor};

/// A random number for every seed, and the next.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 29)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Places of structures, in bytes.
#[derive(Default)]
pub struct Structures {
    pub list: Vec<(&'static str, Range<usize>)>,
    /// Bytes of the node's seq in the last append of a node. Damage there makes the append
    /// disappear: the format has no way to tell, as for the last entry of the journal.
    pub last_appends: Vec<usize>,
}

impl Visitor for Structures {
    fn node(&mut self, visit: &NodeVisit<'_>) {
        let at = visit.key.pointer().expect("a node has a place").offset.bytes() as usize;
        let before = visit.node.bsets.split_last().map_or(&[][..], |(_, before)| before);
        let last: u64 = before.iter().map(|keys| bset_bytes(visit.geometry, keys)).sum();
        self.last_appends.push(at + last as usize + 16);
        self.list.push(("node", at..at + visit.node.used_bytes as usize));
        self.list.push(("node and leftovers", at..at + usize::from(visit.key.sectors) * 512));
    }
    fn prio(&mut self, element: &PrioElement<'_>) {
        let at = element.bucket.0 as usize * BUCKET;
        self.list.push(("prio set", at..at + BUCKET));
    }
    fn uuids(&mut self, key: &ubcache_format::Key, _: &[ubcache_format::UuidEntry]) {
        let at = key.pointer().expect("a table has a place").offset.bytes() as usize;
        self.list.push(("volume table", at..at + 256));
    }
}

/// Bytes of a bucket of the case.
pub const BUCKET: usize = 16 << 10;

/// Changes some bytes of a range.
pub fn damage(image: &mut [u8], range: &Range<usize>, random: &mut Random) -> &'static str {
    let at = range.start + random.below(range.len());
    let sector = at / 512 * 512;
    match random.below(6) {
        0 | 1 => {
            image[at] ^= 1 << random.below(8);
            "one bit"
        }
        2 => {
            (0..8)
                .for_each(|_| image[range.start + random.below(range.len())] = random.next() as u8);
            "eight bytes"
        }
        3 => {
            image[sector..sector + 512].fill(0);
            "a sector of zeroes"
        }
        4 => {
            let block = at / 4096 * 4096;
            image[block..block + 4096].fill(0);
            "a block of zeroes"
        }
        _ => {
            let other = range.start / 512 * 512 + random.below(range.len() / 512 + 1) * 512;
            let bytes = image[sector..sector + 512].to_vec();
            image.copy_within(other..other + 512, sector);
            image[other..other + 512].copy_from_slice(&bytes);
            "two sectors changed places"
        }
    }
}
