//! Invariants of a state by itself (docs/internals/coherence.md §10).

use crate::monitor::{Finding, name};
use crate::rules::Promise;
use crate::state::{At, Key, LOST, OpKind, SECTORS, State, WritebackAt};

fn mismatch(state: &State) -> Option<String> {
    (0..SECTORS).find_map(|sector| {
        let backing = state.disk[sector].live();
        let key = state.index[sector];
        let clean = [key.place().filter(|_| key.is_clean()), state.copy(sector)];
        let wrong = clean.into_iter().flatten().map(|place| state.places[usize::from(place)].live);
        let wrong = wrong.into_iter().find(|value| *value != backing && *value != LOST)?;
        Some(format!("s{sector} is clean with {} over {}", name(wrong), name(backing)))
    })
}

/// CEB, the weak form: when nothing is in flight.
pub fn clean_equals_backing(state: &State) -> Option<Finding> {
    let quiet =
        state.ops.iter().all(|op| op.at == At::Nowhere) && state.writeback.at == WritebackAt::Idle;
    if quiet { mismatch(state).map(|what| (Promise::Ceb, what)) } else { None }
}

/// I1, I3, I5, I6, I7. (I2 is checked by failing the power in every state, I4 and I8 in the steps
/// they are about.)
pub fn strict(state: &State) -> Option<Finding> {
    let found = |rule: &str, sector: usize| {
        Some((Promise::Strict, format!("{rule} is violated at s{sector}")))
    };
    if let Some(what) = mismatch(state) {
        return Some((Promise::Strict, format!("I1: {what}")));
    }
    for sector in 0..SECTORS {
        let bit = 1 << sector;
        let backing_write = state.ops.iter().any(|op| op.backing_write() && op.has(sector));
        let writeback = state.writeback.at != WritebackAt::Idle && state.writeback.mask & bit != 0;
        let clean = state.index[sector].is_clean();
        if backing_write && (clean || state.copy(sector).is_some()) {
            return found("I3", sector);
        }
        if backing_write && writeback {
            return found("I5", sector);
        }
        let known = state.unflushed() & bit != 0
            || state
                .ops
                .iter()
                .any(|op| op.kind != OpKind::Read && op.is_write() && op.has(sector))
            || writeback;
        if !state.disk[sector].versions.is_empty() && !known {
            return found("I6", sector);
        }
        if state.suspect & bit != 0 && (clean || state.copy(sector).is_some()) {
            return found("I7", sector);
        }
        if clean && state.unflushed() & bit != 0 && !writeback {
            return found("I7", sector);
        }
    }
    None
}

/// I4, when a backing write is submitted in its decide step: no crash brings an old key back.
pub fn nothing_returns(state: &State, mask: u8) -> Option<Finding> {
    let returns = |sector: &usize| mask & 1 << sector != 0 && state.may_return(*sector);
    let sector = (0..SECTORS).find(returns)?;
    Some((Promise::Strict, format!("I4: the old key of s{sector} may return")))
}

/// I4, when writeback is submitted, or a backing write that has waited: no crash brings a clean key
/// back. (A dirty key there is a newer one.)
pub fn nothing_clean_returns(state: &State, mask: u8) -> Option<Finding> {
    let mine = |sector: usize| mask & 1 << sector != 0;
    let durable = |sector: usize| state.durable[sector].is_clean();
    let recorded = |key: Key, sector: u8, at: usize| usize::from(sector) == at && key.is_clean();
    let returns = |sector: &usize| {
        mine(*sector)
            && (durable(*sector)
                || state.records.iter().any(|r| recorded(r.key, r.sector, *sector)))
    };
    let sector = (0..SECTORS).find(returns)?;
    Some((Promise::Strict, format!("I4: a clean key of s{sector} may return")))
}

/// I8: a key turns clean only over this durable content.
pub fn durable_is(state: &State, sector: usize, value: u8) -> Option<Finding> {
    if state.disk[sector].durable == value {
        return None;
    }
    Some((Promise::Strict, format!("I8: s{sector} turns clean with {}, not durable", name(value))))
}
