//! What clients may see: every sector is a linearisable register that a crash may take back to an older value.
//!
//! A probe reads every sector after every step, so the value of the register is known at every moment. A value may
//! appear if an operation under way writes it and has not taken effect. What is not known is whether a write took
//! effect just before another one, unseen; so the register follows every set of writes that may have.

use crate::rules::Kind;
use crate::state::{FIRST, OPS, Op, OpKind, SECTORS, State};

/// One sector, as clients see it.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default)]
pub struct Register {
    /// The value now.
    pub value: u8,
    /// Bit n: the operations under way of which exactly the set n (as bits) has taken effect explain everything.
    pub explained: u8,
    /// Values that no acknowledged write has buried yet, as bits; the present one is among them.
    pub exposed: u8,
    /// Values that a crash may leave, as bits.
    pub floor: u8,
}

impl Register {
    /// A register with this value, durable.
    pub fn new(value: u8) -> Register {
        Register { value, explained: 1, exposed: 1 << value, floor: 1 << value }
    }
}

/// What must not be: its kind, and a sentence.
pub type Finding = (Kind, String);

/// The value in words.
pub fn name(value: u8) -> String {
    match value {
        crate::state::OLDER => "older".to_owned(),
        crate::state::DIRTY => "d".to_owned(),
        crate::state::GARBAGE => "garbage".to_owned(),
        op => format!("w{}", op - FIRST + 1),
    }
}

/// The values of a set of bits, in words.
fn names(set: u8) -> String {
    let names: Vec<String> = (0..8).filter(|value| set & 1 << value != 0).map(name).collect();
    names.join(" or ")
}

/// Writes of this sector that have no reply, as bits.
fn pending(ops: &[Op; OPS], sector: usize) -> u8 {
    (0..OPS).filter(|slot| ops[*slot].is_write() && ops[*slot].has(sector)).map(|slot| 1 << slot).sum()
}

/// The probe, after a step of a running system.
pub fn observe(state: &mut State) -> Option<Finding> {
    for sector in 0..SECTORS {
        let (old, new) = (state.registers[sector].value, state.serve(sector));
        if old == new {
            continue;
        }
        let pending = pending(&state.ops, sector);
        let writer = new.checked_sub(FIRST).filter(|slot| pending & 1 << slot != 0);
        let explained = state.registers[sector].explained;
        let mut next = 0_u8;
        let mut unseen = 0_u8;
        if let Some(writer) = writer {
            for set in (0..8_u8).filter(|set| explained & 1 << set != 0 && set & 1 << writer == 0) {
                let others = pending & !set & !(1 << writer);
                unseen |= others;
                for more in (0..8_u8).filter(|more| more & !others == 0) {
                    next |= 1 << (set | more | 1 << writer);
                }
            }
        }
        if next == 0 {
            let what =
                format!("s{sector} turns from {} to {}, which no write explains", name(old), name(new));
            return Some((Kind::Lin, what));
        }
        let before = state.registers[sector].floor | state.registers[sector].exposed;
        let seen = 1 << new
            | (0..OPS as u8)
                .filter(|slot| unseen & 1 << slot != 0)
                .map(|slot| 1 << (FIRST + slot))
                .sum::<u8>();
        let register = &mut state.registers[sector];
        register.value = new;
        register.explained = next;
        register.exposed |= seen;
        register.floor |= seen;
        for (slot, op) in state.ops.iter_mut().enumerate() {
            let waits = (op.kind == OpKind::Read || op.kind == OpKind::Flush) && op.is_active();
            if waits && op.has(sector) {
                op.held[sector] |= seen;
            }
            if writer == Some(slot as u8) || (unseen & 1 << slot != 0 && op.before[sector] == 0) {
                op.before[sector] = before & !(1 << (FIRST + slot as u8));
            }
        }
    }
    None
}

