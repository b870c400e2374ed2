//! Protocols P0, P1 and P2 (docs/internals/coherence.md §4): a backing write removes the keys of
//! its range at another moment, nothing waits for the removal to be durable, and the table does not
//! know of fills and backing writes.

use ubcache_env::{Env, IoResult, SectorRange, local::join};

use super::Mutant;
use crate::index::extent::removal_records;
use crate::rules::Rules;
use crate::volume::CachedVolume;

impl Mutant {
    /// The protocol that it is.
    pub(super) fn protocol(self) -> Option<&'static str> {
        match self {
            Mutant::InvalidateParallel => Some("P0"),
            Mutant::InvalidateAfter => Some("P1"),
            Mutant::InvalidateBoth => Some("P2"),
            _ => None,
        }
    }
}

impl Rules {
    fn are_broken_by(self, mutant: Mutant) -> bool {
        self.mutant == mutant.name()
    }

    /// P0 to P2: no table; the placeholder of a fill breaks when keys of its range change.
    fn is_historic(self) -> bool {
        let historic = Mutant::ALL.iter().filter(|mutant| mutant.protocol().is_some());
        historic.copied().any(|mutant| self.are_broken_by(mutant))
    }
}

impl<E: Env> CachedVolume<E> {
    /// The backing write, and the removal beside it or after it.
    pub(crate) async fn with_late_removal(
        &self,
        range: SectorRange,
        write: impl Future<Output = IoResult>,
    ) -> IoResult {
        if self.context.rules.are_broken_by(Mutant::InvalidateParallel) {
            let removal = async {
                self.context.env.yield_now().await;
                self.remove_late(range).await;
            };
            return join(write, removal).await.0;
        }
        let result = write.await;
        if self.context.rules.is_historic() {
            self.remove_late(range).await;
        }
        result
    }

    /// Removes whatever is there by now.
    async fn remove_late(&self, range: SectorRange) {
        let records = removal_records(range);
        let Ok(mut room) = self.index.prepare_change(self.inode(), range, records).await else {
            return;
        };
        self.coherence.drop_copies(range);
        self.disturb_fills(range);
        if !self.index.live_extents(self.inode(), range).is_empty() {
            self.index.replace(&mut room, self.inode(), range, None);
        }
    }

    /// The placeholders of fills in the range break: its keys have changed.
    pub(crate) fn disturb_fills(&self, range: SectorRange) {
        if self.context.rules.is_historic() {
            self.coherence.inflight.doom_fills(range);
        }
    }
}
