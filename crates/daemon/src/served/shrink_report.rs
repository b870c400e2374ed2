//! Progress of a cache that becomes smaller.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Progress of a cache that becomes smaller.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ShrinkReport {
    /// Size of the cache afterwards.
    pub size_bytes: u64,
    /// Bytes beyond the new end.
    pub total_bytes: u64,
    /// Bytes beyond the new end that are not evacuated yet. With 0 the index is being written anew.
    pub left_bytes: u64,
    /// Seconds since it began.
    pub seconds: u64,
}
