//! The sets of this process, as the control API knows them: names, and a mailbox for each.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::mailbox::SetHandle;
use super::names::Names;
use super::process::ProcessMailbox;
use super::refusal::{Kind, Refusal};
use crate::served::report::SetReport;

/// The sets of this process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    sets: Vec<SetHandle>,
    /// Reports of sets that are configured, and not served.
    not_served: Vec<SetReport>,
    process: Option<ProcessMailbox>,
}

impl Registry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a set.
    pub fn add(&self, set: SetHandle) {
        self.state().sets.push(set);
    }

    /// The sets whose threads take requests.
    pub fn all(&self) -> Vec<SetHandle> {
        let sets = &mut self.state().sets;
        sets.retain(|set| !set.mailbox.is_closed());
        sets.clone()
    }

    /// Sets that are configured, and not served, for reports.
    pub fn set_not_served(&self, sets: Vec<SetReport>) {
        self.state().not_served = sets;
    }

    /// The reports of sets that are not served.
    pub fn not_served(&self) -> Vec<SetReport> {
        self.state().not_served.clone()
    }

    /// From now on the process takes requests there.
    pub fn set_process(&self, process: ProcessMailbox) {
        self.state().process = Some(process);
    }

    /// The way to the process; none: it has no configuration files.
    pub fn process(&self) -> Option<ProcessMailbox> {
        self.state().process.clone()
    }

    /// The set that serves an export, by its name or as `SET/EXPORT`.
    pub fn of_volume(&self, volume: &str) -> Result<SetHandle, Refusal> {
        let sets = self.all();
        let named: Vec<(&SetHandle, Names)> = sets.iter().map(|it| (it, it.names.get())).collect();
        // Names of exports may have a slash, but not those of configuration files.
        let of_set = volume.split_once('/');
        let is_it = |(set, names): &&(&SetHandle, Names)| {
            let has = |name: &str| names.volumes.iter().any(|it| it == name);
            has(volume) || of_set.is_some_and(|(it, name)| set.name == it && has(name))
        };
        let mut found = named.iter().filter(is_it);
        match (found.next(), found.next()) {
            (Some((set, _)), None) => Ok((*set).clone()),
            (Some((_, one)), Some((_, other))) => Err(Refusal::new(
                Kind::Conflict,
                format_args!("several sets serve an export \"{volume}\""),
            )
            .found(format_args!("set {} and set {}", one.uuid, other.uuid))
            .advice(format_args!("name its set as well: SET/{volume}"))),
            (None, _) => {
                let all = named.iter().flat_map(|(_, it)| it.volumes.iter().map(String::as_str));
                Err(Refusal::missing("export", volume, all))
            }
        }
    }

    /// The set of that UUID, or of that name in the configuration.
    pub fn set(&self, name: &str) -> Result<SetHandle, Refusal> {
        let sets = self.all();
        let is_it = |set: &&SetHandle| set.names.get().uuid == name || set.name == name;
        if let Some(set) = sets.iter().find(is_it) {
            return Ok(set.clone());
        }
        let uuids: Vec<String> = sets.iter().map(|set| set.names.get().uuid).collect();
        Err(Refusal::missing("set", name, uuids.iter().map(String::as_str)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::mailbox::mailbox;

    #[test]
    fn sets_are_found_by_what_they_serve_as_long_as_they_take_requests() {
        let registry = Registry::default();
        let (first, first_mail) = mailbox("home");
        let (second, second_mail) = mailbox("");
        let names = |uuid: &str, volumes: &[&str]| Names {
            uuid: uuid.to_owned(),
            volumes: volumes.iter().map(ToString::to_string).collect(),
        };
        first_mail.names().publish(names("1", &["a", "both"]));
        second_mail.names().publish(names("2", &["b", "both"]));
        registry.add(first);
        registry.add(second);
        let uuid = |found: Result<SetHandle, Refusal>| found.map(|set| set.names.get().uuid);
        assert_eq!(uuid(registry.of_volume("b")), Ok("2".to_owned()));
        assert_eq!(uuid(registry.set("home")), Ok("1".to_owned()));
        assert_eq!(uuid(registry.set("2")), Ok("2".to_owned()));
        let refused = registry.of_volume("both").expect_err("two sets have it");
        assert_eq!(refused.kind, Kind::Conflict);
        let refused = registry.of_volume("c").expect_err("no set has it");
        assert_eq!(refused.expected.as_deref(), Some("one of a, both, b, both"));
        drop(second_mail);
        assert_eq!(registry.all().len(), 1);
        assert!(registry.of_volume("b").is_err());
        drop(first_mail);
        assert_eq!(registry.all().len(), 0);
    }
}
