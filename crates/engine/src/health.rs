//! The life of a set and its health: every part asks, and any part may find that the cache device
//! fails.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ubcache_env::{Env, IoError};

use crate::events::{Events, SetEvent};
use crate::rules::{Rule, Rules};
use crate::settings::SetSettings;

/// Phase of a set's life.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Phase {
    Running,
    /// No new requests; background work ends.
    Ending,
    /// Everything is written; the last tasks end.
    Ended,
}

pub(crate) struct Health<E: Env> {
    env: E,
    settings: Rc<RefCell<SetSettings>>,
    events: Rc<Events>,
    rules: Rules,
    phase: Cell<Phase>,
    failure: RefCell<Option<String>>,
    /// Errors of the cache device so far.
    errors: Cell<u64>,
    when_failed: RefCell<Option<Rc<dyn Fn()>>>,
}

impl<E: Env> Health<E> {
    pub fn new(
        env: E,
        settings: Rc<RefCell<SetSettings>>,
        events: Rc<Events>,
        rules: Rules,
    ) -> Health<E> {
        Health {
            env,
            settings,
            events,
            rules,
            phase: Cell::new(Phase::Running),
            failure: RefCell::default(),
            errors: Cell::new(0),
            when_failed: RefCell::default(),
        }
    }

    /// Calls this once, in the step in which the set fails.
    pub fn when_failed(&self, call: impl Fn() + 'static) {
        *self.when_failed.borrow_mut() = Some(Rc::new(call));
    }

    pub fn is_ending(&self) -> bool {
        self.phase.get() >= Phase::Ending
    }

    pub fn is_ended(&self) -> bool {
        self.phase.get() >= Phase::Ended
    }

    /// Goes on to a later phase; the caller wakes whoever waits.
    pub fn enter(&self, phase: Phase) {
        assert!(phase > self.phase.get(), "a set does not come back to life");
        self.phase.set(phase);
    }

    /// Reason of the set's failure, if it has failed.
    pub fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    pub fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    /// The set can't change its metadata any more.
    pub fn fail(&self, reason: String) {
        if self.has_failed() {
            return;
        }
        self.env.mark("set_failed");
        self.events.push(SetEvent::Failed { reason: reason.clone() });
        *self.failure.borrow_mut() = Some(reason);
        let call = self.when_failed.borrow().clone();
        if let Some(call) = call {
            call();
        }
    }

    /// Counts an error of the cache device; at the limit the set fails. Lack of memory is no error
    /// of the device, and lack of space is one of metadata only.
    pub fn note_error(&self, what: &'static str, error: &IoError) {
        if matches!(error, IoError::NoMemory) {
            return;
        }
        if error.is_no_space() && self.rules.keeps(Rule::N1NoSpaceIsNoError) {
            // Data would have been refused (N1). Metadata has nowhere else to go.
            return self.fail(format!("{what}: {error}"));
        }
        self.errors.set(self.errors.get() + 1);
        let limit = self.settings.borrow().io_error_limit;
        if matches!(error, IoError::Gone) || (limit > 0 && self.errors.get() >= limit) {
            self.fail(format!("{what}: {error}"));
        }
    }
}
