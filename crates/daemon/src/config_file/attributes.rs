//! Attributes in a file: their names, their values and ranges.

use std::collections::BTreeSet;

use toml::de::{DeTable, DeValue};
use ubcache_engine::settings::{SetSettings, VolumeSettings};

use super::kind::{found, integer, parse_time};
use super::reader::{Source, unknown};

/// Owner of attributes in a file.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    /// All volumes, and the set.
    Set,
    /// One volume.
    Volume,
}

/// Reads a table of attributes: names and values, as `ubcache set` takes them.
pub(super) fn read(
    source: &mut Source<'_>,
    owner: Owner,
    given: &DeTable<'_>,
) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let mut entries: Vec<_> = given.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    for (name, value) in entries {
        let (place, name): (_, &str) = (name.span(), name.get_ref());
        match check(owner, name, value.get_ref()) {
            Ok(value) => settings.push((name.to_owned(), value)),
            Err(Wrong::Name(why)) => source.fault(&place, why),
            Err(Wrong::Value(why)) => source.fault(&value.span(), why),
        }
    }
    settings
}

enum Wrong {
    Name(String),
    Value(String),
}

fn check(owner: Owner, name: &str, value: &DeValue<'_>) -> Result<String, Wrong> {
    let of_volume = VolumeSettings::names().contains(&name);
    let of_set = SetSettings::names().contains(&name);
    match owner {
        Owner::Set if name == "label" => {
            return Err(Wrong::Name("label: each volume has its own: [volume.attributes]".into()));
        }
        Owner::Set if !of_volume && !of_set => {
            let known: BTreeSet<&str> =
                VolumeSettings::names().into_iter().chain(SetSettings::names()).collect();
            let known: Vec<&str> = known.into_iter().collect();
            return Err(Wrong::Name(unknown("attribute", name, &known)));
        }
        Owner::Volume if !of_volume && of_set => {
            return Err(Wrong::Name(format!(
                "{name}: an attribute of the set: [attributes], before the first [[volume]]"
            )));
        }
        Owner::Volume if !of_volume => {
            return Err(Wrong::Name(unknown("attribute", name, &VolumeSettings::names())));
        }
        _ => {}
    }
    let text = as_text(name, value).map_err(Wrong::Value)?;
    let set = match of_volume {
        true => VolumeSettings::default().set(name, &text),
        false => SetSettings::default().set(name, &text),
    };
    set.map_err(|error| Wrong::Value(error.to_string()))?;
    Ok(text)
}

/// The unit of an attribute, as a suffix of its value.
enum Unit {
    Percent,
    /// Time, in so many microseconds.
    Time(u64),
    None,
}

fn unit(name: &str) -> Unit {
    match name {
        "writeback_percent" | "cutoff_writeback" | "cutoff_writeback_sync" => Unit::Percent,
        "writeback_delay" | "writeback_rate_update_seconds" => Unit::Time(1_000_000),
        name if name.ends_with("_us") => Unit::Time(1),
        name if name.ends_with("_ms") => Unit::Time(1000),
        _ => Unit::None,
    }
}

/// A value as `ubcache set` takes it, without its unit.
fn as_text(name: &str, value: &DeValue<'_>) -> Result<String, String> {
    let text = match value {
        DeValue::Boolean(switch) => return Ok(u8::from(*switch).to_string()),
        DeValue::String(text) => text.as_ref(),
        value => {
            let number = integer(value).map(|number| number.to_string());
            return number.ok_or_else(|| {
                format!("{name}: found {}, expected text, a number, or true or false", found(value))
            });
        }
    };
    match unit(name) {
        Unit::Percent => Ok(text.strip_suffix('%').unwrap_or(text).to_owned()),
        Unit::Time(unit) => match parse_time(text) {
            Some(time) if time.is_multiple_of(unit) => Ok((time / unit).to_string()),
            Some(_) => Err(format!(
                "{name}: found \"{text}\", expected whole {}",
                super::kind::show_time(unit).trim_start_matches('1')
            )),
            None => Ok(text.to_owned()),
        },
        Unit::None => Ok(text.to_owned()),
    }
}
