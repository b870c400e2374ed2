//! Leaves of one level that any thread may read.

use std::sync::Arc;

use ubcache_format::{Geometry, Key, Pointer, SectorRange};

use super::leaf::{Leaf, LeafContent, Leaves, Replay};
use super::totals::TotalsBuilder;
use crate::io::read_ahead::{Inspect, ReadRange};
use crate::set::{GenerationSnapshot, Position};

pub(super) struct Item {
    pub key: Key,
    pub pointer: Pointer,
    pub after: Position,
    /// True if the node is certain to be in use.
    pub certain: bool,
}

impl Item {
    pub fn range(&self) -> SectorRange {
        SectorRange::new(self.pointer.offset, u64::from(self.key.sectors))
    }
}

/// The leaves of a level that no visitor sees, with all that a thread needs to read them.
pub(super) struct LeafBatch {
    pub geometry: Geometry,
    pub items: Arc<[Item]>,
    pub replay: Arc<Replay>,
    pub leaves: Arc<Leaves>,
    /// Totals, if extents are not kept.
    pub builder: Option<Arc<TotalsBuilder>>,
}

/// Result of reading a leaf with the snapshot of this number.
pub(super) type Looked = (u64, Option<LeafContent>);

impl LeafBatch {
    /// Returns a function that reads leaves with this snapshot.
    pub fn by(self: &Arc<Self>, number: u64, snapshot: Arc<GenerationSnapshot>) -> Inspect<Looked> {
        let all = self.clone();
        Arc::new(move |index, piece: &ReadRange| (number, all.read(index, piece, &snapshot)))
    }

    fn read(
        &self,
        index: usize,
        piece: &ReadRange,
        snapshot: &GenerationSnapshot,
    ) -> Option<LeafContent> {
        let (item, Ok((bytes, []))) = (self.items.get(index)?, piece.read()) else { return None };
        let leaf = Leaf { key: &item.key, after: item.after, bytes };
        let builder = self.builder.as_deref();
        item.certain.then(|| {
            self.leaves.read(&self.geometry, &leaf, self.replay.extents(), snapshot, builder)
        })?
    }
}
