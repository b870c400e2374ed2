//! One sector as a linearisable register that may lose its newest values in a crash.
//!
//! The register keeps every *configuration* that explains all replies so far: the present value, which of the
//! pending writes have not taken effect yet, and when each older value was last held. A pending write takes effect
//! as late as a reply allows. That loses nothing: taking effect later only lets older values be held longer.
//!
//! A read that began at moment *s* may return the present value and every value last held at or after *s*. A flush
//! is the same seen from the other side: after a crash a sector may hold every value that was held at or after the
//! beginning of the last completed flush. So reads, flushes and crashes all ask one question, [`Config::held`].
//!
//! A write that failed took effect once before its reply, or never. A discard is a write of zeroes that may be
//! ignored, which is the same.

use smallvec::{SmallVec, smallvec};

use super::value::Value;

/// A moment: every event of the oracle gets a later one.
pub type Moment = u64;

/// More configurations than this are not followed; the sector then accepts what it is shown.
const CONFIGS_MAX: usize = 2048;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Config {
    value: Value,
    /// Pending writes that have not taken effect, by slot.
    todo: u32,
    /// Older values and when they were last held.
    past: SmallVec<[(Value, Moment); 1]>,
}

impl Config {
    fn held(&self, value: Value, since: Moment) -> bool {
        self.value == value || self.past.iter().any(|&(old, last)| old == value && last >= since)
    }

    fn set(&mut self, value: Value, now: Moment) {
        let old = std::mem::replace(&mut self.value, value);
        self.past.retain(|(past, _)| *past != old);
        self.past.push((old, now));
    }

    /// Whether it explains everything that `other` does.
    fn covers(&self, other: &Config) -> bool {
        self.value == other.value
            && self.todo == other.todo
            && other
                .past
                .iter()
                .all(|&(value, last)| value == self.value || self.past.iter().any(|&(v, l)| v == value && l >= last))
    }
}

#[derive(Copy, Clone, Debug)]
struct Pending {
    slot: u8,
    op: u64,
    value: Value,
}

/// How a write ended.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It has taken effect.
    Done,
    /// It has taken effect, or it never will.
    Unknown,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Register {
    configs: SmallVec<[Config; 1]>,
    pending: SmallVec<[Pending; 1]>,
    /// Values last held before this moment do not come back after a crash.
    floor: Moment,
    /// Too many configurations: anything goes until the next read in a quiet moment.
    lost_track: bool,
}

impl Register {
    /// A register with a known value.
    pub fn new(value: Value) -> Register {
        let config = Config { value, todo: 0, past: SmallVec::new() };
        Register { configs: smallvec![config], pending: SmallVec::new(), floor: 0, lost_track: false }
    }

    /// A write begins.
    pub fn begin_write(&mut self, op: u64, value: Value) {
        let used = self.pending.iter().fold(0, |used, pending| used | 1 << pending.slot);
        let slot = (0..32).find(|slot| used & (1u32 << slot) == 0).expect("at most 32 clients write one sector");
        self.pending.push(Pending { slot, op, value });
        for config in &mut self.configs {
            config.todo |= 1 << slot;
        }
    }

    /// A write ends. For a write that is durable with its reply, `durable` is the moment after `now`.
    pub fn end_write(&mut self, op: u64, ending: Ending, durable: Option<Moment>, now: Moment, keep: Moment) {
        let Some(at) = self.pending.iter().position(|pending| pending.op == op) else { return };
        let ended = self.pending[at];
        let bit = 1 << ended.slot;
        let mut configs = SmallVec::new();
        for config in std::mem::take(&mut self.configs) {
            if config.todo & bit == 0 {
                configs.push(config);
                continue;
            }
            self.take_effect(&config, ended, now, &mut configs);
            if ending == Ending::Unknown {
                configs.push(Config { todo: config.todo & !bit, ..config });
            }
        }
        self.configs = configs;
        self.pending.remove(at);
        if let Some(durable) = durable {
            self.floor = self.floor.max(durable);
        }
        self.tidy(keep);
    }

    /// A read that began at `since` has returned `value`. Says whether that can be.
    pub fn end_read(&mut self, value: Value, since: Moment, now: Moment, keep: Moment) -> bool {
        if self.lost_track {
            if self.pending.is_empty() {
                *self = Register { floor: self.floor, ..Register::new(value) };
            }
            return true;
        }
        if let [only] = self.configs.as_slice()
            && only.held(value, since)
            && (only.past.is_empty() || only.value != value)
        {
            return true;
        }
        let mut configs = SmallVec::new();
        for config in &self.configs {
            if config.held(value, since) {
                configs.push(config.clone());
                continue;
            }
            for pending in &self.pending {
                if pending.value == value && config.todo & (1 << pending.slot) != 0 {
                    self.take_effect(config, *pending, now, &mut configs);
                }
            }
        }
        if configs.is_empty() {
            return false;
        }
        self.configs = configs;
        self.tidy(keep);
        true
    }

    /// The instance that served this register is gone. `flushed` is the floor that flushes have set;
    /// `power`: what un-flushed values there were are settled now.
    pub fn crash(&mut self, flushed: Moment, power: bool, now: Moment) {
        let allowed = self.after_crash(flushed);
        self.pending.clear();
        if allowed.len() == 1 && self.configs.len() == 1 {
            self.configs[0] = Config { value: allowed[0], todo: 0, past: SmallVec::new() };
            return;
        }
        // Without a power failure the devices still hold un-flushed data; a later power failure may take it.
        let past: SmallVec<[_; 1]> =
            if power { SmallVec::new() } else { allowed.iter().map(|&value| (value, now)).collect() };
        self.configs = allowed
            .into_iter()
            .map(|value| {
                let past = past.iter().copied().filter(|(old, _)| *old != value).collect();
                Config { value, todo: 0, past }
            })
            .collect();
    }

