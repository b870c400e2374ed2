//! The settings of a set and its cache device.

use ubcache_format::{OwnPolicy, Replacement};

use super::AttributeError;
use super::table::{self, Attribute, Kept, Owner};
use super::text::{Choices, Given, bracketed, word};

/// Upper ends and defaults of the two cutoffs.
const CUTOFF_MAX: u64 = 70;
const CUTOFF_SYNC_MAX: u64 = 90;
const CUTOFF_DEFAULT: u64 = 40;
const CUTOFF_SYNC_DEFAULT: u64 = 70;
/// The unit of `io_error_halflife`: it shows multiples of this.
const HALFLIFE_UNIT: u64 = 88;

const ERROR_ACTIONS: &Choices<ErrorAction> =
    &[("unregister", ErrorAction::Unregister), ("panic", ErrorAction::Panic)];
const REPLACEMENTS: &Choices<ReplacementPolicy> = &[
    ("lru", ReplacementPolicy::Lru),
    ("fifo", ReplacementPolicy::Fifo),
    ("random", ReplacementPolicy::Random),
    ("scan-resistant", ReplacementPolicy::ScanResistant),
    ("two-queue", ReplacementPolicy::TwoQueue),
    ("adaptive", ReplacementPolicy::Adaptive),
];

/// Choice of the clean bucket that is evicted next.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub enum ReplacementPolicy {
    /// The least recently used.
    #[default]
    Lru,
    /// The one filled first.
    Fifo,
    /// Any.
    Random,
    /// The one that is worth least by what buckets like it were used for; what was used again is
    /// moved out of it.
    ScanResistant,
    /// The one filled first of the data that was not used again, while that has more than a tenth
    /// of the cache, otherwise of the data that was.
    TwoQueue,
    /// That of `Lru`, `ScanResistant` and `TwoQueue` which would have had most hits of late.
    Adaptive,
}

impl ReplacementPolicy {
    /// Policy in the superblock, where the driver has to find one that it knows.
    pub(crate) fn stored(self) -> Replacement {
        match self {
            ReplacementPolicy::Fifo => Replacement::Fifo,
            ReplacementPolicy::Random => Replacement::Random,
            _ => Replacement::Lru,
        }
    }

    /// Policy in the stamp of the journal, where the superblock can't name it.
    pub(crate) fn own(self) -> OwnPolicy {
        match self {
            ReplacementPolicy::ScanResistant => OwnPolicy::ScanResistant,
            ReplacementPolicy::TwoQueue => OwnPolicy::TwoQueue,
            ReplacementPolicy::Adaptive => OwnPolicy::Adaptive,
            _ => OwnPolicy::None,
        }
    }

    /// List that keeps the buckets that may go.
    pub(crate) fn order(self) -> Replacement {
        match self {
            ReplacementPolicy::ScanResistant => Replacement::Random,
            policy => policy.stored(),
        }
    }

    /// Its name, as a value of the attribute.
    pub(crate) fn word(self) -> String {
        word(REPLACEMENTS, self)
    }

    /// Returns true if it learns from reuse.
    pub(crate) fn learns(self) -> bool {
        self.own() != OwnPolicy::None
    }

    /// Returns true if it keeps what came once and what came again in a queue each.
    pub(crate) fn has_two_queues(self) -> bool {
        matches!(self, ReplacementPolicy::TwoQueue | ReplacementPolicy::Adaptive)
    }

    /// Policy that a superblock and the newest journal entry name together.
    pub(crate) fn from_stored(stored: Replacement, own: OwnPolicy) -> ReplacementPolicy {
        match (stored, own) {
            (Replacement::Lru, OwnPolicy::None) => ReplacementPolicy::Lru,
            (Replacement::Lru, OwnPolicy::ScanResistant) => ReplacementPolicy::ScanResistant,
            (Replacement::Lru, OwnPolicy::TwoQueue) => ReplacementPolicy::TwoQueue,
            (Replacement::Lru, OwnPolicy::Adaptive) => ReplacementPolicy::Adaptive,
            (Replacement::Fifo, _) => ReplacementPolicy::Fifo,
            (Replacement::Random, _) => ReplacementPolicy::Random,
        }
    }
}

/// Reaction to the failure of a cache set.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub enum ErrorAction {
    /// The set is given up; its volumes follow their [`StopPolicy`](super::StopPolicy).
    #[default]
    Unregister,
    /// The whole process ends.
    Panic,
}
/// The settings of a cache set and of its cache device. Fields carry the names and units of the
/// attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the attributes are described by name in the manual")]
pub struct SetSettings {
    pub journal_delay_ms: u64,
    /// 0: reads of the cache device are not watched for congestion.
    pub congested_read_threshold_us: u64,
    /// 0: writes to the cache device are not watched for congestion.
    pub congested_write_threshold_us: u64,
    pub errors: ErrorAction,
    pub io_error_limit: u64,
    /// In I/Os, a multiple of 88.
    pub io_error_halflife: u64,
    pub gc_after_writeback: bool,
    /// On by default, unlike in the driver, where buckets with little live data are kept whole.
    pub copy_gc_enabled: bool,
    pub gc_always_rewrite: bool,
    pub idle_max_writeback_rate: bool,
    pub io_disable: bool,
    /// In percent of buckets in use. A module parameter of the driver; here it can be set at any
    /// time.
    pub cutoff_writeback: u64,
    /// The same for writes that must be durable soon; not below `cutoff_writeback`.
    pub cutoff_writeback_sync: u64,
    pub cache_replacement_policy: ReplacementPolicy,
    /// Buckets are discarded before they are used again.
    pub discard: bool,
}

