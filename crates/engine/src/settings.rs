//! Settings: the attributes that users read and write, with bcache's names, values and formats.
//!
//! [`VolumeSettings`] are those of one cached volume, [`SetSettings`] those of a cache set and its cache device.
//! Both are plain values: [`VolumeSettings::set`] takes the text that a user writes, [`VolumeSettings::get`]
//! gives the text that a user reads, and whoever owns the value acts on changes. Formats, as scripts know them:
//!
//! * **numbers** are decimal; one out of range is moved to the nearest end of the range, anything else is
//!   refused;
//! * **sizes** are read in bytes, with an optional suffix `k` … `y` (powers of 1024) everywhere a size is meant
//!   (the driver takes suffixes in some places only), and shown as `4.0k`, `512.0M`;
//! * **switches** are 0 or 1; every other number means 1;
//! * **choices** are shown as `writethrough [writeback] writearound none` and set by one of the words.
//!
//! What is shown is not always what can be set: [`VolumeSettings::plain`] gives the exact value in the form that
//! `set` takes, for saving. Some ranges depend on other settings, so saved values are to be set in the order of
//! [`VolumeSettings::names`], twice.

use std::ops::RangeInclusive;

use ubcache_format::{CacheMode, Replacement};

/// The largest number that the driver keeps in 32 bits.
const MAX_32: u64 = u32::MAX as u64;
/// The largest signed one.
const MAX_31: u64 = i32::MAX as u64;
/// `writeback_percent` may not be higher: it is the default of `cutoff_writeback`.
const WRITEBACK_PERCENT_MAX: u64 = 40;
/// Upper ends and defaults of the two cutoffs.
const CUTOFF_MAX: u64 = 70;
const CUTOFF_SYNC_MAX: u64 = 90;
const CUTOFF_DEFAULT: u64 = 40;
const CUTOFF_SYNC_DEFAULT: u64 = 70;
/// The unit of `io_error_halflife`: it shows multiples of this.
const HALFLIFE_UNIT: u64 = 88;
/// Room for a label in a superblock.
const LABEL_BYTES: usize = 32;

/// What is wrong with the name or the value of an attribute.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AttributeError {
    /// There is no such attribute.
    #[error("there is no attribute \"{name}\"; known are {}", known.join(", "))]
    UnknownName {
        /// The name as given.
        name: String,
        /// The names that can be set.
        known: &'static [&'static str],
    },
    /// The attribute does not take this value.
    #[error("{name} can not be \"{value}\": expected {expected}")]
    BadValue {
        /// The name of the attribute.
        name: String,
        /// The value as given.
        value: String,
        /// What is accepted.
        expected: String,
    },
    /// The attribute can only be read.
    #[error("{name} can only be read")]
    ReadOnly {
        /// The name of the attribute.
        name: String,
    },
}

/// A text that is not a size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("\"{text}\" is not a size: expected {SIZE}")]
pub struct SizeError {
    /// The text as given.
    pub text: String,
}

const SIZE: &str = "a whole number of bytes below 2^64, with k, m, g, t, p, e, z or y for powers of 1024";

/// A number in bcache's notation for people: at least one division by 1024, one truncated decimal, a suffix.
pub fn human(bytes: i64) -> String {
    let sign = if bytes < 0 { "-" } else { "" };
    let mut whole = bytes.unsigned_abs();
    let mut tenth = 0;
    let mut suffix = ' ';
    for unit in "kMGTPE".chars() {
        (whole, tenth, suffix) = (whole / 1024, whole % 1024 * 10 / 1024, unit);
        if whole < 1000 {
            break;
        }
    }
    format!("{sign}{whole}.{tenth}{suffix}")
}

