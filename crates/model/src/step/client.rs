//! Client operations (T2, T3, R1 to R3, W1 to W6, K1 to K3, D1, F1 to F3).

use super::{Answer, Steps};
use crate::action::Action;
use crate::invariant;
use crate::monitor;
use crate::rules::{Durable, OverDirty, Removal, Trim};
use crate::state::{
    At, CLIENTS, FIRST, Key, NOWHERE, OPS, Op, OpKind, SECTORS, State, UNREAD, Version, Wants,
    WritebackAt,
};

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

    fn begin(&mut self) {
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
    fn clients_of(&self, kind: OpKind, left: u8) -> u8 {
        let flush_later = kind.writes() && left > 1 && self.model.kinds.contains(&OpKind::Flush);
        let from = self.from;
        let matters = from.budget.flush_errors > 0 || from.flush_reports.owed | from.ignorant != 0;
        let several = matters && from.wrote != 0;
        if several && (flush_later || kind == OpKind::Flush) { CLIENTS } else { 1 }
    }

    fn begin_one(&mut self, slot: usize, kind: OpKind, mask: u8, client: u8) {
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

    /// K1. False: no place is left.
    fn place_data(&self, state: &mut State, slot: usize) -> bool {
        self.sectors(state.ops[slot].mask).all(|sector| {
            let place = state.allocate(FIRST + slot as u8, self.rules().j2);
            state.ops[slot].place[sector] = place.unwrap_or(NOWHERE);
            place.is_some()
        })
    }

    /// W2.
    fn decide(&mut self, slot: usize, op: Op) {
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

    /// D1: a discard begins to work on dirty sectors, as a writeback would (B1).
    fn trim_starts(&mut self, slot: usize, dirty: u8) {
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
    fn trim(&mut self, slot: usize, op: Op) {
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
    fn trim_submits(&self, state: &mut State, slot: usize, mask: u8) -> Option<monitor::Finding> {
        state.ops[slot].at = At::TrimFlying;
        if self.rules().r5 {
            for op in state.ops.iter_mut().filter(|op| op.at == At::Reading) {
                op.early |= op.mask & mask;
            }
        }
        invariant::nothing_clean_returns(state, mask)
    }

    fn trim_flies(&mut self, slot: usize, op: Op) {
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
    fn trim_drops(&mut self, slot: usize, op: Op) {
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

    /// Removes what is cached of these sectors. Says whether the index had any of it.
    fn remove(&self, state: &mut State, slot: usize, mask: u8) -> bool {
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
    fn submit(&self, state: &mut State, slot: usize) -> Option<monitor::Finding> {
        let mask = state.ops[slot].mask;
        state.ops[slot].at = At::Flying;
        if self.rules().unflushed_at_submission {
            state.current |= self.unflushed(mask);
        }
        invariant::nothing_clean_returns(state, mask)
    }

    fn waiting(&mut self, slot: usize, op: Op) {
        let mut state = *self.from;
        if op.wait == 0 || (state.journal_failed && self.rules().submit_after_failure) {
            let broken = self.submit(&mut state, slot);
            self.add(Action::Submit { slot }, state, &[], broken);
        } else if state.journal_failed {
            self.add(Action::GiveUp { slot }, state, &[Answer::Write(slot, op.mask, false)], None);
        }
    }

    fn flying(&mut self, slot: usize, op: Op) {
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
    fn late_steps(&mut self, slot: usize, op: Op) {
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

    fn removes_late(&self, op: Op) -> bool {
        self.rules().removal != Removal::Before
            && (self.rules().through_removes || !op.kind.is_through())
    }

    /// The copy of a writethrough write. False: no place is left.
    fn copy(&self, state: &mut State, slot: usize) -> bool {
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
    fn settle(&mut self, slot: usize, op: Op) {
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
    fn insert(&mut self, slot: usize, op: Op) {
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
    fn wait_for_fua(&mut self, slot: usize, op: Op) {
        if op.wait == 0 || self.from.journal_failed {
            let answer = Answer::Write(slot, op.mask, op.wait == 0);
            self.add(Action::Reply { slot }, *self.from, &[answer], None);
        }
    }

    /// R1.
    fn look_up(&self, state: &mut State, slot: usize) {
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
    fn read(&mut self, slot: usize, op: Op) {
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
    fn fill(&mut self, slot: usize, op: Op) {
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

    /// F2.
    fn flushing(&mut self, slot: usize, op: Op) {
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

/// The write of this writer is complete: a flush that is submitted from now on covers it.
pub(super) fn complete(state: &mut State, writer: u8) {
    for disk in &mut state.disk {
        for version in disk.versions.iter_mut().filter(|version| version.writer == writer) {
            version.completed = true;
        }
    }
}
