//! Deletion of what earlier writers left: objects and pages that they had put, or had not deleted,
//! when they ended.
//!
//! An object of an earlier epoch that is neither current nor in the last root will not be named
//! again. Objects of this epoch are left alone: a flush is about to name them.

use std::rc::Rc;

use ubcache_env::Env;

use crate::disk::Inner;
use crate::names::{DATA, PAGES, Version, parse};
use crate::probe::{PROBES, epoch_of};
use crate::store::Store;

impl<E: Env, S: Store> Inner<E, S> {
    /// Looks through all keys once.
    pub(crate) async fn sweep(self: &Rc<Self>) {
        for prefix in [DATA, PAGES, PROBES] {
            let mut after = String::new();
            while self.check().is_ok() {
                // The next attachment looks again.
                let Ok(keys) = self.store.list(prefix, &after).await else { return };
                let Some(last) = keys.last() else { break };
                after = last.clone();
                let left = keys.into_iter().filter(|key| self.is_left(prefix, key));
                self.delete(left.collect());
            }
        }
    }

    fn is_left(&self, prefix: &str, key: &str) -> bool {
        // This writer has ended its own. One that is about to displace it has a later epoch.
        if prefix == PROBES {
            return epoch_of(key).is_none_or(|epoch| epoch <= self.epoch);
        }
        let Some((number, version)) = parse(prefix, key) else { return false };
        version.epoch() < self.epoch && !self.is_named(prefix, number, version)
    }

    fn is_named(&self, prefix: &str, number: u64, version: Version) -> bool {
        match prefix {
            DATA => self.map.borrow().is_needed(number, version),
            _ => {
                let committed = self.committed.borrow();
                committed.root.pages.get(number as usize) == Some(&Some(version))
            }
        }
    }
}
