//! The protocol that keeps a clean cached sector equal to its backing sector
//! (docs/internals/coherence.md).
//!
//! | module | holds |
//! |---|---|
//! | [`in_flight_table`] | who is in flight over which sectors (rules T1–T4) |
//! | [`unflushed`] | what the backing device may still lose (W5, C1, F1), and what it may have lost (F5) |
//! | [`flush_numbers`] | flushes of the backing device: which one covers what (F1), and how many failed |
//! | [`flush_errors`] | errors of failed flushes that clients have to get (F4) |
//! | [`unpublished`] | clean copies that are not in the index yet (C1, C2) |
//! | [`zeroes_below_dirty`] | what discards put below dirty data (R5) |
//!
//! Ghosts, what a crash may bring back, are kept with the index: `index/change.rs`.

use std::cell::RefCell;

use flush_errors::{Begun, FlushErrors};
pub use flush_errors::{OwedErrors, OwedStream};
use flush_numbers::Flushes;
use in_flight_table::InFlight;
use smallvec::SmallVec;
use ubcache_env::local::Permit;
use ubcache_env::{IntervalSet, StreamEnd, StreamId};
use ubcache_env::{Sector, SectorRange};
use ubcache_format::Pointer;
use unflushed::Unflushed;
use unpublished::Unpublished;
use zeroes_below_dirty::Zeroes;

use crate::alloc::bucket_pins::Pin;
use crate::rules::{Rule, Rules};
use crate::write_turns::Turns;

mod flush_errors;
mod flush_numbers;
pub(crate) mod in_flight_table;
mod unflushed;
pub(crate) mod unpublished;
pub(crate) mod zeroes_below_dirty;

/// Memory of a volume for the protocol.
pub(crate) struct Coherence {
    pub inflight: InFlight,
    pub turns: Turns,
    pub zeroes: Zeroes,
    unflushed: RefCell<Unflushed>,
    unpublished: RefCell<Unpublished>,
    flushes: Flushes,
    flush_errors: RefCell<FlushErrors>,
    rules: Rules,
}

/// A range, and the place of its copy.
pub(crate) type Copies = SmallVec<[(SectorRange, Pointer); 2]>;

/// Entries in memory.
pub(crate) struct Entries {
    pub in_flight: usize,
    pub copies: usize,
    pub unflushed: usize,
    pub streams: usize,
}

/// A copy that was kept.
pub(crate) struct Kept {
    /// All of it: nothing was suspect.
    pub whole: bool,
    /// It waits for a flush.
    pub waits: bool,
    /// Number of copies now.
    pub copies: usize,
}

/// End of a write to the backing device.
#[derive(Copy, Clone, Debug)]
pub(crate) struct WriteEnd {
    pub ok: bool,
    /// With success, the data is durable.
    pub durable: bool,
    /// With success, nothing is left of what was there.
    pub overwrites: bool,
}

/// Effect of a write to the backing device on what a failed flush may have cost (F5).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Suspicion {
    None,
    /// A flush failed beside it.
    Raised,
    /// It wrote anew what was suspect.
    Removed,
}

impl Coherence {
    /// Nothing is in flight, un-flushed or unpublished.
    pub fn new(volatile_cache: bool, rules: Rules) -> Coherence {
        Coherence {
            inflight: InFlight::new(rules),
            turns: Turns::default(),
            zeroes: Zeroes::default(),
            unflushed: RefCell::new(Unflushed::new(volatile_cache, rules)),
            unpublished: RefCell::default(),
            flushes: Flushes::default(),
            flush_errors: RefCell::default(),
            rules,
        }
    }

    /// Counts what is in memory.
    pub fn entries(&self) -> Entries {
        Entries {
            in_flight: self.inflight.len(),
            copies: self.unpublished.borrow().len(),
            unflushed: self.unflushed.borrow().intervals(),
            streams: self.flush_errors.borrow().streams(),
        }
    }
}

/// Ranges that the backing device may lose, or may have lost.
impl Coherence {
    /// A8: a volume of which this one takes the place has ended, and its device was flushed since.
    /// Takes over what failed flushes may have cost, and who is to be told. The device may be
    /// another one: what it can lose is not taken over.
    pub fn take_losses(&self, former: &Coherence) {
        self.flush_errors.swap(&former.flush_errors);
        self.unflushed.borrow_mut().take_suspects(&mut former.unflushed.borrow_mut());
    }

