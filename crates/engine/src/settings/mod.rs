//! Settings: the attributes that users read and write, with bcache's names, values and formats.
//!
//! [`VolumeSettings`] are those of one cached volume, [`SetSettings`] those of a cache set and its
//! cache device. Both are plain values: [`VolumeSettings::set`] takes the text that a user writes,
//! [`VolumeSettings::get`] gives the text that a user reads, and whoever owns the value acts on
//! changes. Formats, as scripts know them:
//!
//! * **numbers** are decimal, with `%` or a unit of time (`30s`, `100ms`) where that is meant; one
//!   out of range is refused, which the driver moves to the nearest end of the range;
//! * **sizes** are read in bytes, with an optional suffix `k` … `y` (powers of 1024) everywhere a
//!   size is meant (the driver takes suffixes in some places only), and shown as `4.0k`, `512.0M`;
//! * **switches** are 0 or 1; the driver takes every other number for 1, here it is refused;
//! * **choices** are shown as `writethrough [writeback] writearound none` and set by one of the
//!   words.
//!
//! A value that is shown can't always be set: [`VolumeSettings::plain`] gives the exact value in
//! the form that `set` takes, for saving. Some ranges depend on other settings, so saved values are
//! to be set in the order of [`VolumeSettings::names`], twice.
//!
//! | module | holds |
//! |---|---|
//! | [`table`] | all attributes: range, unit, effect, how long they are kept |
//! | `volume` | the settings of a volume |
//! | `set` | the settings of a set and its cache device |
//! | `text` | reading and showing values |

mod set;
pub mod table;
mod text;
mod volume;

pub use set::{ErrorAction, ReplacementPolicy, SetSettings};
pub use text::{SizeError, human, parse_human};
pub use volume::{ReadaheadPolicy, StopPolicy, VolumeSettings};

/// Fault in the name or the value of an attribute.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AttributeError {
    /// There is no such attribute.
    #[error("there is no attribute \"{name}\"{}; known are {}", meant(name, known),
        known.join(", "))]
    UnknownName {
        /// The name as given.
        name: String,
        /// The names that can be set.
        known: Vec<&'static str>,
    },
    /// The attribute does not take this value.
    #[error("{name} can not be \"{value}\": expected {expected}")]
    BadValue {
        /// The name of the attribute.
        name: String,
        /// The value as given.
        value: String,
        /// Values that are accepted.
        expected: String,
    },
    /// The value is out of the attribute's range.
    #[error("{name}: {value} is out of range: expected {range}")]
    OutOfRange {
        /// The name of the attribute.
        name: String,
        /// The value as given.
        value: String,
        /// The range, with its unit.
        range: String,
    },
    /// The attribute can only be read.
    #[error("{name} can only be read")]
    ReadOnly {
        /// The name of the attribute.
        name: String,
    },
}

