//! Bytes in long runs, by their length: what another `sequential_cutoff` would send past the cache.

use std::cell::Cell;

use ubcache_env::SectorRange;
use ubcache_format::SECTOR_BYTES;

/// Shorter runs are not counted, so that they cost a comparison: 1 MiB.
const SECTORS_MIN: u64 = 1 << 11;
/// Classes of lengths, one for each power of two, up to 1 TiB or more.
const CLASSES: usize = 21;

/// Bytes of requests in runs of each class.
#[derive(Default, Debug)]
pub(super) struct RunLengths {
    bytes: [Cell<u64>; CLASSES],
}

impl RunLengths {
    /// A request belongs to a run of so many sectors.
    #[inline]
    pub fn note(&self, run_sectors: u64, range: SectorRange) {
        if run_sectors >= SECTORS_MIN {
            self.count(run_sectors, range);
        }
    }

    #[cold]
    #[inline(never)]
    fn count(&self, run_sectors: u64, range: SectorRange) {
        let class = (run_sectors / SECTORS_MIN).ilog2() as usize;
        let bytes = &self.bytes[class.min(CLASSES - 1)];
        bytes.set(bytes.get() + range.bytes());
    }

    /// Pairs of the least length of a class in bytes, and bytes.
    pub fn bytes(&self) -> Vec<(u64, u64)> {
        let least = |class: usize| (SECTORS_MIN * SECTOR_BYTES) << class;
        self.bytes.iter().enumerate().map(|(class, bytes)| (least(class), bytes.get())).collect()
    }
}

#[cfg(test)]
mod tests {
    use ubcache_env::Sector;

    use super::*;

    #[test]
    fn bytes_are_counted_by_the_length_of_their_run() {
        let lengths = RunLengths::default();
        let range = SectorRange::new(Sector(0), 8);
        for run_sectors in [0, 2047, 2048, 4095, 4096, 1 << 40] {
            lengths.note(run_sectors, range);
        }
        let counted: Vec<_> = lengths.bytes().into_iter().filter(|(_, bytes)| *bytes > 0).collect();
        assert_eq!(counted, [(1 << 20, 8192), (1 << 21, 4096), (1 << 40, 4096)]);
    }
}
