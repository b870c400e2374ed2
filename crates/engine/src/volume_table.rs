//! The volume table: the backing devices that the set knows, by slot (docs/reference/format.md
//! §8). A slot is never used again, so that the keys of a device that was forgotten stay dead.

use std::cell::{Ref, RefCell};
use std::rc::Rc;

use ubcache_env::{Buf, Durability, Env, Sector};
use ubcache_format::{Inode, Key, Pointer, Uuid, UuidEntry, encode_uuids};

use crate::alloc::allocator::Allocator;
use crate::alloc::buckets::Purpose;
use crate::context::Context;
use crate::errors::EngineError;
use crate::journal::Journal;

/// See the module.
pub(crate) struct VolumeTable<E: Env> {
    context: Context<E>,
    journal: Rc<Journal<E>>,
    allocator: Rc<Allocator<E>>,
    entries: RefCell<Vec<UuidEntry>>,
}

impl<E: Env> VolumeTable<E> {
    /// The table that a start has found.
    pub fn new(
        context: Context<E>,
        journal: Rc<Journal<E>>,
        allocator: Rc<Allocator<E>>,
        entries: Vec<UuidEntry>,
    ) -> VolumeTable<E> {
        VolumeTable { context, journal, allocator, entries: RefCell::new(entries) }
    }

    /// The entries, by slot.
    pub fn entries(&self) -> Ref<'_, Vec<UuidEntry>> {
        self.entries.borrow()
    }

    /// Slot of a backing device.
    pub fn slot_of(&self, uuid: Uuid) -> Option<usize> {
        self.entries.borrow().iter().position(|entry| entry.uuid == uuid)
    }

    /// Returns true if the volume is gone for good: its slot says so.
    pub fn is_dead(&self, inode: Inode) -> bool {
        let entries = self.entries.borrow();
        entries.get(inode.0 as usize).is_some_and(|entry| entry.uuid == Uuid::INVALIDATED)
    }

    /// Declares a slot dead, durably: its keys are void.
    pub async fn invalidate(&self, slot: Inode) -> Result<(), EngineError> {
        let mut table = self.entries.borrow().clone();
        if let Some(entry) = table.get_mut(slot.0 as usize) {
            entry.uuid = Uuid::INVALIDATED;
            entry.invalidated = self.context.env.unix_seconds() as u32;
        }
        self.save(table).await
    }

    /// Writes the table to a new bucket, waits until the journal names it, and goes on with it.
    pub async fn save(&self, table: Vec<UuidEntry>) -> Result<(), EngineError> {
        let _granted = self.journal.room_for_chain().await?;
        let bucket = loop {
            let bucket = self.allocator.take_with_room(Purpose::Metadata).await;
            match bucket {
                Some(bucket) => break bucket,
                None => self.allocator.wait_for_buckets("the volume table").await?,
            }
        };
        let pointer = Pointer {
            device: 0,
            offset: self.context.geometry.bucket_start(bucket),
            generation: self.allocator.buckets().generation(bucket),
        };
        let bytes = encode_uuids(&self.context.geometry, &table);
        let sectors = (bytes.len() as u64 / ubcache_format::SECTOR_BYTES) as u16;
        self.context
            .cache
            .write(pointer.offset, Buf::from_bytes(&bytes).into(), Durability::Volatile)
            .await
            .map_err(EngineError::io("writing the volume table"))?;
        let former =
            self.journal.set_volume_table(Key::node(Inode(0), Sector(0), sectors, pointer));
        self.journal.force().await?;
        let former = former
            .pointer()
            .expect("checked at start")
            .bucket(self.context.geometry.bucket_sectors);
        self.allocator.buckets_mut().retire_metadata(former);
        *self.entries.borrow_mut() = table;
        Ok(())
    }
}
