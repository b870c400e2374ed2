//! The sets of this process, as the control API knows them: names, and a mailbox for each.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::mailbox::SetHandle;
use super::names::Names;
use super::refusal::{Kind, Refusal};

/// The sets of this process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Mutex<Vec<SetHandle>>>);

impl Registry {
    fn sets(&self) -> MutexGuard<'_, Vec<SetHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a set.
    pub fn add(&self, set: SetHandle) {
        self.sets().push(set);
    }

    /// The sets whose threads take requests.
    pub fn all(&self) -> Vec<SetHandle> {
        let mut sets = self.sets();
        sets.retain(|set| !set.mailbox.is_closed());
        sets.clone()
    }

    /// The set that serves an export.
    pub fn of_volume(&self, volume: &str) -> Result<SetHandle, Refusal> {
        let sets = self.all();
        let named: Vec<(&SetHandle, Names)> = sets.iter().map(|it| (it, it.names.get())).collect();
        let mut found = named.iter().filter(|(_, it)| it.volumes.iter().any(|it| it == volume));
        match (found.next(), found.next()) {
            (Some((set, _)), None) => Ok((*set).clone()),
            (Some((_, one)), Some((_, other))) => Err(Refusal::new(
                Kind::Conflict,
                format_args!("several sets serve an export \"{volume}\""),
            )
            .found(format_args!("set {} and set {}", one.uuid, other.uuid))
            .advice("give one of them another name: its label, or NAME= in the configuration")),
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
