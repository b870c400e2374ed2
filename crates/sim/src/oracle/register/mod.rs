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

mod config;
#[cfg(test)]
mod tests;

use smallvec::{SmallVec, smallvec};

use self::config::{Config, MERGE_AT, Past, Pending, merge_alike};
use super::value::Value;
use crate::crash::Crash;
pub use config::Flushed;

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

/// Configurations at most; with more, the sector accepts any value.
const CONFIGS_MAX: usize = 2048;

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
        // Writes that processes have left to their successors add up. Nothing tells when one that
        // has no slot ends, so any value is accepted from now on.
        let Some(slot) = (0..32).find(|slot| used & (1u32 << slot) == 0) else {
            (self.lost_track, self.last_write) = (true, Moment::MAX);
            return;
        };
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
        self.last_write = self.last_write.max(now);
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
    /// set. After a power failure un-flushed values are settled; after the death of a process that
    /// loses nothing, no value is there but the present one or one of a write under way.
    pub fn crash(&mut self, flushed: Moment, crash: Crash, now: Moment) {
        let returning = self.after_crash(flushed);
        let allowed = match crash {
            Crash::Power | Crash::Host => returning.clone(),
            Crash::Process => self.after_death(),
        };
        self.pending.clear();
        if returning.len() == 1 && allowed.len() == 1 && self.configs.len() == 1 {
            self.configs[0] = Config::new(allowed[0]);
            return;
        }
        // Without a power failure the devices still hold un-flushed data; a later power failure may
        // take it.
        let past: SmallVec<[_; 1]> = if crash == Crash::Power {
            SmallVec::new()
        } else {
            returning.iter().map(|&value| Past { value, replaced: now, buried: now }).collect()
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
        self.with_pending(self.values(|past| past.buried >= flushed.max(1)))
    }

    /// Every value that the death of a process that loses nothing may leave.
    fn after_death(&self) -> Vec<Value> {
        self.with_pending(self.values(|_| false))
    }

    /// Adds the values of the writes that have not taken effect yet.
    fn with_pending(&self, mut values: Vec<Value>) -> Vec<Value> {
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
