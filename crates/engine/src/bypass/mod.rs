//! Requests that go past the cache (bcache's rules, docs/guide/operate.md).

pub mod congestion;
pub mod decide;
pub mod sequential;