/// Reads a size: a whole number of bytes, or of powers of 1024 with a suffix `k` to `y` in either case.
pub fn parse_human(text: &str) -> Result<u64, SizeError> {
    let wrong = || SizeError { text: text.to_owned() };
    let trimmed = text.trim();
    let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let power = match trimmed[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        "e" => 6,
        "z" => 7,
        "y" => 8,
        _ => return Err(wrong()),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u128 = digits.parse().map_err(|_| wrong())?;
    let bytes = number.checked_mul(1 << (10 * power)).ok_or_else(wrong)?;
    u64::try_from(bytes).map_err(|_| wrong())
}

/// The words of a choice, in the order in which they are shown.
type Choices<T> = [(&'static str, T)];

const CACHE_MODES: &Choices<CacheMode> = &[
    ("writethrough", CacheMode::Writethrough),
    ("writeback", CacheMode::Writeback),
    ("writearound", CacheMode::Writearound),
    ("none", CacheMode::None),
];
const READAHEAD_POLICIES: &Choices<ReadaheadPolicy> =
    &[("all", ReadaheadPolicy::All), ("meta-only", ReadaheadPolicy::MetaOnly)];
const STOP_POLICIES: &Choices<StopPolicy> = &[("auto", StopPolicy::Auto), ("always", StopPolicy::Always)];
const ERROR_ACTIONS: &Choices<ErrorAction> =
    &[("unregister", ErrorAction::Unregister), ("panic", ErrorAction::Panic)];
const REPLACEMENTS: &Choices<Replacement> =
    &[("lru", Replacement::Lru), ("fifo", Replacement::Fifo), ("random", Replacement::Random)];

/// Which reads ahead of the client are cached.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub enum ReadaheadPolicy {
    /// All of them.
    #[default]
    All,
    /// Those of metadata.
    MetaOnly,
}

/// What happens to a volume when its cache set fails.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub enum StopPolicy {
    /// It is stopped if it has dirty data, else it goes on without the cache.
    #[default]
    Auto,
    /// It is stopped.
    Always,
}

/// What happens when a cache set fails.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub enum ErrorAction {
    /// The set is given up; its volumes follow their [`StopPolicy`].
    #[default]
    Unregister,
    /// The whole process ends.
    Panic,
}

/// The settings of one cached volume. Fields carry the names and units of the attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the attributes are described by name in the manual")]
pub struct VolumeSettings {
    pub cache_mode: CacheMode,
    pub label: String,
    /// In bytes; 0: off.
    pub sequential_cutoff: u64,
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
}

impl Default for VolumeSettings {
    fn default() -> Self {
        VolumeSettings {
            cache_mode: CacheMode::Writethrough,
            label: String::new(),
            sequential_cutoff: 4 << 20,
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
        }
    }
}

