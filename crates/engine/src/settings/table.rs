//! Table of all attributes: what each takes, what it does, and how long it is kept.
//!
//! `set` and `get` read and check values by it, `ubcache get --all` shows it, error messages name
//! its ranges, and a test compares docs/reference/attributes.md with it.

use self::Kept::{No, Superblock, UntilRestart};
use self::Unit::{Microseconds, Milliseconds, Percent, Seconds, SectorsPerSecond};
use self::Values::{Action, Choice, Number, Size, Switch, Text};

/// The largest signed number that the driver keeps in 32 bits.
const MAX_31: u64 = i32::MAX as u64;
/// The largest number that the driver keeps in 32 bits.
const MAX_32: u64 = u32::MAX as u64;

/// Owner of an attribute.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Owner {
    /// Each volume.
    Volume,
    /// The set, or its cache device.
    Set,
}

/// Values of an attribute.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Values {
    /// A whole number, in the attribute's unit.
    Number(u64, u64),
    /// A number of bytes.
    Size(u64, u64),
    /// 0 or 1.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A text of at most so many bytes.
    Text(usize),
    /// Anything: writing it is what counts.
    Action,
    /// None: it can only be read.
    Reported,
}

/// Unit of a number.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Unit {
    /// None: a count, a word, a text.
    None,
    /// Bytes; `k`, `M`, `G` and so on are powers of 1024.
    Bytes,
    /// Per cent.
    Percent,
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Milliseconds,
    /// Microseconds.
    Microseconds,
    /// Sectors of 512 bytes in a second.
    SectorsPerSecond,
}

impl Unit {
    /// Unit as it stands behind a number.
    pub fn word(self) -> &'static str {
        match self {
            Unit::None => "",
            Unit::Bytes => "bytes",
            Unit::Percent => "%",
            Unit::Seconds => "s",
            Unit::Milliseconds => "ms",
            Unit::Microseconds => "us",
            Unit::SectorsPerSecond => "sectors/s",
        }
    }

    /// Microseconds of a unit of time.
    pub fn micros(self) -> Option<u64> {
        match self {
            Unit::Seconds => Some(1_000_000),
            Unit::Milliseconds => Some(1000),
            Unit::Microseconds => Some(1),
            _ => None,
        }
    }
}

/// Time for which a value is kept.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Kept {
    /// In a superblock: for good.
    Superblock,
    /// Until the daemon ends; an upgrade keeps it.
    UntilRestart,
    /// It is no value that could be kept.
    No,
}

impl Kept {
    /// Time in words.
    pub fn word(self) -> &'static str {
        match self {
            Kept::Superblock => "superblock",
            Kept::UntilRestart => "until restart",
            Kept::No => "",
        }
    }
}

/// An attribute.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Attribute {
    /// bcache's name.
    pub name: &'static str,
    /// Owner.
    pub owner: Owner,
    /// Accepted values.
    pub values: Values,
    /// Unit of numbers.
    pub unit: Unit,
    /// Time for which a value is kept.
    pub kept: Kept,
    /// Effect, in a line.
    pub effect: &'static str,
}

impl Attribute {
    /// Accepted values in words; empty if it can only be read.
    pub fn range(&self) -> String {
        match self.values {
            Values::Number(least, most) => format!("{least} to {most}"),
            Values::Size(least, most) => format!("{least} to {most}"),
            Values::Switch => "0, 1".to_owned(),
            Values::Choice(words) => words.join(", "),
            Values::Text(bytes) => format!("at most {bytes} bytes"),
            Values::Action => "anything".to_owned(),
            Values::Reported => String::new(),
        }
    }

    /// Returns true if it can be set.
    pub fn is_setting(&self) -> bool {
        !matches!(self.values, Values::Reported)
    }
}

const fn setting(
    name: &'static str,
    values: Values,
    unit: Unit,
    kept: Kept,
    effect: &'static str,
) -> Attribute {
    Attribute { name, owner: Owner::Volume, values, unit, kept, effect }
}

const fn reported(name: &'static str, effect: &'static str) -> Attribute {
    setting(name, Values::Reported, Unit::None, Kept::No, effect)
}

const fn of_set(attribute: Attribute) -> Attribute {
    Attribute { owner: Owner::Set, ..attribute }
}

const NO_EFFECT: &str = "no effect here; taken so that scripts for the driver run";