    /// Every value that a crash now may leave.
    pub fn after_crash(&self, flushed: Moment) -> Vec<Value> {
        let floor = self.floor.max(flushed);
        let mut values = self.values(floor);
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
        let mut values = self.values(since);
        values.extend(self.pending.iter().map(|pending| pending.value));
        values.sort_unstable();
        values.dedup();
        values
    }

    /// Whether the register has no write under way.
    pub fn is_quiet(&self) -> bool {
        self.pending.is_empty()
    }

    fn values(&self, since: Moment) -> Vec<Value> {
        let mut values = Vec::new();
        for config in &self.configs {
            values.push(config.value);
            values.extend(config.past.iter().filter(|(_, last)| *last >= since).map(|(value, _)| *value));
        }
        values.sort_unstable();
        values.dedup();
        values
    }

    /// Adds every way in which `write` takes effect now, after any set of the other pending writes.
    fn take_effect(&self, config: &Config, write: Pending, now: Moment, into: &mut SmallVec<[Config; 1]>) {
        let bit = 1 << write.slot;
        let others = config.todo & !bit;
        let mut before = others;
        // All subsets of `others`, from all of them down to none.
        loop {
            let mut next = config.clone();
            for pending in self.pending.iter().filter(|pending| before & (1 << pending.slot) != 0) {
                next.set(pending.value, now);
            }
            next.set(write.value, now);
            next.todo = others & !before;
            into.push(next);
            if before == 0 || into.len() > CONFIGS_MAX {
                return;
            }
            before = (before - 1) & others;
        }
    }

    /// Forgets what no question can ask for any more, and configurations that others cover.
    fn tidy(&mut self, keep: Moment) {
        if self.configs.len() > CONFIGS_MAX {
            self.configs.truncate(CONFIGS_MAX);
            self.lost_track = true;
        }
        for config in &mut self.configs {
            let value = config.value;
            config.past.retain(|(old, last)| *old != value && *last >= keep);
        }
        let mut at = 0;
        while at < self.configs.len() && self.configs.len() > 1 {
            let covered =
                (0..self.configs.len()).any(|other| other != at && self.configs[other].covers(&self.configs[at]));
            if covered {
                self.configs.swap_remove(at);
            } else {
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Value = Value(1);
    const B: Value = Value(2);
    const OLD: Value = Value::INITIAL;

    #[test]
    fn a_read_during_a_write_returns_old_or_new_but_never_old_after_new() {
        let mut register = Register::new(OLD);
        register.begin_write(1, A);
        assert!(register.end_read(OLD, 1, 2, 0));
        assert!(register.end_read(A, 3, 4, 0));
        assert!(register.clone().end_read(A, 5, 6, 0));
        assert!(!register.end_read(OLD, 5, 6, 0), "new, then old");
    }

    #[test]
    fn overlapping_reads_may_return_in_any_order() {
        let mut register = Register::new(OLD);
        register.begin_write(1, A);
        assert!(register.end_read(A, 1, 4, 0));
        assert!(register.end_read(OLD, 2, 5, 0), "it began before the other ended");
    }

    #[test]
    fn concurrent_writes_end_in_any_order_but_agree() {
        let mut register = Register::new(OLD);
        register.begin_write(1, A);
        register.begin_write(2, B);
        register.end_write(1, Ending::Done, None, 3, 0);
        register.end_write(2, Ending::Done, None, 4, 0);
        assert_eq!(register.allowed(5), [A, B]);
        assert!(register.end_read(A, 5, 6, 0));
        assert_eq!(register.allowed(7), [A]);
        assert!(!register.end_read(OLD, 7, 8, 0));
    }

    #[test]
    fn a_failed_write_is_decided_with_its_reply() {
        let mut register = Register::new(OLD);
        register.begin_write(1, A);
        register.end_write(1, Ending::Unknown, None, 2, 0);
        let mut other = register.clone();
        assert!(register.end_read(OLD, 3, 4, 0));
        assert!(!register.end_read(A, 5, 6, 0), "nothing decides later");
        assert!(other.end_read(A, 3, 4, 0));
        assert!(!other.end_read(OLD, 5, 6, 0));
    }

    #[test]
    fn a_crash_goes_back_to_the_last_flush_and_no_further() {
        let mut register = Register::new(OLD);
        register.begin_write(1, A);
        register.end_write(1, Ending::Done, None, 2, 0);
        // A flush began at 3 and completed; then a second write.
        register.begin_write(2, B);
        register.end_write(2, Ending::Done, None, 5, 0);
        assert_eq!(register.after_crash(0), [A, B, OLD]);
        assert_eq!(register.after_crash(3), [A, B]);
        let mut fua = register.clone();
        fua.begin_write(3, OLD);
        fua.end_write(3, Ending::Done, Some(8), 7, 0);
        assert_eq!(fua.after_crash(3), [OLD]);
        register.crash(3, true, 9);
        assert!(register.end_read(A, 10, 11, 0));
        assert!(!register.end_read(B, 12, 13, 0), "the choice is made once");
    }
}
