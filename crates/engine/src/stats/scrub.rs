//! State and counts of a scrub.

use ubcache_env::Nanos;

/// State of the scrub of a volume.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum ScrubState {
    /// There was no pass since the start.
    #[default]
    Never,
    /// A pass is under way.
    Running,
    /// The last pass went through the whole volume.
    Complete,
    /// The last pass was ended early.
    Stopped,
}

impl ScrubState {
    /// The state in a word.
    pub fn word(self) -> &'static str {
        match self {
            ScrubState::Never => "never",
            ScrubState::Running => "running",
            ScrubState::Complete => "complete",
            ScrubState::Stopped => "stopped",
        }
    }
}

/// The pass that is under way, or the last one.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct ScrubStatus {
    /// State.
    pub state: ScrubState,
    /// Bytes of the volume before the place that the pass has reached.
    pub position_bytes: u64,
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// Clean cached bytes that were compared.
    pub compared_bytes: u64,
    /// Bytes that clients wrote, or that were evicted, while they were compared.
    pub skipped_bytes: u64,
    /// Bytes that differed, in whole sectors; they were dropped from the cache.
    pub differing_bytes: u64,
    /// Bytes that one of the two devices did not return.
    pub unreadable_bytes: u64,
    /// Time that the pass has taken.
    pub elapsed: Nanos,
}
