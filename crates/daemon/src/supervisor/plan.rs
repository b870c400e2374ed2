//! The way from a configuration in effect to that of a file: the steps that can be taken while
//! clients go on, and what they leave.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ubcache_engine::settings::VolumeSettings;
use ubcache_nbd::Rates;

use crate::config::ServeConfig;
use crate::config_file::effective::{Change, changes};
use crate::config_file::{SetFile, VolumeFile};
use crate::control::ControlRequest;

/// A step, and the keys that are in effect after it.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub keys: Vec<String>,
    pub requests: Vec<ControlRequest>,
}

/// The steps for a set.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub changes: Vec<Change>,
    pub steps: Vec<Step>,
}

/// Plans the way. `serve`: the file with the paths of devices; `served`: the volumes that clients
/// find now.
pub(super) fn plan(
    before: &SetFile,
    after: &SetFile,
    serve: &ServeConfig,
    served: &[String],
) -> Plan {
    let mut plan = Plan { changes: changes(before, after), steps: Vec::new() };
    add_missing(&mut plan, before, after, served);
    let keys: Vec<String> = plan.changes.iter().map(|change| change.key.clone()).collect();
    for change in plan.changes.clone() {
        let Some(name) = change.key.strip_prefix("volume.") else { continue };
        let Some(step) = come_or_go(&change, name, before, after, serve, served) else { continue };
        plan.steps.push(step);
    }
    plan.steps.extend(attributes(&keys, before, after));
    plan.steps.extend(limits(&keys, after, serve));
    plan
}

/// Volumes whose devices were not there before are differences as well, if they are there now.
fn add_missing(plan: &mut Plan, before: &SetFile, after: &SetFile, served: &[String]) {
    for VolumeFile { name, backing, .. } in &after.volumes {
        let was_meant = before.volumes.iter().any(|volume| volume.name == *name);
        if was_meant && !served.contains(name) {
            plan.changes.push(Change {
                key: format!("volume.{name}"),
                before: None,
                after: Some(crate::config_file::kind::quoted(&backing.0)),
                applied: "live".to_owned(),
                result: None,
            });
        }
    }
}

fn come_or_go(
    change: &Change,
    name: &str,
    before: &SetFile,
    after: &SetFile,
    serve: &ServeConfig,
    served: &[String],
) -> Option<Step> {
    let is_of = |set: &SetFile| set.volumes.iter().any(|volume| volume.name == name);
    let keys = vec![change.key.clone()];
    if !is_of(after) {
        if !is_of(before) {
            return None;
        }
        let remove = ControlRequest::Remove { volume: Some(name.to_owned()), keep_dirty: false };
        let requests = if served.iter().any(|it| it == name) { vec![remove] } else { Vec::new() };
        return Some(Step { keys, requests });
    }
    if served.iter().any(|it| it == name) {
        return None;
    }
    let backing = path_of(serve, name)?;
    let mut requests = vec![ControlRequest::Add { backing, name: Some(name.to_owned()) }];
    let settings = settings_of(after, name);
    if !settings.is_empty() {
        requests.push(ControlRequest::SetAll { settings, volume: Some(name.to_owned()) });
    }
    Some(Step { keys, requests })
}

/// The path of a volume's device; none: it is not there.
fn path_of(serve: &ServeConfig, name: &str) -> Option<PathBuf> {
    let at = serve.names.iter().position(|it| it.as_deref() == Some(name))?;
    let path = serve.backings.get(at)?;
    let missing = serve.not_found.iter().any(|missing| missing.path == *path);
    (!missing).then(|| path.clone())
}

/// The attributes of a volume, those of the set included that are of volumes.
fn settings_of(set: &SetFile, volume: &str) -> Vec<(String, String)> {
    let all = set.serve.settings_of(volume);
    let of_volume = |(name, _): &(String, String)| VolumeSettings::names().contains(&name.as_str());
    // The last one of a name holds.
    let last: BTreeMap<String, String> = all.into_iter().filter(of_volume).collect();
    last.into_iter().collect()
}

/// The name of the attribute that a key stands for.
fn attribute_of(key: &str) -> Option<&str> {
    match key.rsplit_once("attributes.") {
        Some((_, name)) => Some(name),
        None if key == "mode" || key.ends_with(".mode") => Some("cache_mode"),
        None => None,
    }
}

