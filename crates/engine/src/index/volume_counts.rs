//! Counts and ghosts of a volume.

use ubcache_format::JournalSeq;

use super::ghosts::Ghosts;

/// State of a slot of the volume table, attached or not.
#[derive(Default, Debug)]
pub(crate) struct InodeState {
    /// Sectors of live dirty extents.
    pub dirty_sectors: u64,
    pub ghosts: Ghosts,
    /// The newest record of a dirty insert, or of the removal of dirty data (F1).
    pub newest_dirty: JournalSeq,
}
