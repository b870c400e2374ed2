//! The settings of a volume.

use ubcache_format::CacheMode;

use super::AttributeError;
use super::table::{self, Attribute, Kept, Owner};
use super::text::{Choices, Given, bracketed, human_unsigned, word};

/// The largest number that the driver keeps in 32 bits.
const MAX_32: u64 = u32::MAX as u64;

const CACHE_MODES: &Choices<CacheMode> = &[
    (CacheMode::Writethrough.sysfs_word(), CacheMode::Writethrough),
    (CacheMode::Writeback.sysfs_word(), CacheMode::Writeback),
    (CacheMode::Writearound.sysfs_word(), CacheMode::Writearound),
    (CacheMode::None.sysfs_word(), CacheMode::None),
];
const READAHEAD_POLICIES: &Choices<ReadaheadPolicy> =
    &[("all", ReadaheadPolicy::All), ("meta-only", ReadaheadPolicy::MetaOnly)];
const STOP_POLICIES: &Choices<StopPolicy> =
    &[("auto", StopPolicy::Auto), ("always", StopPolicy::Always)];

/// Reads ahead of the client that are cached.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub enum ReadaheadPolicy {
    /// All of them.
    #[default]
    All,
    /// Those of metadata.
    MetaOnly,
}

/// Reaction of a volume to the failure of its cache set.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub enum StopPolicy {
    /// It is stopped if it has dirty data, else it goes on without the cache.
    #[default]
    Auto,
    /// It is stopped.
    Always,
}
/// The settings of one cached volume. Fields carry the names and units of the attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the attributes are described by name in the manual")]
pub struct VolumeSettings {
    pub cache_mode: CacheMode,
    pub label: String,
    /// In bytes; 0: off.
    pub sequential_cutoff: u64,
    /// In bytes; 0: off.
    pub readahead: u64,
    pub readahead_cache_policy: ReadaheadPolicy,
    pub writeback_running: bool,
    /// Share of the cache; 0: writeback does not hold back.
    pub writeback_percent: u64,
    /// In seconds.
    pub writeback_delay: u64,
    pub writeback_rate_update_seconds: u64,
    pub writeback_rate_p_term_inverse: u64,
    pub writeback_rate_i_term_inverse: u64,
    /// In sectors per second.
    pub writeback_rate_minimum: u64,
    pub writeback_consider_fragment: bool,
    pub writeback_rate_fp_term_low: u64,
    pub writeback_rate_fp_term_mid: u64,
    pub writeback_rate_fp_term_high: u64,
    /// Has no effect, here as in the driver.
    pub writeback_metadata: bool,
    pub io_error_limit: u64,
    /// Every request fails.
    pub io_disable: bool,
    pub stop_when_cache_set_failed: StopPolicy,
    /// In bytes a second; 0: no limit.
    pub scrub_rate: u64,
}

impl Default for VolumeSettings {
    fn default() -> Self {
        VolumeSettings {
            cache_mode: CacheMode::Writethrough,
            label: String::new(),
            sequential_cutoff: 4 << 20,
            readahead: 0,
            readahead_cache_policy: ReadaheadPolicy::All,
            writeback_running: true,
            writeback_percent: 10,
            writeback_delay: 30,
            writeback_rate_update_seconds: 5,
            writeback_rate_p_term_inverse: 40,
            writeback_rate_i_term_inverse: 10_000,
            writeback_rate_minimum: 8,
            writeback_consider_fragment: true,
            writeback_rate_fp_term_low: 1,
            writeback_rate_fp_term_mid: 10,
            writeback_rate_fp_term_high: 1000,
            writeback_metadata: true,
            io_error_limit: 64,
            io_disable: false,
            stop_when_cache_set_failed: StopPolicy::Auto,
            scrub_rate: 32 << 20,
        }
    }
}

