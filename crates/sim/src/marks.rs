//! Marks of the world: extremes of load and shape that seeds have to reach, beside the marks of the
//! engine ([`ubcache_engine::marks`]).

use ubcache_env::SectorRange;

use crate::plan::{Plan, VolumeShape};

/// Every mark of the world, and what it means.
pub const MARKS: &[(&str, &str)] = &[
    ("world_blocks_of_512_bytes", "blocks of 512 bytes"),
    ("world_blocks_of_4_kib", "blocks of 4 KiB"),
    ("world_smallest_ring", "a journal of 4 buckets of 4 KiB: no set has a smaller one"),
    ("world_256_journal_buckets", "a journal of 256 buckets: no set has more"),
    ("world_request_of_32_mib", "a request of 32 MiB was answered"),
    ("world_end_of_16_gib", "a request to the end of a volume of 16 GiB was answered"),
    ("world_beyond_32_bits", "a request to sectors beyond 2^32 was answered"),
    ("world_10000_requests", "10 000 requests are under way at a time"),
    ("world_carried_out_again", "a write that a dead process left was carried out by the next one"),
];

/// Sectors of 32 MiB and of 16 GiB.
const LONGEST: u64 = 32 << 11;
const LARGEST: u64 = 16 << 21;
const MANY: u64 = 10_000;

/// Extremes that the clients of a run have reached.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Reached {
    /// Requests under way at a time.
    pub requests: u64,
    /// Sectors of the longest request that was answered with success.
    pub longest: u64,
    /// End of the last sector of any such request, on the volume as the engine has it.
    pub end: u64,
    /// One of them was to the last part of a volume of 16 GiB.
    pub end_of_largest: bool,
    /// A write of a process that died was carried out by the next one.
    pub carried_out_again: bool,
}

impl Reached {
    /// A request was answered with success.
    pub fn answered(&mut self, volume: &VolumeShape, range: SectorRange) {
        self.longest = self.longest.max(range.sectors());
        self.end = self.end.max(volume.head + range.end.0);
        self.end_of_largest |= (LARGEST - 8..=LARGEST).contains(&(volume.head + volume.sectors));
    }

    /// The marks that a run has reached.
    pub fn marks(&self, plan: &Plan) -> impl Iterator<Item = &'static str> {
        let (bucket, ring) = (u64::from(plan.cache.bucket_sectors), plan.journal_sectors());
        let reached = [
            plan.cache.block_sectors == 1,
            plan.cache.block_sectors == 8,
            ring == 4 * 8,
            ring / bucket == 256,
            self.longest >= LONGEST,
            self.end_of_largest,
            self.end > 1 << 32,
            self.requests >= MANY,
            self.carried_out_again,
        ];
        MARKS.iter().zip(reached).filter(|(_, reached)| *reached).map(|((name, _), _)| *name)
    }
}