impl VolumeSettings {
    const NAMES: &'static [&'static str] = &[
        "cache_mode",
        "label",
        "sequential_cutoff",
        "readahead_cache_policy",
        "writeback_running",
        "writeback_percent",
        "writeback_delay",
        "writeback_rate_update_seconds",
        "writeback_rate_p_term_inverse",
        "writeback_rate_i_term_inverse",
        "writeback_rate_minimum",
        "writeback_consider_fragment",
        "writeback_rate_fp_term_high",
        "writeback_rate_fp_term_mid",
        "writeback_rate_fp_term_low",
        "writeback_metadata",
        "io_error_limit",
        "io_disable",
        "stop_when_cache_set_failed",
    ];
    /// Attributes of a volume that are not settings but what it reports.
    const REPORTED: &'static [&'static str] = &[
        "state",
        "dirty_data",
        "writeback_rate_debug",
        "io_errors",
        "stripe_size",
        "partial_stripes_expensive",
        "backing_dev_name",
        "backing_dev_uuid",
    ];

    /// The names of all settings.
    pub fn names() -> &'static [&'static str] {
        Self::NAMES
    }

    /// Changes one setting.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), AttributeError> {
        let given = Given { name, value };
        let (low, mid, high) = (
            self.writeback_rate_fp_term_low,
            self.writeback_rate_fp_term_mid,
            self.writeback_rate_fp_term_high,
        );
        match name {
            "cache_mode" => self.cache_mode = given.choice(CACHE_MODES)?,
            "label" => self.label = given.label()?,
            "sequential_cutoff" => self.sequential_cutoff = given.size(0..=MAX_32)?,
            "readahead_cache_policy" => self.readahead_cache_policy = given.choice(READAHEAD_POLICIES)?,
            "writeback_running" => self.writeback_running = given.switch()?,
            "writeback_percent" => self.writeback_percent = given.number(0..=WRITEBACK_PERCENT_MAX)?,
            "writeback_delay" => self.writeback_delay = given.number(0..=MAX_32)?,
            "writeback_rate_update_seconds" => self.writeback_rate_update_seconds = given.number(1..=60)?,
            "writeback_rate_p_term_inverse" => {
                self.writeback_rate_p_term_inverse = given.number(1..=MAX_32)?
            }
            "writeback_rate_i_term_inverse" => {
                self.writeback_rate_i_term_inverse = given.number(1..=MAX_32)?
            }
            "writeback_rate_minimum" => self.writeback_rate_minimum = given.number(1..=MAX_32)?,
            "writeback_consider_fragment" => self.writeback_consider_fragment = given.switch()?,
            // The three terms stay in ascending order, so none of the ranges is empty.
            "writeback_rate_fp_term_low" => self.writeback_rate_fp_term_low = given.number(1..=mid - 1)?,
            "writeback_rate_fp_term_mid" => {
                self.writeback_rate_fp_term_mid = given.number(low + 1..=high - 1)?
            }
            "writeback_rate_fp_term_high" => {
                self.writeback_rate_fp_term_high = given.number(mid + 1..=MAX_32)?
            }
            "writeback_metadata" => self.writeback_metadata = given.switch()?,
            "io_error_limit" => self.io_error_limit = given.number(0..=MAX_31)?,
            "io_disable" => self.io_disable = given.switch()?,
            "stop_when_cache_set_failed" => self.stop_when_cache_set_failed = given.choice(STOP_POLICIES)?,
            _ => return Err(given.unknown(Self::NAMES, Self::REPORTED)),
        }
        Ok(())
    }

    /// A setting as a user reads it, without an end of line; `None` if there is no such setting.
    pub fn get(&self, name: &str) -> Option<String> {
        Some(match name {
            "cache_mode" => bracketed(CACHE_MODES, self.cache_mode),
            "sequential_cutoff" => human_unsigned(self.sequential_cutoff),
            "readahead_cache_policy" => bracketed(READAHEAD_POLICIES, self.readahead_cache_policy),
            "stop_when_cache_set_failed" => bracketed(STOP_POLICIES, self.stop_when_cache_set_failed),
            _ => return self.plain(name),
        })
    }

    /// A setting exactly and in the form that [`VolumeSettings::set`] takes.
    pub fn plain(&self, name: &str) -> Option<String> {
        let number = match name {
            "cache_mode" => return Some(word(CACHE_MODES, self.cache_mode)),
            "label" => return Some(self.label.clone()),
            "readahead_cache_policy" => return Some(word(READAHEAD_POLICIES, self.readahead_cache_policy)),
            "stop_when_cache_set_failed" => {
                return Some(word(STOP_POLICIES, self.stop_when_cache_set_failed));
            }
            "sequential_cutoff" => self.sequential_cutoff,
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
            _ => return None,
        };
        Some(number.to_string())
    }
}

/// The settings of a cache set and of its cache device. Fields carry the names and units of the attributes.
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
    /// In percent of buckets in use. A module parameter of the driver; here it can be set at any time.
    pub cutoff_writeback: u64,
    /// The same for writes that must be durable soon; not below `cutoff_writeback`.
    pub cutoff_writeback_sync: u64,
    pub cache_replacement_policy: Replacement,
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
            cache_replacement_policy: Replacement::Lru,
            discard: false,
        }
    }
}

