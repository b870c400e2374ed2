//! Client operations: their begin, and the step that comes next (T2, T3, F1 to F3).

use super::{Answer, Steps};
use crate::action::Action;
use crate::monitor;
use crate::state::{At, CLIENTS, NOWHERE, OPS, Op, OpKind, SECTORS, UNREAD, Wants};

impl Steps<'_> {
    pub(super) fn clients(&mut self) {
        self.begin();
        for slot in 0..OPS {
            let op = self.from.ops[slot];
            match op.at {
                At::Nowhere => {}
                At::Entered => self.decide(slot, op),
                At::Waiting => self.waiting(slot, op),
                At::Flying => {
                    self.flying(slot, op);
                    self.late_steps(slot, op);
                }
                At::Completed => {
                    self.late_steps(slot, op);
                    self.settle(slot, op);
                }
                At::Placed => self.insert(slot, op),
                At::Fua => self.wait_for_fua(slot, op),
                At::Reading => self.read(slot, op),
                At::Filling => self.fill(slot, op),
                At::Flushing => self.flushing(slot, op),
                At::TrimWaiting | At::TrimFlying | At::TrimFlushing | At::TrimDropping => {
                    self.trim(slot, op)
                }
            }
        }
    }

    pub(super) fn begin(&mut self) {
        let left = self.from.budget.ops;
        if left == 0 {
            return;
        }
        let slot = usize::from(self.model.budget.ops - left);
        for kind in self.model.kinds.clone() {
            for mask in 1..=self.model.every_sector() {
                if kind == OpKind::Flush && mask != self.model.every_sector() {
                    continue;
                }
                for client in 0..self.clients_of(kind, left) {
                    self.begin_one(slot, kind, mask, client);
                }
            }
        }
    }

    /// Number of clients that may ask for this. They differ only where a FLUSH may tell of a failed
    /// flush, and the first one is like any other.
    pub(super) fn clients_of(&self, kind: OpKind, left: u8) -> u8 {
        let flush_later = kind.writes() && left > 1 && self.model.kinds.contains(&OpKind::Flush);
        let from = self.from;
        let matters = from.budget.flush_errors > 0 || from.flush_reports.owed | from.ignorant != 0;
        let several = matters && from.wrote != 0;
        if several && (flush_later || kind == OpKind::Flush) { CLIENTS } else { 1 }
    }

    pub(super) fn begin_one(&mut self, slot: usize, kind: OpKind, mask: u8, client: u8) {
        let busy = |op: &Op| op.is_write() && op.mask & mask != 0;
        if self.rules().exclusion && kind.writes() && self.from.ops.iter().any(busy) {
            return;
        }
        let mut state = *self.from;
        state.budget.ops -= 1;
        let mut op =
            Op { kind, mask, place: [NOWHERE; SECTORS], read: [UNREAD; SECTORS], ..Op::default() };
        if state.budget.flush_errors > 0 {
            monitor::asks(&mut state, kind, client);
        }
        if self.rules().f4
            && kind != OpKind::Read
            && (state.budget.flush_errors > 0 || state.flush_reports.untold)
        {
            state.flush_reports.comes(client);
        }
        match kind {
            OpKind::Read => {
                op.at = At::Reading;
            }
            OpKind::Flush => {
                op.at = At::Flushing;
                op.client = client;
                let nothing = self.rules().track_fills && state.unflushed() == 0;
                op.wants = if self.rules().flush_backing && !nothing {
                    Wants::Flush
                } else {
                    Wants::Nothing
                };
                let newest = state.records.iter().rposition(|record| {
                    let removal = record.drops_dirty && self.rules().flush_removals;
                    self.rules().flush_every_record || record.key.is_dirty() || removal
                });
                op.wait =
                    newest.filter(|_| self.rules().flush_journal).map_or(0, |at| at as u8 + 1);
            }
            _ => {
                op.at = At::Entered;
                for other in
                    state.ops.iter_mut().filter(|op| op.at != At::Nowhere && op.mask & mask != 0)
                {
                    let common = other.mask & mask;
                    if other.kind == OpKind::Read && self.model.rules.doom_fills {
                        other.doomed |= common;
                    }
                    if other.kind.writes() && self.model.rules.doom_copies {
                        other.doomed |= common;
                        op.doomed |= common;
                    }
                }
                if matches!(kind, OpKind::Back | OpKind::BackFua) {
                    op.at = At::Placed;
                }
            }
        }
        state.ops[slot] = op;
        if kind == OpKind::Read {
            self.look_up(&mut state, slot);
        }
        if op.at == At::Placed && !self.place_data(&mut state, slot) {
            return;
        }
        monitor::begin(&mut state, slot);
        self.add(Action::Begin { slot, kind, mask }, state, &[], None);
    }

    /// F2.
    pub(super) fn flushing(&mut self, slot: usize, op: Op) {
        let stuck = op.wait > 0 && self.from.journal_failed;
        if op.wants == Wants::Nothing && (op.wait == 0 || stuck) {
            let mut state = *self.from;
            // F4
            let owed = state.flush_reports.flush_ends(op.client, self.rules().f4_each);
            let ok = !stuck && !op.failed && !owed;
            self.add(Action::Reply { slot }, state, &[Answer::Flush(slot, ok)], None);
        }
    }
}
