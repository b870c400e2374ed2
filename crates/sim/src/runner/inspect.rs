//! Looking at the disks themselves, between two events of a run.

use super::{GiveUp, Run, Step};
use crate::disk::{SimDisk, Still};
use crate::system::System;

/// While a set runs it is looked at so often: every second time that there is an occasion.
const SHARE: (u64, u64) = (1, 2);

impl<S: System> Run<S> {
    /// With nothing running: the disks as they are, and as a power failure might leave them yet, hold a set without
    /// damage.
    pub(super) fn inspect(&self, when: &str) -> Step {
        self.inspect_one(&format!("{when}, the disks as they are"), SimDisk::still)?;
        if self.disks().all(|disk| disk.unflushed_sectors() == 0 && disk.in_flight() == 0) {
            return Ok(());
        }
        let rng = &mut *self.judge.borrow_mut();
        self.inspect_one(&format!("{when}, had the power failed then"), |disk| disk.survivor(rng))
    }

    /// As [`Run::inspect`], in the middle of everything: now and then.
    pub(super) fn inspect_running(&self) -> Step {
        let (times, of) = SHARE;
        if !self.judge.borrow_mut().chance(times, of) {
            return Ok(());
        }
        self.inspect("while the set ran")
    }

    fn inspect_one(&self, when: &str, mut view: impl FnMut(&SimDisk) -> Still) -> Step {
        let cache = view(&self.setup.cache);
        let backing: Vec<Still> = self.setup.backing.iter().map(view).collect();
        match S::inspect(&cache, &backing) {
            None => Ok(()),
            Some(violation) => {
                let mut oracle = self.board.oracle.borrow_mut();
                let report = format!("{when}: {}", violation.report);
                oracle.violation(&violation.kind, report);
                Err(GiveUp)
            }
        }
    }

    pub(super) fn disks(&self) -> impl Iterator<Item = &SimDisk> {
        std::iter::once(&self.setup.cache).chain(&self.setup.backing)
    }
}
