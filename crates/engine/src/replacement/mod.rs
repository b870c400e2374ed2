//! Replacement: which buckets of clean data go first when room is needed. Nothing here knows of
//! devices or of the index.
//!
//! | module | holds |
//! |---|---|
//! | [`policy`] | the members, and the choice among them |
//! | [`look`] | facts about buckets that a choice depends on |
//! | [`eviction_list`] | lists of victims |
//! | [`linked_lists`] | two lists of buckets over the same arrays |
//! | [`bucket_value`] | the value of keeping a bucket, learnt from hits |
//! | [`two_queue`] | the order of victims in which what came once goes first |
//! | [`recent_fills`] | blocks that were read into the cache of late |
//! | [`policy_duel`], [`shadow_cache`] | the policy that would have had most hits of late |
//! | [`data_class`] | classes of data |

mod bucket_value;
pub(crate) mod data_class;
mod eviction_list;
mod linked_lists;
pub(crate) mod look;
pub(crate) mod policy;
pub(crate) mod policy_duel;
pub(crate) mod recent_fills;
mod shadow_cache;
mod two_queue;
