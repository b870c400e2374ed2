//! One sector as a linearisable register that may lose its newest values in a crash.
//!
//! The register keeps every *configuration* that explains all replies so far: the present value,
//! which of the pending writes have not taken effect yet, and when each older value was last held.
//! A pending write takes effect as late as a reply allows. That loses nothing: taking effect later
//! only lets older values be held longer.
//!
//! A read that began at moment *s* may return the present value and every value last held at or
//! after *s*.
//!
//! A crash may bring back an older value as long as no *acknowledged* write over it is covered: by
//! a flush that began after the reply to that write, or by the write itself if it was FUA. (A write
//! that has landed but has no reply yet is seen by reads, but no flush has to cover it.) So the
//! register notes for each older value also when the first write over it had its reply.
//!
//! A failed flush of the backing device may have lost what was not durable: from then on a value
//! may *fall* to one that it replaced, once, although nobody writes. A FLUSH that is answered with
//! success, by a client that does not know of the loss, says that this did not happen.
//!
//! A write that failed took effect once before its reply, or never. A discard is a write of zeroes
//! that may be ignored, which is the same.

use smallvec::{SmallVec, smallvec};

use super::value::Value;

/// A moment. Events of the oracle are [`STEP`] apart; an event orders what it does within itself.
pub type Moment = u64;

/// State between two events.
pub const STEP: Moment = 4;

/// Moments for which past values are kept.
#[derive(Copy, Clone, Debug)]
pub struct Keep {
    /// The beginning of the last completed flush.
    pub flushed: Moment,
    /// When the oldest read under way began; the end of time if there is none.
    pub oldest_read: Moment,
}

/// More configurations than this are merged where they agree on the present. The merged one
/// explains everything that any of them did, and a little more: two reads may see pasts that do not
/// go together.
const MERGE_AT: usize = 24;

/// Configurations at most; with more, the sector accepts any value.
const CONFIGS_MAX: usize = 2048;

/// A value that a configuration has had.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Past {
    value: Value,
    /// When it was replaced.
    replaced: Moment,
    /// When a write over it had its reply: a flush that began later keeps the value from coming
    /// back. The end of time as long as there is none, 0 if the write was FUA.
    buried: Moment,
}