/// An operation begins.
pub fn begin(state: &mut State, slot: usize) {
    for sector in 0..SECTORS {
        let register = state.registers[sector];
        let op = &mut state.ops[slot];
        op.before[sector] = 0;
        op.held[sector] = match op.kind {
            OpKind::Read if op.has(sector) => 1 << register.value,
            OpKind::Flush => register.exposed,
            _ => 0,
        };
    }
}

/// A read has its reply.
pub fn end_read(state: &mut State, slot: usize) -> Option<Finding> {
    let op = state.ops[slot];
    for sector in (0..SECTORS).filter(|sector| op.has(*sector)) {
        let value = op.read[sector];
        if op.held[sector] & 1 << value == 0 {
            let (value, held) = (name(value), names(op.held[sector]));
            return Some((Kind::Lin, format!("the read returns {value} for s{sector}, not {held}")));
        }
        let register = &mut state.registers[sector];
        if let Some(writer) = value.checked_sub(FIRST)
            && pending(&state.ops, sector) & 1 << writer != 0
        {
            // It was seen, so it has taken effect.
            keep(register, |set| set & 1 << writer != 0);
        }
        if register.explained == 0 {
            return Some((Kind::Lin, format!("the read returns {} for s{sector} too early", name(value))));
        }
    }
    None
}

fn keep(register: &mut Register, good: impl Fn(u8) -> bool) {
    for set in (0..8_u8).filter(|set| !good(*set)) {
        register.explained &= !(1 << set);
    }
}

/// A write has its reply for these sectors. `ok`: it has taken effect; otherwise it has, or never will.
pub fn end_write(state: &mut State, slot: usize, mask: u8, ok: bool) -> Option<Finding> {
    let op = state.ops[slot];
    let bit = 1 << slot;
    for sector in (0..SECTORS).filter(|sector| mask & 1 << sector != 0) {
        let register = &mut state.registers[sector];
        let certain = (0..8_u8).all(|set| register.explained & 1 << set == 0 || set & bit != 0);
        if ok {
            keep(register, |set| set & bit != 0);
            if register.explained == 0 {
                let (id, value) = (slot + 1, name(register.value));
                return Some((
                    Kind::Lin,
                    format!("operation {id} is answered, but s{sector} still reads {value}"),
                ));
            }
        }
        // From now on the operation has no bit of its own.
        let old = std::mem::take(&mut register.explained);
        for set in (0..8_u8).filter(|set| old & 1 << set != 0) {
            register.explained |= 1 << (set & !bit);
        }
        if ok || certain {
            register.exposed = register.exposed & !op.before[sector] | 1 << register.value;
            if ok && op.kind.is_fua() {
                register.floor = register.floor & !op.before[sector] | 1 << register.value;
            }
        }
    }
    None
}

/// A FLUSH was answered with success.
pub fn end_flush(state: &mut State, slot: usize) {
    for sector in 0..SECTORS {
        let register = &mut state.registers[sector];
        register.floor = register.floor & state.ops[slot].held[sector] | 1 << register.value;
    }
}

/// The instance is gone; `state` is the one after recovery, but for its registers and operations.
pub fn crash(state: &mut State, power: bool) -> Option<Finding> {
    for sector in 0..SECTORS {
        let pending = pending(&state.ops, sector);
        let register = state.registers[sector];
        let writes: u8 =
            (0..OPS as u8).filter(|slot| pending & 1 << slot != 0).map(|slot| 1 << (FIRST + slot)).sum();
        let allowed = register.floor | register.exposed | writes;
        let value = state.serve(sector);
        if allowed & 1 << value == 0 {
            let (value, allowed) = (name(value), names(allowed));
            return Some((Kind::Dur, format!("s{sector} comes back as {value}, not {allowed}")));
        }
        state.registers[sector] = Register::new(value);
        if !power {
            // The devices still hold un-flushed data; a later power failure may take it.
            state.registers[sector].floor |= allowed;
        }
    }
    None
}
