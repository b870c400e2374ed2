//! Power failures and host restarts, each with the recovery that follows (V1, A1).

use super::Steps;
use super::background::make_durable;
use crate::action::Action;
use crate::monitor;
use crate::state::{Disk, FlushReports, LOST, NOWHERE, OPS, Op, PLACES, SECTORS, State, Writeback};

impl Steps<'_> {
    pub(super) fn crashes(&mut self) {
        let of = self.from.submitted;
        for kept in 0..=of {
            if self.from.budget.power_failures > 0 {
                self.power_failure(kept, of);
            }
            if self.from.budget.restarts > 0 {
                let mut state = *self.from;
                state.budget.restarts -= 1;
                make_durable(&mut state, kept);
                for disk in &mut state.disk {
                    disk.show();
                    if self.rules().a1 && !disk.versions.is_empty() {
                        *disk = Disk::new(disk.live());
                    }
                    disk.versions.iter_mut().for_each(|version| {
                        version.completed = true;
                        version.covered = false;
                    });
                }
                self.recover(Action::HostRestart { kept, of }, state, false);
            }
        }
    }

    /// Every choice of what survives: versions of each sector, and data that a surviving key names.
    fn power_failure(&mut self, kept: u8, of: u8) {
        let mut records = *self.from;
        records.budget.power_failures -= 1;
        make_durable(&mut records, kept);
        let mut fragile = 0_u16;
        for place in records.durable.iter().filter_map(|key| key.place()) {
            let content = records.places[usize::from(place)];
            if content.durable != content.live {
                fragile |= 1 << place;
            }
        }
        let choices = |sector: usize| self.from.disk[sector].versions.len() + 1;
        for choice in 0..choices(0) * choices(1) {
            let chosen = [choice % choices(0), choice / choices(0)];
            for lost in (0..1_u16 << PLACES).filter(|lost| lost & !fragile == 0) {
                let mut state = records;
                for (disk, chosen) in state.disk.iter_mut().zip(chosen) {
                    let durable =
                        if chosen == 0 { disk.durable } else { disk.versions[chosen - 1].value };
                    *disk = Disk::new(durable);
                }
                for (place, content) in state.places.iter_mut().enumerate() {
                    if lost & 1 << place != 0 {
                        content.live = content.durable;
                    }
                }
                self.recover(Action::PowerFailure { kept, of, lost: lost != 0 }, state, true);
                if fragile == 0 {
                    break;
                }
            }
        }
    }

    /// Memory is lost; the journal has been cut.
    fn recover(&mut self, action: Action, mut state: State, power: bool) {
        state.records = Default::default();
        state.submitted = 0;
        state.journal_failed = false;
        state.set_failed = false;
        (state.suspect, state.flush_reports) = (0, FlushReports::default());
        state.index = state.durable;
        state.unpublished = [0; SECTORS];
        (state.current, state.flushing, state.disk_flush) = (0, 0, false);
        state.writeback = Writeback { place: [NOWHERE; SECTORS], ..Writeback::default() };
        for content in &mut state.places {
            // No key names what is lost (J1).
            match content.live {
                LOST => content.live = content.durable,
                live => content.durable = live,
            }
        }
        let finding = monitor::crash(&mut state, power);
        state.ops = [Op { place: [NOWHERE; SECTORS], ..Op::default() }; OPS];
        self.done(action, state, &[], finding);
    }
}
