//! Attributes of a set and its cache device: what a user sets and reads by bcache's names.

use std::rc::Rc;

use ubcache_env::{Env, Priority};

use super::{CacheSet, Set};
use crate::errors::EngineError;
use crate::settings::{AttributeError, SetSettings, table};
use crate::stats::periods::{self, PeriodStatus};
use crate::superblock::write_superblock;
use crate::volume::attributes::CLEAR_STATS;
use crate::volume::remembered::set_all;

impl<E: Env> CacheSet<E> {
    /// Sets an attribute of the set (bcache's names). What the superblock has a place for is
    /// written there soon; [`CacheSet::save_attributes`] waits for that.
    pub fn set_attribute(&self, name: &str, value: &str) -> Result<(), AttributeError> {
        let set = &self.set;
        match name {
            "trigger_gc" => set.gc.request(),
            CLEAR_STATS => {
                let volumes = set.served();
                return volumes.iter().try_for_each(|volume| volume.set_attribute(name, value));
            }
            _ => set.context.set_attribute(name, value)?,
        }
        let (policy, discard) = {
            let settings = set.context.settings();
            (settings.cache_replacement_policy, settings.discard)
        };
        let knows_all = {
            let mut buckets = set.allocator.buckets_mut();
            buckets.set_policy(policy);
            buckets.set_discard(discard);
            buckets.learn_policy(0)
        };
        set.context.switch_policy_duel();
        if !knows_all {
            let set = set.clone();
            self.set.spawn(Priority::Background, async move { set.learn_policy().await });
        }
        if let Some(entry) = set.journal.set_own_policy(policy.own()) {
            set.mark_at.set(entry);
        }
        let mut superblock = set.superblock.borrow_mut();
        if (superblock.replacement(), superblock.discard()) != (policy.stored(), discard) {
            superblock.set_replacement(policy.stored());
            superblock.set_discard(discard);
            superblock.seq += 1;
            superblock.sign();
            drop(superblock);
            set.save_soon();
        }
        Ok(())
    }

    /// Returns what [`CacheSet::set_attribute`] would return for these, one after the other.
    pub fn try_attributes(&self, pairs: &[(&str, &str)]) -> Vec<Result<(), AttributeError>> {
        let mut settings = self.set.context.settings().clone();
        let mut set = |name: &str, value: &str| match name {
            "trigger_gc" | CLEAR_STATS => Ok(()),
            _ => settings.set(name, value),
        };
        pairs.iter().map(|(name, value)| set(name, value)).collect()
    }

    /// Waits until the attributes that survive a restart are on the cache device, durably.
    pub async fn save_attributes(&self) -> Result<(), EngineError> {
        self.set.journal.wait(self.set.mark_at.get()).await?;
        self.set.write_cache_superblock().await
    }

    /// The attributes that do not survive a restart, for a process that goes on with the clients.
    pub fn remembered(&self) -> Vec<(String, String)> {
        let settings = self.set.context.settings();
        let kept = |name: &&str| !matches!(*name, "cache_replacement_policy" | "discard");
        let names = SetSettings::names().into_iter().filter(kept);
        names.filter_map(|name| Some((name.to_owned(), settings.plain(name)?))).collect()
    }

    /// Goes on with the attributes that another process has remembered.
    ///
    /// # Errors
    /// An attribute that is not known here; the others are set.
    pub fn remember(&self, attributes: &[(String, String)]) -> Result<(), AttributeError> {
        set_all(attributes, |name, value| self.set_attribute(name, value))
    }

    /// All attributes and their present values.
    pub fn attributes(&self) -> Vec<(&'static str, String)> {
        let names = table::OF_SETS.iter().map(|attribute| attribute.name);
        names.filter_map(|name| Some((name, self.attribute(name)?))).collect()
    }

    /// The present value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<String> {
        let status = || self.status();
        match name {
            "cache_available_percent" => Some(status().available_percent.to_string()),
            "tree_depth" => Some(status().tree_depth.to_string()),
            "btree_nodes" => Some(status().btree_leaves.to_string()),
            "active_journal_entries" => Some(status().active_journal_entries.to_string()),
            "bucket_size" => Some(crate::settings::human(status().bucket_bytes as i64)),
            "block_size" => Some(crate::settings::human(status().block_bytes as i64)),
            "nbuckets" => Some(self.set.superblock.borrow().nbuckets.to_string()),
            "cache_replacement_leader" => {
                Some(self.set.allocator.buckets().leading_policy().word())
            }
            "priority_stats" => Some(self.set.allocator.buckets().priority_stats()),
            _ if name.contains('/') => periods::attribute(name, || self.periods()),
            _ => self.set.context.settings().get(name),
        }
    }

    /// Counters by period: the sums of its volumes.
    pub fn periods(&self) -> PeriodStatus {
        let sum = |mut sum: PeriodStatus, volume: PeriodStatus| {
            sum.iter_mut().zip(volume).for_each(|(sum, counters)| *sum = sum.plus(counters));
            sum
        };
        self.set.served().iter().map(|volume| volume.periods()).fold(Default::default(), sum)
    }
}

impl<E: Env> Set<E> {
    /// Writes the superblock of the cache device as it is now, unless it is there already.
    pub(crate) async fn write_cache_superblock(self: &Rc<Self>) -> Result<(), EngineError> {
        let _one = self.superblock_lock.lock().await;
        let superblock = self.superblock.borrow().clone();
        if self.saved_superblock.borrow().as_ref() == Some(&superblock) {
            return Ok(());
        }
        *self.saved_superblock.borrow_mut() = None;
        write_superblock(&self.context.cache, &superblock, "writing the cache superblock").await?;
        *self.saved_superblock.borrow_mut() = Some(superblock);
        Ok(())
    }

    /// Has a task save the superblock. There is one at most that has not begun, however often it
    /// changes.
    fn save_soon(self: &Rc<Self>) {
        if self.saving.replace(true) {
            return;
        }
        let set = self.clone();
        self.spawn(Priority::Background, async move {
            set.saving.set(false);
            if let Err(EngineError::Io { what, source }) = set.write_cache_superblock().await {
                set.context.note_cache_error(what, &source);
            }
        });
    }
}
