//! An explanation of all replies of a sector: its value, what it may fall to or return to, and
//! which writes are still to take effect.

use smallvec::SmallVec;

use super::Moment;
use crate::oracle::value::Value;

/// More configurations than this are merged where they agree on the present. The merged one
/// explains everything that any of them did, and a little more: two reads may see pasts that do not
/// go together.
pub(super) const MERGE_AT: usize = 24;

/// A value that a configuration has had.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Past {
    pub(super) value: Value,
    /// When it was replaced.
    pub(super) replaced: Moment,
    /// When a write over it had its reply: a flush that began later keeps the value from coming
    /// back. The end of time as long as there is none, 0 if the write was FUA.
    pub(super) buried: Moment,
}

/// A value that a sector may have fallen to.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Fall {
    pub(super) value: Value,
    /// Moment, as in [`Past`].
    pub(super) replaced: Moment,
    /// Moment, as in [`Past`].
    pub(super) buried: Moment,
    /// When the flush failed.
    pub(super) failed: Moment,
}

/// A FLUSH that was answered with success.
#[derive(Copy, Clone, Debug)]
pub struct Flushed {
    /// When it began.
    pub began: Moment,
    /// Flushes that failed until this moment are known to the client although it had begun: an
    /// error came over its connection before its own reply. 0 where it needs no connection.
    pub crossed: Moment,
    /// Flushes that failed after this moment and before it began are not known to the client.
    pub told: Moment,
    /// Flushes that failed before this moment do not concern the client: it had not written
    /// anything that was not flushed.
    pub wrote: Moment,
}

