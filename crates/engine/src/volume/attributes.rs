//! State, counters and attributes of a volume, by bcache's names.

use ubcache_env::Env;
use ubcache_format::SECTOR_BYTES;

use super::CachedVolume;
use super::state::Attachment;
use crate::settings::{AttributeError, VolumeSettings, human, parse_human};
use crate::stats::{VolumeState, VolumeStatus};

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
            size_bytes: self.info.sectors * SECTOR_BYTES,
            mode: self.mode(),
            state: self.state(),
            dirty_bytes: self.index.dirty_sectors(self.inode()) * SECTOR_BYTES,
            stats: self.counters.get(),
            writeback: self.writeback.activity(),
            writeback_rate_bytes: self.writeback.rate() * SECTOR_BYTES,
        }
    }

    /// Sets an attribute (bcache's names). `cache_mode` and `label` survive a restart.
    pub fn set_attribute(&self, name: &str, value: &str) -> Result<(), AttributeError> {
        if name == "writeback_rate" {
            self.writeback.set_rate(parse_rate(value)?);
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
            _ => settings.set(name, value),
        };
        pairs.iter().map(|(name, value)| set(name, value)).collect()
    }

    /// All attributes and their present values.
    pub fn attributes(&self) -> Vec<(&'static str, String)> {
        let names = VolumeSettings::attributes().chain(["writeback_rate", "running"]);
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
            _ => self.settings.borrow().get(name),
        }
    }

    /// A volume over the same backing device has ended: goes on with its attributes and counters,
    /// and with what is known to be on the device: an attribute may be missing there.
    pub(crate) fn keep_attributes_of(&self, former: &CachedVolume<E>) {
        *self.settings.borrow_mut() = former.settings.borrow().clone();
        self.counters.set(former.counters.get());
        *self.saved_superblock.borrow_mut() = former.saved_superblock.borrow().clone();
    }
}

fn parse_rate(value: &str) -> Result<u64, AttributeError> {
    parse_human(value).map_err(|_| AttributeError::BadValue {
        name: "writeback_rate".to_owned(),
        value: value.to_owned(),
        expected: "sectors per second, at least 1".to_owned(),
    })
}