/// Attributes of volumes.
pub const OF_VOLUMES: &[Attribute] = &[
    setting(
        "cache_mode",
        Choice(&["writethrough", "writeback", "writearound", "none"]),
        Unit::None,
        Superblock,
        "path of writes: to disk and cache, to the cache first, past the cache; none: reads too",
    ),
    setting("label", Text(32), Unit::None, Superblock, "name of the export from the next start on"),
    setting(
        "sequential_cutoff",
        Size(0, MAX_32),
        Unit::Bytes,
        UntilRestart,
        "longer sequential runs go past the cache; 0: never",
    ),
    setting(
        "readahead",
        Size(0, 4 << 20),
        Unit::Bytes,
        UntilRestart,
        "a miss is cached with the rest of the part of this size that it is in; 0: alone",
    ),
    setting(
        "readahead_cache_policy",
        Choice(&["all", "meta-only"]),
        Unit::None,
        UntilRestart,
        NO_EFFECT,
    ),
    setting("writeback_running", Switch, Unit::None, UntilRestart, "0: no background writeback"),
    setting(
        "writeback_percent",
        Number(0, 40),
        Percent,
        UntilRestart,
        "share of the cache that may be dirty before writeback speeds up; 0: always at full speed",
    ),
    setting(
        "writeback_delay",
        Number(0, MAX_32),
        Seconds,
        UntilRestart,
        "pause between two passes of writeback over the dirty data",
    ),
    setting(
        "writeback_rate_update_seconds",
        Number(1, 60),
        Seconds,
        UntilRestart,
        "time between two updates of the rate",
    ),
    setting(
        "writeback_rate_p_term_inverse",
        Number(1, MAX_32),
        Seconds,
        UntilRestart,
        "what is too much is to be written in this time",
    ),
    setting(
        "writeback_rate_i_term_inverse",
        Number(1, MAX_32),
        Unit::None,
        UntilRestart,
        "weight of a long-lasting difference; larger: slower",
    ),
    setting(
        "writeback_rate_minimum",
        Number(1, MAX_32),
        SectorsPerSecond,
        UntilRestart,
        "the rate is never lower",
    ),
    setting(
        "writeback_consider_fragment",
        Switch,
        Unit::None,
        UntilRestart,
        "1: dirty data in many buckets is written faster",
    ),
    setting(
        "writeback_rate_fp_term_high",
        Number(1, MAX_32),
        Unit::None,
        UntilRestart,
        "how much faster, above 64 % dirty buckets; above the term below it",
    ),
    setting(
        "writeback_rate_fp_term_mid",
        Number(1, MAX_32),
        Unit::None,
        UntilRestart,
        "the same above 57 %",
    ),
    setting(
        "writeback_rate_fp_term_low",
        Number(1, MAX_32),
        Unit::None,
        UntilRestart,
        "the same above 50 %",
    ),
    setting("writeback_metadata", Switch, Unit::None, UntilRestart, NO_EFFECT),
    setting("io_error_limit", Number(0, MAX_31), Unit::None, UntilRestart, NO_EFFECT),
    setting("io_disable", Switch, Unit::None, UntilRestart, NO_EFFECT),
    setting(
        "stop_when_cache_set_failed",
        Choice(&["auto", "always"]),
        Unit::None,
        UntilRestart,
        NO_EFFECT,
    ),
    setting(
        "writeback_rate",
        Size(1, u64::MAX),
        SectorsPerSecond,
        No,
        "rate of writeback until its next update; shown in bytes a second",
    ),
    setting(
        "scrub_rate",
        Size(0, 1 << 40),
        Unit::Bytes,
        UntilRestart,
        "bytes a second that a scrub compares at most; 0: no limit; no attribute of bcache",
    ),
    setting("clear_stats", Action, Unit::None, No, "has stats_total begin anew"),
    reported("state", "no cache, clean, dirty or failed"),
    reported("dirty_data", "data that only the cache has"),
    reported("writeback_rate_debug", "the rate of writeback, and what it comes from"),
    reported("running", "1"),
    reported("io_errors", "errors of the backing device"),
    reported("stripe_size", "1 TiB: not known"),
    reported("partial_stripes_expensive", "0"),
    reported("backing_dev_uuid", "UUID of the backing device"),
];

