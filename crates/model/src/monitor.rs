//! Observations that clients may make: every sector is a linearisable register that a crash may
//! take back to an older value.
//!
//! A probe reads every sector after every step, so the value of the register is known at every
//! moment. A value may appear if an operation under way writes it and has not taken effect. What is
//! not known is whether a write took effect just before another one, unseen; so the register
//! follows every set of writes that may have.
//!
//! A failed flush of the backing device may have lost what was not durable: the register may then
//! *fall*, once, to a value that a power failure could have left as well. A FLUSH that is answered
//! with success says that this did not happen to what was answered before it, unless its client has
//! been told, or had written nothing.

use crate::rules::Promise;
use crate::state::{At, FIRST, OPS, Op, OpKind, SECTORS, State};

/// One sector, as clients see it.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default)]
pub struct Register {
    /// The value now.
    pub value: u8,
    /// Bit n: the operations under way of which exactly the set n (as bits) has taken effect
    /// explain everything.
    pub explained: u8,
    /// Values that no acknowledged write has buried yet, as bits; the present one is among them,
    /// unless it is a loss.
    pub exposed: u8,
    /// Values that a crash may leave, as bits.
    pub floor: u8,
    /// Values that it may fall to, as bits.
    pub falls: u8,
    /// The value has fallen to the present one.
    pub fell: bool,
}

impl Register {
    /// A register with this value, durable.
    pub fn new(value: u8) -> Register {
        Register {
            value,
            explained: 1,
            exposed: 1 << value,
            floor: 1 << value,
            ..Register::default()
        }
    }
}

/// A violation: its kind, and a sentence.
pub type Finding = (Promise, String);

/// The value in words.
pub fn name(value: u8) -> String {
    match value {
        crate::state::OLDER => "older".to_owned(),
        crate::state::DIRTY => "d".to_owned(),
        crate::state::GARBAGE => "garbage".to_owned(),
        crate::state::LOST => "lost".to_owned(),
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
    (0..OPS)
        .filter(|slot| ops[*slot].is_write() && ops[*slot].has(sector))
        .map(|slot| 1 << slot)
        .sum()
}

/// The probe, after a step of a running system.
pub fn observe(state: &mut State) -> Option<Finding> {
    for sector in 0..SECTORS {
        // An error says nothing.
        let Some(new) = state.serve(sector) else { continue };
        let old = state.registers[sector].value;
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
        let took_effect = next != 0;
        if state.registers[sector].falls & 1 << new != 0 {
            next |= match writer {
                // The write took effect earlier, and its successor is lost.
                Some(writer) => only(explained, |set| set & 1 << writer != 0),
                None => explained,
            };
        }
        if next == 0 {
            let what = format!(
                "s{sector} turns from {} to {}, which no write explains",
                name(old),
                name(new)
            );
            return Some((Promise::Lin, what));
        }
        if !took_effect {
            falls(state, sector, new, next);
            continue;
        }
        let Register { floor, exposed, falls, .. } = state.registers[sector];
        // It may have fallen before this write, unseen.
        let before = floor | exposed | falls | 1 << old;
        let seen = 1 << new
            | (0..OPS as u8)
                .filter(|slot| unseen & 1 << slot != 0)
                .map(|slot| 1 << (FIRST + slot))
                .sum::<u8>();
        let register = &mut state.registers[sector];
        register.value = new;
        register.explained = next;
        register.exposed |= seen | falls | 1 << old;
        register.floor |= seen | falls;
        let in_doubt = writer.is_some_and(|slot| state.ops[usize::from(slot)].in_doubt);
        register.fell = false;
        register.falls = if in_doubt { before & !(1 << new) } else { 0 };
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

/// The sector has fallen to this value.
fn falls(state: &mut State, sector: usize, new: u8, explained: u8) {
    let register = &mut state.registers[sector];
    let lost = 1 << register.value;
    *register = Register {
        value: new,
        explained,
        exposed: register.exposed & !lost,
        floor: register.floor & !lost | 1 << new,
        falls: 0,
        fell: true,
    };
    for op in state
        .ops
        .iter_mut()
        .filter(|op| op.kind == OpKind::Read && op.is_active() && op.has(sector))
    {
        op.held[sector] |= 1 << new;
    }
}

/// A read has been at the backing device. Where dirty data came meanwhile, the sector may have
/// fallen below it, which nobody else sees; and who reads can't tell when the device lost what it
/// had.
pub fn read_below(state: &mut State, slot: usize, sector: usize) {
    if state.index[sector].is_dirty() {
        let value = state.ops[slot].read[sector];
        state.ops[slot].held[sector] |= state.registers[sector].falls & 1 << value;
    }
}

/// A flush of the backing device has failed.
pub fn flush_failed(state: &mut State) {
    for sector in 0..SECTORS {
        let register = &mut state.registers[sector];
        register.falls |= (register.floor | register.exposed) & !(1 << register.value);
    }
    state.ignorant |= state.wrote;
    for op in &mut state.ops {
        op.in_doubt |= op.is_write();
        if op.at == At::Flushing {
            state.ignorant |= 1 << op.client;
        }
    }
}

/// A client asks for something.
pub fn asks(state: &mut State, kind: OpKind, client: u8) {
    if kind.writes() {
        state.wrote |= 1 << client;
    }
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
            return Some((
                Promise::Lin,
                format!("the read returns {value} for s{sector}, not {held}"),
            ));
        }
        let register = &mut state.registers[sector];
        if let Some(writer) = value.checked_sub(FIRST)
            && pending(&state.ops, sector) & 1 << writer != 0
        {
            // It was seen, so it has taken effect.
            keep(register, |set| set & 1 << writer != 0);
        }
        if register.explained == 0 {
            return Some((
                Promise::Lin,
                format!("the read returns {} for s{sector} too early", name(value)),
            ));
        }
    }
    None
}

fn keep(register: &mut Register, good: impl Fn(u8) -> bool) {
    register.explained = only(register.explained, good);
}

/// Keeps the sets that are `good`.
fn only(explained: u8, good: impl Fn(u8) -> bool) -> u8 {
    explained & (0..8_u8).filter(|set| good(*set)).map(|set| 1 << set).sum::<u8>()
}

/// A write has its reply for these sectors. `ok`: it has taken effect; otherwise it has, or never
/// will.
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
                    Promise::Lin,
                    format!("operation {id} is answered, but s{sector} still reads {value}"),
                ));
            }
        }
        // Frees the bit of the operation.
        let old = std::mem::take(&mut register.explained);
        for set in (0..8_u8).filter(|set| old & 1 << set != 0) {
            register.explained |= 1 << (set & !bit);
        }
        if ok || certain {
            let before = op.before[sector];
            let (id, value) = (slot + 1, register.value);
            let lost = register.fell && before & 1 << value != 0;
            register.exposed = register.exposed & !before | if lost { 0 } else { 1 << value };
            if ok && op.kind.is_fua() {
                if lost {
                    let what = format!(
                        "operation {id} is answered as durable, but s{sector} reads {}",
                        name(value)
                    );
                    return Some((Promise::Lin, what));
                }
                register.floor = register.floor & !before | 1 << value;
                register.falls &= !before;
            }
        }
    }
    None
}

