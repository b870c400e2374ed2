//! Writes of clients (W1 to W6, K1 to K3).

use super::{Answer, Steps};
use crate::action::Action;
use crate::invariant;
use crate::monitor;
use crate::rules::{Durable, OverDirty, Removal, Trim};
use crate::state::{At, FIRST, Key, NOWHERE, Op, OpKind, SECTORS, State, Version};

impl Steps<'_> {
    /// K1. False: no place is left.
    pub(super) fn place_data(&self, state: &mut State, slot: usize) -> bool {
        self.sectors(state.ops[slot].mask).all(|sector| {
            let place = state.allocate(FIRST + slot as u8, self.rules().j2);
            state.ops[slot].place[sector] = place.unwrap_or(NOWHERE);
            place.is_some()
        })
    }

    /// W2.
    pub(super) fn decide(&mut self, slot: usize, op: Op) {
        let mut state = *self.from;
        let action = Action::Decide { slot };
        let dirty: u8 =
            self.sectors(op.mask).filter(|s| state.index[*s].is_dirty()).map(|s| 1 << s).sum();
        let mut skipped = 0;
        if dirty != 0 {
            match (self.rules().over_dirty, op.kind) {
                (OverDirty::Drop, _) => {}
                (_, OpKind::Discard) => {
                    // Dirty parts alone: the others are ignored, as they may be.
                    if self.rules().trim == Trim::Drops {
                        self.trim_starts(slot, dirty);
                    }
                    skipped = dirty;
                }
                (OverDirty::Writeback, _) => {
                    state.ops[slot].at = At::Placed;
                    if self.place_data(&mut state, slot) {
                        self.add(action, state, &[], None);
                    }
                    return;
                }
                (OverDirty::Wait, _) => return,
            }
        }
        let mask = op.mask & !skipped;
        let answers: &[Answer] =
            if skipped == 0 { &[] } else { &[Answer::Write(slot, skipped, false)] };
        if mask == 0 {
            self.add(action, state, answers, None);
            return;
        }
        let removes = self.rules().through_removes || !op.kind.is_through();
        let mut in_index = false;
        if matches!(self.rules().removal, Removal::Before | Removal::Both) && removes {
            in_index = self.remove(&mut state, slot, mask);
        }
        let newest = self
            .sectors(mask)
            .filter(|sector| state.may_return(*sector))
            .map(|sector| state.newest_record(sector))
            .max()
            .unwrap_or(0);
        let wait = match self.rules().durable {
            Durable::IfMayReturn => newest,
            Durable::IfInIndex if in_index => newest,
            Durable::NotForDiscards if op.kind != OpKind::Discard => newest,
            Durable::Always => state.records.len() as u8,
            _ => 0,
        };
        state.ops[slot].at = At::Waiting;
        state.ops[slot].wait = wait;
        let returns = || invariant::nothing_returns(&state, mask);
        let broken = (wait == 0).then(returns).flatten();
        if wait == 0 {
            self.submit(&mut state, slot);
        }
        self.add(action, state, answers, broken);
    }

    /// Removes what is cached of these sectors. Says whether the index had any of it.
    pub(super) fn remove(&self, state: &mut State, slot: usize, mask: u8) -> bool {
        self.disturb(state, mask);
        let mut any = false;
        for sector in self.sectors(mask) {
            state.unpublished[sector] = 0;
            let key = state.index[sector];
            if key != Key::NONE {
                any = true;
                if self.rules().restore && key.is_clean() {
                    state.ops[slot].place[sector] = key.place().unwrap_or(NOWHERE);
                }
                state.replace(sector, Key::NONE);
            }
        }
        any
    }

    /// W4. Says what must not be (I4).
    pub(super) fn submit(&self, state: &mut State, slot: usize) -> Option<monitor::Finding> {
        let mask = state.ops[slot].mask;
        state.ops[slot].at = At::Flying;
        if self.rules().unflushed_at_submission {
            state.current |= self.unflushed(mask);
        }
        invariant::nothing_clean_returns(state, mask)
    }

    pub(super) fn waiting(&mut self, slot: usize, op: Op) {
        let mut state = *self.from;
        if op.wait == 0 || (state.journal_failed && self.rules().submit_after_failure) {
            let broken = self.submit(&mut state, slot);
            self.add(Action::Submit { slot }, state, &[], broken);
        } else if state.journal_failed {
            self.add(Action::GiveUp { slot }, state, &[Answer::Write(slot, op.mask, false)], None);
        }
    }

    pub(super) fn flying(&mut self, slot: usize, op: Op) {
        for sector in self.sectors(op.mask & !op.landed) {
            let mut state = *self.from;
            state.ops[slot].landed |= 1 << sector;
            if op.kind == OpKind::Discard {
                self.add(Action::Ignore { slot, sector }, state, &[], None);
            }
            if !state.disk[sector].versions.is_full() {
                let version =
                    Version { value: FIRST + slot as u8, writer: slot as u8, ..Version::default() };
                state.disk[sector].land(version);
                self.add(Action::Land { slot, sector }, state, &[], None);
            }
        }
        let mut state = *self.from;
        state.ops[slot].at = At::Completed;
        complete(&mut state, slot as u8);
        if op.landed == op.mask {
            let mut state = state;
            if op.kind.is_fua() {
                for sector in self.sectors(op.mask) {
                    let own = |version: &Version| version.writer == slot as u8;
                    if let Some(at) = state.disk[sector].versions.iter().position(own) {
                        state.disk[sector].settle(at);
                    }
                }
            }
            self.add(Action::Complete { slot }, state, &[], None);
        }
        if state.budget.errors > 0 {
            state.budget.errors -= 1;
            state.ops[slot].failed = true;
            self.add(Action::Fail { slot }, state, &[], None);
        }
    }

    /// Steps of protocols other than P8 while the write is in flight or after it.
    pub(super) fn late_steps(&mut self, slot: usize, op: Op) {
        if self.removes_late(op) && !op.removed {
            let parallel = self.rules().removal == Removal::Parallel;
            if parallel || op.at == At::Completed {
                let mut state = *self.from;
                state.ops[slot].removed = true;
                self.remove(&mut state, slot, op.mask);
                self.add(Action::Remove { slot }, state, &[], None);
            }
        }
        if self.rules().early_copy && op.kind.is_through() && !op.copied {
            let mut state = *self.from;
            state.ops[slot].copied = true;
            if self.copy(&mut state, slot) {
                self.add(Action::EarlyCopy { slot }, state, &[], None);
            }
        }
    }

    pub(super) fn removes_late(&self, op: Op) -> bool {
        self.rules().removal != Removal::Before
            && (self.rules().through_removes || !op.kind.is_through())
    }

    /// The copy of a writethrough write. False: no place is left.
    pub(super) fn copy(&self, state: &mut State, slot: usize) -> bool {
        let mask = state.ops[slot].mask;
        self.disturb(state, mask);
        let kept = if state.set_failed { 0 } else { mask & !state.suspect };
        self.sectors(kept).all(|sector| {
            let Some(place) = state.allocate(FIRST + slot as u8, self.rules().j2) else {
                return false;
            };
            if self.rules().track_copies {
                state.unpublished[sector] = place + 1;
            } else {
                state.unpublished[sector] = 0;
                state.replace(sector, Key::new(place, false));
            }
            true
        })
    }

    /// W5 and W6.
    pub(super) fn settle(&mut self, slot: usize, op: Op) {
        let early = self.rules().early_copy;
        let unfinished =
            (self.removes_late(op) && !op.removed) || (early && op.kind.is_through() && !op.copied);
        if unfinished {
            return;
        }
        let mut state = *self.from;
        let durable = op.kind.is_fua() && !op.failed && !self.rules().fua_is_unflushed;
        if !durable && !self.rules().unflushed_at_submission {
            state.current |= self.unflushed(op.mask);
        }
        let fua = op.kind.is_fua() && !op.failed;
        self.written(
            &mut state,
            op.mask,
            op.shaken && !fua,
            !op.failed && op.kind != OpKind::Discard,
        );
        if op.kind.is_through()
            && !early
            && !op.failed
            && op.doomed == 0
            && !self.copy(&mut state, slot)
        {
            return;
        }
        if op.failed && self.rules().restore {
            for sector in self.sectors(op.mask) {
                if op.place[sector] != NOWHERE && state.index[sector] == Key::NONE {
                    state.replace(sector, Key::new(op.place[sector], false));
                }
            }
        }
        // A discard may have been ignored.
        let ok = !op.failed && op.kind != OpKind::Discard;
        self.add(Action::Settle { slot }, state, &[Answer::Write(slot, op.mask, ok)], None);
    }

    /// K2.
    pub(super) fn insert(&mut self, slot: usize, op: Op) {
        let mut state = *self.from;
        if state.set_failed {
            self.add(Action::GiveUp { slot }, state, &[Answer::Write(slot, op.mask, false)], None);
            return;
        }
        self.disturb(&mut state, op.mask);
        for sector in self.sectors(op.mask) {
            state.unpublished[sector] = 0;
            state.replace(sector, Key::new(op.place[sector], true));
        }
        let action = Action::Insert { slot };
        if op.kind.is_fua() {
            state.ops[slot].at = At::Fua;
            state.ops[slot].wait = state.records.len() as u8;
            state.ops[slot].place = [NOWHERE; SECTORS];
            self.add(action, state, &[], None);
        } else {
            self.add(action, state, &[Answer::Write(slot, op.mask, true)], None);
        }
    }

    /// K3.
    pub(super) fn wait_for_fua(&mut self, slot: usize, op: Op) {
        if op.wait == 0 || self.from.journal_failed {
            let answer = Answer::Write(slot, op.mask, op.wait == 0);
            self.add(Action::Reply { slot }, *self.from, &[answer], None);
        }
    }
}

/// The write of this writer is complete: a flush that is submitted from now on covers it.
pub(super) fn complete(state: &mut State, writer: u8) {
    for disk in &mut state.disk {
        for version in disk.versions.iter_mut().filter(|version| version.writer == writer) {
            version.completed = true;
        }
    }
}
