//! Damage, power cuts and random input, which the offline tools and the parsers have to survive.
//!
//! ```text
//!  sets: of the engine, of the Linux driver ──▶ damage, by a seed ──▶ judge: check, recover, repair, compare
//!                    └──▶ fuzz::check ◀── patches, checksums put right ◀──┐
//!                         fuzz::format, fuzz::nbd ◀── bytes ◀─────────────┴── mutate ◀── fuzz/corpus
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`device`] | [`MemDevice`](device::MemDevice): memory, unreadable sectors, log of writes |
//! | [`sets`] | [`Base`](sets::Base): a whole set, its content, the places of its structures |
//! | [`damage`] | one seed, one damage |
//! | [`serve`] | a set, damaged or not, under the engine |
//! | [`judge`] | the requirements for a damaged set |
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
