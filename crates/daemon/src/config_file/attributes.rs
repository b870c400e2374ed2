//! Attributes in a file: names, values and ranges are those of the engine's table.

use std::collections::BTreeSet;

use toml::de::{DeTable, DeValue};
use ubcache_engine::settings::table::{self, Attribute, Kept, Unit};
use ubcache_engine::settings::{SetSettings, VolumeSettings};

use super::kind::{found, integer, parse_time, show_time};
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
    let of_volume = setting(table::Owner::Volume, name);
    let attribute = match (owner, of_volume, setting(table::Owner::Set, name)) {
        (Owner::Set, _, _) if name == "label" => {
            return Err(Wrong::Name("label: each volume has its own: [volume.attributes]".into()));
        }
        (_, Some(attribute), _) | (Owner::Set, None, Some(attribute)) => attribute,
        (Owner::Volume, None, Some(_)) => {
            return Err(Wrong::Name(format!(
                "{name}: an attribute of the set: [attributes], before the first [[volume]]"
            )));
        }
        (_, None, None) => {
            let of_sets = if owner == Owner::Set { table::OF_SETS } else { &[] };
            let known = table::OF_VOLUMES.iter().chain(of_sets).filter(|it| it.kept != Kept::No);
            let known: BTreeSet<&str> = known.map(|it| it.name).collect();
            let known: Vec<&str> = known.into_iter().collect();
            return Err(Wrong::Name(unknown("attribute", name, &known)));
        }
    };
    let text = as_text(attribute, value).map_err(Wrong::Value)?;
    let set = match of_volume {
        Some(_) => VolumeSettings::default().set(name, &text),
        None => SetSettings::default().set(name, &text),
    };
    set.map_err(|error| Wrong::Value(error.to_string()))?;
    Ok(text)
}

/// The attribute of this name, if it has a value that a file can give.
fn setting(owner: table::Owner, name: &str) -> Option<&'static Attribute> {
    table::attribute(owner, name).filter(|attribute| attribute.kept != Kept::No)
}

/// A value as `ubcache set` takes it, without its unit.
fn as_text(attribute: &Attribute, value: &DeValue<'_>) -> Result<String, String> {
    let name = attribute.name;
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
    match (attribute.unit, attribute.unit.micros()) {
        (Unit::Percent, _) => Ok(text.strip_suffix('%').unwrap_or(text).to_owned()),
        (_, Some(unit)) => match parse_time(text) {
            Some(time) if time.is_multiple_of(unit) => Ok((time / unit).to_string()),
            Some(_) => Err(format!(
                "{name}: found \"{text}\", expected whole {}",
                show_time(unit).trim_start_matches('1')
            )),
            None => Ok(text.to_owned()),
        },
        _ => Ok(text.to_owned()),
    }
}
