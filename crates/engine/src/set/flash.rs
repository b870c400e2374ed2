//! Flash-only volumes: making, serving, resizing and removing them (Y2, Y3).

use std::rc::{Rc, Weak};

use ubcache_env::Env;
use ubcache_format::{Inode, SECTOR_BYTES, Sector, Uuid, UuidEntry};

use super::{CacheSet, Set};
use crate::errors::EngineError;
use crate::events::VolumeChange;
use crate::flash::{FlashCore, FlashIdentity, FlashVolume};

/// The largest size: keys name sectors up to here.
pub const FLASH_SECTORS_MAX: u64 = (1 << 44) - 1;

/// A flash-only volume in the volume table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlashSlot {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its label; may be empty.
    pub label: String,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes of data. Not all of them before every bucket is counted.
    pub used_bytes: u64,
    /// It is served.
    pub served: bool,
}

impl<E: Env> CacheSet<E> {
    /// The flash-only volumes of the set, in the order of their slots.
    pub fn flash_volumes(&self) -> Vec<FlashSlot> {
        let set = &self.set;
        let (table, served) = (set.table.entries(), set.flash.borrow());
        let slots = table.iter().enumerate().map(|(slot, entry)| (Inode(slot as u32), entry));
        let flash = slots.filter(|(_, entry)| entry.is_live() && entry.flash_only);
        flash
            .map(|(inode, entry)| FlashSlot {
                uuid: entry.uuid,
                label: String::from_utf8_lossy(&entry.label).trim_end_matches('\0').to_owned(),
                size_bytes: entry.sectors * SECTOR_BYTES,
                used_bytes: set.index.dirty_sectors(inode) * SECTOR_BYTES,
                served: served.get(&inode).is_some_and(|volume| volume.strong_count() > 0),
            })
            .collect()
    }

    /// Makes a flash-only volume, which takes no room before it is written; returns its UUID. It is
    /// durable then.
    ///
    /// # Errors
    /// The size is 0 or too large; the label is too long; no slot is free; the set has failed or is
    /// being stopped.
    pub async fn create_flash(&self, label: &str, sectors: u64) -> Result<Uuid, EngineError> {
        let set = &self.set;
        let sectors = set.flash_size(sectors)?;
        let mut bytes = [0; 32];
        let place = bytes.get_mut(..label.len()).ok_or(EngineError::LongLabel(label.len()))?;
        place.copy_from_slice(label.as_bytes());
        let _one = set.attach_lock.lock().await;
        set.is_working()?;
        let mut table = set.table.entries().clone();
        table.resize_with(set.context.geometry.uuid_slots() as usize, UuidEntry::default);
        let free = table.iter().position(UuidEntry::is_free);
        let slot = free.ok_or(EngineError::NoSlot(set.context.geometry.uuid_slots()))?;
        let now = set.context.env.unix_seconds() as u32;
        let uuid = set.new_uuid();
        table[slot] = UuidEntry {
            uuid,
            label: bytes,
            first_reg: now,
            last_reg: now,
            invalidated: 0,
            flash_only: true,
            sectors,
        };
        set.table.save(table).await?;
        set.context.env.mark("flash_volume_made");
        Ok(uuid)
    }

    /// Serves a flash-only volume under a name.
    ///
    /// # Errors
    /// There is none with this UUID; it is served already; the set has failed.
    pub fn open_flash(
        &self,
        uuid: Uuid,
        name: &str,
        read_only: bool,
    ) -> Result<Rc<FlashVolume<E>>, EngineError> {
        let set = &self.set;
        set.is_working()?;
        let (inode, entry) = set.flash_slot(uuid)?;
        if set.flash.borrow().get(&inode).and_then(Weak::upgrade).is_some() {
            return Err(EngineError::AlreadyAttached(uuid));
        }
        let core = FlashCore {
            context: set.context.clone(),
            journal: set.journal.clone(),
            allocator: set.allocator.clone(),
            index: set.index.clone(),
            gc: set.gc.clone(),
        };
        let (name, sectors) = (name.to_owned(), entry.sectors);
        let identity = FlashIdentity { inode, uuid, name, sectors, read_only };
        let volume = Rc::new(FlashVolume::new(core, identity));
        set.flash.borrow_mut().insert(inode, Rc::downgrade(&volume));
        Ok(volume)
    }