/// A value that a sector may have fallen to.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Fall {
    value: Value,
    /// Moment, as in [`Past`].
    replaced: Moment,
    /// Moment, as in [`Past`].
    buried: Moment,
    /// When the flush failed.
    failed: Moment,
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
    fn excludes(&self, fall: &Fall) -> bool {
        let unknown = fall.failed > self.told && fall.failed > self.wrote;
        let under_way = fall.failed >= self.began && fall.failed > self.crossed;
        fall.buried < self.began && (under_way || unknown)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Config {
    value: Value,
    /// Values that it may fall to.
    falls: Vec<Fall>,
    /// The fall that led to the present value.
    fell: Option<Box<Fall>>,
    /// Pending writes that have not taken effect, by slot.
    todo: u32,
    past: SmallVec<[Past; 1]>,
    /// Writes that have taken effect but not had their reply: slot and moment.
    effects: SmallVec<[(u8, Moment); 1]>,
}

impl Config {
    fn new(value: Value) -> Config {
        Config {
            value,
            falls: Vec::new(),
            fell: None,
            todo: 0,
            past: SmallVec::new(),
            effects: SmallVec::new(),
        }
    }

    fn held(&self, value: Value, since: Moment) -> bool {
        self.value == value
            || self.past.iter().any(|past| past.value == value && past.replaced >= since)
    }

    fn set(&mut self, write: Pending, moment: Moment) {
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
    fn insert_before(&mut self, earlier: Pending, write: Pending, now: Moment) {
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
    fn may_fall(&mut self, failed: Moment, floor: Moment) {
        for past in self.past.iter().filter(|past| past.buried >= floor.max(1)) {
            let Past { value, replaced, buried } = *past;
            if value != self.value {
                self.falls.push(Fall { value, replaced, buried, failed });
            }
        }
    }

    /// The sector has fallen to this value, if it can.
    fn fallen(&self, value: Value, now: Moment) -> Option<Config> {
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
    fn replied(&mut self, slot: u8, now: Moment) {
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
    fn merge(&mut self, other: &Config) {
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
    fn covers(&self, other: &Config) -> bool {
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
struct Pending {
    slot: u8,
    op: u64,
    value: Value,
    fua: bool,
    /// A flush failed while it was under way: when, and the floor at that moment.
    shaken: Option<(Moment, Moment)>,
}

/// End of a write.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It has taken effect.
    Done,
    /// The write has taken effect, or never will.
    Unknown,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Register {
    configs: SmallVec<[Config; 1]>,
    pending: SmallVec<[Pending; 1]>,
    /// Too many configurations: anything goes until the next read in a quiet moment.
    lost_track: bool,
    /// When a write had its last reply.
    last_write: Moment,
}

impl Register {
    /// A register with a known value.
    pub fn new(value: Value) -> Register {
        Register {
            configs: smallvec![Config::new(value)],
            pending: SmallVec::new(),
            lost_track: false,
            last_write: 0,
        }
    }

    /// A register of which nothing is known until it is read.
    pub fn unknown() -> Register {
        Register { lost_track: true, ..Register::new(Value::ZERO) }
    }

    /// A write begins.
    pub fn begin_write(&mut self, op: u64, value: Value, fua: bool) {
        let used = self.pending.iter().fold(0, |used, pending| used | 1 << pending.slot);
        let slot = (0..32)
            .find(|slot| used & (1u32 << slot) == 0)
            .expect("at most 32 clients write one sector");
        self.pending.push(Pending { slot, op, value, fua, shaken: None });
        for config in &mut self.configs {
            config.todo |= 1 << slot;
        }
    }

    /// A write ends.
    pub fn end_write(&mut self, op: u64, ending: Ending, now: Moment, keep: Keep) {
        let Some(at) = self.pending.iter().position(|pending| pending.op == op) else { return };
        let ended = self.pending[at];
        let bit = 1 << ended.slot;
        match self.configs.as_mut_slice() {
            // Nearly every write comes to this.
            [only] if only.todo == bit && ending == Ending::Done => {
                only.set(ended, now);
                only.todo = 0;
            }
            // Any value is accepted.
            _ if self.lost_track => {}
            _ => self.branch(ended, ending, now),
        }
        self.pending.remove(at);
        self.last_write = now;
        let buried = if ended.fua && ending == Ending::Done { 0 } else { now };
        for config in &mut self.configs {
            config.replied(ended.slot, buried);
        }
        self.tidy(keep);
    }

    /// Every way in which a write may have come to its end.
    fn branch(&mut self, ended: Pending, ending: Ending, now: Moment) {
        let bit = 1 << ended.slot;
        let (to_do, mut configs): (Vec<Config>, Vec<Config>) =
            std::mem::take(&mut self.configs).into_iter().partition(|c| c.todo & bit != 0);
        if ending == Ending::Unknown {
            configs.extend(to_do.iter().map(|c| Config { todo: c.todo & !bit, ..c.clone() }));
        }
        configs.extend(self.take_effect(to_do, ended, now));
        self.configs = configs.into();
    }

    /// A read that began at `since` has returned `value`. Says whether that can be.
    pub fn end_read(&mut self, value: Value, since: Moment, now: Moment, keep: Keep) -> bool {
        if self.lost_track {
            if self.pending.is_empty() && since > self.last_write {
                *self = Register::new(value);
            }
            return true;
        }
        if self.configs.iter().all(|config| config.held(value, since)) {
            return true;
        }
        let (mut configs, others): (Vec<Config>, Vec<Config>) =
            self.configs.iter().cloned().partition(|config| config.held(value, since));
        configs.extend(others.iter().filter_map(|config| config.fallen(value, now)));
        for write in self.pending.clone().into_iter().filter(|write| write.value == value) {
            let bit = 1 << write.slot;
            let to_do = others.iter().filter(|config| config.todo & bit != 0).cloned().collect();
            configs.extend(self.take_effect(to_do, write, now));
        }
        if configs.is_empty() {
            return false;
        }
        self.configs = configs.into();
        self.tidy(keep);
        true
    }

    /// A flush has failed: what was not durable may be gone, now or later. `floor`: as for a crash.
    pub fn flush_failed(&mut self, floor: Moment, now: Moment) {
        for config in &mut self.configs {
            config.may_fall(now, floor);
        }
        for pending in &mut self.pending {
            pending.shaken = Some((now, floor));
        }
    }

    /// A FLUSH was answered with success. Says whether that can be.
    pub fn flushed(&mut self, flush: Flushed) -> bool {
        let possible =
            |config: &Config| config.fell.as_ref().is_none_or(|fall| !flush.excludes(fall));
        if self.lost_track || !self.configs.iter().any(possible) {
            return self.lost_track;
        }
        self.configs.retain(|config| possible(config));
        for config in &mut self.configs {
            config.falls.retain(|fall| !flush.excludes(fall));
        }
        true
    }

    /// The instance that served this register is gone. `flushed` is the floor that flushes have
    /// set; `power`: what un-flushed values there were are settled now.
    pub fn crash(&mut self, flushed: Moment, power: bool, now: Moment) {
        let allowed = self.after_crash(flushed);
        self.pending.clear();
        if allowed.len() == 1 && self.configs.len() == 1 {
            self.configs[0] = Config::new(allowed[0]);
            return;
        }
        // Without a power failure the devices still hold un-flushed data; a later power failure may
        // take it.
        let past: SmallVec<[_; 1]> = if power {
            SmallVec::new()
        } else {
            allowed.iter().map(|&value| Past { value, replaced: now, buried: now }).collect()
        };
        self.configs = allowed
            .into_iter()
            .map(|value| {
                let past = past.iter().copied().filter(|past| past.value != value).collect();
                Config { past, ..Config::new(value) }
            })
            .collect();
    }

    /// Returns true if a crash now may leave this value.
    pub fn may_survive(&self, value: Value, flushed: Moment) -> bool {
        self.lost_track
            || self.configs.iter().any(|config| config.value == value)
            || self.after_crash(flushed).contains(&value)
    }

    /// Every value that a crash now may leave.
    pub fn after_crash(&self, flushed: Moment) -> Vec<Value> {
        let mut values = self.values(|past| past.buried >= flushed.max(1));
        for pending in &self.pending {
            if self.configs.iter().any(|config| config.todo & (1 << pending.slot) != 0) {
                values.push(pending.value);
            }
        }
        values.sort_unstable();
        values.dedup();
        values
    }

    /// Every value that a read that began at `since` may return now.
    pub fn allowed(&self, since: Moment) -> Vec<Value> {
        let mut values = self.values(|past| past.replaced >= since);
        values.extend(self.pending.iter().map(|pending| pending.value));
        values.sort_unstable();
        values.dedup();
        values
    }

    /// Returns true if the register has no write under way.
    pub fn is_quiet(&self) -> bool {
        self.pending.is_empty()
    }

    fn values(&self, with: impl Fn(&Past) -> bool) -> Vec<Value> {
        let mut values = Vec::new();
        for config in &self.configs {
            values.push(config.value);
            values.extend(config.falls.iter().map(|fall| fall.value));
            values.extend(config.past.iter().filter(|past| with(past)).map(|past| past.value));
        }
        values.sort_unstable();
        values.dedup();
        values
    }

    /// Every way in which `write` takes effect now, after any set of the other pending writes, in
    /// configurations that have it to do. Many ways come to the same present: they are merged write
    /// by write, as their number before that grows with the power of the writes under way.
    fn take_effect(&mut self, to_do: Vec<Config>, write: Pending, now: Moment) -> Vec<Config> {
        let mut configs = to_do;
        for config in &mut configs {
            config.set(write, now);
            config.todo &= !(1 << write.slot);
        }
        merge_alike(&mut configs);
        for earlier in self.pending.iter().filter(|other| other.slot != write.slot) {
            for at in 0..configs.len() {
                if configs[at].todo & (1 << earlier.slot) != 0 {
                    let mut config = configs[at].clone();
                    config.insert_before(*earlier, write, now);
                    configs.push(config);
                }
            }
            merge_alike(&mut configs);
            if configs.len() > CONFIGS_MAX {
                self.lost_track = true;
                break;
            }
        }
        configs
    }

    /// Drops values that no read can return any more, and configurations that others cover.
    fn tidy(&mut self, keep: Keep) {
        for config in &mut self.configs {
            let value = config.value;
            config.past.retain(|past| {
                past.value != value
                    && (past.buried >= keep.flushed.max(1) || past.replaced >= keep.oldest_read)
            });
        }
        if self.configs.len() > MERGE_AT {
            let mut configs = std::mem::take(&mut self.configs).into_vec();
            merge_alike(&mut configs);
            self.configs = configs.into();
        }
        if self.configs.len() > CONFIGS_MAX {
            self.configs.truncate(CONFIGS_MAX);
            self.lost_track = true;
        }
        if self.configs.len() > MERGE_AT {
            return;
        }
        let mut at = 0;
        while at < self.configs.len() && self.configs.len() > 1 {
            let covered = (0..self.configs.len())
                .any(|other| other != at && self.configs[other].covers(&self.configs[at]));
            if covered {
                self.configs.swap_remove(at);
            } else {
                at += 1;
            }
        }
    }
}

/// Merges configurations with the same present, if there are many.
fn merge_alike(configs: &mut Vec<Config>) {
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

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Keep = Keep { flushed: 0, oldest_read: 0 };

    const A: Value = Value(1);
    const B: Value = Value(2);
    const OLD: Value = Value::INITIAL;

    #[test]
    fn a_read_during_a_write_returns_old_or_new_but_never_old_after_new() {
        let mut register = Register::new(OLD);
        register.begin_write(1, A, false);
        assert!(register.end_read(OLD, 4, 8, KEEP));
        assert!(register.end_read(A, 12, 16, KEEP));
        assert!(register.clone().end_read(A, 20, 24, KEEP));
        assert!(!register.end_read(OLD, 20, 24, KEEP), "new, then old");
    }

    #[test]
    fn overlapping_reads_may_return_in_any_order() {
        let mut register = Register::new(OLD);
        register.begin_write(1, A, false);
        assert!(register.end_read(A, 4, 16, KEEP));
        assert!(register.end_read(OLD, 8, 20, KEEP), "it began before the other ended");
    }

    #[test]
    fn concurrent_writes_end_in_any_order_but_agree() {
        let mut register = Register::new(OLD);
        register.begin_write(1, A, false);
        register.begin_write(2, B, false);
        register.end_write(1, Ending::Done, 12, KEEP);
        register.end_write(2, Ending::Done, 16, KEEP);
        assert_eq!(register.allowed(20), [A, B]);
        assert!(register.end_read(A, 20, 24, KEEP));
        assert_eq!(register.allowed(28), [A]);
        assert!(!register.end_read(OLD, 28, 32, KEEP));
    }

    #[test]
    fn a_failed_write_is_decided_with_its_reply() {
        let mut register = Register::new(OLD);
        register.begin_write(1, A, false);
        register.end_write(1, Ending::Unknown, 8, KEEP);
        let mut other = register.clone();
        assert!(register.end_read(OLD, 12, 16, KEEP));
        assert!(!register.end_read(A, 20, 24, KEEP), "nothing decides later");
        assert!(other.end_read(A, 12, 16, KEEP));
        assert!(!other.end_read(OLD, 20, 24, KEEP));
    }

    #[test]
    fn a_crash_goes_back_to_the_last_flush_and_no_further() {
        let mut register = Register::new(OLD);
        register.begin_write(1, A, false);
        register.end_write(1, Ending::Done, 8, KEEP);
        // A flush began at 3 and completed; then a second write.
        register.begin_write(2, B, false);
        register.end_write(2, Ending::Done, 20, KEEP);
        assert_eq!(register.after_crash(0), [A, B, OLD]);
        assert_eq!(register.after_crash(12), [A, B]);
        let mut fua = register.clone();
        fua.begin_write(3, OLD, true);
        fua.end_write(3, Ending::Done, 28, KEEP);
        assert_eq!(fua.after_crash(12), [OLD]);
        register.crash(12, true, 36);
        assert!(register.end_read(A, 40, 44, KEEP));
        assert!(!register.end_read(B, 48, 52, KEEP), "the choice is made once");
    }

    /// A volatile write that came after a FUA write, but before its reply, may survive a crash.
    #[test]
    fn a_fua_write_shields_what_comes_after_it() {
        let mut register = Register::new(OLD);
        register.begin_write(1, A, true);
        for (op, moment) in [(2, 4), (3, 8)] {
            register.begin_write(op, Value(op), false);
            register.end_write(op, Ending::Done, moment, KEEP);
        }
        register.end_write(1, Ending::Done, 12, KEEP);
        assert_eq!(register.after_crash(0), [A, B, Value(3)], "not the old value");
    }

    /// A write that a read has seen, but that had no reply, is not covered by a flush.
    #[test]
    fn a_flush_covers_only_what_was_acknowledged() {
        let mut register = Register::new(OLD);
        register.begin_write(1, A, false);
        assert!(register.end_read(A, 4, 8, KEEP));
        assert_eq!(register.after_crash(12), [A, OLD]);
        register.end_write(1, Ending::Done, 16, KEEP);
        assert_eq!(register.after_crash(12), [A, OLD]);
        assert_eq!(register.after_crash(20), [A]);
    }

    /// A: written, answered at 8. A flush fails at 12.
    fn shaken() -> Register {
        let mut register = Register::new(OLD);
        register.begin_write(1, A, false);
        register.end_write(1, Ending::Done, 8, KEEP);
        register.flush_failed(0, 12);
        register
    }

    #[test]
    fn a_failed_flush_lets_a_value_fall_once() {
        let mut register = shaken();
        assert!(register.end_read(A, 16, 20, KEEP), "as long as the loss does not show");
        assert!(register.end_read(OLD, 24, 28, KEEP));
        assert!(!register.end_read(A, 32, 36, KEEP), "what is lost does not come back");
    }

    #[test]
    fn successful_flush_of_an_uninformed_client_denies_the_loss() {
        let ignorant = Flushed { began: 16, crossed: 0, told: 0, wrote: 4 };
        let mut register = shaken();
        assert!(register.flushed(ignorant));
        assert!(!register.end_read(OLD, 24, 28, KEEP));
        let mut register = shaken();
        assert!(register.end_read(OLD, 24, 28, KEEP));
        assert!(!register.flushed(ignorant), "it was seen to be lost");
        for other in [Flushed { told: 14, ..ignorant }, Flushed { wrote: Moment::MAX, ..ignorant }]
        {
            let mut register = shaken();
            assert!(register.flushed(other));
            assert!(register.end_read(OLD, 24, 28, KEEP));
        }
    }

    #[test]
    fn flush_under_way_at_the_loss_denies_it_unless_an_error_came_first() {
        let under_way = Flushed { began: 10, crossed: 0, told: 14, wrote: 4 };
        let mut register = shaken();
        assert!(register.flushed(under_way));
        assert!(!register.end_read(OLD, 24, 28, KEEP), "the error came over another connection");
        let mut register = shaken();
        assert!(register.flushed(Flushed { crossed: 14, ..under_way }));
        assert!(register.end_read(OLD, 24, 28, KEEP));
    }

    #[test]
    fn write_over_a_loss_stays() {
        let mut register = shaken();
        register.begin_write(2, B, false);
        register.end_write(2, Ending::Done, 20, KEEP);
        assert!(!register.clone().end_read(OLD, 24, 28, KEEP));
        assert_eq!(register.after_crash(0), [A, B, OLD], "a power failure may still take it");
        assert_eq!(register.after_crash(24), [B]);
    }

    /// The floor that a successful FLUSH sets says nothing of a loss that its client knows of.
    #[test]
    fn lost_and_overwritten_value_may_return_in_a_crash() {
        let mut register = shaken();
        assert!(register.flushed(Flushed { began: 16, crossed: 0, told: 14, wrote: 4 }));
        register.begin_write(2, B, false);
        register.end_write(2, Ending::Done, 24, Keep { flushed: 16, ..KEEP });
        assert_eq!(register.after_crash(16), [A, B, OLD]);
    }

    /// Each of twelve writes under way may be the last to take effect. Ways in which they may have
    /// taken effect were left out once there were too many; now they are merged before that.
    #[test]
    fn each_of_many_overlapping_writes_may_be_the_last() {
        let last = |seen: u64| {
            let mut register = Register::new(OLD);
            for op in 1..=12 {
                register.begin_write(op, Value(op), false);
            }
            // Memory that changes makes a write two, and one of them has an unknown end.
            for op in 1..=12 {
                let ending = if op % 2 == 0 { Ending::Unknown } else { Ending::Done };
                register.end_write(op, ending, op * STEP, KEEP);
            }
            assert!(register.is_quiet() && !register.lost_track);
            assert!(register.end_read(Value(seen), 52, 56, KEEP), "op {seen}");
            assert_eq!(register.allowed(60), [Value(seen)]);
        };
        (1..=12).for_each(last);
    }

    /// With more than it can follow the register accepts what it must not refuse.
    #[test]
    fn register_with_too_many_overlapping_writes_accepts_any_value_until_it_is_quiet() {
        let mut register = Register::new(OLD);
        for op in 1..=24 {
            register.begin_write(op, Value(op), false);
        }
        for op in 1..=24 {
            register.end_write(op, Ending::Done, op * STEP, KEEP);
        }
        assert!(register.end_read(Value(1), 100, 104, KEEP));
        assert!(!register.end_read(Value(2), 108, 112, KEEP), "the read in a quiet moment decides");
    }
}