impl Default for SetSettings {
    fn default() -> Self {
        SetSettings {
            journal_delay_ms: 100,
            congested_read_threshold_us: 2000,
            congested_write_threshold_us: 20_000,
            errors: ErrorAction::Unregister,
            io_error_limit: 8,
            io_error_halflife: 0,
            gc_after_writeback: false,
            copy_gc_enabled: true,
            gc_always_rewrite: false,
            idle_max_writeback_rate: true,
            io_disable: false,
            cutoff_writeback: CUTOFF_DEFAULT,
            cutoff_writeback_sync: CUTOFF_SYNC_DEFAULT,
            cache_replacement_policy: ReplacementPolicy::Lru,
            discard: false,
        }
    }
}

impl SetSettings {
    /// Attributes that the driver reports, and that have no value here.
    const DRIVERS: &'static [&'static str] = &[
        "average_key_size",
        "bset_tree_stats",
        "btree_cache_max_chain",
        "btree_cache_size",
        "btree_used_percent",
        "btree_written",
        "cache_read_races",
        "congested",
        "feature_compat",
        "feature_incompat",
        "feature_ro_compat",
        "flush_write",
        "io_errors",
        "metadata_written",
        "reclaim",
        "reclaimed_journal_buckets",
        "root_usage_percent",
        "synchronous",
        "writeback_keys_done",
        "writeback_keys_failed",
        "written",
    ];

    /// The names of all settings that have a value, in the order in which they are set.
    pub fn names() -> Vec<&'static str> {
        let kept = |attribute: &&Attribute| attribute.kept != Kept::No;
        table::attributes_of(Owner::Set).iter().filter(kept).map(|it| it.name).collect()
    }

    /// Changes one setting.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), AttributeError> {
        let given = Given::new(Owner::Set, name, value, Self::DRIVERS)?;
        match name {
            "journal_delay_ms" => self.journal_delay_ms = given.number()?,
            "congested_read_threshold_us" => self.congested_read_threshold_us = given.number()?,
            "congested_write_threshold_us" => self.congested_write_threshold_us = given.number()?,
            "errors" => self.errors = given.choice(ERROR_ACTIONS)?,
            "io_error_limit" => self.io_error_limit = given.number()?,
            "io_error_halflife" => {
                self.io_error_halflife = given.number()? / HALFLIFE_UNIT * HALFLIFE_UNIT;
            }
            "gc_after_writeback" => self.gc_after_writeback = given.switch()?,
            "copy_gc_enabled" => self.copy_gc_enabled = given.switch()?,
            "gc_always_rewrite" => self.gc_always_rewrite = given.switch()?,
            "idle_max_writeback_rate" => self.idle_max_writeback_rate = given.switch()?,
            "io_disable" => self.io_disable = given.switch()?,
            "cutoff_writeback" => {
                let max = CUTOFF_MAX.min(self.cutoff_writeback_sync);
                self.cutoff_writeback = given.number_or_default(CUTOFF_DEFAULT, 1..=max)?;
            }
            "cutoff_writeback_sync" => {
                let range = self.cutoff_writeback..=CUTOFF_SYNC_MAX;
                self.cutoff_writeback_sync = given.number_or_default(CUTOFF_SYNC_DEFAULT, range)?;
            }
            "cache_replacement_policy" => {
                self.cache_replacement_policy = given.choice(REPLACEMENTS)?
            }
            "discard" => self.discard = given.switch()?,
            // Whoever owns the settings carries out the others.
            _ => {}
        }
        Ok(())
    }

    /// A setting as a user reads it, without an end of line; `None` if there is no such setting.
    pub fn get(&self, name: &str) -> Option<String> {
        Some(match name {
            "errors" => bracketed(ERROR_ACTIONS, self.errors),
            "cache_replacement_policy" => bracketed(REPLACEMENTS, self.cache_replacement_policy),
            _ => return self.plain(name),
        })
    }

    /// A setting exactly and in the form that [`SetSettings::set`] takes.
    pub fn plain(&self, name: &str) -> Option<String> {
        let number = match name {
            "errors" => return Some(word(ERROR_ACTIONS, self.errors)),
            "cache_replacement_policy" => {
                return Some(word(REPLACEMENTS, self.cache_replacement_policy));
            }
            "journal_delay_ms" => self.journal_delay_ms,
            "congested_read_threshold_us" => self.congested_read_threshold_us,
            "congested_write_threshold_us" => self.congested_write_threshold_us,
            "io_error_limit" => self.io_error_limit,
            "io_error_halflife" => self.io_error_halflife,
            "gc_after_writeback" => self.gc_after_writeback.into(),
            "copy_gc_enabled" => self.copy_gc_enabled.into(),
            "gc_always_rewrite" => self.gc_always_rewrite.into(),
            "idle_max_writeback_rate" => self.idle_max_writeback_rate.into(),
            "io_disable" => self.io_disable.into(),
            "cutoff_writeback" => self.cutoff_writeback,
            "cutoff_writeback_sync" => self.cutoff_writeback_sync,
            "discard" => self.discard.into(),
            _ => return None,
        };
        Some(number.to_string())
    }
}
