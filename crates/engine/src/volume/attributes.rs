//! State, counters and attributes of a volume, by bcache's names.

use ubcache_env::{Env, Nanos};
use ubcache_format::SECTOR_BYTES;

use super::CachedVolume;
use super::state::Attachment;
use crate::settings::{AttributeError, human, parse_human, table};
use crate::stats::periods::{self, PeriodCounters, PeriodStatus};
use crate::stats::requests::Path;
use crate::stats::{VolumeCounters, VolumeState, VolumeStatus};

/// The attribute that has `stats_total` begin anew when it is written.
pub(crate) const CLEAR_STATS: &str = "clear_stats";

impl<E: Env> CachedVolume<E> {
    /// State word.
    pub fn state(&self) -> VolumeState {
        if self.lifecycle.attachment() == Attachment::Detached {
            return VolumeState::NoCache;
        }
        let dirty = self.index.dirty_sectors(self.inode()) > 0;
        match self.context.failure() {
            Some(_) if dirty => VolumeState::Failed,
            Some(_) => VolumeState::NoCache,
            None if dirty || self.lifecycle.is_marked_dirty() => VolumeState::Dirty,
            None => VolumeState::Clean,
        }
    }

    /// Counters and state.
    pub fn status(&self) -> VolumeStatus {
        VolumeStatus {
            name: self.info.name.clone(),
            uuid: self.uuid(),
            backing: self.backing.counters(),
            backing_latencies: self.backing.latencies(),
            size_bytes: self.sectors.get() * SECTOR_BYTES,
            mode: self.mode(),
            state: self.state(),
            dirty_bytes: self.index.dirty_sectors(self.inode()) * SECTOR_BYTES,
            stats: self.counters(),
            requests: self.counts.status(),
            periods: self.periods(),
            writeback: self.writeback.activity(),
            writeback_rate_bytes: self.writeback.rate() * SECTOR_BYTES,
            scrub: self.scrub.status(self.context.env.now()),
        }
    }

    /// Counters of requests. A read is counted once, in the histogram of its path.
    fn counters(&self) -> VolumeCounters {
        VolumeCounters {
            cache_hits: self.counts.count(Path::Hit),
            cache_misses: self.counts.count(Path::Miss),
            ..self.counters.get()
        }
    }

    fn period_counters(&self) -> PeriodCounters {
        let counters = self.counters();
        PeriodCounters {
            cache_hits: counters.cache_hits,
            cache_misses: counters.cache_misses,
            cache_bypass_hits: counters.cache_bypass_hits,
            cache_bypass_misses: counters.cache_bypass_misses,
            cache_miss_collisions: counters.cache_miss_collisions,
            bypassed_sectors: counters.bypassed_bytes / SECTOR_BYTES,
        }
    }

    /// Counters by period.
    pub(crate) fn periods(&self) -> PeriodStatus {
        self.periods.status(self.context.env.now(), self.period_counters())
    }

    /// Background work calls this every few seconds.
    pub(crate) fn advance_periods(&self, now: Nanos) {
        if self.periods.is_due(now) {
            self.periods.advance(now, self.period_counters());
        }
    }

    /// Sets an attribute (bcache's names). `cache_mode` and `label` survive a restart.
    pub fn set_attribute(&self, name: &str, value: &str) -> Result<(), AttributeError> {
        if name == "writeback_rate" {
            self.writeback.set_rate(parse_rate(value)?);
            return Ok(());
        }
        if name == CLEAR_STATS {
            self.periods.clear(self.period_counters());
            return Ok(());
        }
        self.settings.borrow_mut().set(name, value)?;
        if matches!(name, "cache_mode" | "label") {
            {
                let settings = self.settings.borrow();
                let mut superblock = self.superblock.borrow_mut();
                superblock.set_cache_mode(settings.cache_mode);
                superblock.set_label(&settings.label);
            }
            self.save_soon();
        }
        self.wake_background();
        Ok(())
    }

    /// Returns what [`CachedVolume::set_attribute`] would return for these, one after the other.
    pub fn try_attributes(&self, pairs: &[(&str, &str)]) -> Vec<Result<(), AttributeError>> {
        let mut settings = self.settings.borrow().clone();
        let mut set = |name: &str, value: &str| match name {
            "writeback_rate" => parse_rate(value).map(drop),
            CLEAR_STATS => Ok(()),
            _ => settings.set(name, value),
        };
        pairs.iter().map(|(name, value)| set(name, value)).collect()
    }

    /// All attributes and their present values.
    pub fn attributes(&self) -> Vec<(&'static str, String)> {
        let names = table::OF_VOLUMES.iter().map(|attribute| attribute.name);
        names.filter_map(|name| Some((name, self.attribute(name)?))).collect()
    }

    /// The present value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<String> {
        match name {
            "state" => Some(self.state().word().to_owned()),
            "dirty_data" => {
                Some(human((self.index.dirty_sectors(self.inode()) * SECTOR_BYTES) as i64))
            }
            "writeback_rate" => Some(human((self.writeback.rate() * SECTOR_BYTES) as i64)),
            "writeback_rate_debug" => {
                let dirty = self.index.dirty_sectors(self.inode());
                Some(self.writeback.debug(self.context.env.now(), dirty))
            }
            "stripe_size" => Some(human(1 << 40)),
            "partial_stripes_expensive" => Some("0".to_owned()),
            "io_errors" => Some(self.counters.get().backing_errors.to_string()),
            "running" => Some("1".to_owned()),
            "backing_dev_uuid" => Some(self.uuid().to_string()),
            _ if name.contains('/') => periods::attribute(name, || self.periods()),
            _ => self.settings.borrow().get(name),
        }
    }

    /// A volume over the same backing device has ended: goes on with its attributes and counters,
    /// and with what is known to be on the device: an attribute may be missing there.
    pub(crate) fn keep_attributes_of(&self, former: &CachedVolume<E>) {
        *self.settings.borrow_mut() = former.settings.borrow().clone();
        self.counters.set(former.counters.get());
        self.counts.continue_from(&former.counts);
        self.periods.continue_from(&former.periods);
        *self.saved_superblock.borrow_mut() = former.saved_superblock.borrow().clone();
    }
}

fn parse_rate(value: &str) -> Result<u64, AttributeError> {
    parse_human(value).ok().filter(|rate| *rate > 0).ok_or_else(|| AttributeError::BadValue {
        name: "writeback_rate".to_owned(),
        value: value.to_owned(),
        expected: "sectors per second, at least 1".to_owned(),
    })
}
