//! An explicit-state model of the coherence protocol (docs/internals/coherence.md): all
//! interleavings of a few client operations with eviction, background writeback, errors, power
//! failures and host restarts.
//!
//! ```text
//! Rules ──► Model ──next──► states ──► search (breadth first) ──► holds, or a shortest counterexample
//!                             │
//!                 monitor (LIN, DUR) · invariant (CEB, I1–I8)
//! ```
//!
//! It knows one or two sectors and no buckets, leaves or nodes: what it checks is the order of
//! steps. Which step is which function of the engine stands in docs/internals/coherence.md §13.
//!
//! | module | holds |
//! |---|---|
//! | [`rules`] | the protocols as switches, and which of them exist |
//! | [`state`] | devices, journal, memory, operations |
//! | [`action`] | names of steps in a timeline |
//! | [`step`] | what can happen next |
//! | [`monitor`] | sectors as registers that a crash may take back |
//! | [`invariant`] | clean equals backing, and the other invariants |
//! | [`mod@search`] | the search and its result |
//! | [`mod@timeline`] | counterexamples in print |
//! | [`bounds`] | how much is explored |
#![forbid(unsafe_code)]

pub mod action;
pub mod bounds;
pub mod invariant;
pub mod monitor;
pub mod rules;
pub mod search;
pub mod state;
pub mod step;
pub mod timeline;

pub use bounds::Bounds;
pub use rules::{Promise, Variant, variants};
pub use search::{Outcome, search};
pub use step::Model;
pub use timeline::timeline;