impl VolumeSettings {
    /// Attributes that the driver reports, and that have no value here.
    const DRIVERS: &'static [&'static str] = &["backing_dev_name"];

    /// The names of all settings that have a value, in the order in which they are set.
    pub fn names() -> Vec<&'static str> {
        let kept = |attribute: &&Attribute| attribute.kept != Kept::No;
        table::attributes_of(Owner::Volume).iter().filter(kept).map(|it| it.name).collect()
    }

    /// Changes one setting.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), AttributeError> {
        let given = Given::new(Owner::Volume, name, value, Self::DRIVERS)?;
        let (low, mid, high) = (
            self.writeback_rate_fp_term_low,
            self.writeback_rate_fp_term_mid,
            self.writeback_rate_fp_term_high,
        );
        match name {
            "cache_mode" => self.cache_mode = given.choice(CACHE_MODES)?,
            "label" => self.label = given.text()?,
            "sequential_cutoff" => self.sequential_cutoff = given.size()?,
            "readahead" => self.readahead = given.size()?,
            "readahead_cache_policy" => {
                self.readahead_cache_policy = given.choice(READAHEAD_POLICIES)?
            }
            "writeback_running" => self.writeback_running = given.switch()?,
            "writeback_percent" => self.writeback_percent = given.number()?,
            "writeback_delay" => self.writeback_delay = given.number()?,
            "writeback_rate_update_seconds" => {
                self.writeback_rate_update_seconds = given.number()?
            }
            "writeback_rate_p_term_inverse" => {
                self.writeback_rate_p_term_inverse = given.number()?
            }
            "writeback_rate_i_term_inverse" => {
                self.writeback_rate_i_term_inverse = given.number()?
            }
            "writeback_rate_minimum" => self.writeback_rate_minimum = given.number()?,
            "writeback_consider_fragment" => self.writeback_consider_fragment = given.switch()?,
            // The three terms stay in ascending order, so none of the ranges is empty.
            "writeback_rate_fp_term_low" => {
                self.writeback_rate_fp_term_low = given.number_within(1..=mid - 1)?
            }
            "writeback_rate_fp_term_mid" => {
                self.writeback_rate_fp_term_mid = given.number_within(low + 1..=high - 1)?
            }
            "writeback_rate_fp_term_high" => {
                self.writeback_rate_fp_term_high = given.number_within(mid + 1..=MAX_32)?
            }
            "writeback_metadata" => self.writeback_metadata = given.switch()?,
            "io_error_limit" => self.io_error_limit = given.number()?,
            "io_disable" => self.io_disable = given.switch()?,
            "stop_when_cache_set_failed" => {
                self.stop_when_cache_set_failed = given.choice(STOP_POLICIES)?
            }
            "scrub_rate" => self.scrub_rate = given.size()?,
            // Whoever owns the settings carries out the others.
            _ => {}
        }
        Ok(())
    }

    /// A setting as a user reads it, without an end of line; `None` if there is no such setting.
    pub fn get(&self, name: &str) -> Option<String> {
        Some(match name {
            "cache_mode" => bracketed(CACHE_MODES, self.cache_mode),
            "sequential_cutoff" => human_unsigned(self.sequential_cutoff),
            "readahead" => human_unsigned(self.readahead),
            "scrub_rate" => human_unsigned(self.scrub_rate),
            "readahead_cache_policy" => bracketed(READAHEAD_POLICIES, self.readahead_cache_policy),
            "stop_when_cache_set_failed" => {
                bracketed(STOP_POLICIES, self.stop_when_cache_set_failed)
            }
            _ => return self.plain(name),
        })
    }

    /// A setting exactly and in the form that [`VolumeSettings::set`] takes.
    pub fn plain(&self, name: &str) -> Option<String> {
        let number = match name {
            "cache_mode" => return Some(word(CACHE_MODES, self.cache_mode)),
            "label" => return Some(self.label.clone()),
            "readahead_cache_policy" => {
                return Some(word(READAHEAD_POLICIES, self.readahead_cache_policy));
            }
            "stop_when_cache_set_failed" => {
                return Some(word(STOP_POLICIES, self.stop_when_cache_set_failed));
            }
            "sequential_cutoff" => self.sequential_cutoff,
            "readahead" => self.readahead,
            "writeback_running" => self.writeback_running.into(),
            "writeback_percent" => self.writeback_percent,
            "writeback_delay" => self.writeback_delay,
            "writeback_rate_update_seconds" => self.writeback_rate_update_seconds,
            "writeback_rate_p_term_inverse" => self.writeback_rate_p_term_inverse,
            "writeback_rate_i_term_inverse" => self.writeback_rate_i_term_inverse,
            "writeback_rate_minimum" => self.writeback_rate_minimum,
            "writeback_consider_fragment" => self.writeback_consider_fragment.into(),
            "writeback_rate_fp_term_low" => self.writeback_rate_fp_term_low,
            "writeback_rate_fp_term_mid" => self.writeback_rate_fp_term_mid,
            "writeback_rate_fp_term_high" => self.writeback_rate_fp_term_high,
            "writeback_metadata" => self.writeback_metadata.into(),
            "io_error_limit" => self.io_error_limit,
            "io_disable" => self.io_disable.into(),
            "scrub_rate" => self.scrub_rate,
            _ => return None,
        };
        Some(number.to_string())
    }
}