/// Words that name the known name that is most like an unknown one.
fn meant(name: &str, known: &[&'static str]) -> String {
    let near = table::nearest(name, known.iter().copied());
    near.map_or_else(String::new, |near| format!(": did you mean \"{near}\"?"))
}

/// The value of a setting that nobody has set, in the form that `set` takes.
pub fn default_of(attribute: &table::Attribute) -> Option<String> {
    match attribute.owner {
        table::Owner::Volume => VolumeSettings::default().plain(attribute.name),
        table::Owner::Set => SetSettings::default().plain(attribute.name),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_print_as_in_sysfs() {
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
    fn sizes_parse_as_in_sysfs() {
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
        for text in [
            "",
            "k",
            "4kb",
            "4.0k",
            "-1",
            "+1",
            "0x10",
            "1 k",
            "16e",
            "1z",
            "18446744073709551616",
            "4µ",
        ] {
            assert_eq!(parse_human(text), Err(SizeError { text: text.to_owned() }));
        }
    }

    #[test]
    fn defaults_equal_those_of_bcache() {
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
            ("cache_replacement_policy", "[lru] fifo random scan-resistant two-queue adaptive"),
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
    fn values_take_effect() {
        for (name, value, shown) in [
            ("cache_mode", "writeback\n", "writethrough [writeback] writearound none"),
            ("label", "my disk\n", "my disk"),
            ("sequential_cutoff", "0", "0.0k"),
            ("sequential_cutoff", "16M", "16.0M"),
            ("writeback_percent", "20%", "20"),
            ("writeback_percent", "20", "20"),
            ("writeback_delay", "5min", "300"),
            ("writeback_delay", "45s", "45"),
            ("writeback_delay", "2000ms", "2"),
            ("writeback_running", "0", "0"),
            ("writeback_rate_fp_term_low", "9", "9"),
            ("writeback_rate_fp_term_mid", "999", "999"),
            ("stop_when_cache_set_failed", "always", "auto [always]"),
        ] {
            assert_eq!(volume(name, value).as_deref(), Ok(shown), "{name} {value}");
        }
        for (name, value, shown) in [
            ("journal_delay_ms", "1s", "1000"),
            ("congested_read_threshold_us", "3ms", "3000"),
            ("io_error_halflife", "200", "176"),
            ("cutoff_writeback", "0", "40"),
            ("cutoff_writeback", "70%", "70"),
            ("cutoff_writeback_sync", "0", "70"),
            (
                "cache_replacement_policy",
                "random",
                "lru fifo [random] scan-resistant two-queue adaptive",
            ),
        ] {
            assert_eq!(set(name, value).as_deref(), Ok(shown), "{name} {value}");
        }
    }

    #[test]
    fn errors_list_the_accepted_values() {
        for (name, value, message) in [
            (
                "cache_mode",
                "writeboth",
                "cache_mode can not be \"writeboth\": expected one of writethrough, writeback, \
                 writearound, none",
            ),
            (
                "writeback_percent",
                "100%",
                "writeback_percent: 100% is out of range: expected 0 to 40 %",
            ),
            ("writeback_running", "yes\n", "writeback_running can not be \"yes\": expected 0 or 1"),
            ("io_disable", "2", "io_disable can not be \"2\": expected 0 or 1"),
            (
                "writeback_delay",
                "-1",
                "writeback_delay can not be \"-1\": expected a whole number from 0 to 4294967295 \
                 (seconds), or with ms, s, min or h",
            ),
            (
                "writeback_rate_update_seconds",
                "0",
                "writeback_rate_update_seconds: 0 is out of range: expected 1 to 60 s",
            ),
            (
                "writeback_rate_fp_term_low",
                "10",
                "writeback_rate_fp_term_low: 10 is out of range: expected 1 to 9",
            ),
            ("dirty_data", "0", "dirty_data can only be read"),
        ] {
            assert_eq!(
                volume(name, value).map_err(|error| error.to_string()),
                Err(message.to_owned())
            );
        }
        let long = "x".repeat(33);
        assert!(matches!(volume("label", &long), Err(AttributeError::BadValue { .. })));
        assert!(
            volume("sequential_cutoff", "4 apples")
                .expect_err("garbage")
                .to_string()
                .contains("powers of 1024")
        );
        for (name, value) in [
            ("writeback_delay", "1500ms"),
            ("writeback_delay", "3%"),
            ("writeback_percent", "3s"),
            ("io_error_limit", "3s"),
            ("sequential_cutoff", "1t"),
            ("writeback_rate_update_seconds", "99999999999999999999999"),
        ] {
            assert!(volume(name, value).is_err(), "{name} {value}");
        }
        let near = volume("cachemode", "none").expect_err("there is no such attribute");
        let meant = "there is no attribute \"cachemode\": did you mean \"cache_mode\"?; known are ";
        assert!(near.to_string().starts_with(meant), "{near}");
        let unknown = set("readahead", "1").expect_err("there is no such attribute");
        assert!(
            unknown
                .to_string()
                .starts_with("there is no attribute \"readahead\"; known are journal_delay_ms, ")
        );
        assert_eq!(
            set("congested", "1"),
            Err(AttributeError::ReadOnly { name: "congested".to_owned() })
        );
    }

    #[test]
    fn refused_value_changes_nothing() {
        let mut settings = VolumeSettings::default();
        for name in VolumeSettings::names() {
            // A label may be any text.
            let value = if name == "label" { "\0" } else { "?" };
            assert!(settings.set(name, value).is_err(), "{name}");
        }
        assert_eq!(settings, VolumeSettings::default());
        let mut settings = SetSettings::default();
        assert!(SetSettings::names().iter().all(|name| settings.set(name, "").is_err()));
        assert_eq!(settings, SetSettings::default());
    }

    /// Each setting takes the ends of its range, and none beyond; each has a default.
    #[test]
    fn table_is_what_the_settings_take() {
        for attribute in table::OF_VOLUMES.iter().chain(table::OF_SETS) {
            let set = |value: &str| match attribute.owner {
                table::Owner::Volume => {
                    let mut settings = VolumeSettings::default();
                    settings.set(attribute.name, value).map(|()| settings.plain(attribute.name))
                }
                table::Owner::Set => {
                    let mut settings = SetSettings::default();
                    settings.set(attribute.name, value).map(|()| settings.plain(attribute.name))
                }
            };
            let table::Attribute { name, kept, .. } = *attribute;
            assert!(attribute.effect.len() <= 90, "{name}: an effect is a line");
            if kept == table::Kept::No {
                assert_eq!(default_of(attribute), None, "{name} is kept nowhere");
                continue;
            }
            let default = default_of(attribute).expect("a default");
            assert_eq!(set(&default), Ok(Some(default)), "{name}");
            match attribute.values {
                // Their ranges depend on one another, and 0 is the default of cutoffs.
                table::Values::Number(..)
                    if name.contains("_fp_term_") || name.contains("cutoff") => {}
                table::Values::Number(least, most) | table::Values::Size(least, most) => {
                    for value in [least, most] {
                        let shown =
                            if name == "io_error_halflife" { value / 88 * 88 } else { value };
                        assert_eq!(set(&value.to_string()), Ok(Some(shown.to_string())), "{name}");
                    }
                    let beyond = set(&(most + 1).to_string()).expect_err("beyond its range");
                    let range = format!("expected {least} to {most}");
                    assert!(beyond.to_string().contains(&range), "{name}: {beyond}");
                }
                table::Values::Choice(words) => {
                    for word in words {
                        assert_eq!(set(word), Ok(Some((*word).to_owned())), "{name}");
                    }
                    let error = set("?").expect_err("not one of them").to_string();
                    assert!(error.contains(&words.join(", ")), "{error}");
                }
                table::Values::Switch => assert!(set("2").is_err(), "{name}"),
                table::Values::Text(bytes) => {
                    assert!(set(&"x".repeat(bytes + 1)).is_err(), "{name}")
                }
                table::Values::Action | table::Values::Reported => panic!("{name} is kept"),
            }
        }
    }

    proptest! {
        /// Saved settings are restored exactly, whatever was set before.
        #[test]
        fn plain_values_restore_the_settings(
            changes in prop::collection::vec((any::<prop::sample::Index>(),
                "[01]|[0-9]{1,12}|writeback|meta-only|fifo"), 0..60),
        ) {
            let (mut volume, mut set) = (VolumeSettings::default(), SetSettings::default());
            for (index, value) in &changes {
                let (volume_names, set_names) = (VolumeSettings::names(), SetSettings::names());
                let _ = volume.set(volume_names[index.index(volume_names.len())], value);
                let _ = set.set(set_names[index.index(set_names.len())], value);
            }
            let terms = (volume.writeback_rate_fp_term_low, volume.writeback_rate_fp_term_mid);
            prop_assert!(0 < terms.0 && terms.0 < terms.1
                && terms.1 < volume.writeback_rate_fp_term_high);
            prop_assert!(set.cutoff_writeback <= set.cutoff_writeback_sync);

            let (mut restored, mut restored_set) = (VolumeSettings::default(),
                SetSettings::default());
            for again in [false, true] {
                // Some limit others: what the first round refuses, the second one takes.
                for name in VolumeSettings::names() {
                    let set = restored.set(name, &volume.plain(name).expect("listed"));
                    prop_assert!(set.is_ok() || !again, "{:?}", set);
                }
                for name in SetSettings::names() {
                    let set_it = restored_set.set(name, &set.plain(name).expect("listed"));
                    prop_assert!(set_it.is_ok() || !again, "{:?}", set_it);
                }
            }
            prop_assert_eq!(restored, volume);
            prop_assert_eq!(restored_set, set);
        }

        #[test]
        fn sizes_round_trip(number in 0..1_u64 << 24, power in 0..5_usize) {
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
