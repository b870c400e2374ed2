//! Background writeback: dirty data to the backing device, in its order, at a controlled rate.
//!
//! | module | holds |
//! |---|---|
//! | [`controller`] | how fast: bcache's PI controller and rate limiter |
//! | [`flusher`] | one batch: rules B1–B5 |
//! | [`task`] | when and what: scanning, pacing, marking the volume clean |

pub mod controller;
pub(crate) mod flusher;
pub(crate) mod task;
