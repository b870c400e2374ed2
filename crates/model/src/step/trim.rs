//! Discards over dirty data (D1).

use super::write::complete;
use super::{Answer, Steps};
use crate::action::Action;
use crate::invariant;
use crate::monitor;
use crate::state::{At, FIRST, Key, NOWHERE, Op, State, Version, Wants, WritebackAt};

impl Steps<'_> {
    /// D1: a discard begins to work on dirty sectors, as a writeback would (B1).
    pub(super) fn trim_starts(&mut self, slot: usize, dirty: u8) {
        let mut state = *self.from;
        let busy = |op: &Op| (op.backing_write() || op.trims() || op.again) && op.mask & dirty != 0;
        let writeback =
            state.writeback.at != WritebackAt::Idle && state.writeback.mask & dirty != 0;
        if writeback || state.ops.iter().any(busy) {
            return;
        }
        let others = state.ops[slot].mask & !dirty;
        let op = &mut state.ops[slot];
        for sector in self.sectors(dirty) {
            op.place[sector] = state.index[sector].place().unwrap_or(NOWHERE);
        }
        op.wait = if self.model.rules.trim_b2 { state.records.len() as u8 } else { 0 };
        let waits = op.wait > 0;
        op.at = At::TrimWaiting;
        let broken = if waits { None } else { self.trim_submits(&mut state, slot, dirty) };
        let answers: &[Answer] =
            if others == 0 { &[] } else { &[Answer::Write(slot, others, false)] };
        self.add(Action::Trim { slot, mask: dirty }, state, answers, broken);
    }

    /// D1: B2 to B5, with zeroes for data, and a removal in the end.
    pub(super) fn trim(&mut self, slot: usize, op: Op) {
        let mut state = *self.from;
        match op.at {
            At::TrimWaiting if op.wait == 0 => {
                let broken = self.trim_submits(&mut state, slot, op.mask);
                self.add(Action::TrimSubmit { slot }, state, &[], broken);
            }
            At::TrimWaiting if state.journal_failed => {
                self.add(
                    Action::GiveUp { slot },
                    state,
                    &[Answer::Write(slot, op.mask, false)],
                    None,
                );
            }
            At::TrimFlying => self.trim_flies(slot, op),
            At::TrimFlushing if op.wants == Wants::Nothing => {
                state.ops[slot].at = At::TrimDropping;
                if op.failed {
                    self.add(
                        Action::Reply { slot },
                        state,
                        &[Answer::Write(slot, op.mask, false)],
                        None,
                    );
                } else {
                    self.trim_drops(slot, op);
                }
            }
            At::TrimDropping => self.trim_drops(slot, op),
            _ => {}
        }
    }

    /// Reads that are under way may see the zeroes before they take effect.
    pub(super) fn trim_submits(
        &self,
        state: &mut State,
        slot: usize,
        mask: u8,
    ) -> Option<monitor::Finding> {
        state.ops[slot].at = At::TrimFlying;
        if self.rules().r5 {
            for op in state.ops.iter_mut().filter(|op| op.at == At::Reading) {
                op.early |= op.mask & mask;
            }
        }
        invariant::nothing_clean_returns(state, mask)
    }

    pub(super) fn trim_flies(&mut self, slot: usize, op: Op) {
        for sector in self.sectors(op.mask & !op.landed) {
            let mut state = *self.from;
            state.ops[slot].landed |= 1 << sector;
            if self.rules().trim_may_keep {
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
        complete(&mut state, slot as u8);
        state.current |= self.unflushed(op.mask);
        if op.landed == op.mask {
            let mut state = state;
            self.written(&mut state, op.mask, op.shaken, true);
            state.ops[slot].at =
                if self.rules().trim_b4 { At::TrimFlushing } else { At::TrimDropping };
            state.ops[slot].wants =
                if self.rules().trim_b4 { Wants::Flush } else { Wants::Nothing };
            self.add(Action::TrimComplete { slot }, state, &[], None);
        }
        if state.budget.errors > 0 {
            state.budget.errors -= 1;
            self.written(&mut state, op.mask, op.shaken, false);
            self.add(Action::Fail { slot }, state, &[Answer::Write(slot, op.mask, false)], None);
        }
    }

    /// One step: where the dirty key is still the one that was there, it goes.
    pub(super) fn trim_drops(&mut self, slot: usize, op: Op) {
        let mut state = *self.from;
        for sector in self.sectors(op.mask) {
            let same = state.index[sector] == Key::new(op.place[sector], true);
            if same || (!self.rules().trim_b5 && state.index[sector].is_dirty()) {
                self.disturb(&mut state, 1 << sector);
                state.replace(sector, Key::NONE);
            }
        }
        self.add(Action::TrimDrop { slot }, state, &[Answer::Write(slot, op.mask, false)], None);
    }
}
