//! The table of exports: names and the volumes that are served under them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ubcache_env::Volume;

use crate::proto::constants::MAX_STRING_BYTES;
use crate::server::shares::Shared;
use crate::server::{Pace, Rates};

/// Bytes of requests that a volume works on, shared by its connections: one alone gets a third of
/// them. As many for every volume, so that volumes take turns as well.
const SERVICE_BYTES: u64 = 32 << 20;

/// Reasons why a volume can't be exported under a name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExportError {
    /// Another export has the name.
    #[error("there is an export \"{0}\" already")]
    Exists(String),
    /// The protocol has a limit of 4096 bytes for names and descriptions.
    #[error("the name or description of the export is longer than 4096 bytes")]
    TooLong,
    /// The empty name stands for the default export.
    #[error("the name of the export is empty")]
    Empty,
}

#[derive(Debug)]
struct Export<V> {
    name: String,
    description: String,
    volume: Rc<V>,
    /// Another name, which is not listed.
    alias: Option<String>,
    service: Rc<Shared>,
    pace: Option<Rc<Pace>>,
}

/// The volumes that clients can choose from, in order; the first is the default one, which the
/// empty name stands for, unless there is none (see [`Exports::drop_default`]). Shared by all
/// connections; changes hold for negotiations from then on. A connection that serves a volume keeps
/// it until it ends.
#[derive(Debug)]
pub struct Exports<V> {
    exports: RefCell<Vec<Export<V>>>,
    /// The empty name stands for no export.
    no_default: Cell<bool>,
}

impl<V> Default for Exports<V> {
    fn default() -> Exports<V> {
        Exports { exports: RefCell::default(), no_default: Cell::new(false) }
    }
}

impl<V: Volume> Exports<V> {
    /// No exports.
    pub fn new() -> Exports<V> {
        Exports::default()
    }

    /// Adds a volume under the name in its info.
    pub fn add(&self, volume: Rc<V>) -> Result<(), ExportError> {
        self.add_as(volume.info().name, String::new(), volume)
    }

    /// Adds a volume under a name, with a description for people, which may be empty.
    pub fn add_as(
        &self,
        name: String,
        description: String,
        volume: Rc<V>,
    ) -> Result<(), ExportError> {
        if name.is_empty() {
            return Err(ExportError::Empty);
        }
        if name.len() > MAX_STRING_BYTES || description.len() > MAX_STRING_BYTES {
            return Err(ExportError::TooLong);
        }
        if self.exports.borrow().iter().any(|export| export.name == name) {
            return Err(ExportError::Exists(name));
        }
        let service = Shared::new(SERVICE_BYTES);
        let export = Export { name, description, volume, alias: None, service, pace: None };
        self.exports.borrow_mut().push(export);
        Ok(())
    }

    /// Lets clients ask for an export by another name as well, which is not listed. An export of
    /// that name comes first.
    pub fn also_as(&self, name: &str, alias: String) {
        if let Some(export) =
            self.exports.borrow_mut().iter_mut().find(|export| export.name == name)
        {
            export.alias = Some(alias);
        }
    }

    /// Limits requests and bytes a second of all connections to an export together, for those that
    /// choose it from now on.
    pub fn limit(&self, name: &str, rates: Rates) {
        if let Some(export) =
            self.exports.borrow_mut().iter_mut().find(|export| export.name == name)
        {
            export.pace = Pace::new(rates);
        }
    }

    /// The pace of all connections to an export together, for another way to its volume.
    pub fn pace(&self, name: &str) -> Option<Rc<Pace>> {
        self.exports.borrow().iter().find(|export| export.name == name)?.pace.clone()
    }

    /// Lets the empty name stand for no export from now on. A client that relies on the default
    /// export would get another disk if the first one is missing.
    pub fn drop_default(&self) {
        self.no_default.set(true);
    }

    /// Returns true if the empty name stands for the first export.
    pub fn has_default(&self) -> bool {
        !self.no_default.get()
    }

    /// Removes an export. Connections that serve it go on. There is no default export any more if
    /// this was the first one.
    pub fn remove(&self, name: &str) -> Option<Rc<V>> {
        let mut exports = self.exports.borrow_mut();
        let at = exports.iter().position(|export| export.name == name)?;
        if at == 0 {
            self.drop_default();
        }
        Some(exports.remove(at).volume)
    }

    /// The volume of that name; the default one for the empty name.
    pub fn get(&self, name: &str) -> Option<Rc<V>> {
        self.find(name).map(|found| found.volume)
    }

    /// Names and descriptions in order.
    pub fn list(&self) -> Vec<(String, String)> {
        self.exports
            .borrow()
            .iter()
            .map(|export| (export.name.clone(), export.description.clone()))
            .collect()
    }

    pub(crate) fn find(&self, name: &str) -> Option<Found<V>> {
        let exports = self.exports.borrow();
        let default = name.is_empty() && !self.no_default.get();
        let by_name = exports.iter().find(|export| default || export.name == name);
        let export = by_name
            .or_else(|| exports.iter().find(|export| export.alias.as_deref() == Some(name)))?;
        Some(Found {
            name: export.name.clone(),
            description: export.description.clone(),
            volume: export.volume.clone(),
            service: export.service.clone(),
            pace: export.pace.clone(),
        })
    }
}

/// An export that a client has named.
#[derive(Debug)]
pub(crate) struct Found<V> {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) volume: Rc<V>,
    pub(crate) service: Rc<Shared>,
    pub(crate) pace: Option<Rc<Pace>>,
}
