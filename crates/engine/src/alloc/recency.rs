//! When each bucket was last used, in ticks of a 1024th of the cache's size in I/O: bcache's
//! priorities (docs/reference/format.md §7), which tell the next start, of ubcache or of the
//! driver, which buckets are cold.

use ubcache_format::{BucketNr, Geometry, INITIAL_PRIORITY};

#[derive(Debug)]
pub(crate) struct Recency {
    /// By bucket: the tick of the last use.
    used: Vec<u32>,
    tick: u32,
    /// Sectors since the tick began.
    sectors: u64,
    tick_sectors: u64,
}

impl Recency {
    /// Nothing is known yet: [`Recency::learn`] has to tell of every bucket.
    pub fn new(geometry: &Geometry) -> Recency {
        let size = u64::from(geometry.buckets) * u64::from(geometry.bucket_sectors);
        Recency {
            used: Vec::with_capacity(geometry.buckets as usize),
            tick: u32::from(INITIAL_PRIORITY),
            sectors: 0,
            tick_sectors: (size / 1024).max(1),
        }
    }

    /// Takes over the priority of the next bucket from a prio chain.
    pub fn learn(&mut self, priority: u16) {
        // Metadata and promised buckets have priorities of their own; they count as just used.
        self.used.push(match priority {
            1..=INITIAL_PRIORITY => u32::from(priority),
            _ => u32::from(INITIAL_PRIORITY),
        });
    }

    /// So many sectors of the bucket were read or written.
    pub fn note(&mut self, bucket: BucketNr, sectors: u64) {
        self.sectors += sectors;
        if self.sectors >= self.tick_sectors {
            self.tick += (self.sectors / self.tick_sectors) as u32;
            self.sectors %= self.tick_sectors;
        }
        self.used[bucket.0 as usize] = self.tick;
    }

    /// Ticks since the last use.
    pub fn age(&self, bucket: BucketNr) -> u32 {
        self.tick - self.used[bucket.0 as usize]
    }

    /// Priority of a data bucket in the prio chain: 32768 just used, 1 cold.
    pub fn priority(&self, bucket: BucketNr) -> u16 {
        INITIAL_PRIORITY - self.age(bucket).min(u32::from(INITIAL_PRIORITY) - 1) as u16
    }
}
