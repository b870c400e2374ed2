//! Context of a set: what every part of it uses and none of them owns. It does not change; the
//! settings in it do, and the health, which have owners of their own.

use std::cell::{Ref, RefCell};
use std::rc::Rc;

use ubcache_env::{Env, IoError, SectorRange};
use ubcache_format::{Geometry, Inode};

use crate::counted_device::CountedDevice;
use crate::events::{Events, FaultyDevice};
use crate::health::Health;
use crate::replacement::policy_duel::PolicyDuel;
use crate::rules::{Rule, Rules};
use crate::settings::{AttributeError, ReplacementPolicy, SetSettings};
use crate::stats::reuse::{Reuse, Use};
use crate::tuning::Tuning;

/// See the module. Each part has one of its own, so that nothing in it is a pointer further away.
pub(crate) struct Context<E: Env> {
    pub env: E,
    /// The cache device.
    pub cache: Rc<CountedDevice<E>>,
    pub geometry: Geometry,
    pub tuning: Tuning,
    pub health: Rc<Health<E>>,
    pub events: Rc<Events>,
    pub rules: Rules,
    /// Sample of the traffic of all volumes.
    pub reuse: Rc<Reuse>,
    /// Replacement policies tried on a sample of it.
    pub policy_duel: Rc<PolicyDuel>,
    settings: Rc<RefCell<SetSettings>>,
}

impl<E: Env> Clone for Context<E> {
    fn clone(&self) -> Self {
        Context {
            env: self.env.clone(),
            cache: self.cache.clone(),
            geometry: self.geometry,
            tuning: self.tuning.clone(),
            health: self.health.clone(),
            events: self.events.clone(),
            rules: self.rules,
            reuse: self.reuse.clone(),
            policy_duel: self.policy_duel.clone(),
            settings: self.settings.clone(),
        }
    }
}

impl<E: Env> Context<E> {
    pub fn new(
        env: E,
        cache: CountedDevice<E>,
        geometry: Geometry,
        settings: SetSettings,
        tuning: Tuning,
        rules: Rules,
    ) -> Context<E> {
        let settings = Rc::new(RefCell::new(settings));
        let events = Rc::<Events>::default();
        cache.report_faults(events.clone(), FaultyDevice::Cache);
        let health = Rc::new(Health::new(env.clone(), settings.clone(), events.clone(), rules));
        Context {
            env,
            cache: Rc::new(cache),
            geometry,
            tuning,
            health,
            events,
            rules,
            reuse: Rc::default(),
            policy_duel: Rc::default(),
            settings,
        }
    }

    /// A range of a volume is used.
    #[inline(always)]
    pub fn note_use(&self, inode: Inode, range: SectorRange, how: Use) {
        self.reuse.note(inode, range, how);
        self.policy_duel.note(inode, range, how);
    }

    /// A range of a volume is discarded.
    pub fn note_discard(&self, inode: Inode, range: SectorRange) {
        self.reuse.note_discard(inode, range);
        self.policy_duel.note(inode, range, Use::Drop);
    }

    /// Replacement policies are tried on a sample of the traffic, or not any more, as the setting
    /// wants it.
    pub fn switch_policy_duel(&self) {
        let policy = self.settings().cache_replacement_policy;
        self.policy_duel.switch(policy == ReplacementPolicy::Adaptive, &self.geometry);
    }

    /// Attributes of the set, as they are now.
    pub fn settings(&self) -> Ref<'_, SetSettings> {
        self.settings.borrow()
    }

    /// Sets an attribute of the set (bcache's names).
    pub fn set_attribute(&self, name: &str, value: &str) -> Result<(), AttributeError> {
        self.settings.borrow_mut().set(name, value)
    }

    /// Returns true if this rule is kept; see [`Rules`].
    #[inline(always)]
    pub fn keeps(&self, rule: Rule) -> bool {
        self.rules.keeps(rule)
    }

    pub fn is_ending(&self) -> bool {
        self.health.is_ending()
    }

    pub fn is_ended(&self) -> bool {
        self.health.is_ended()
    }

    /// Reason of the set's failure, if it has failed.
    pub fn failure(&self) -> Option<String> {
        self.health.failure()
    }

    /// The set can't change its metadata any more.
    pub fn fail(&self, reason: String) {
        self.health.fail(reason);
    }

    /// Counts an error of the cache device; at the limit the set fails.
    pub fn note_cache_error(&self, what: &'static str, error: &IoError) {
        self.health.note_error(what, error);
    }
}
