//! An upgrade: another program goes on in this process, with the sockets of all clients.
//!
//! ```text
//!  old program                                            new program
//!  check ─▶ hold clients ─▶ stop the set ─▶ leave ──exec──▶ receive ─▶ open the set ─▶ take over
//!  (runs the new one:                                          │ can't
//!   a refusal changes nothing)      take over ◀──────exec──────┘
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`check`] | the question whether a program can go on, and the answer |
//! | [`state`] | what a program leaves to the next, as a file in memory |
//! | [`heritage`] | the state with its descriptors, and the way to another program and back |
//!
//! The new program alone decides that it goes on, when it has opened the set: until then nothing
//! was sent to or read from a client.

pub mod check;
pub mod heritage;
pub mod state;

pub use check::{Question, answer};
pub use heritage::{Heritage, go_back, receive};

/// Form of the state. A program goes on only with a state of this form.
pub const FORMAT: u32 = 2;
