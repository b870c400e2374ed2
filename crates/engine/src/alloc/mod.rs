//! Buckets: which are free, what is in the others, who may have the next one.
//!
//! | module | holds |
//! |---|---|
//! | [`buckets`] | state of every bucket: its role, and the queues of free and pending ones |
//! | [`bucket_pins`] | buckets that somebody reads or is about to name |
//! | [`change_signal`] | changes of buckets that the allocator waits for |
//! | [`bucket_map`] | what each part of the cache device holds |
//! | [`bucket_set`] | a set of buckets, a bit for each |
//! | [`generations`] | which pointers are live, and how old they are |
//! | [`sector_counts`] | live and dirty sectors of each bucket |
//! | [`fullness`] | figures of how full the cache is |
//! | [`flash_reserve`] | room that flash-only volumes leave to everything else (N6) |
//! | [`promised_buckets`] | buckets that the last run promises to be free (V2) |
//! | [`roles_after_counting`] | the end of counting, when every bucket gets its role |
//! | [`reserves`] | free buckets that are kept for metadata and for the next start |
//! | [`replacement_policy`], [`eviction_list`] | the replacement policy, and its lists of victims |
//! | [`bucket_value`] | the value of keeping a bucket, learnt from hits |
//! | [`two_queue`] | the order of victims in which what came once goes first |
//! | [`policy_duel`], [`shadow_cache`] | the policy that would have had most hits of late |
//! | [`recent_fills`] | blocks that were read into the cache of late |
//! | [`block_reuse`] | which cached blocks were used again |
//! | [`evacuation`] | buckets beyond the end of a cache that becomes smaller (A12) |
//! | [`pace`] | the way in which they are emptied |
//! | [`freeing`] | buckets that are given up, until they are free |
//! | [`evict`] | giving buckets up, and what is worth moving before that |
//! | [`recency`] | how cold each bucket is: bcache's priorities |
//! | [`priority_stats`] | the attribute of that name |
//! | [`data_class`] | classes of data |
//! | [`open_buckets`] | room for data inside open buckets |
//! | [`prio_chain_io`] | the prio chain on the device |
//! | [`no_space`], [`space_below`] | space below the device, and buckets put aside without it |
//! | [`prio_chain`] | the prio chain: generations made durable |
//! | [`allocator`] | the task that keeps free buckets ahead of demand |

pub(crate) mod allocator;
mod block_reuse;
mod bucket_map;
pub(crate) mod bucket_pins;
pub(crate) mod bucket_set;
mod bucket_value;
pub(crate) mod buckets;
mod change_signal;
pub(crate) mod data_class;
pub(crate) mod evacuation;
mod evict;
mod eviction_list;
mod flash_reserve;
mod freeing;
mod fullness;
mod generations;
mod no_space;
pub(crate) mod open_buckets;
pub(crate) mod pace;
pub(crate) mod policy_duel;
pub(crate) mod prio_chain;
pub(crate) mod prio_chain_io;
mod priority_stats;
pub(crate) mod promised_buckets;
pub(crate) mod recency;
mod recent_fills;
mod replacement_policy;
mod reserves;
mod roles_after_counting;
mod sector_counts;
mod shadow_cache;
mod space_below;
mod two_queue;
