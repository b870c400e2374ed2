//! Small systems, one right and many wrong, that show what the oracle accepts and what it finds.
//!
//! All of them serve a volume straight from its backing device; each wrong one has one [`Flaw`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use ubcache_env::{
    BlockStatus, Buf, Device, Durability, Env, IoVec, Sector, SectorRange, Slice, StreamEnd,
    StreamId, Volume, VolumeError, VolumeInfo,
};

use crate::disk::SimDisk;
use crate::executor::SimEnv;
use crate::system::{Command, Setup, System};

/// Flaw of a fake system.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// Nothing.
    None,
    /// One write in 40 is acknowledged and forgotten.
    LostWrite,
    /// A flush returns at once.
    IdleFlush,
    /// FUA is not passed on.
    IgnoredFua,
    /// A sector is written in two halves.
    HalfSectors,
    /// Writes are made whole 4 KiB blocks by reading, changing and writing, without a lock.
    UnlockedBlocks,
    /// A read cache; a write invalidates before it is sent: a fill that began earlier publishes old
    /// data for good.
    InvalidateBefore,
    /// A read cache; a write invalidates when it is done: new data, then old data.
    InvalidateAfter,
    /// A write is acknowledged before it is done.
    EarlyReply,
    /// A failed read returns what is in the buffer.
    HiddenError,
    /// A request in a thousand is never answered.
    Hang,
}

/// Names the flaw of a [`FakeSystem`] in its type.
pub trait Recipe: 'static {
    /// The flaw.
    const FLAW: Flaw;
}

macro_rules! recipes {
    ($($name:ident),*) => {$(
        #[doc = concat!("A fake system with [`Flaw::", stringify!($name), "`].")]
        pub struct $name;
        impl Recipe for $name {
            const FLAW: Flaw = Flaw::$name;
        }
    )*};
}

recipes!(
    None,
    LostWrite,
    IdleFlush,
    IgnoredFua,
    HalfSectors,
    UnlockedBlocks,
    InvalidateBefore,
    InvalidateAfter,
    EarlyReply,
    HiddenError,
    Hang
);

/// A system of [`FakeVolume`]s.
pub struct FakeSystem<R> {
    volumes: Vec<Rc<FakeVolume>>,
    recipe: std::marker::PhantomData<R>,
}

impl<R: Recipe> System for FakeSystem<R> {
    type Volume = FakeVolume;
    const DATA_AT: Sector = Sector(0);
    const FLUSHES_AT_STOP: bool = false;

    fn prepare(_setup: &Setup) {}

    async fn start(env: SimEnv, setup: Rc<Setup>) -> Result<Self, String> {
        let volumes = (0..)
            .zip(setup.backing.iter())
            .map(|(index, disk): (u32, _)| {
                Rc::new(FakeVolume {
                    env: env.clone(),
                    name: format!("v{index}"),
                    disk: disk.clone(),
                    flaw: R::FLAW,
                    requests: Cell::new(0),
                    cached: RefCell::default(),
                })
            })
            .collect();
        Ok(FakeSystem { volumes, recipe: std::marker::PhantomData })
    }

    fn volumes(&self) -> Vec<Rc<FakeVolume>> {
        self.volumes.clone()
    }

    async fn control(&self, command: Command) -> Result<(), String> {
        if command == Command::EvictClean {
            for volume in &self.volumes {
                volume.cached.borrow_mut().clear();
            }
        }
        Ok(())
    }

