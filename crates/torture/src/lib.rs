//! Damage, power cuts and random input: what the offline tools and the parsers have to stand.
//!
//! ```text
//!  sets: of the engine, of the Linux driver ──▶ damage, by a seed ──▶ judge: check, recover, repair, compare
//!                    └──▶ fuzz::check ◀── patches, checksums put right ◀──┐
//!                         fuzz::format, fuzz::nbd ◀── bytes ◀─────────────┴── mutate ◀── fuzz/corpus
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`device`] | [`MemDevice`](device::MemDevice): memory with unreadable sectors and a log of writes; what a power cut leaves of it |
//! | [`sets`] | [`Base`](sets::Base): a whole set, what it reads as, where its structures are |
//! | [`damage`] | one seed, one damage |
//! | [`serve`] | a set, damaged or not, under the engine |
//! | [`judge`] | what must hold of a damaged set |
//! | [`fuzz`] | the targets, for this crate's own loop and for `cargo fuzz` |
//! | [`mutate`] | the loop: inputs of a corpus, changed at random |
#![forbid(unsafe_code)]

pub mod damage;
pub mod device;
pub mod fuzz;
pub mod judge;
pub mod mutate;
pub mod serve;
pub mod sets;
