//! Steps from a state to all of its successors.
//!
//! | module | holds |
//! |---|---|
//! | `client` | begin of client operations, and the step that comes next |
//! | `read`, `write`, `trim` | the steps of reads, of writes, of discards over dirty data |
//! | `background` | journal, flushes, publishing, eviction, writeback |
//! | `crash` | power failures and host restarts |

mod background;
mod client;
mod crash;
mod read;
mod trim;
mod write;

use crate::action::Action;
use crate::invariant;
use crate::monitor::{self, Finding, Register};
use crate::rules::Rules;
use crate::state::{
    Budget, DIRTY, Disk, Key, NOWHERE, OLDER, OPS, Op, OpKind, PlaceContent, State, Writeback,
};

/// A protocol and how much of it is explored.
#[derive(Clone, Debug)]
pub struct Model {
    /// The protocol.
    pub rules: Rules,
    /// 1 or 2.
    pub sectors: usize,
    /// Requests that clients may make.
    pub kinds: Vec<OpKind>,
    /// Number of events of each kind.
    pub budget: Budget,
    /// Assert I1 and I3 to I8 in every state, too.
    pub strict: bool,
}

/// A step that can be taken.
pub struct Next {
    /// The step.
    pub action: Action,
    /// The state after it.
    pub state: State,
    /// Violations. A state behind a finding is not explored further.
    pub findings: Vec<Finding>,
}

/// A reply that belongs to a step.
enum Answer {
    Read(usize),
    /// Slot, sectors, success.
    Write(usize, u8, bool),
    /// Slot, success.
    Flush(usize, bool),
}

/// Collects the steps from one state.
pub(crate) struct Steps<'a> {
    model: &'a Model,
    from: &'a State,
    out: &'a mut Vec<Next>,
}

impl Model {
    /// The states in which runs begin: each sector uncached, clean, or dirty.
    pub fn initial(&self) -> Vec<State> {
        let per_sector = 3_usize;
        (0..per_sector.pow(self.sectors as u32))
            .map(|mut number| {
                let mut state = State { budget: self.budget, ..State::default() };
                state.writeback.place = [NOWHERE; 2];
                state.ops = [Op { place: [NOWHERE; 2], ..Op::default() }; OPS];
                for sector in 0..self.sectors {
                    let kind = number % per_sector;
                    number /= per_sector;
                    let value = if kind == 2 { DIRTY } else { OLDER };
                    state.disk[sector] = Disk::new(OLDER);
                    if kind > 0 {
                        state.places[sector] = PlaceContent { live: value, durable: value };
                        state.index[sector] = Key::new(sector as u8, kind == 2);
                        state.durable[sector] = state.index[sector];
                    }
                    state.registers[sector] = Register::new(value);
                }
                for sector in self.sectors..2 {
                    state.registers[sector] = Register::new(OLDER);
                }
                state.tidy_places();
                state
            })
            .collect()
    }

    /// Every step that can be taken.
    pub fn next(&self, from: &State, out: &mut Vec<Next>) {
        out.clear();
        let mut steps = Steps { model: self, from, out };
        steps.clients();
        steps.background();
        steps.crashes();
    }

    /// All sectors, as bits.
    fn every_sector(&self) -> u8 {
        (1 << self.sectors) - 1
    }
}

impl Steps<'_> {
    fn rules(&self) -> &Rules {
        &self.model.rules
    }

    fn sectors(&self, mask: u8) -> impl Iterator<Item = usize> + use<> {
        (0..2).filter(move |sector| mask & 1 << sector != 0)
    }

    /// A step of the running system, with the replies that it brings.
    fn add(
        &mut self,
        action: Action,
        mut state: State,
        answers: &[Answer],
        broken: Option<Finding>,
    ) {
        let mut finding =
            broken.filter(|_| self.model.strict).or_else(|| monitor::observe(&mut state));
        for answer in answers {
            finding = finding.or_else(|| match *answer {
                Answer::Read(slot) => monitor::end_read(&mut state, slot),
                Answer::Write(slot, mask, ok) => monitor::end_write(&mut state, slot, mask, ok),
                Answer::Flush(slot, ok) => monitor::end_flush(&mut state, slot, ok),
            });
        }
        self.done(action, state, answers, finding);
    }

    /// Operations that have their reply leave.
    fn done(
        &mut self,
        action: Action,
        mut state: State,
        answers: &[Answer],
        finding: Option<Finding>,
    ) {
        for answer in answers {
            match *answer {
                Answer::Read(slot) => read::leave_or_fill(&mut state, slot),
                Answer::Write(slot, mask, _) => {
                    // Skipped parts of a discard are answered while the rest goes on.
                    if state.ops[slot].mask & !mask == 0 {
                        state.ops[slot] = Op::default();
                    } else {
                        state.ops[slot].mask &= !mask;
                    }
                }
                Answer::Flush(slot, _) => state.ops[slot] = Op::default(),
            }
        }
        state.tidy_places();
        let mut findings: Vec<Finding> = finding.into_iter().collect();
        findings.extend(invariant::clean_equals_backing(&state));
        if self.model.strict {
            findings.extend(invariant::strict(&state));
        }
        self.out.push(Next { action, state, findings });
    }

    /// Sectors that became un-flushed.
    fn unflushed(&self, mask: u8) -> u8 {
        if self.rules().one_bit { self.model.every_sector() } else { mask }
    }

    /// F5: a write to the backing device has ended, under way when a flush failed or not. `good`:
    /// what was there is gone.
    fn written(&self, state: &mut State, mask: u8, shaken: bool, good: bool) {
        if shaken && self.rules().f5 {
            state.suspect |= mask;
        } else if good {
            state.suspect &= !mask;
        }
    }

    /// The index changes over these sectors: with placeholders, fills are doomed.
    fn disturb(&self, state: &mut State, mask: u8) {
        if self.rules().placeholders {
            for op in state.ops.iter_mut().filter(|op| op.kind == OpKind::Read) {
                op.doomed |= op.mask & mask;
            }
        }
    }

    fn idle_writeback() -> Writeback {
        Writeback { place: [NOWHERE; 2], ..Writeback::default() }
    }
}