    async fn stop(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A volume on a disk, with a [`Flaw`].
pub struct FakeVolume {
    env: SimEnv,
    name: String,
    disk: SimDisk,
    flaw: Flaw,
    requests: Cell<u64>,
    cached: RefCell<BTreeMap<u64, Slice>>,
}

impl FakeVolume {
    /// Counts requests; true for one in `period`, at a place that differs from run to run.
    fn one_in(&self, period: u64) -> bool {
        self.requests.set(self.requests.get() + 1);
        self.env.random().is_multiple_of(period)
    }

    fn has_cache(&self) -> bool {
        matches!(self.flaw, Flaw::InvalidateBefore | Flaw::InvalidateAfter)
    }

    fn invalidate(&self, range: SectorRange, when: Flaw) {
        if self.flaw == when {
            let mut cached = self.cached.borrow_mut();
            (range.start.0..range.end.0).for_each(|sector| drop(cached.remove(&sector)));
        }
    }

    fn lookup(&self, range: SectorRange) -> Option<IoVec> {
        let cached = self.cached.borrow();
        let mut found = IoVec::new();
        for sector in range.start.0..range.end.0 {
            found.push(cached.get(&sector)?.clone());
        }
        self.env.mark("fake_hit");
        Some(found)
    }

    async fn store(
        &self,
        range: SectorRange,
        data: IoVec,
        durability: Durability,
    ) -> Result<(), VolumeError> {
        match self.flaw {
            Flaw::HalfSectors => self.store_halves(range, &data, durability).await,
            Flaw::UnlockedBlocks => self.store_blocks(range, &data, durability).await,
            _ => Ok(self.disk.write(range.start, data, durability).await?),
        }
    }

    async fn store_halves(
        &self,
        range: SectorRange,
        data: &IoVec,
        durability: Durability,
    ) -> Result<(), VolumeError> {
        let (mut old, result) =
            self.disk.read(range.start, Buf::for_sectors(range.sectors())).await;
        result?;
        let new = data.to_buf();
        for (old, new) in old.as_mut_slice().chunks_mut(512).zip(new.as_slice().chunks(512)) {
            old[..256].copy_from_slice(&new[..256]);
        }
        self.disk.write(range.start, old.into(), Durability::Volatile).await?;
        Ok(self.disk.write(range.start, new.into(), durability).await?)
    }

    async fn store_blocks(
        &self,
        range: SectorRange,
        data: &IoVec,
        durability: Durability,
    ) -> Result<(), VolumeError> {
        let start = range.start.0 / 8 * 8;
        let sectors = range.end.0.next_multiple_of(8) - start;
        let (mut block, result) = self.disk.read(Sector(start), Buf::for_sectors(sectors)).await;
        result?;
        let at = (range.start.0 - start) as usize * 512;
        data.copy_to(&mut block.as_mut_slice()[at..at + data.len()]);
        Ok(self.disk.write(Sector(start), block.into(), durability).await?)
    }
}

impl Volume for FakeVolume {
    fn info(&self) -> VolumeInfo {
        let config = self.disk.config();
        VolumeInfo {
            name: self.name.clone(),
            sectors: config.sectors,
            block_bytes: config.block_bytes,
            preferred_bytes: 4096,
            read_only: false,
        }
    }

    async fn read(&self, _stream: StreamId, range: SectorRange) -> Result<IoVec, VolumeError> {
        if self.flaw == Flaw::Hang && self.one_in(1000) {
            std::future::pending::<()>().await;
        }
        if let Some(found) = self.lookup(range) {
            return Ok(found);
        }
        let (buf, result) = self.disk.read(range.start, Buf::for_sectors(range.sectors())).await;
        if self.flaw != Flaw::HiddenError {
            result?;
        }
        let slice = buf.freeze();
        if self.has_cache() {
            let mut cached = self.cached.borrow_mut();
            for (index, sector) in (range.start.0..range.end.0).enumerate() {
                cached.insert(sector, slice.cut(index * 512, index * 512 + 512));
            }
        }
        Ok(slice.into())
    }

    async fn write(
        &self,
        _stream: StreamId,
        range: SectorRange,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        if self.flaw == Flaw::LostWrite && self.one_in(40) {
            return Ok(());
        }
        let durability = if fua && self.flaw != Flaw::IgnoredFua {
            Durability::Fua
        } else {
            Durability::Volatile
        };
        self.invalidate(range, Flaw::InvalidateBefore);
        if self.flaw == Flaw::EarlyReply {
            let disk = self.disk.clone();
            self.env.spawn(ubcache_env::Priority::Foreground, async move {
                let _ = disk.write(range.start, data, durability).await;
            });
            return Ok(());
        }
        let result = self.store(range, data, durability).await;
        self.invalidate(range, Flaw::InvalidateAfter);
        result
    }

    /// The plans for these systems have whole blocks only.
    async fn write_bytes(
        &self,
        stream: StreamId,
        offset: u64,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let range = SectorRange::new(Sector(offset / 512), data.sectors());
        self.write(stream, range, data, fua).await
    }

    async fn discard(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.invalidate(range, Flaw::InvalidateBefore);
        let result =
            if self.disk.limits().discard { self.disk.discard(range).await } else { Ok(()) };
        self.invalidate(range, Flaw::InvalidateAfter);
        result?;
        if fua { self.flush(stream).await } else { Ok(()) }
    }

    async fn write_zeroes(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
        _may_unmap: bool,
    ) -> Result<(), VolumeError> {
        self.invalidate(range, Flaw::InvalidateBefore);
        let result = self.disk.write_zeroes(range).await;
        self.invalidate(range, Flaw::InvalidateAfter);
        result?;
        if fua { self.flush(stream).await } else { Ok(()) }
    }

    async fn flush(&self, _: StreamId) -> Result<(), VolumeError> {
        if self.flaw == Flaw::IdleFlush {
            return Ok(());
        }
        Ok(self.disk.flush().await?)
    }

    fn stream_ended(&self, _: StreamId, _: StreamEnd) {}

    async fn prefetch(&self, stream: StreamId, range: SectorRange) -> Result<(), VolumeError> {
        self.read(stream, range).await.map(drop)
    }

    async fn block_status(
        &self,
        range: SectorRange,
    ) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError> {
        Ok(vec![(range, BlockStatus::default())])
    }
}
