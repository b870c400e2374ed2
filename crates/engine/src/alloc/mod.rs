//! Buckets: which are free, what is in the others, who may have the next one.
//!
//! | module | holds |
//! |---|---|
//! | [`buckets`] | state of every bucket: its role, and the queues of free and pending ones |
//! | [`pins`] | buckets that somebody reads or is about to name |
//! | [`bucket_set`] | a set of buckets, a bit for each |
//! | [`generations`] | which pointers are live, and how old they are |
//! | [`counts`] | live and dirty sectors of each bucket |
//! | [`fullness`] | figures of how full the cache is |
//! | [`counting`] | the end of counting, when every bucket gets its role |
//! | [`policy`], [`eviction_list`] | the replacement policy, and its lists of victims |
//! | [`bucket_value`] | the value of keeping a bucket, learnt from hits |
//! | [`reuse`] | which cached blocks were used again |
//! | [`given_up`] | buckets that are given up, until they are free |
//! | [`evict`] | giving buckets up, and what is worth moving before that |
//! | [`recency`] | how cold each bucket is: bcache's priorities |
//! | [`priority_stats`] | the attribute of that name |
//! | [`class`] | classes of data |
//! | [`sectors`] | room for data inside open buckets |
//! | [`chain`] | the prio chain on the device |
//! | [`space`], [`device_space`] | space below the device, and buckets put aside without it |
//! | [`prio`] | the prio chain: generations made durable |
//! | [`allocator`] | the task that keeps free buckets ahead of demand |

pub(crate) mod allocator;
pub(crate) mod bucket_set;
mod bucket_value;
pub(crate) mod buckets;
pub(crate) mod chain;
pub(crate) mod class;
mod counting;
mod counts;
mod device_space;
mod evict;
mod eviction_list;
mod fullness;
mod generations;
mod given_up;
pub(crate) mod pins;
pub(crate) mod policy;
pub(crate) mod prio;
mod priority_stats;
pub(crate) mod recency;
mod reuse;
pub(crate) mod sectors;
mod space;
