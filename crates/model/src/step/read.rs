//! Reads of clients (R1 to R3).

use super::{Answer, Steps};
use crate::action::Action;
use crate::monitor;
use crate::state::{At, Key, NOWHERE, Op, SECTORS, State, UNREAD};

/// After the reply to a read: R3 is still to come if something is to be cached.
pub(super) fn leave_or_fill(state: &mut State, slot: usize) {
    let op = &mut state.ops[slot];
    if op.mask & !op.doomed == 0 {
        *op = Op::default();
    } else {
        op.at = At::Filling;
        op.held = [0; SECTORS];
    }
}

impl Steps<'_> {
    /// R1.
    pub(super) fn look_up(&self, state: &mut State, slot: usize) {
        let mut op = state.ops[slot];
        op.dirty = 0;
        for sector in self.sectors(op.mask) {
            let hit = state.copy(sector).or(state.index[sector].place());
            op.place[sector] = hit.unwrap_or(NOWHERE);
            op.dirty |= u8::from(state.index[sector].is_dirty()) << sector;
            let writing = |op: &Op| op.is_write() && op.has(sector);
            if hit.is_some() || (self.rules().doom_fills && state.ops.iter().any(writing)) {
                op.doomed |= 1 << sector;
            }
        }
        state.ops[slot] = op;
    }

    /// R2.
    pub(super) fn read(&mut self, slot: usize, op: Op) {
        let mut all = true;
        for sector in self.sectors(op.mask).filter(|sector| op.read[*sector] == UNREAD) {
            all = false;
            let mut state = *self.from;
            let place = Some(op.place[sector]).filter(|place| *place != NOWHERE);
            let Some(value) = state.read(sector, place, op.dirty & 1 << sector != 0) else {
                state.ops[slot] = Op::default();
                self.add(Action::ReadFails { slot }, state, &[], None);
                return;
            };
            state.ops[slot].read[sector] = value;
            state.ops[slot].place[sector] = NOWHERE;
            monitor::read_below(&mut state, slot, sector);
            self.add(Action::Read { slot, sector }, state, &[], None);
        }
        if all && op.early != 0 {
            let mut state = *self.from;
            state.ops[slot] = Op { again: true, early: 0, read: [UNREAD; SECTORS], ..op };
            self.look_up(&mut state, slot);
            state.ops[slot].doomed = op.mask;
            self.add(Action::LookAgain { slot }, state, &[], None);
        } else if all {
            self.add(Action::Reply { slot }, *self.from, &[Answer::Read(slot)], None);
        }
    }

    /// R3.
    pub(super) fn fill(&mut self, slot: usize, op: Op) {
        let mut state = *self.from;
        let kept = if state.set_failed { 0 } else { op.mask & !op.doomed & !state.suspect };
        for sector in self.sectors(kept) {
            let has_key = state.index[sector] != Key::NONE;
            if has_key && !self.rules().track_fills {
                continue;
            }
            let Some(place) = state.allocate(op.read[sector], self.rules().j2) else { return };
            if self.rules().track_fills {
                state.unpublished[sector] = place + 1;
            } else {
                state.replace(sector, Key::new(place, false));
            }
        }
        state.ops[slot] = Op::default();
        self.add(Action::Fill { slot }, state, &[], None);
    }
}