fn attributes(keys: &[String], before: &SetFile, after: &SetFile) -> Vec<Step> {
    let mut steps = Vec::new();
    let changed: BTreeSet<&str> = keys.iter().filter_map(|key| attribute_of(key)).collect();
    for name in changed {
        let keys: Vec<String> =
            keys.iter().filter(|key| attribute_of(key) == Some(name)).cloned().collect();
        let mut requests = Vec::new();
        if VolumeSettings::names().contains(&name) {
            let both = after
                .volumes
                .iter()
                .filter(|volume| before.volumes.iter().any(|other| other.name == volume.name));
            for volume in both {
                let value = |set: &SetFile| {
                    let all = set.serve.settings_of(&volume.name);
                    all.into_iter().rev().find(|(it, _)| it == name).map(|(_, value)| value)
                };
                let (was, is) = (value(before), value(after));
                // The device keeps these two.
                let kept = matches!(name, "cache_mode" | "label");
                let default = || VolumeSettings::default().plain(name).filter(|_| !kept);
                if was != is
                    && let Some(value) = is.or_else(default)
                {
                    requests.push(ControlRequest::Set {
                        name: name.to_owned(),
                        value,
                        volume: Some(volume.name.clone()),
                    });
                }
            }
        } else {
            let given = after.serve.settings.iter().find(|(it, _)| it == name);
            let default = || match name {
                // The device keeps these.
                "cache_replacement_policy" | "discard" => None,
                name => ubcache_engine::settings::SetSettings::default().plain(name),
            };
            let value = given.map(|(_, value)| value.clone()).or_else(default);
            requests.extend(value.map(|value| ControlRequest::Set {
                name: name.to_owned(),
                value,
                volume: None,
            }));
        }
        steps.push(Step { keys, requests });
    }
    steps
}

fn limits(keys: &[String], after: &SetFile, serve: &ServeConfig) -> Option<Step> {
    let is_limit = |key: &&String| {
        key.as_str() == "limits.iops"
            || key.as_str() == "limits.bytes"
            || key.starts_with("volume.") && key.contains(".limits.")
    };
    let keys: Vec<String> = keys.iter().filter(is_limit).cloned().collect();
    let come_and_go = |volume: &VolumeFile| (volume.name.clone(), rates(serve, &volume.name));
    let exports = after.volumes.iter().map(come_and_go).collect();
    (!keys.is_empty()).then(|| Step { keys, requests: vec![ControlRequest::Limit { exports }] })
}

fn rates(serve: &ServeConfig, name: &str) -> Rates {
    serve.clients.of_export(name)
}

/// The configuration in effect after the steps that were taken.
pub(super) fn merged(before: &SetFile, after: &SetFile, done: &BTreeSet<String>) -> SetFile {
    let mut merged = before.clone();
    for key in done {
        match after.given.get(key) {
            Some(value) => drop(merged.given.insert(key.clone(), value.clone())),
            None => drop(merged.given.remove(key)),
        }
        let Some(name) = key.strip_prefix("volume.") else { continue };
        let new = after.volumes.iter().find(|volume| volume.name == name);
        let is_known = merged.volumes.iter().any(|volume| volume.name == name);
        let prefix = format!("{key}.");
        match new {
            Some(volume) if !is_known => {
                merged.volumes.push(volume.clone());
                let keys = after.given.iter().filter(|(key, _)| key.starts_with(&prefix));
                merged.given.extend(keys.map(|(key, value)| (key.clone(), value.clone())));
            }
            None if is_known => {
                merged.volumes.retain(|volume| volume.name != name);
                merged.given.retain(|key, _| !key.starts_with(&prefix));
                merged.serve.volume_settings.retain(|(volume, _)| volume != name);
            }
            _ => {}
        }
    }
    merge_settings(&mut merged, after, done);
    merged
}

/// Attributes in effect: those of the file where the steps have set them.
fn merge_settings(merged: &mut SetFile, after: &SetFile, done: &BTreeSet<String>) {
    let changed: BTreeSet<&str> = done.iter().filter_map(|key| attribute_of(key)).collect();
    let of = |from: &[(String, String)], into: &mut Vec<(String, String)>| {
        into.retain(|(name, _)| !changed.contains(name.as_str()));
        let new = from.iter().filter(|(name, _)| changed.contains(name.as_str()));
        into.extend(new.cloned());
    };
    of(&after.serve.settings, &mut merged.serve.settings);
    for volume in &after.volumes {
        let own = merged.serve.volume_settings.iter_mut().find(|(name, _)| *name == volume.name);
        match own {
            Some((_, own)) => of(&volume.settings, own),
            None => {
                let own = (volume.name.clone(), volume.settings.clone());
                merged.serve.volume_settings.push(own);
            }
        }
    }
}