/// Attributes of a set and its cache device.
pub const OF_SETS: &[Attribute] = &[
    of_set(setting(
        "journal_delay_ms",
        Number(0, 65535),
        Milliseconds,
        UntilRestart,
        "longest delay of a change before it is journaled, without a flush",
    )),
    of_set(setting(
        "congested_read_threshold_us",
        Number(0, MAX_32),
        Microseconds,
        UntilRestart,
        "long runs bypass a cache whose reads take longer; 0: never",
    )),
    of_set(setting(
        "congested_write_threshold_us",
        Number(0, MAX_32),
        Microseconds,
        UntilRestart,
        "the same for writes",
    )),
    of_set(setting(
        "errors",
        Choice(&["unregister", "panic"]),
        Unit::None,
        UntilRestart,
        NO_EFFECT,
    )),
    of_set(setting(
        "io_error_limit",
        Number(0, MAX_32),
        Unit::None,
        UntilRestart,
        "so many errors of the cache device fail the set; 0: none do",
    )),
    of_set(setting("io_error_halflife", Number(0, MAX_32), Unit::None, UntilRestart, NO_EFFECT)),
    of_set(setting("gc_after_writeback", Switch, Unit::None, UntilRestart, NO_EFFECT)),
    of_set(setting(
        "copy_gc_enabled",
        Switch,
        Unit::None,
        UntilRestart,
        "1: data of nearly empty buckets is moved together",
    )),
    of_set(setting(
        "gc_always_rewrite",
        Switch,
        Unit::None,
        UntilRestart,
        "1: garbage collection rewrites every node of the index",
    )),
    of_set(setting(
        "idle_max_writeback_rate",
        Switch,
        Unit::None,
        UntilRestart,
        "1: writeback at full speed when no requests come",
    )),
    of_set(setting("io_disable", Switch, Unit::None, UntilRestart, NO_EFFECT)),
    of_set(setting(
        "cutoff_writeback",
        Number(0, 70),
        Percent,
        UntilRestart,
        "no writeback-mode writes above so many buckets in use; 0: the default",
    )),
    of_set(setting(
        "cutoff_writeback_sync",
        Number(0, 90),
        Percent,
        UntilRestart,
        "the same for writes that must be durable; not below the other; 0: the default",
    )),
    of_set(setting(
        "cache_replacement_policy",
        Choice(&["lru", "fifo", "random", "scan-resistant", "two-queue", "adaptive"]),
        Unit::None,
        Superblock,
        "choice of the clean data that is evicted",
    )),
    of_set(setting(
        "discard",
        Switch,
        Unit::None,
        Superblock,
        "1: freed buckets are discarded before they are used again",
    )),
    of_set(setting("trigger_gc", Action, Unit::None, No, "starts a garbage collection")),
    of_set(setting("clear_stats", Action, Unit::None, No, "has stats_total begin anew")),
    of_set(reported("cache_available_percent", "buckets that hold no dirty data and no metadata")),
    of_set(reported("bucket_size", "size of a bucket")),
    of_set(reported("block_size", "the smallest unit of the cache device")),
    of_set(reported("nbuckets", "number of buckets")),
    of_set(reported(
        "cache_replacement_leader",
        "replacement policy that chooses now; with adaptive the one with most hits of late",
    )),
    of_set(reported("priority_stats", "content and coldness of the buckets")),
    of_set(reported("btree_nodes", "leaves of the index")),
    of_set(reported("tree_depth", "level of the root of the index; 0: a single leaf")),
    of_set(reported("active_journal_entries", "journal entries that a restart would replay")),
];

/// The attributes of an owner.
pub fn attributes_of(owner: Owner) -> &'static [Attribute] {
    match owner {
        Owner::Volume => OF_VOLUMES,
        Owner::Set => OF_SETS,
    }
}

/// The attribute of this name.
pub fn attribute(owner: Owner, name: &str) -> Option<&'static Attribute> {
    attributes_of(owner).iter().find(|attribute| attribute.name == name)
}

/// The name that is most like this one, if any is like it.
pub fn nearest(name: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let most = name.chars().count().div_ceil(3);
    let near = known.map(|other| (distance(name, other), other));
    near.filter(|(distance, _)| *distance <= most).min().map(|(_, other)| other)
}

/// Number of characters to insert, remove or replace to make one text of another.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, from) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = at + 1;
        for (index, to) in b.iter().enumerate() {
            let replaced = before + usize::from(from != *to);
            before = row[index + 1];
            row[index + 1] = replaced.min(before + 1).min(row[index] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_name_is_the_one_that_was_meant() {
        let names = || OF_VOLUMES.iter().map(|attribute| attribute.name);
        for (given, meant) in [
            ("cachemode", Some("cache_mode")),
            ("writeback-percent", Some("writeback_percent")),
            ("sequential_cut_off", Some("sequential_cutoff")),
            ("volume", None),
            ("", None),
        ] {
            assert_eq!(nearest(given, names()), meant, "{given}");
        }
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
