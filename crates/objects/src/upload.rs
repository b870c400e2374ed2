//! Writes into memory, and the PUT of one object.

use std::rc::Rc;

use ubcache_env::{Env, IoResult, IoVec, Priority, SectorRange};
use ubcache_format::SECTOR_BYTES;

use crate::buffers::Slot;
use crate::disk::{Inner, Part};
use crate::layer::{LAYER_BYTES, Layer};
use crate::names::data_key;
use crate::store::{Condition, Store, StoreError};

/// PUTs that run beside the writes.
const UPLOADS_MAX: u64 = 8;
/// Objects that are discarded in one step.
const STEPS: u64 = 1024;

impl<E: Env, S: Store> Inner<E, S> {
    /// Writes within one object, into memory.
    pub(crate) async fn write_part(self: &Rc<Self>, part: &Part, data: &IoVec) -> IoResult {
        self.make_room(part.index).await?;
        let write = |layer: &mut Layer| layer.write(part.range.start, data);
        let whole = self.buffers.borrow_mut().change(part.index, write);
        self.upload_early(part.index, whole);
        Ok(())
    }

    /// Makes a range of one object zero. A whole object becomes a hole.
    pub(crate) async fn zero_part(self: &Rc<Self>, part: &Part) -> IoResult {
        let whole = part.range.bytes() == self.shape().object_bytes;
        if self.buffers.borrow().get(part.index).is_none()
            && (whole || self.map.borrow().get(part.index).is_none())
        {
            self.map.borrow_mut().set(part.index, None);
            if part.index.is_multiple_of(STEPS) {
                self.env.yield_now().await;
            }
            return self.check();
        }
        self.make_room(part.index).await?;
        self.buffers.borrow_mut().change(part.index, |layer| layer.zero(part.range));
        Ok(())
    }

    /// Waits until there is memory for data of the object. The oldest data goes to the store.
    async fn make_room(self: &Rc<Self>, index: u64) -> IoResult {
        let most = self.options.write_memory_bytes;
        let layer = self.shape().object_bytes + LAYER_BYTES;
        loop {
            self.check()?;
            let oldest = {
                let buffers = self.buffers.borrow();
                if buffers.has_room(index) || buffers.memory_bytes() + layer <= most {
                    return Ok(());
                }
                buffers.oldest()
            };
            // One object is always taken.
            let Some((oldest, slot)) = oldest else { return Ok(()) };
            self.put_object(oldest, &slot).await?;
        }
    }

    /// Starts to PUT objects that no write needs to wait for yet: complete ones, and the oldest
    /// when half of the memory is in use.
    fn upload_early(self: &Rc<Self>, index: u64, whole: bool) {
        let chosen = {
            let buffers = self.buffers.borrow();
            if whole {
                buffers.get(index).map(|slot| (index, slot))
            } else if buffers.memory_bytes() > self.options.write_memory_bytes / 2 {
                buffers.oldest()
            } else {
                None
            }
        };
        let Some((index, slot)) = chosen else { return };
        if self.uploads.get() >= UPLOADS_MAX || slot.turn.is_locked() {
            return;
        }
        self.uploads.set(self.uploads.get() + 1);
        let inner = self.clone();
        self.env.spawn(Priority::Background, async move {
            // After a failure the data stays, and the next flush tries again.
            let _ = inner.put_object(index, &slot).await;
            inner.uploads.set(inner.uploads.get() - 1);
        });
    }

    /// PUTs the data of an object that was written before this call. After a failure, or when the
    /// future is dropped, the data is still in memory.
    pub(crate) async fn put_object(&self, index: u64, slot: &Slot) -> IoResult {
        let _turn = slot.turn.lock().await;
        self.check()?;
        let Some(layer) = self.buffers.borrow_mut().take_turn(slot) else { return Ok(()) };
        let gaps = layer.borrow().gaps(layer.borrow().whole());
        let base = self.map.borrow().get(index);
        if let (Some(first), Some(last)) = (gaps.first(), gaps.last()) {
            let gap = SectorRange::from_bounds(first.start, last.end);
            let bytes = match base {
                None => Default::default(),
                Some(version) => {
                    let range = gap.start.0 * SECTOR_BYTES..gap.end.0 * SECTOR_BYTES;
                    let got = self.get_exactly(index, version, range).await;
                    got.map_err(|error| self.failure(error))?
                }
            };
            self.with_memory_of(slot, || layer.borrow_mut().fill(gap.start, &bytes));
        }
        let version = if layer.borrow().is_zero() {
            None
        } else {
            let version = self.version();
            let bytes = self.with_memory_of(slot, || layer.borrow_mut().share());
            match self.store.put(&data_key(index, version), bytes, Condition::None).await {
                Ok(_) => Some(version),
                Err(StoreError::Conflict) => return Err(crate::disk::eio()),
                Err(error) => return Err(self.failure(error)),
            }
        };
        self.map.borrow_mut().set(index, version);
        self.buffers.borrow_mut().put(index, slot);
        Ok(())
    }

    fn with_memory_of<T>(&self, slot: &Slot, change: impl FnOnce() -> T) -> T {
        let before = slot.memory_bytes();
        let result = change();
        self.buffers.borrow().recount(before, slot);
        result
    }
}
