//! Generations of buckets, and how far a pointer may be behind.

use ubcache_format::{DataArea, Generation, Geometry, Reach};

use super::bucket::Bucket;

/// Staleness beyond which the driver stops the set.
pub(crate) const STALE_FATAL: u8 = 96;
/// Staleness beyond which garbage collection is due.
pub(crate) const STALE_NOTE: u8 = 80;

/// Generations of all buckets at one time. They tell which pointers would raise a generation.
pub(crate) struct GenerationSnapshot {
    pub area: Option<DataArea>,
    pub reach: Reach,
    /// The generation of each bucket; more than 255 if it is not known.
    generations: Vec<u16>,
}

impl GenerationSnapshot {
    pub fn new(geometry: &Geometry, reach: Reach, buckets: &[Bucket]) -> GenerationSnapshot {
        let of =
            |bucket: &Bucket| u16::from(bucket.generation.0) | if bucket.known { 0 } else { 0x100 };
        GenerationSnapshot {
            area: geometry.data_area(),
            reach,
            generations: buckets.iter().map(of).collect(),
        }
    }

    /// Number of buckets.
    pub fn buckets(&self) -> usize {
        self.generations.len()
    }

    /// Largest distance by which a pointer may be ahead.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// The generation of a bucket, if it is known.
    #[inline]
    pub fn generation(&self, bucket: usize) -> Option<Generation> {
        self.generations.get(bucket).and_then(|known| u8::try_from(*known).ok()).map(Generation)
    }
}
