//! Progress of the move of a volume to another disk.

use serde::{Deserialize, Serialize};
use ubcache_engine::MoveProgress;
use utoipa::ToSchema;

/// A move that is under way.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct MoveReport {
    /// The disk that the volume moves to.
    pub to: String,
    /// Bytes of the volume.
    pub total_bytes: u64,
    /// Bytes that are still to be copied.
    pub left_bytes: u64,
    /// Bytes that were copied, some of them more than once.
    pub copied_bytes: u64,
    /// Seconds since it began.
    pub seconds: u64,
    /// Seconds that it takes from now on, at the speed that it had so far; absent if not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
}

impl MoveReport {
    /// A move to that disk which began so long ago.
    pub(crate) fn new(to: String, progress: MoveProgress, seconds: u64) -> MoveReport {
        let MoveProgress { total_bytes, left_bytes, copied_bytes } = progress;
        let done = total_bytes - left_bytes;
        let seconds_left = (done > 0 && seconds > 0)
            .then(|| (u128::from(left_bytes) * u128::from(seconds) / u128::from(done)) as u64);
        MoveReport { to, total_bytes, left_bytes, copied_bytes, seconds, seconds_left }
    }
}
