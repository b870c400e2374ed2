//! Buckets: which are free, what is in the others, who may have the next one.
//!
//! | module | holds |
//! |---|---|
//! | [`buckets`] | state of every bucket: its role, and the queues of free and pending ones |
//! | [`bucket_pins`] | buckets that somebody reads or is about to name |
//! | [`change_signal`] | changes of buckets that the allocator waits for |
//! | [`bucket_map`] | what each part of the cache device holds |
//! | [`generations`] | which pointers are live, and how old they are |
//! | [`sector_counts`] | live and dirty sectors of each bucket |
//! | [`fullness`] | figures of how full the cache is |
//! | [`flash_reserve`] | room that flash-only volumes leave to everything else (N6) |
//! | [`promised_buckets`] | buckets that the last run promises to be free (V2) |
//! | [`roles_after_counting`] | the end of counting, when every bucket gets its role |
//! | [`reserves`] | free buckets that are kept for metadata and for the next start |
//! | [`block_reuse`] | which cached blocks were used again |
//! | [`evacuation`] | buckets beyond the end of a cache that becomes smaller (A12) |
//! | [`pace`] | the way in which they are emptied |
//! | [`freeing`] | buckets that are given up, until they are free |
//! | [`evict`] | giving buckets up, and what is worth moving before that |
//! | [`recency`] | how cold each bucket is: bcache's priorities |
//! | [`priority_stats`] | the attribute of that name |
//! | [`open_buckets`] | room for data inside open buckets |
//! | [`prio_chain_io`] | the prio chain on the device |
//! | [`no_space`], [`space_below`] | space below the device, and buckets put aside without it |
//! | [`prio_chain`] | the prio chain: generations made durable |
//! | [`allocator`] | the task that keeps free buckets ahead of demand |

pub(crate) mod allocator;
mod block_reuse;
mod bucket_map;
pub(crate) mod bucket_pins;
pub(crate) mod buckets;
mod change_signal;
pub(crate) mod evacuation;
mod evict;
mod flash_reserve;
mod freeing;
mod fullness;
mod generations;
mod no_space;
pub(crate) mod open_buckets;
pub(crate) mod pace;
pub(crate) mod prio_chain;
pub(crate) mod prio_chain_io;
mod priority_stats;
pub(crate) mod promised_buckets;
pub(crate) mod recency;
mod reserves;
mod roles_after_counting;
mod sector_counts;
mod space_below;
