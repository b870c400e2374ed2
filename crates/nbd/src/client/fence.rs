//! Ranges where writes may land (rule L1): at most one write is under way for a sector, and a write
//! over one whose connection was lost waits until that can't land any more.

use std::cell::RefCell;
use std::collections::BTreeMap;

use ubcache_env::local::Notify;
use ubcache_env::{IntervalMap, Nanos, SectorRange};

/// See the module.
#[derive(Default)]
pub(super) struct Landing {
    /// Writes that are asked for or under way: end by start.
    claims: RefCell<BTreeMap<u64, u64>>,
    released: Notify,
    /// Moments until which the writes of lost connections may land.
    quarantine: RefCell<IntervalMap<Nanos>>,
}

impl Landing {
    /// Waits until no other write has a sector of the range, and takes it.
    pub async fn claim(&self, range: SectorRange) {
        loop {
            let released = self.released.notified();
            {
                let mut claims = self.claims.borrow_mut();
                let before = claims.range(..range.end.0).next_back();
                if before.is_none_or(|(_, end)| *end <= range.start.0) {
                    claims.insert(range.start.0, range.end.0);
                    return;
                }
            }
            released.await;
        }
    }

    /// Gives a range back that was claimed.
    pub fn release(&self, range: SectorRange) {
        self.claims.borrow_mut().remove(&range.start.0);
        self.released.notify_all();
    }

    /// Writes to the range may land until that moment.
    pub fn quarantine(&self, range: SectorRange, until: Nanos) {
        self.quarantine.borrow_mut().insert(range, until);
    }

    /// The moment from which on nothing lands in the range, if that is not yet.
    pub fn fence_over(&self, range: SectorRange, now: Nanos) -> Option<Nanos> {
        let mut quarantine = self.quarantine.borrow_mut();
        if quarantine.is_empty() {
            return None;
        }
        quarantine.retain(|_, until| now < until);
        quarantine.overlapping(range).map(|(_, until)| until).max()
    }

    /// The moment from which on nothing lands anywhere, if that is not yet.
    pub fn last_fence(&self, now: Nanos) -> Option<Nanos> {
        let quarantine = self.quarantine.borrow();
        quarantine.iter().map(|(_, until)| until).filter(|until| now < *until).max()
    }

    /// Sectors in quarantine.
    pub fn quarantined(&self, now: Nanos) -> u64 {
        let quarantine = self.quarantine.borrow();
        let left = quarantine.iter().filter(|(_, until)| now < *until);
        left.map(|(range, _)| range.sectors()).sum()
    }
}
