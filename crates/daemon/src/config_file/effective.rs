//! The values in effect: every key with its value or default; and the differences between two
//! configurations of a set.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::keys::{self, Applied, Table};
use super::kind::Kind;
use super::set_file::SetFile;

/// A key with its value, as in `volume.data.backing`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Setting {
    /// The key with its tables.
    pub key: String,
    /// The value as it is written in a file, or a default in words.
    pub value: String,
    /// The file does not give it.
    pub is_default: bool,
}

/// A key that has changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Change {
    /// The key with its tables.
    pub key: String,
    /// The value in effect; none: the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// The value in the file; none: the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// `live`, `new connections` or `restart`.
    pub applied: String,
    /// `done`, or the reason why not, after `config apply`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
}

/// All keys of a set, in the order of documents.
pub fn effective(set: &SetFile) -> Vec<Setting> {
    let mut all = Vec::new();
    let mut table = |prefix: &str, table: Table| {
        for key in keys::of_table(table) {
            let name = format!("{prefix}{}", key.name);
            match key.kind {
                Kind::Table | Kind::Tables => {}
                Kind::Attributes => {
                    let begin = format!("{name}.");
                    let given = set.given.iter().filter(|(key, _)| key.starts_with(&begin));
                    all.extend(given.map(|(key, value)| Setting {
                        key: key.clone(),
                        value: value.clone(),
                        is_default: false,
                    }));
                }
                _ => {
                    let given = set.given.get(&name);
                    let value = given.map_or(key.default, |value| value).to_owned();
                    all.push(Setting { key: name, value, is_default: given.is_none() });
                }
            }
        }
    };
    table("", Table::Set);
    table("limits.", Table::Limits);
    table("tls.", Table::Tls);
    for volume in &set.volumes {
        let prefix = format!("volume.{}.", volume.name);
        table(&prefix, Table::Volume);
        table(&format!("{prefix}limits."), Table::VolumeLimits);
    }
    all
}

/// The differences between the configuration in effect and that of the file.
pub fn changes(before: &SetFile, after: &SetFile) -> Vec<Change> {
    let names = |set: &SetFile| -> Vec<String> {
        set.volumes.iter().map(|volume| volume.name.clone()).collect()
    };
    let (old, new) = (names(before), names(after));
    let mut all = Vec::new();
    for (name, set) in
        old.iter().map(|name| (name, after)).chain(new.iter().map(|name| (name, before)))
    {
        if set.volumes.iter().any(|volume| volume.name == *name) {
            continue;
        }
        let is_new = std::ptr::eq(set, before);
        let volumes = if is_new { &after.volumes } else { &before.volumes };
        let volume = volumes.iter().find(|volume| volume.name == *name);
        let backing = volume.map(|volume| super::kind::quoted(&volume.backing.0));
        let (before, after) = if is_new { (None, backing) } else { (backing, None) };
        let applied = Applied::Live.word().to_owned();
        all.push(Change { key: format!("volume.{name}"), before, after, applied, result: None });
    }
    let both: Vec<&String> = old.iter().filter(|name| new.contains(name)).collect();
    let keys: BTreeMap<&String, ()> =
        before.given.keys().chain(after.given.keys()).map(|key| (key, ())).collect();
    for key in keys.into_keys() {
        let (was, is) = (before.given.get(key), after.given.get(key));
        if was == is {
            continue;
        }
        let Some(applied) = applied(key, &both) else { continue };
        all.push(Change {
            key: key.clone(),
            before: was.cloned(),
            after: is.cloned(),
            applied: applied.word().to_owned(),
            result: None,
        });
    }
    all
}

/// The effect of a changed key; none: it is one of a volume that comes or goes.
fn applied(key: &str, volumes: &[&String]) -> Option<Applied> {
    let Some(rest) = key.strip_prefix("volume.") else {
        return Some(of_key(key, Table::Set, &[("limits.", Table::Limits), ("tls.", Table::Tls)]));
    };
    let rest = volumes.iter().find_map(|name| {
        rest.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix('.'))
    })?;
    Some(of_key(rest, Table::Volume, &[("limits.", Table::VolumeLimits)]))
}

fn of_key(key: &str, table: Table, tables: &[(&str, Table)]) -> Applied {
    let inner = tables.iter().find_map(|(prefix, table)| Some((*table, key.strip_prefix(prefix)?)));
    let (table, name) = inner.unwrap_or((table, key));
    let name = if name.starts_with("attributes.") { "attributes" } else { name };
    keys::find(table, name).map_or(Applied::Restart, |key| key.applied)
}
