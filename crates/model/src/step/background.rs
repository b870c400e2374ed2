//! Steps without a client: the journal, flushes of the backing device, publishing (C1, C2),
//! eviction (E1) and background writeback (B1 to B5).

use super::Steps;
use super::write::complete;
use crate::action::Action;
use crate::invariant;
use crate::monitor;
use crate::state::{
    At, Key, LOST, NOWHERE, OPS, Op, PLACES, SECTORS, State, Version, Wants, Writeback, WritebackAt,
};

impl Steps<'_> {
    pub(super) fn background(&mut self) {
        self.journal();
        self.cache_flush_fails();
        self.disk_flush();
        for sector in 0..self.model.sectors {
            self.publish(sector);
            self.evict(sector);
        }
        self.writeback();
    }

    fn journal(&mut self) {
        let from = self.from;
        if from.journal_failed {
            return;
        }
        if from.submitted == 0 {
            if !from.records.is_empty() {
                let mut state = *from;
                state.submitted = state.records.len() as u8;
                if self.rules().j1 {
                    state.places.iter_mut().for_each(|place| place.durable = place.live);
                }
                self.add(Action::JournalSubmit, state, &[], None);
            }
            return;
        }
        let mut state = *from;
        make_durable(&mut state, from.submitted);
        self.add(Action::JournalDone, state, &[], None);
        if from.budget.journal_errors > 0 {
            let mut state = *from;
            state.budget.journal_errors -= 1;
            state.journal_failed = true;
            self.add(Action::JournalFails, state, &[], None);
        }
    }

    /// A flush of the cache device fails, whoever asked for it. What was not durable may be gone,
    /// any part of it.
    fn cache_flush_fails(&mut self) {
        let from = self.from;
        let at_risk = from.not_durable();
        if from.budget.journal_errors == 0 || from.journal_failed || at_risk == 0 {
            return;
        }
        let mut failed = *from;
        failed.budget.journal_errors -= 1;
        failed.journal_failed = self.rules().j3;
        failed.set_failed = self.rules().j3;
        if self.rules().j3 && self.rules().j3_reads {
            // The loss of a place that is free makes no difference.
            for place in (0..PLACES).filter(|place| at_risk & 1 << place != 0) {
                failed.places[place].live = LOST;
            }
            self.add(Action::CacheFlushFails { lost: false }, failed, &[], None);
            return;
        }
        for lost in (0..1_u16 << PLACES).filter(|lost| lost & !at_risk == 0) {
            let mut state = failed;
            for place in (0..PLACES).filter(|place| lost & 1 << place != 0) {
                state.places[place].live = state.places[place].durable;
            }
            self.add(Action::CacheFlushFails { lost: lost != 0 }, state, &[], None);
        }
    }

    fn disk_flush(&mut self) {
        for sector in 0..self.model.sectors {
            let mut state = *self.from;
            if state.disk[sector].show() {
                self.add(Action::LossShows { sector }, state, &[], None);
            }
        }
        let from = self.from;
        if !from.disk_flush {
            let wanted = from.ops.iter().any(|op| op.wants == Wants::Flush)
                || from.writeback.wants == Wants::Flush
                || (from.unpublished != [0; SECTORS] && from.unflushed() != 0);
            if wanted {
                let mut state = *from;
                state.disk_flush = true;
                state.flushing = std::mem::take(&mut state.current);
                for disk in &mut state.disk {
                    disk.versions
                        .iter_mut()
                        .for_each(|version| version.covered = version.completed);
                }
                each_wants(&mut state, Wants::Flush, Wants::ThisFlush);
                self.add(Action::FlushSubmit, state, &[], None);
            }
            return;
        }
        let mut state = *from;
        state.disk_flush = false;
        for disk in &mut state.disk {
            if let Some(newest) = disk.versions.iter().rposition(|version| version.covered) {
                disk.settle(newest);
            }
        }
        state.flushing = 0;
        each_wants(&mut state, Wants::ThisFlush, Wants::Nothing);
        if state.writeback.at == WritebackAt::Flushing && state.writeback.wants == Wants::Nothing {
            state.writeback.at = WritebackAt::Marking;
        }
        self.add(Action::FlushDone, state, &[], None);
        if from.budget.flush_errors > 0 {
            self.disk_flush_fails();
        }
    }

    /// Any number of the newest versions of each sector may be lost, at once or after reads have
    /// returned them for a while. What is gone is not made durable by the next flush. (To lose an
    /// older one as well makes no difference.)
    fn disk_flush_fails(&mut self) {
        let mut failed = *self.from;
        self.note_failed_flush(&mut failed);
        monitor::flush_failed(&mut failed);
        let sectors = [0, 1].map(|sector| self.losses(sector));
        for &(kept, late) in &sectors[0] {
            for &(other_kept, other_late) in &sectors[1] {
                let mut state = failed;
                let lost =
                    [kept, other_kept] != [0, 1].map(|sector| state.disk[sector].versions.len());
                state.disk[0].lose(kept, late);
                state.disk[1].lose(other_kept, other_late);
                self.add(Action::FlushFails { lost }, state, &[], None);
            }
        }
    }

    /// Outcomes of a failed flush: the number of versions that it leaves, and if reads go on to
    /// return the lost ones.
    fn losses(&self, sector: usize) -> Vec<(usize, bool)> {
        let disk = &self.from.disk[sector];
        // A FUA write under way will be durable.
        let durable = |version: &Version| {
            let fua = self.from.ops.get(usize::from(version.writer));
            fua.is_some_and(|op| op.kind.is_fua() && op.at == At::Flying)
        };
        let least = disk.versions.iter().rposition(durable).map_or(0, |at| at + 1);
        let all = disk.versions.len();
        let mut losses = vec![(all, disk.phantom().is_some())];
        losses.extend((least..all).flat_map(|kept| [(kept, false), (kept, true)]));
        losses
    }

    fn note_failed_flush(&self, state: &mut State) {
        state.budget.flush_errors -= 1;
        state.disk_flush = false;
        for disk in &mut state.disk {
            disk.versions.iter_mut().for_each(|version| version.covered = false);
        }
        state.current |= std::mem::take(&mut state.flushing);
        let lost = state.current;
        let writes = state.ops.iter().any(Op::is_write) || state.writeback.at != WritebackAt::Idle;
        if self.rules().f4 && (lost != 0 || writes) {
            state.flush_reports.flush_failed();
        }
        if self.rules().f5 {
            state.suspect |= lost;
        }
        if self.rules().f5_copies {
            for sector in self.sectors(lost) {
                state.unpublished[sector] = 0;
            }
        }
        for op in state.ops.iter_mut().filter(|op| op.is_write()) {
            op.shaken |= matches!(op.at, At::Flying | At::Completed | At::TrimFlying);
        }
        state.writeback.shaken |=
            matches!(state.writeback.at, WritebackAt::Flying | WritebackAt::Completed);
        // A discard below dirty data is like a batch of writeback: see there.
        for op in state.ops.iter_mut().filter(|op| op.wants == Wants::ThisFlush || op.trims()) {
            op.failed = true;
        }
        each_wants(state, Wants::ThisFlush, Wants::Nothing);
        // A failed flush of another waiter may have lost the writes of the batch, too.
        state.writeback.failed = state.writeback.at != WritebackAt::Idle;
        if state.writeback.at == WritebackAt::Flushing && state.writeback.wants == Wants::Nothing {
            state.writeback = Steps::idle_writeback();
        }
    }

    /// C1, C2.
    fn publish(&mut self, sector: usize) {
        let bit = 1 << sector;
        let Some(place) = self.from.copy(sector) else { return };
        if self.from.unflushed() & bit != 0 {
            return;
        }
        let mut state = *self.from;
        state.unpublished[sector] = 0;
        if state.index[sector] == Key::NONE {
            self.disturb(&mut state, bit);
            state.replace(sector, Key::new(place, false));
        }
        self.add(Action::Publish { sector }, state, &[], None);
    }

    /// E1; a copy that is not published may be dropped as well.
    fn evict(&mut self, sector: usize) {
        if self.from.budget.evictions == 0 {
            return;
        }
        let mut state = *self.from;
        state.budget.evictions -= 1;
        if state.index[sector].is_clean() {
            let mut state = state;
            state.replace(sector, Key::NONE);
            self.add(Action::Evict { sector }, state, &[], None);
        }
        if state.copy(sector).is_some() {
            state.unpublished[sector] = 0;
            self.add(Action::DropCopy { sector }, state, &[], None);
        }
    }

    fn writeback(&mut self) {
        let from = self.from;
        match from.writeback.at {
            WritebackAt::Idle => self.writeback_starts(),
            WritebackAt::Waiting => {
                let mut state = *from;
                if from.writeback.wait == 0 {
                    state.writeback.at = WritebackAt::Flying;
                    let broken = invariant::nothing_clean_returns(&state, state.writeback.mask);
                    self.add(Action::WritebackSubmit, state, &[], broken);
                } else if from.journal_failed {
                    state.writeback = Steps::idle_writeback();
                    self.add(Action::WritebackGivesUp, state, &[], None);
                }
            }
            WritebackAt::Flying => self.writeback_flies(),
            WritebackAt::Completed => {
                let mut state = *from;
                state.current |= self.unflushed(from.writeback.mask);
                let Writeback { mask, failed, shaken, .. } = from.writeback;
                self.written(&mut state, mask, shaken, !failed);
                if from.writeback.failed {
                    state.writeback = Steps::idle_writeback();
                } else if self.rules().b4 {
                    state.writeback.at = WritebackAt::Flushing;
                    state.writeback.wants = Wants::Flush;
                } else {
                    state.writeback.at = WritebackAt::Marking;
                }
                self.add(Action::WritebackSettle, state, &[], None);
            }
            WritebackAt::Flushing => {}
            WritebackAt::Marking => self.writeback_marks(),
        }
    }

    /// B1.
    fn writeback_starts(&mut self) {
        let from = self.from;
        if from.budget.writebacks == 0 {
            return;
        }
        // T4: at most one works on a sector.
        let busy = |op: &Op| op.trims() || (self.rules().b1 && op.backing_write());
        let busy: u8 = from.ops.iter().filter(|op| busy(op)).fold(0, |mask, op| mask | op.mask);
        let dirty: u8 =
            (0..self.model.sectors).filter(|s| from.index[*s].is_dirty()).map(|s| 1 << s).sum();
        for mask in (1..=self.model.every_sector()).filter(|mask| mask & (!dirty | busy) == 0) {
            let mut state = *from;
            state.budget.writebacks -= 1;
            state.writeback = Steps::idle_writeback();
            state.writeback.mask = mask;
            for sector in self.sectors(mask) {
                state.writeback.place[sector] = state.index[sector].place().unwrap_or(NOWHERE);
            }
            state.writeback.wait = if self.rules().b2 { state.records.len() as u8 } else { 0 };
            let waits = state.writeback.wait > 0;
            state.writeback.at = if waits { WritebackAt::Waiting } else { WritebackAt::Flying };
            let broken = if waits { None } else { invariant::nothing_clean_returns(&state, mask) };
            self.add(Action::WritebackStart { mask }, state, &[], broken);
        }
    }

    /// B3.
    fn writeback_flies(&mut self) {
        let from = self.from;
        let batch = from.writeback;
        for sector in self.sectors(batch.mask & !batch.landed) {
            let mut state = *from;
            if state.disk[sector].versions.is_full() {
                continue;
            }
            state.writeback.landed |= 1 << sector;
            let value = state.places[usize::from(batch.place[sector])].live;
            if value == LOST {
                state.writeback.at = WritebackAt::Completed;
                state.writeback.failed = true;
                complete(&mut state, OPS as u8);
                self.add(Action::WritebackFail, state, &[], None);
                continue;
            }
            state.disk[sector].land(Version { value, writer: OPS as u8, ..Version::default() });
            self.add(Action::WritebackLand { sector }, state, &[], None);
        }
        let mut state = *from;
        complete(&mut state, OPS as u8);
        state.writeback.at = WritebackAt::Completed;
        if batch.landed == batch.mask {
            self.add(Action::WritebackComplete, state, &[], None);
        }
        if state.budget.errors > 0 {
            state.budget.errors -= 1;
            state.writeback.failed = true;
            self.add(Action::WritebackFail, state, &[], None);
        }
    }

    /// B5.
    fn writeback_marks(&mut self) {
        let batch = self.from.writeback;
        let mut state = *self.from;
        let mut broken = None;
        for sector in self.sectors(batch.mask).filter(|_| !batch.failed) {
            let place = batch.place[sector];
            if state.index[sector] == Key::new(place, true) {
                let value = state.places[usize::from(place)].live;
                broken = broken.or_else(|| invariant::durable_is(&state, sector, value));
                state.replace(sector, Key::new(place, false));
            }
        }
        state.writeback = Steps::idle_writeback();
        self.add(Action::WritebackMark, state, &[], broken);
    }
}

fn each_wants(state: &mut State, from: Wants, to: Wants) {
    for op in state.ops.iter_mut().filter(|op| op.at != At::Nowhere && op.wants == from) {
        op.wants = to;
    }
    if state.writeback.wants == from {
        state.writeback.wants = to;
    }
}

/// The first records are durable.
pub(super) fn make_durable(state: &mut State, count: u8) {
    for at in 0..usize::from(count) {
        let record = state.records[at];
        state.durable[usize::from(record.sector)] = record.key;
    }
    state.records.drop_first(usize::from(count));
    state.submitted = 0;
    for op in &mut state.ops {
        op.wait = op.wait.saturating_sub(count);
    }
    state.writeback.wait = state.writeback.wait.saturating_sub(count);
}
