//! Names by which a set of this process is found. Its own thread publishes them: looking one up
//! waits for nobody.

use std::sync::{Arc, Mutex, PoisonError};

/// Names by which a set is found now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    /// The set's UUID.
    pub uuid: String,
    /// Its exports.
    pub volumes: Vec<String>,
}

/// The names of one set, shared by its thread and the control API's.
#[derive(Clone, Debug, Default)]
pub struct SharedNames(Arc<Mutex<Names>>);

impl SharedNames {
    /// The names now.
    pub fn get(&self) -> Names {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on the set is found by these.
    pub fn publish(&self, names: Names) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }
}
