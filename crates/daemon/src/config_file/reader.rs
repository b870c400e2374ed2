//! The tables of a file: values by their keys, and all faults.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::fault::{Fault, Place};
use super::keys::{self, Key, Table, nearest};
use super::kind::{Kind, Value, found};

/// The text of a file, and the faults that were found in it.
pub(super) struct Source<'a> {
    pub file: &'a Path,
    pub text: &'a str,
    pub faults: Vec<Fault>,
}

impl Source<'_> {
    pub fn fault(&mut self, place: &Range<usize>, what: impl std::fmt::Display) {
        let fault = Fault::at(self.file, self.place(place), what);
        self.faults.push(fault);
    }

    pub fn place(&self, place: &Range<usize>) -> Place {
        Place::of(self.text, place.start)
    }
}

/// The values of a table that could be read.
#[derive(Debug, Default)]
pub(super) struct Values {
    values: BTreeMap<&'static str, (Value, Range<usize>)>,
    /// Place of the table.
    pub place: Range<usize>,
}

impl Values {
    /// Reads a table. Tables in it are for the caller.
    pub fn read(
        source: &mut Source<'_>,
        table: Table,
        given: &DeTable<'_>,
        place: Range<usize>,
    ) -> Values {
        let mut values = BTreeMap::new();
        for (name, value) in given {
            let Some(key) = keys::find(table, name.get_ref()) else {
                let known: Vec<&str> = keys::of_table(table).map(|key| key.name).collect();
                source.fault(&name.span(), unknown("key", name.get_ref(), &known));
                continue;
            };
            if matches!(key.kind, Kind::Table | Kind::Tables | Kind::Attributes) {
                continue;
            }
            match key.kind.read(value.get_ref()) {
                Ok(read) => {
                    values.insert(key.name, (read, value.span()));
                }
                Err(why) => source.fault(&value.span(), format_args!("{}: {why}", key.name)),
            }
        }
        Values { values, place }
    }

    /// Place of a value, or of its table.
    pub fn place(&self, name: &str) -> Range<usize> {
        self.values.get(name).map_or_else(|| self.place.clone(), |(_, place)| place.clone())
    }

    pub fn text(&self, name: &str) -> Option<String> {
        match self.values.get(name) {
            Some((Value::Text(text), _)) => Some(text.clone()),
            _ => None,
        }
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        match self.values.get(name) {
            Some((Value::Number(number), _)) => Some(*number),
            _ => None,
        }
    }

    pub fn is_on(&self, name: &str) -> bool {
        matches!(self.values.get(name), Some((Value::Switch(true), _)))
    }

    /// The items of a list, each of which was found to be of its kind.
    pub fn list<T: std::str::FromStr>(&self, name: &str) -> Vec<T> {
        match self.values.get(name) {
            Some((Value::List(list), _)) => {
                list.iter().filter_map(|text| text.parse().ok()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// All values, as they are shown.
    pub fn shown(&self, table: Table) -> impl Iterator<Item = (&'static Key, String)> {
        keys::of_table(table).filter_map(|key| {
            let (value, _) = self.values.get(key.name)?;
            Some((key, key.kind.show(value)))
        })
    }
}

/// A name that is not known, with the nearest that is, or with all.
pub(super) fn unknown(kind: &str, name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(meant) => format!("unknown {kind} \"{name}\": did you mean \"{meant}\"?"),
        None => format!("unknown {kind} \"{name}\": expected one of {}", known.join(", ")),
    }
}

/// The table of a key; a fault if the key has something else.
pub(super) fn table_of<'a, 'i>(
    source: &mut Source<'_>,
    table: Table,
    given: &'a DeTable<'i>,
    name: &str,
) -> Option<(&'a DeTable<'i>, Range<usize>)> {
    let (key, value) = given.iter().find(|(key, _)| key.get_ref() == name)?;
    let known = keys::find(table, name)?;
    match value.get_ref() {
        DeValue::Table(table) => Some((table, key.span())),
        other => {
            let (found, kind) = (found(other), known.kind);
            source.fault(&value.span(), format_args!("{name}: found {found}, expected {kind}"));
            None
        }
    }
}