impl SetSettings {
    const NAMES: &'static [&'static str] = &[
        "journal_delay_ms",
        "congested_read_threshold_us",
        "congested_write_threshold_us",
        "errors",
        "io_error_limit",
        "io_error_halflife",
        "gc_after_writeback",
        "copy_gc_enabled",
        "gc_always_rewrite",
        "idle_max_writeback_rate",
        "io_disable",
        "cutoff_writeback",
        "cutoff_writeback_sync",
        "cache_replacement_policy",
        "discard",
    ];
    /// Attributes of a set and its cache device that are not settings but what they report.
    const REPORTED: &'static [&'static str] = &[
        "active_journal_entries",
        "average_key_size",
        "block_size",
        "bset_tree_stats",
        "btree_cache_max_chain",
        "btree_cache_size",
        "btree_nodes",
        "btree_used_percent",
        "btree_written",
        "bucket_size",
        "cache_available_percent",
        "cache_read_races",
        "congested",
        "feature_compat",
        "feature_incompat",
        "feature_ro_compat",
        "flush_write",
        "io_errors",
        "metadata_written",
        "nbuckets",
        "reclaim",
        "reclaimed_journal_buckets",
        "root_usage_percent",
        "synchronous",
        "tree_depth",
        "writeback_keys_done",
        "writeback_keys_failed",
        "written",
    ];

    /// The names of all settings.
    pub fn names() -> &'static [&'static str] {
        Self::NAMES
    }

    /// Changes one setting.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), AttributeError> {
        let given = Given { name, value };
        match name {
            "journal_delay_ms" => self.journal_delay_ms = given.number(0..=65535)?,
            "congested_read_threshold_us" => self.congested_read_threshold_us = given.number(0..=MAX_32)?,
            "congested_write_threshold_us" => self.congested_write_threshold_us = given.number(0..=MAX_32)?,
            "errors" => self.errors = given.choice(ERROR_ACTIONS)?,
            "io_error_limit" => self.io_error_limit = given.number(0..=MAX_32)?,
            "io_error_halflife" => {
                self.io_error_halflife = given.number(0..=MAX_32)? / HALFLIFE_UNIT * HALFLIFE_UNIT;
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
            "cache_replacement_policy" => self.cache_replacement_policy = given.choice(REPLACEMENTS)?,
            "discard" => self.discard = given.switch()?,
            _ => return Err(given.unknown(Self::NAMES, Self::REPORTED)),
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
            "cache_replacement_policy" => return Some(word(REPLACEMENTS, self.cache_replacement_policy)),
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

/// A name and a value from a user.
struct Given<'a> {
    name: &'a str,
    value: &'a str,
}

impl Given<'_> {
    fn bad(&self, expected: impl Into<String>) -> AttributeError {
        let value = self.value.trim_end_matches('\n').to_owned();
        AttributeError::BadValue { name: self.name.to_owned(), value, expected: expected.into() }
    }

    fn unknown(&self, known: &'static [&'static str], reported: &[&str]) -> AttributeError {
        let name = self.name.to_owned();
        if reported.contains(&self.name) {
            AttributeError::ReadOnly { name }
        } else {
            AttributeError::UnknownName { name, known }
        }
    }

    /// The number as written; one of too many digits is the largest.
    fn unclamped(&self) -> Option<u64> {
        let digits = self.value.trim();
        let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        valid.then(|| digits.parse().unwrap_or(u64::MAX))
    }

    fn number(&self, range: RangeInclusive<u64>) -> Result<u64, AttributeError> {
        match self.unclamped() {
            Some(number) => Ok(number.clamp(*range.start(), *range.end())),
            None => Err(self.bad(format!("a whole number from {} to {}", range.start(), range.end()))),
        }
    }

    /// As [`Given::number`], but 0 stands for the default.
    fn number_or_default(&self, default: u64, range: RangeInclusive<u64>) -> Result<u64, AttributeError> {
        let chosen = if self.unclamped() == Some(0) { default } else { self.number(range.clone())? };
        Ok(chosen.clamp(*range.start(), *range.end()))
    }

    fn size(&self, range: RangeInclusive<u64>) -> Result<u64, AttributeError> {
        match parse_human(self.value) {
            Ok(bytes) => Ok(bytes.clamp(*range.start(), *range.end())),
            Err(_) => Err(self.bad(SIZE)),
        }
    }

    fn switch(&self) -> Result<bool, AttributeError> {
        self.unclamped().map(|number| number != 0).ok_or_else(|| self.bad("0 or 1"))
    }

    fn choice<T: Copy>(&self, choices: &Choices<T>) -> Result<T, AttributeError> {
        let chosen = choices.iter().find(|(word, _)| *word == self.value.trim());
        chosen.map(|(_, choice)| *choice).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            self.bad(format!("one of {}", words.join(", ")))
        })
    }

    fn label(&self) -> Result<String, AttributeError> {
        let label = self.value.strip_suffix('\n').unwrap_or(self.value);
        if label.len() > LABEL_BYTES || label.contains('\0') {
            return Err(self.bad(format!("a text of at most {LABEL_BYTES} bytes, none of them zero")));
        }
        Ok(label.to_owned())
    }
}