/// A FLUSH was answered.
pub fn end_flush(state: &mut State, slot: usize, ok: bool) -> Option<Finding> {
    let op = state.ops[slot];
    let ignorant = state.ignorant & 1 << op.client != 0;
    if !ok {
        state.ignorant &= !(1 << op.client);
        return None;
    }
    for sector in 0..SECTORS {
        let register = &mut state.registers[sector];
        let (held, value) = (op.held[sector], register.value);
        if ignorant && held & 1 << value == 0 {
            let value = name(value);
            let what = format!(
                "FLUSH is answered with success, but s{sector} fell to {value}, unknown to its \
                 client"
            );
            return Some((Promise::Lin, what));
        }
        if ignorant {
            register.falls &= held;
        }
        register.floor = register.floor & held | 1 << value;
    }
    None
}

/// The instance is gone; `state` is the one after recovery, but for its registers and operations.
pub fn crash(state: &mut State, power: bool) -> Option<Finding> {
    (state.wrote, state.ignorant) = (0, 0);
    for sector in 0..SECTORS {
        let pending = pending(&state.ops, sector);
        let register = state.registers[sector];
        let writes: u8 = (0..OPS as u8)
            .filter(|slot| pending & 1 << slot != 0)
            .map(|slot| 1 << (FIRST + slot))
            .sum();
        let allowed = register.floor | register.exposed | register.falls | writes;
        let Some(value) = state.serve(sector) else { continue };
        if allowed & 1 << value == 0 {
            let (value, allowed) = (name(value), names(allowed));
            return Some((Promise::Dur, format!("s{sector} comes back as {value}, not {allowed}")));
        }
        state.registers[sector] = Register::new(value);
        if !power {
            // The devices still hold un-flushed data; a later power failure may take it.
            state.registers[sector].floor |= allowed;
        }
    }
    None
}
