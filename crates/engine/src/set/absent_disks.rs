//! Backing devices that the set knows and that are not here: what of them only the cache has, and
//! giving it up (A7).

use ubcache_env::Env;
use ubcache_format::{Inode, SECTOR_BYTES, Uuid};

use super::{CacheSet, Set};
use crate::errors::EngineError;

/// A backing device that the set knows and that is not served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Absent {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its label when it was attached.
    pub label: String,
    /// Bytes that only the cache has. Not all of them before every bucket is counted.
    pub dirty_bytes: u64,
    /// It is a volume without a backing device: a flash-only volume.
    pub flash_only: bool,
}

impl<E: Env> CacheSet<E> {
    /// The backing devices that the set knows and that are not served, in the order of their slots.
    pub fn absent(&self) -> Vec<Absent> {
        let set = &self.set;
        let (table, volumes) = (set.table.entries(), set.volumes.borrow());
        let flash = set.flash.borrow();
        let slots = table.iter().enumerate().map(|(slot, entry)| (Inode(slot as u32), entry));
        let absent = slots.filter(|(inode, entry)| {
            entry.is_live()
                && !volumes.contains_key(inode)
                && flash.get(inode).is_none_or(|it| it.strong_count() == 0)
        });
        absent
            .map(|(inode, entry)| Absent {
                uuid: entry.uuid,
                label: String::from_utf8_lossy(&entry.label).trim_end_matches('\0').to_owned(),
                dirty_bytes: set.index.dirty_sectors(inode) * SECTOR_BYTES,
                flash_only: entry.flash_only,
            })
            .collect()
    }

    /// A7: forgets a backing device that is not served; says how many dirty bytes were given up
    /// with it. Should the device come back clean it is attached anew, and refused if it is dirty.
    ///
    /// # Errors
    /// There is no such device; it has dirty data, and that is not to be discarded; the set has
    /// failed or is being stopped.
    pub async fn forget(&self, uuid: Uuid, discard_dirty: bool) -> Result<u64, EngineError> {
        let set = &self.set;
        set.wait_until_counted().await?;
        let _one = set.attach_lock.lock().await;
        let absent = self.absent().into_iter().find(|absent| absent.uuid == uuid);
        let Some(absent) = absent else { return Err(EngineError::NotAbsent(uuid)) };
        if absent.flash_only {
            return Err(EngineError::WouldLose(
                "a volume without a backing device: the cache has all of its data",
            ));
        }
        if absent.dirty_bytes > 0 && !discard_dirty {
            return Err(EngineError::HasDirty(absent.dirty_bytes));
        }
        let slot = set.table.slot_of(uuid).expect("it was found there");
        set.table.invalidate(Inode(slot as u32)).await?;
        set.gc.request();
        Ok(absent.dirty_bytes)
    }
}

impl<E: Env> Set<E> {
    /// Waits until it is known what is dirty.
    pub(super) async fn wait_until_counted(&self) -> Result<(), EngineError> {
        loop {
            let changed = self.state_changed.notified();
            if self.allocator.buckets().is_counted() || self.context.failure().is_some() {
                break;
            }
            if self.context.is_ending() {
                return Err(EngineError::Stopping);
            }
            changed.await;
        }
        match self.context.failure() {
            Some(reason) => Err(EngineError::Failed(reason)),
            None => Ok(()),
        }
    }

    /// Dirty data of a device that was forgotten, or that counts instead of it, holds its buckets
    /// until a pass drops its keys. A start may have cut that pass off.
    pub(crate) fn collect_dead_dirty(&self) {
        if self.index.dirty_inodes().into_iter().any(|inode| self.table.is_dead(inode)) {
            self.gc.request();
        }
    }
}