/// All words of a choice, the present one in brackets.
fn bracketed<T: PartialEq>(choices: &Choices<T>, current: T) -> String {
    let show = |(word, choice): &(&str, T)| {
        if *choice == current { format!("[{word}]") } else { (*word).to_owned() }
    };
    choices.iter().map(show).collect::<Vec<_>>().join(" ")
}

/// The word of the present choice.
fn word<T: PartialEq>(choices: &Choices<T>, current: T) -> String {
    let (word, _) = choices.iter().find(|(_, choice)| *choice == current).expect("the choices are complete");
    (*word).to_owned()
}

fn human_unsigned(bytes: u64) -> String {
    human(i64::try_from(bytes).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn people_read_numbers_like_this() {
        for (bytes, text) in [
            (0, "0.0k"),
            (512, "0.5k"),
            (4096, "4.0k"),
            (4_194_304, "4.0M"),
            (1_024_000, "0.9M"),
            (536_870_912, "512.0M"),
            (-4096, "-4.0k"),
            (999 << 10, "999.0k"),
            (i64::MAX, "7.9E"),
            (i64::MIN, "-8.0E"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn people_write_sizes_like_this() {
        for (text, bytes) in [
            ("0", 0),
            ("4096\n", 4096),
            ("4k", 4096),
            ("4K", 4096),
            (" 4M ", 4 << 20),
            ("15E", 15 << 60),
            ("0y", 0),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_human(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "k", "4kb", "4.0k", "-1", "+1", "0x10", "1 k", "16e", "1z", "18446744073709551616", "4µ"]
        {
            assert_eq!(parse_human(text), Err(SizeError { text: text.to_owned() }));
        }
    }

    #[test]
    fn defaults_read_like_those_of_bcache() {
        let volume = VolumeSettings::default();
        for (name, text) in [
            ("cache_mode", "[writethrough] writeback writearound none"),
            ("label", ""),
            ("sequential_cutoff", "4.0M"),
            ("readahead_cache_policy", "[all] meta-only"),
            ("writeback_running", "1"),
            ("writeback_percent", "10"),
            ("writeback_delay", "30"),
            ("writeback_rate_update_seconds", "5"),
            ("writeback_rate_p_term_inverse", "40"),
            ("writeback_rate_i_term_inverse", "10000"),
            ("writeback_rate_minimum", "8"),
            ("writeback_consider_fragment", "1"),
            ("writeback_rate_fp_term_low", "1"),
            ("writeback_rate_fp_term_mid", "10"),
            ("writeback_rate_fp_term_high", "1000"),
            ("writeback_metadata", "1"),
            ("io_error_limit", "64"),
            ("io_disable", "0"),
            ("stop_when_cache_set_failed", "[auto] always"),
        ] {
            assert_eq!(volume.get(name).as_deref(), Some(text), "{name}");
        }
        let set = SetSettings::default();
        for (name, text) in [
            ("journal_delay_ms", "100"),
            ("congested_read_threshold_us", "2000"),
            ("congested_write_threshold_us", "20000"),
            ("errors", "[unregister] panic"),
            ("io_error_limit", "8"),
            ("io_error_halflife", "0"),
            ("gc_after_writeback", "0"),
            ("copy_gc_enabled", "1"),
            ("idle_max_writeback_rate", "1"),
            ("cutoff_writeback", "40"),
            ("cutoff_writeback_sync", "70"),
            ("cache_replacement_policy", "[lru] fifo random"),
            ("discard", "0"),
        ] {
            assert_eq!(set.get(name).as_deref(), Some(text), "{name}");
        }
    }

    /// Sets, then shows.
    fn volume(name: &str, value: &str) -> Result<String, AttributeError> {
        let mut settings = VolumeSettings::default();
        settings.set(name, value)?;
        Ok(settings.get(name).expect("what can be set can be shown"))
    }

    fn set(name: &str, value: &str) -> Result<String, AttributeError> {
        let mut settings = SetSettings::default();
        settings.set(name, value)?;
        Ok(settings.get(name).expect("what can be set can be shown"))
    }

    #[test]
    fn values_take_effect_and_are_moved_into_range() {
        for (name, value, shown) in [
            ("cache_mode", "writeback\n", "writethrough [writeback] writearound none"),
            ("label", "my disk\n", "my disk"),
            ("sequential_cutoff", "0", "0.0k"),
            ("sequential_cutoff", "16M", "16.0M"),
            ("sequential_cutoff", "1t", "3.9G"),
            ("writeback_percent", "100", "40"),
            ("writeback_running", "17", "1"),
            ("writeback_rate_update_seconds", "0", "1"),
            ("writeback_rate_update_seconds", "99999999999999999999999", "60"),
            ("writeback_rate_minimum", "0", "1"),
            ("writeback_rate_fp_term_low", "10", "9"),
            ("writeback_rate_fp_term_mid", "0", "2"),
            ("writeback_rate_fp_term_mid", "5000", "999"),
            ("writeback_rate_fp_term_high", "1", "11"),
            ("stop_when_cache_set_failed", "always", "auto [always]"),
        ] {
            assert_eq!(volume(name, value).as_deref(), Ok(shown), "{name} {value}");
        }
        for (name, value, shown) in [
            ("journal_delay_ms", "100000", "65535"),
            ("io_error_halflife", "200", "176"),
            ("cutoff_writeback", "0", "40"),
            ("cutoff_writeback", "99", "70"),
            ("cutoff_writeback_sync", "10", "40"),
            ("cutoff_writeback_sync", "99", "90"),
            ("cutoff_writeback_sync", "0", "70"),
            ("cache_replacement_policy", "random", "lru fifo [random]"),
        ] {
            assert_eq!(set(name, value).as_deref(), Ok(shown), "{name} {value}");
        }
    }

    #[test]
    fn errors_say_what_is_accepted() {
        for (name, value, message) in [
            (
                "cache_mode",
                "writeboth",
                "cache_mode can not be \"writeboth\": expected one of writethrough, writeback, writearound, none",
            ),
            (
                "writeback_percent",
                "10%",
                "writeback_percent can not be \"10%\": expected a whole number from 0 to 40",
            ),
            ("writeback_running", "yes\n", "writeback_running can not be \"yes\": expected 0 or 1"),
            (
                "writeback_delay",
                "-1",
                "writeback_delay can not be \"-1\": expected a whole number from 0 to 4294967295",
            ),
            ("dirty_data", "0", "dirty_data can only be read"),
        ] {
            assert_eq!(volume(name, value).map_err(|error| error.to_string()), Err(message.to_owned()));
        }
        let long = "x".repeat(33);
        assert!(matches!(volume("label", &long), Err(AttributeError::BadValue { .. })));
        assert!(
            volume("sequential_cutoff", "4 apples")
                .expect_err("garbage")
                .to_string()
                .contains("powers of 1024")
        );
        let unknown = set("readahead", "1").expect_err("there is no such attribute");
        assert!(
            unknown
                .to_string()
                .starts_with("there is no attribute \"readahead\"; known are journal_delay_ms, ")
        );
        assert_eq!(set("congested", "1"), Err(AttributeError::ReadOnly { name: "congested".to_owned() }));
    }

    #[test]
    fn an_error_changes_nothing() {
        let mut settings = VolumeSettings::default();
        for name in VolumeSettings::names() {
            // A label may be any text.
            let value = if *name == "label" { "\0" } else { "?" };
            assert!(settings.set(name, value).is_err(), "{name}");
        }
        assert_eq!(settings, VolumeSettings::default());
        let mut settings = SetSettings::default();
        assert!(SetSettings::names().iter().all(|name| settings.set(name, "").is_err()));
        assert_eq!(settings, SetSettings::default());
    }

    proptest! {
        /// Saved settings are restored exactly, whatever was set before.
        #[test]
        fn plain_values_restore_the_settings(
            changes in prop::collection::vec((any::<prop::sample::Index>(), "[0-9]{1,12}|writeback|meta-only|fifo"), 0..60),
        ) {
            let (mut volume, mut set) = (VolumeSettings::default(), SetSettings::default());
            for (index, value) in &changes {
                let (volume_names, set_names) = (VolumeSettings::names(), SetSettings::names());
                let _ = volume.set(volume_names[index.index(volume_names.len())], value);
                let _ = set.set(set_names[index.index(set_names.len())], value);
            }
            let terms = (volume.writeback_rate_fp_term_low, volume.writeback_rate_fp_term_mid);
            prop_assert!(0 < terms.0 && terms.0 < terms.1 && terms.1 < volume.writeback_rate_fp_term_high);
            prop_assert!(set.cutoff_writeback <= set.cutoff_writeback_sync);

            let (mut restored, mut restored_set) = (VolumeSettings::default(), SetSettings::default());
            for _ in 0..2 {
                for name in VolumeSettings::names() {
                    restored.set(name, &volume.plain(name).expect("listed")).expect("was accepted before");
                }
                for name in SetSettings::names() {
                    restored_set.set(name, &set.plain(name).expect("listed")).expect("was accepted before");
                }
            }
            prop_assert_eq!(restored, volume);
            prop_assert_eq!(restored_set, set);
        }

        #[test]
        fn sizes_survive_reading(number in 0..1_u64 << 24, power in 0..5_usize) {
            let suffix = ["", "k", "M", "g", "T"][power];
            prop_assert_eq!(parse_human(&format!("{number}{suffix}")), Ok(number << (10 * power)));
        }

        /// Twice, in fact: what is below 1/1024 of the unit is dropped before the tenths are taken.
        #[test]
        fn human_is_truncated_never_rounded_up(bytes in 0..1_i64 << 50) {
            let text = human(bytes);
            let (number, suffix) = text.split_at(text.len() - 1);
            let power = "kMGTPE".find(suffix).expect("a known suffix") + 1;
            let tenths: f64 = number.parse().expect("a decimal number");
            let exact = bytes as f64 / 1024_f64.powi(power as i32);
            prop_assert!(tenths <= exact && exact < tenths + 0.1 + 1.0 / 1024.0 && tenths < 1000.0);
        }
    }
}