impl Flushed {
    /// Returns true if its success says that a sector did not fall like this.
    pub(super) fn excludes(&self, fall: &Fall) -> bool {
        let unknown = fall.failed > self.told && fall.failed > self.wrote;
        let under_way = fall.failed >= self.began && fall.failed > self.crossed;
        fall.buried < self.began && (under_way || unknown)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Config {
    pub(super) value: Value,
    /// Values that it may fall to.
    pub(super) falls: Vec<Fall>,
    /// The fall that led to the present value.
    pub(super) fell: Option<Box<Fall>>,
    /// Pending writes that have not taken effect, by slot.
    pub(super) todo: u32,
    pub(super) past: SmallVec<[Past; 1]>,
    /// Writes that have taken effect but not had their reply: slot and moment.
    pub(super) effects: SmallVec<[(u8, Moment); 1]>,
}

impl Config {
    pub(super) fn new(value: Value) -> Config {
        Config {
            value,
            falls: Vec::new(),
            fell: None,
            todo: 0,
            past: SmallVec::new(),
            effects: SmallVec::new(),
        }
    }

    pub(super) fn held(&self, value: Value, since: Moment) -> bool {
        self.value == value
            || self.past.iter().any(|past| past.value == value && past.replaced >= since)
    }

    pub(super) fn set(&mut self, write: Pending, moment: Moment) {
        let value = std::mem::replace(&mut self.value, write.value);
        self.past.retain(|past| past.value != value);
        self.past.push(Past { value, replaced: moment, buried: Moment::MAX });
        self.effects.push((write.slot, moment));
        self.fell = None;
        // It may have fallen before this write.
        for fall in std::mem::take(&mut self.falls) {
            self.past.retain(|past| past.value != fall.value);
            self.past.push(Past { value: fall.value, replaced: moment, buried: Moment::MAX });
        }
        if let Some((failed, floor)) = write.shaken {
            self.may_fall(failed, floor);
        }
    }

    /// A pending write took effect right before `write`, which did at `now`. Such writes come in no
    /// order among themselves: what they replace is not buried by any of them.
    pub(super) fn insert_before(&mut self, earlier: Pending, write: Pending, now: Moment) {
        let after = now + 1;
        if let Some((_, floor)) = earlier.shaken {
            // It may have fallen before `write`.
            for past in self.past.iter_mut().filter(|past| past.buried >= floor.max(1)) {
                (past.replaced, past.buried) = (after, Moment::MAX);
            }
        }
        self.past.retain(|past| past.value != earlier.value);
        self.past.push(Past { value: earlier.value, replaced: after, buried: Moment::MAX });
        self.todo &= !(1 << earlier.slot);
        for (slot, moment) in &mut self.effects {
            if *slot == write.slot {
                *moment = after;
            }
        }
        self.effects.push((earlier.slot, now));
        if let Some((failed, floor)) = write.shaken {
            self.falls.clear();
            self.may_fall(failed, floor);
        }
    }

    /// A flush has failed.
    pub(super) fn may_fall(&mut self, failed: Moment, floor: Moment) {
        for past in self.past.iter().filter(|past| past.buried >= floor.max(1)) {
            let Past { value, replaced, buried } = *past;
            if value != self.value {
                self.falls.push(Fall { value, replaced, buried, failed });
            }
        }
    }

    /// The sector has fallen to this value, if it can.
    pub(super) fn fallen(&self, value: Value, now: Moment) -> Option<Config> {
        let fall = *self.falls.iter().find(|fall| fall.value == value)?;
        let mut config = self.clone();
        config.value = value;
        config.falls.retain(|other| other.failed != fall.failed && other.value != value);
        config.fell = Some(Box::new(fall));
        config.past.retain(|past| past.value != self.value);
        config.past.push(Past { value: self.value, replaced: now, buried: 0 });
        Some(config)
    }

    /// The reply to a write: if it has taken effect, what it replaced is buried.
    pub(super) fn replied(&mut self, slot: u8, now: Moment) {
        let Some(at) = self.effects.iter().position(|(other, _)| *other == slot) else { return };
        let (_, effect) = self.effects.swap_remove(at);
        for past in self.past.iter_mut().filter(|past| past.replaced <= effect) {
            past.buried = past.buried.min(now);
        }
        for fall in self.falls.iter_mut().filter(|fall| fall.replaced <= effect) {
            fall.buried = fall.buried.min(now);
        }
        self.falls.retain(|fall| fall.buried > 0);
    }

    /// Merges the explanations of `other`, which has the same present.
    pub(super) fn merge(&mut self, other: &Config) {
        for theirs in &other.past {
            match self.past.iter_mut().find(|ours| ours.value == theirs.value) {
                Some(ours) => {
                    ours.replaced = ours.replaced.max(theirs.replaced);
                    ours.buried = ours.buried.max(theirs.buried);
                }
                None => self.past.push(*theirs),
            }
        }
        for theirs in other
            .falls
            .iter()
            .filter(|fall| !self.falls.contains(fall))
            .copied()
            .collect::<Vec<_>>()
        {
            self.falls.push(theirs);
        }
        if self.fell != other.fell {
            self.fell = None;
        }
        for (slot, moment) in &mut self.effects {
            if let Some((_, theirs)) = other.effects.iter().find(|(other, _)| other == slot) {
                *moment = (*moment).min(*theirs);
            }
        }
    }

    /// Returns true if it explains everything that `other` does.
    pub(super) fn covers(&self, other: &Config) -> bool {
        let has = |theirs: &Past| {
            theirs.value == self.value
                || self.past.iter().any(|ours| {
                    ours.value == theirs.value
                        && ours.replaced >= theirs.replaced
                        && ours.buried >= theirs.buried
                })
        };
        let not_later = |(slot, moment): &(u8, Moment)| {
            other.effects.iter().any(|(s, m)| s == slot && m >= moment)
        };
        self.value == other.value
            && self.todo == other.todo
            && (self.fell.is_none() || self.fell == other.fell)
            && other.falls.iter().all(|fall| self.falls.contains(fall))
            && self.effects.iter().all(not_later)
            && other.past.iter().all(has)
    }
}

#[derive(Copy, Clone, Debug)]
pub(super) struct Pending {
    pub(super) slot: u8,
    pub(super) op: u64,
    pub(super) value: Value,
    pub(super) fua: bool,
    /// A flush failed while it was under way: when, and the floor at that moment.
    pub(super) shaken: Option<(Moment, Moment)>,
}

/// Merges configurations with the same present, if there are many.
pub(super) fn merge_alike(configs: &mut Vec<Config>) {
    if configs.len() <= MERGE_AT {
        return;
    }
    configs.sort_by_key(|config| (config.value, config.todo));
    configs.dedup_by(|next, kept| {
        let same = next.value == kept.value && next.todo == kept.todo;
        if same {
            kept.merge(next);
        }
        same
    });
}
