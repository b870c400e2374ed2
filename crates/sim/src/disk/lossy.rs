//! The cost of a flush that fails: of what was not durable any part may be gone, and the next flush
//! succeeds over the loss.

use std::cell::Cell;
use std::rc::Rc;

use ubcache_env::Nanos;

use super::snapshot::draw_losses;
use super::{Inner, SimDisk, State};

/// Reads return for up to this long what a failed flush has lost.
const LATE_US_MAX: u64 = 20_000_000;

/// A disk whose failed flushes lose.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct FlushLoss {
    /// Share, in thousandths, of failed flushes whose loss shows only later, as with a page cache:
    /// reads return what was written until it is dropped from memory, at the latest when the
    /// program ends.
    pub late: u32,
}

impl SimDisk {
    /// Sets what flushes that fail cost from now on.
    pub fn set_flush_loss(&self, loss: Option<FlushLoss>) {
        self.inner.state.borrow_mut().flush_loss = loss;
    }

    /// Counts the failed flushes that may have lost something.
    pub fn flush_losses(&self) -> Rc<Cell<u64>> {
        self.inner.flush_losses.clone()
    }
}

impl Inner {
    pub(super) fn flush_failed(&self, state: &mut State) {
        let Some(loss) = state.flush_loss else { return };
        let rng = &mut *self.rng.borrow_mut();
        let late = rng.chance(u64::from(loss.late), 1000);
        let losses = draw_losses(state.versions.completed(), self.config.sectors_per_block(), rng);
        self.world.row(|| {
            format!("{:<10} the failed flush loses {} sectors", self.config.name, losses.len())
        });
        for &(sector, kept) in &losses {
            self.world.trace(sector ^ (kept as u64) << 48);
            state.counters.lost += 1;
            if let Some(content) = state.versions.lose(sector, kept, late) {
                state.image.set(sector, &content);
            }
        }
        state.changes += 1;
        if late {
            let shows =
                Nanos(self.world.now()).after(Nanos::from_micros(rng.scale(1, LATE_US_MAX)));
            state.late_losses.push((shows, losses.into_iter().map(|(sector, _)| sector).collect()));
        }
        self.flush_losses.set(self.flush_losses.get() + 1);
    }
}

impl State {
    /// Reads no longer return the sectors that were lost until then.
    pub(super) fn show_losses(&mut self, until: Nanos) {
        if self.late_losses.is_empty() {
            return;
        }
        let (due, rest) =
            std::mem::take(&mut self.late_losses).into_iter().partition(|(at, _)| *at <= until);
        self.late_losses = rest;
        let due: Vec<(Nanos, Vec<u64>)> = due;
        for sector in due.into_iter().flat_map(|(_, sectors)| sectors) {
            if let Some(content) = self.versions.loss_shows(sector) {
                self.image.set(sector, &content);
            }
        }
    }
}