    /// Gives a flash-only volume another size; says how many bytes of data were discarded with what
    /// it lost. Y2: the data goes before the size does, both durably, so that what a longer volume
    /// gets again reads as zeroes.
    ///
    /// # Errors
    /// There is no such volume; the size is 0 or too large; the volume would lose data, and that is
    /// not to be discarded; the set has failed or is being stopped.
    pub async fn resize_flash(
        &self,
        uuid: Uuid,
        sectors: u64,
        discard: bool,
    ) -> Result<u64, EngineError> {
        let set = &self.set;
        let sectors = set.flash_size(sectors)?;
        let _one = set.attach_lock.lock().await;
        set.is_working()?;
        let (inode, entry) = set.flash_slot(uuid)?;
        let served = set.flash.borrow().get(&inode).and_then(Weak::upgrade);
        let mut discarded = 0;
        let _paused = match &served {
            Some(volume) if sectors < entry.sectors => Some(volume.pause().await),
            _ => None,
        };
        if sectors < entry.sectors {
            let beyond = set.data_beyond(inode, Sector(sectors)).await?;
            if beyond > 0 && !discard {
                return Err(EngineError::HasFlashData(beyond * SECTOR_BYTES));
            }
            let volume = match &served {
                Some(volume) => volume.clone(),
                None => self.open_flash(uuid, "", false)?,
            };
            let cleared = volume.clear_from(Sector(sectors)).await;
            discarded = cleared.map_err(|error| EngineError::ClearFailed(error.to_string()))?;
        }
        let mut table = set.table.entries().clone();
        table[inode.0 as usize].sectors = sectors;
        set.table.save(table).await?;
        if let Some(volume) = &served {
            volume.set_sectors(sectors);
        }
        set.context.env.mark("flash_volume_resized");
        Ok(discarded * SECTOR_BYTES)
    }

    /// Removes a flash-only volume for good; says how many bytes of data went with it. It ends if
    /// it is served. Y3: its slot is declared dead, durably; its keys go when garbage is collected,
    /// which is requested.
    ///
    /// # Errors
    /// There is no such volume; it has data, and that is not to be discarded; the set has failed or
    /// is being stopped.
    pub async fn remove_flash(&self, uuid: Uuid, discard: bool) -> Result<u64, EngineError> {
        let set = &self.set;
        set.wait_until_counted().await?;
        let _one = set.attach_lock.lock().await;
        set.is_working()?;
        let (inode, _) = set.flash_slot(uuid)?;
        let used = || set.index.dirty_sectors(inode) * SECTOR_BYTES;
        if used() > 0 && !discard {
            return Err(EngineError::HasFlashData(used()));
        }
        let served = set.flash.borrow().get(&inode).and_then(Weak::upgrade);
        if let Some(volume) = &served {
            let _paused = volume.pause().await;
            if used() > 0 && !discard {
                return Err(EngineError::HasFlashData(used()));
            }
            volume.close().await;
        }
        let bytes = used();
        set.table.invalidate(inode).await?;
        set.flash.borrow_mut().remove(&inode);
        set.context.env.mark("flash_volume_removed");
        set.gc.request();
        Ok(bytes)
    }
}

impl<E: Env> Set<E> {
    /// The flash-only volumes that are served.
    pub(crate) fn served_flash(&self) -> Vec<Rc<FlashVolume<E>>> {
        self.flash.borrow().values().filter_map(Weak::upgrade).collect()
    }

    /// Sectors of all flash-only volumes that are served.
    pub(crate) fn flash_dirty(&self) -> u64 {
        let volumes = self.served_flash();
        volumes.iter().map(|volume| self.index.dirty_sectors(volume.inode())).sum()
    }

    fn flash_slot(&self, uuid: Uuid) -> Result<(Inode, UuidEntry), EngineError> {
        let table = self.table.entries();
        let slot = table.iter().position(|entry| entry.uuid == uuid && entry.flash_only);
        let slot = slot.filter(|slot| table[*slot].is_live()).ok_or(EngineError::NoFlash(uuid))?;
        Ok((Inode(slot as u32), table[slot]))
    }

    /// A size in whole blocks.
    fn flash_size(&self, sectors: u64) -> Result<u64, EngineError> {
        let block = u64::from(self.context.geometry.block_sectors);
        let whole = sectors / block * block;
        match whole > 0 && whole <= FLASH_SECTORS_MAX {
            true => Ok(whole),
            false => Err(EngineError::FlashSize { sectors, block }),
        }
    }

    /// Sectors of data from a place on.
    async fn data_beyond(&self, inode: Inode, from: Sector) -> Result<u64, EngineError> {
        let (mut sectors, mut at) = (0, Some((inode, from)));
        while let Some(from) = at {
            let extents;
            (extents, at) = self.index.extents_of_leaf(from).await?;
            let buckets = self.allocator.buckets();
            let live = extents.iter().filter(|extent| buckets.is_live(extent.pointer));
            sectors += live.map(|extent| extent.range.sectors()).sum::<u64>();
        }
        Ok(sectors)
    }

    pub(super) fn is_working(&self) -> Result<(), EngineError> {
        if let Some(reason) = self.context.failure() {
            return Err(EngineError::Failed(reason));
        }
        if self.context.is_ending() { Err(EngineError::Stopping) } else { Ok(()) }
    }

    /// A random UUID (RFC 9562, version 4).
    fn new_uuid(&self) -> Uuid {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.context.env.random().to_le_bytes());
        bytes[8..].copy_from_slice(&self.context.env.random().to_le_bytes());
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Uuid(bytes)
    }

    /// Events of the failure of the set.
    pub(super) fn flash_fails(&self) {
        for volume in self.served_flash() {
            let dirty = self.index.dirty_sectors(volume.inode());
            self.context.events.volume(volume.uuid(), VolumeChange::Failed { dirty });
        }
    }
}
