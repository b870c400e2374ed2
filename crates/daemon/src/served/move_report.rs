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
    /// Bytes of the volume that an earlier attempt had copied.
    #[serde(default)]
    pub earlier_bytes: u64,
    /// Bytes of it that another attempt would not copy again after a crash.
    #[serde(default)]
    pub kept_bytes: u64,
    /// Bytes a second that are copied at most; 0: no limit.
    #[serde(default)]
    pub rate_bytes: u64,
    /// Seconds since it began.
    pub seconds: u64,
    /// Seconds that it takes from now on, at the speed that it had so far; absent if not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
}

impl MoveReport {
    /// A move to that disk which began so long ago, and copies at most so many bytes a second.
    pub(crate) fn new(to: String, progress: MoveProgress, (seconds, rate): (u64, u64)) -> Self {
        let MoveProgress { total_bytes, left_bytes, copied_bytes, earlier_bytes, kept_bytes } =
            progress;
        let done = (total_bytes - left_bytes).saturating_sub(earlier_bytes);
        let seconds_left = (done > 0 && seconds > 0)
            .then(|| (u128::from(left_bytes) * u128::from(seconds) / u128::from(done)) as u64);
        MoveReport {
            to,
            total_bytes,
            left_bytes,
            copied_bytes,
            earlier_bytes,
            kept_bytes,
            rate_bytes: rate,
            seconds,
            seconds_left,
        }
    }
}