    /// The same device goes on, and its last flush failed: all of it waits for one still.
    pub fn take_unflushed(&self, former: &Coherence) {
        let left = former.unflushed();
        left.iter().for_each(|range| self.unflushed.borrow_mut().add(range));
    }

    /// Nothing waits for a flush.
    pub fn is_flushed(&self) -> bool {
        self.unflushed.borrow().is_empty()
    }

    /// All ranges that wait for a flush.
    pub fn unflushed(&self) -> IntervalSet {
        self.unflushed.borrow().all()
    }

    /// All ranges that a failed flush may have cost.
    pub fn suspects(&self) -> IntervalSet {
        self.unflushed.borrow().suspects().clone()
    }

    /// See [`Unflushed::overlaps`].
    pub fn may_lose(&self, range: SectorRange) -> bool {
        self.unflushed.borrow().overlaps(range)
    }

    /// See [`Unflushed::covers`].
    pub fn may_lose_all(&self, range: SectorRange) -> bool {
        self.unflushed.borrow().covers(range)
    }

    /// See [`Unflushed::is_suspect`].
    pub fn is_suspect(&self, range: SectorRange) -> bool {
        self.unflushed.borrow().is_suspect(range)
    }

    /// See [`Unflushed::flushed_parts`].
    pub fn flushed_parts(&self, range: SectorRange) -> SmallVec<[SectorRange; 2]> {
        self.unflushed.borrow().flushed_parts(range)
    }

    /// The backing device was flushed while no request was under way.
    pub fn was_flushed(&self) {
        self.unflushed.borrow_mut().forget();
    }

    /// `unflushed-at-submission`: a write begins.
    #[cfg(feature = "mutants")]
    pub fn note_unflushed(&self, range: SectorRange) {
        self.unflushed.borrow_mut().add(range);
    }

    /// W5, F5: a write to the backing device that was submitted when `failures` flushes had failed
    /// is complete. `tracked`: what it wrote waits for a flush.
    #[inline]
    pub fn backing_write_ended(
        &self,
        range: SectorRange,
        failures: u64,
        end: WriteEnd,
        tracked: bool,
    ) -> Suspicion {
        let noted = match end.ok {
            true => self.rules.keeps(Rule::W5UnflushedAtCompletion),
            false => self.rules.keeps(Rule::W5FailureIsUnflushed),
        };
        let mut unflushed = self.unflushed.borrow_mut();
        let durable = end.ok && end.durable;
        if !durable && noted && tracked {
            unflushed.add(range);
        }
        if failures != self.flushes.failures() && !durable {
            unflushed.suspect(range);
            Suspicion::Raised
        } else if end.ok && end.overwrites && unflushed.written_anew(range) {
            Suspicion::Removed
        } else {
            Suspicion::None
        }
    }
}

/// Flushes of the backing device.
impl Coherence {
    /// Number of the flush that started last.
    pub fn flushes_started(&self) -> u64 {
        self.flushes.started()
    }

    /// Flushes that failed, whoever asked for them: a write beside one may be lost (F5).
    pub fn failed_flushes(&self) -> u64 {
        self.flushes.failures()
    }

    /// A flush waits for its turn, or is under way.
    #[cfg(feature = "mutants")]
    pub fn is_flush_under_way(&self) -> bool {
        self.flushes.is_under_way()
    }

    /// Waits until no other flush is under way.
    pub async fn flush_turn(&self) -> Permit {
        self.flushes.turn().await
    }

    /// A flush that started after this one has succeeded.
    pub fn has_good_flush_after(&self, number: u64) -> bool {
        self.flushes.newest_good() > number
    }

    /// A flush is submitted; one at a time.
    pub fn flush_starts(&self) {
        self.flushes.starts();
        self.unflushed.borrow_mut().flush_starts();
    }

    /// The flush completed.
    pub fn flush_ends(&self, ok: bool) {
        self.unflushed.borrow_mut().flush_ends(ok);
        if ok {
            self.flushes.succeeds();
            self.unpublished.borrow_mut().any_may_be_ready();
        }
    }

    /// F4, F5: a flush failed, whoever asked for it. `untracked`: the range of a device of which
    /// no book was kept.
    pub fn flush_failed(&self, untracked: Option<Sector>) {
        self.flushes.fails();
        if let Some(end) = untracked {
            let everything = SectorRange::from_bounds(Sector(0), end);
            self.unflushed.borrow_mut().suspect(everything);
            self.flush_errors.borrow_mut().flush_failed();
            return;
        }
        let lost = self.unflushed.borrow().all();
        if !lost.is_empty() || !self.inflight.is_empty() {
            self.flush_errors.borrow_mut().flush_failed();
        }
        self.unflushed.borrow_mut().flush_failed();
        for range in lost.iter() {
            self.unpublished.borrow_mut().remove(range);
        }
    }
}

