//! Requests that go past the cache (bcache's rules, docs/operations.md).

pub mod congestion;
pub mod decide;
pub mod sequential;
