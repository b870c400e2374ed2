//! Buckets that the chain of the last run promises to be free, so that a start may use them before
//! all leaves are counted (V2). The chain that makes the promise is written in [`super::freeing`].

use ubcache_format::BucketNr;

use super::buckets::{Buckets, Role};

impl Buckets {
    /// The chain on the device promises that this bucket is free. The promise is kept until a newer
    /// chain is durable.
    pub fn set_promised(&mut self, bucket: BucketNr) {
        if self.role(bucket) == Role::Unknown {
            self.set_role(bucket, Role::Restart);
            self.restart.push(bucket);
        }
    }

    /// Takes half of the promised buckets for use. A new chain has to be durable before anything
    /// durable may point into one of them.
    pub fn use_promised(&mut self) {
        for bucket in self.restart.split_off(self.restart.len() / 2) {
            self.set_free(bucket);
        }
    }

    /// Takes the buckets that the chain that was read promises.
    pub fn take_promised(&mut self) -> Vec<BucketNr> {
        std::mem::take(&mut self.promised)
    }

    /// Buckets that the chain on the device promises to be free.
    pub fn promised(&self) -> Vec<BucketNr> {
        self.restart.clone()
    }

    /// Buckets that the chain on the device promises to be free.
    pub fn promised_len(&self) -> usize {
        self.restart.len()
    }
}
