//! A set of buckets: a bit for each that there is.

use ubcache_format::BucketNr;

#[derive(Debug, Default)]
pub(crate) struct BucketSet(Vec<u64>);

impl BucketSet {
    /// Nothing is in it. Bucket numbers are below `buckets`.
    pub fn new(buckets: u32) -> BucketSet {
        BucketSet(vec![0; buckets.div_ceil(64) as usize])
    }

    /// Says whether it is new.
    pub fn insert(&mut self, bucket: BucketNr) -> bool {
        let (word, bit) = (&mut self.0[bucket.0 as usize / 64], 1 << (bucket.0 % 64));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    pub fn remove(&mut self, bucket: BucketNr) {
        self.0[bucket.0 as usize / 64] &= !(1 << (bucket.0 % 64));
    }

    pub fn contains(&self, bucket: BucketNr) -> bool {
        self.0.get(bucket.0 as usize / 64).is_some_and(|word| word >> (bucket.0 % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_those_inserted() {
        let mut set = BucketSet::new(130);
        let new = [0, 63, 64, 129, 63].map(|bucket| set.insert(BucketNr(bucket)));
        assert_eq!(new, [true, true, true, true, false]);
        set.remove(BucketNr(64));
        let found: Vec<u32> = (0..200).filter(|&bucket| set.contains(BucketNr(bucket))).collect();
        assert_eq!(found, [0, 63, 129]);
        assert!(!BucketSet::default().contains(BucketNr(0)));
    }
}
