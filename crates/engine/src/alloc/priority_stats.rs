//! The attribute `priority_stats`: what the buckets hold and how cold they are, in the driver's
//! words.

use std::fmt::Write;

use ubcache_format::BucketNr;

use super::buckets::{Buckets, Role};

/// Numbers in the last line, and one more part than numbers.
const PARTS: usize = 32;
/// Of larger caches a sample of so many buckets is looked at.
const SAMPLE: u64 = 8192;

impl Buckets {
    /// Shares of all buckets in percent, then the age of data buckets in ticks of a 1024th of the
    /// cache's size in I/O: their mean, and the ages that cut them, hottest first, into 32 equal
    /// parts. Looks at buckets in equal distances, at no more than [`SAMPLE`] of them.
    pub fn priority_stats(&self) -> String {
        let (mut unused, mut clean, mut dirty, mut metadata) = (0u64, 0u64, 0u64, 0u64);
        let mut ages = Vec::new();
        let (all, total) = (self.len() as u64, (self.len() as u64).min(SAMPLE));
        self.work.add(total as usize);
        for bucket in (0..total).map(|index| BucketNr((index * all / total) as u32)) {
            match self.role(bucket) {
                Role::Metadata => metadata += 1,
                Role::Data | Role::Open | Role::Dead if self.live(bucket) > 0 => {
                    ages.push(self.age(bucket));
                    if self.dirty(bucket) > 0 { dirty += 1 } else { clean += 1 }
                }
                _ => unused += 1,
            }
        }
        ages.sort_unstable();
        let percent = |count: u64| count * 100 / total.max(1);
        let mean = ages.iter().map(|&age| u64::from(age)).sum::<u64>() / ages.len().max(1) as u64;
        let quantiles: Vec<String> = (1..PARTS)
            .map(|part| ages.get(ages.len() * part / PARTS).copied().unwrap_or(0).to_string())
            .collect();
        let mut text = String::new();
        let written = write!(
            text,
            "Unused:\t\t{}%\nClean:\t\t{}%\nDirty:\t\t{}%\nMetadata:\t{}%\n\
             Average:\t{mean}\nSectors per Q:\t{}\nQuantiles:\t[{}]",
            percent(unused),
            percent(clean),
            percent(dirty),
            percent(metadata),
            ages.len() as u64 * all / total.max(1) * u64::from(self.bucket_sectors())
                / PARTS as u64,
            quantiles.join(" "),
        );
        written.expect("a string takes everything");
        text
    }
}
