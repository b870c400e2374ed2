//! A cache that is filled bucket by bucket and evicts whole buckets, as the format of bcache asks
//! for.
//!
//! Every read miss and every write goes to the open bucket; an older copy of the block is dead from
//! then on. A miss may bring in what surrounds it. The victim is the bucket that was used least
//! recently; what is alive in it is lost to the cache.

use std::collections::BTreeMap;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::curve::blocks;
use crate::trace::TraceRecord;

/// Counts of a cache over a trace; all in blocks.
#[derive(Copy, Clone, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Reads of blocks.
    pub reads: u64,
    /// Reads answered by the cache: it had the block before the request.
    pub read_hits: u64,
    /// Blocks read from the disk.
    pub fetched: u64,
    /// Writes of blocks.
    pub writes: u64,
    /// Blocks written to the cache, after misses and by writes.
    pub filled: u64,
    /// Live blocks dropped with their buckets.
    pub dropped: u64,
}

struct Bucket {
    used_at: u64,
    live: Vec<u64>,
}

/// The cache.
pub struct BucketCache {
    bucket_blocks: usize,
    fill_blocks: u64,
    buckets_max: usize,
    /// By block: the number of its bucket.
    place: HashMap<u64, u64, FixedState>,
    buckets: HashMap<u64, Bucket, FixedState>,
    by_use: BTreeMap<u64, u64>,
    open: u64,
    in_open: usize,
    clock: u64,
    counts: Counts,
}

impl BucketCache {
    /// A cache of this size, at least two buckets. A miss is cached with the rest of the part of
    /// `fill_blocks` blocks that it is in; 1: alone.
    pub fn new(cache_blocks: u64, bucket_blocks: u64, fill_blocks: u64) -> BucketCache {
        let bucket_blocks = bucket_blocks.max(1);
        let mut cache = BucketCache {
            bucket_blocks: bucket_blocks as usize,
            fill_blocks: fill_blocks.max(1),
            buckets_max: (cache_blocks / bucket_blocks).max(2) as usize,
            place: HashMap::default(),
            buckets: HashMap::default(),
            by_use: BTreeMap::new(),
            open: 0,
            in_open: 0,
            clock: 0,
            counts: Counts::default(),
        };
        cache.open_bucket();
        cache
    }

    /// Serves one request.
    pub fn request(&mut self, request: &TraceRecord) {
        if request.write {
            for block in blocks(request) {
                self.counts.writes += 1;
                self.put(block);
            }
            return;
        }
        let mut missing = Vec::new();
        for block in blocks(request) {
            self.counts.reads += 1;
            match self.place.get(&block).copied() {
                Some(bucket) => {
                    self.counts.read_hits += 1;
                    self.touch(bucket);
                }
                None => missing.push(block),
            }
        }
        for block in missing {
            let start = block / self.fill_blocks * self.fill_blocks;
            for block in start..start + self.fill_blocks {
                if !self.place.contains_key(&block) {
                    self.counts.fetched += 1;
                    self.put(block);
                }
            }
        }
    }

    /// Counts so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn touch(&mut self, number: u64) {
        self.clock += 1;
        let bucket = self.buckets.get_mut(&number).expect("a place is in a bucket");
        self.by_use.remove(&bucket.used_at);
        bucket.used_at = self.clock;
        self.by_use.insert(self.clock, number);
    }

    fn put(&mut self, block: u64) {
        if self.in_open == self.bucket_blocks {
            self.open_bucket();
        }
        self.in_open += 1;
        self.counts.filled += 1;
        self.place.insert(block, self.open);
        self.buckets.get_mut(&self.open).expect("the open bucket is there").live.push(block);
        self.touch(self.open);
    }

    fn open_bucket(&mut self) {
        while self.buckets.len() >= self.buckets_max {
            let (_, victim) = self.by_use.pop_first().expect("there are buckets");
            let bucket = self.buckets.remove(&victim).expect("it is a bucket");
            for block in bucket.live {
                // Unless a newer copy is somewhere else.
                if self.place.get(&block) == Some(&victim) {
                    self.place.remove(&block);
                    self.counts.dropped += 1;
                }
            }
        }
        self.clock += 1;
        self.open += 1;
        self.in_open = 0;
        self.by_use.insert(self.clock, self.open);
        self.buckets.insert(self.open, Bucket { used_at: self.clock, live: Vec::new() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(block: u64) -> TraceRecord {
        TraceRecord { write: false, offset: block * 4096, bytes: 4096 }
    }

    #[test]
    fn eviction_takes_the_coldest_bucket_whole() {
        let mut cache = BucketCache::new(8, 4, 1);
        (0..8).for_each(|block| cache.request(&read(block)));
        cache.request(&read(0));
        // Needs room: 4 to 7 were used least recently.
        cache.request(&read(8));
        (0..9).for_each(|block| cache.request(&read(block)));
        let counts = cache.counts();
        assert_eq!(counts.read_hits, 1 + 4 + 1, "0 again; then 0 to 3, and 8");
        assert_eq!(counts.filled, 8 + 1 + 4);
        let write = TraceRecord { write: true, offset: 0, bytes: 100 };
        cache.request(&write);
        assert_eq!((cache.counts().writes, cache.counts().filled), (1, counts.filled + 1));
    }

    #[test]
    fn a_miss_brings_in_what_surrounds_it() {
        let mut cache = BucketCache::new(16, 4, 4);
        cache.request(&TraceRecord { write: false, offset: 4096, bytes: 8192 });
        let counts = cache.counts();
        assert_eq!((counts.reads, counts.read_hits), (2, 0), "neither was there before");
        assert_eq!((counts.fetched, counts.filled), (4, 4));
        (0..5).for_each(|block| cache.request(&read(block)));
        let counts = cache.counts();
        assert_eq!((counts.read_hits, counts.fetched), (4, 8));
    }
}