/// Errors that streams have to get (F4).
impl Coherence {
    /// A stream begins a write.
    #[inline]
    pub fn stream_writes(&self, stream: StreamId) {
        self.flush_errors.borrow_mut().writes(stream);
    }

    /// See [`FlushErrors::flush_begins`].
    pub fn stream_flush_begins(&self, stream: StreamId) -> Begun {
        self.flush_errors.borrow_mut().flush_begins(stream)
    }

    /// See [`FlushErrors::flush_ends`].
    pub fn stream_flush_ends(&self, flush: Begun, stream: StreamId, ok: bool) -> bool {
        self.flush_errors.borrow_mut().flush_ends(flush, stream, ok)
    }

    /// See [`FlushErrors::leaves`]. `tracked`: what it wrote waits for a flush.
    pub fn stream_leaves(&self, stream: StreamId, end: StreamEnd, tracked: bool) -> bool {
        let flushed = tracked && self.is_flushed();
        self.flush_errors.borrow_mut().leaves(stream, end, flushed)
    }

    /// See [`FlushErrors::owed`].
    pub fn owed_errors(&self) -> OwedErrors {
        self.flush_errors.borrow().owed()
    }

    /// See [`FlushErrors::from_owed`].
    pub fn set_owed_errors(&self, owed: &OwedErrors) {
        *self.flush_errors.borrow_mut() = FlushErrors::from_owed(owed);
    }

    /// F5: the range may have been lost, before this process.
    pub fn suspect(&self, range: SectorRange) {
        self.unflushed.borrow_mut().suspect(range);
    }

    /// A stream has got no error yet for a flush that failed.
    pub fn is_error_owed(&self) -> bool {
        self.flush_errors.borrow().are_owed()
    }
}

/// Copies that are not in the index yet (C1, C2).
impl Coherence {
    pub fn has_copies(&self) -> bool {
        !self.unpublished.borrow().is_empty()
    }

    /// Number of copies.
    pub fn copies_len(&self) -> usize {
        self.unpublished.borrow().len()
    }

    /// See [`Unpublished::overlaps`].
    #[inline]
    pub fn has_copy_over(&self, range: SectorRange) -> bool {
        self.unpublished.borrow().overlaps(range)
    }

    /// See [`Unpublished::overlapping`].
    pub fn copies_over(&self, range: SectorRange) -> Copies {
        self.unpublished.borrow().overlapping(range).collect()
    }

    /// Everything, in order.
    pub fn copies(&self) -> Vec<(SectorRange, Pointer)> {
        self.unpublished.borrow().iter().collect()
    }

    /// Drops what is in the range. Mostly there is none at all, which is seen without a call.
    #[inline]
    pub fn drop_copies(&self, range: SectorRange) {
        if !self.unpublished.borrow().is_empty() {
            self.unpublished.borrow_mut().remove(range);
        }
    }

    /// Drops everything.
    pub fn drop_all_copies(&self) {
        self.unpublished.borrow_mut().clear();
    }

    /// Any copy may be ready for the index.
    pub fn copies_may_be_ready(&self) {
        self.unpublished.borrow_mut().any_may_be_ready();
    }

    /// See [`Unpublished::next_to_look_at`].
    pub fn next_copies(&self, most: usize) -> Vec<SectorRange> {
        self.unpublished.borrow_mut().next_to_look_at(most)
    }

    /// A copy of what the backing device has, without the parts that a failed flush may have cost
    /// (F5).
    #[inline]
    pub fn keep_copy(&self, range: SectorRange, pointer: Pointer, pin: Pin) -> Kept {
        let unflushed = self.unflushed.borrow();
        let (trusted, waits) = (unflushed.trusted_parts(range), unflushed.covers(range));
        let whole = trusted.as_slice() == [range];
        let mut unpublished = self.unpublished.borrow_mut();
        for part in trusted {
            unpublished.insert(part, pointer.advance(part.start - range.start), pin.clone());
            if !waits {
                unpublished.may_be_ready(part);
            }
        }
        Kept { whole, waits, copies: unpublished.len() }
    }
}
