//! A device that completes at once, keeps metadata, and forgets client data.
//!
//! The first bytes of a page distinguish data from metadata: the data that a [`NullDevice`] returns
//! begins, in every page, with [`MARK`], and so does the data that a load writes. Everything else
//! is metadata, which is kept by *region*: on a cache device a bucket, which holds one or the
//! other.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ubcache_env::{
    Buf, Device, DeviceLimits, Durability, Env, IoError, IoResult, IoVec, Nanos, Sector,
    SectorRange,
};
use ubcache_format::SECTOR_BYTES;

use super::executor::NullEnv;

/// First bytes of every page of client data.
pub const MARK: &[u8; 16] = b"client's data...";

const PAGE_BYTES: usize = 4096;

struct State {
    sectors: u64,
    region_sectors: u64,
    /// The first regions of the device; what comes behind them is data.
    regions: RefCell<Vec<Option<Box<[u8]>>>>,
    kept_bytes: Cell<u64>,
    latency: Cell<Nanos>,
}

/// A handle to a device. Its content lasts as long as a handle does.
#[derive(Clone)]
pub struct NullDevice {
    env: NullEnv,
    state: Rc<State>,
}

impl NullDevice {
    /// A device of so many sectors. Metadata may be in its first `regions` regions.
    pub fn new(env: NullEnv, sectors: u64, region_sectors: u64, regions: u64) -> NullDevice {
        let regions = RefCell::new((0..regions).map(|_| None).collect());
        let (kept_bytes, latency) = (Cell::new(0), Cell::default());
        NullDevice {
            env,
            state: Rc::new(State { sectors, region_sectors, regions, kept_bytes, latency }),
        }
    }

    /// The same device in another world, as after a restart of the machine.
    pub fn in_world(&self, env: NullEnv) -> NullDevice {
        NullDevice { env, state: self.state.clone() }
    }

    /// Sets the duration of every request.
    pub fn set_latency(&self, latency: Nanos) {
        self.state.latency.set(latency);
    }

    /// Size in sectors.
    pub fn sectors(&self) -> u64 {
        self.state.sectors
    }

    /// Memory for metadata, in bytes.
    pub fn kept_bytes(&self) -> u64 {
        self.state.kept_bytes.get()
    }

    /// Calls `each` with every kept region: position in bytes, and content.
    pub fn each_kept(&self, mut each: impl FnMut(u64, &[u8])) {
        for (index, region) in self.state.regions.borrow().iter().enumerate() {
            if let Some(region) = region {
                each(index as u64 * self.state.region_sectors * SECTOR_BYTES, region);
            }
        }
    }

    async fn wait(&self) {
        let latency = self.state.latency.get();
        if latency > Nanos(0) {
            self.env.sleep(latency).await;
        }
    }

    /// Checks that the range is within the device.
    fn check(&self, at: Sector, bytes: usize) -> IoResult {
        let range = SectorRange::new(at, bytes as u64 / SECTOR_BYTES);
        let sectors = self.state.sectors;
        if range.end.0 > sectors { Err(IoError::OutOfRange { range, sectors }) } else { Ok(()) }
    }
}

impl State {
    /// The parts of a transfer by region: region, byte within it, byte within the transfer, length.
    fn parts(
        &self,
        at: Sector,
        bytes: usize,
    ) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        let region_bytes = (self.region_sectors * SECTOR_BYTES) as usize;
        let start = (at.0 * SECTOR_BYTES) as usize;
        let mut done = 0;
        std::iter::from_fn(move || {
            (done < bytes).then(|| {
                let (region, offset) =
                    ((start + done) / region_bytes, (start + done) % region_bytes);
                let length = (region_bytes - offset).min(bytes - done);
                done += length;
                (region, offset, done - length, length)
            })
        })
    }

    fn read(&self, at: Sector, into: &mut [u8]) {
        let regions = self.regions.borrow();
        for (region, offset, from, length) in self.parts(at, into.len()) {
            let part = &mut into[from..from + length];
            match regions.get(region) {
                Some(Some(kept)) => part.copy_from_slice(&kept[offset..offset + length]),
                _ => {
                    for page in part.chunks_mut(PAGE_BYTES) {
                        page[..MARK.len()].copy_from_slice(MARK);
                    }
                }
            }
        }
    }

    fn write(&self, at: Sector, from: &IoVec) {
        let first = from.parts().first().map_or(&[][..], |slice| slice.as_slice());
        let data = first.starts_with(MARK);
        let region_bytes = self.region_sectors * SECTOR_BYTES;
        let mut regions = self.regions.borrow_mut();
        for (region, offset, begin, length) in self.parts(at, from.len()) {
            let Some(kept) = regions.get_mut(region) else { continue };
            if data {
                if kept.take().is_some() {
                    self.kept_bytes.set(self.kept_bytes.get() - region_bytes);
                }
                continue;
            }
            let kept = kept.get_or_insert_with(|| {
                self.kept_bytes.set(self.kept_bytes.get() + region_bytes);
                vec![0; region_bytes as usize].into_boxed_slice()
            });
            from.cut(begin, begin + length).copy_to(&mut kept[offset..offset + length]);
        }
    }
}

impl Device for NullDevice {
    fn limits(&self) -> DeviceLimits {
        DeviceLimits {
            sectors: self.state.sectors,
            logical_block_bytes: 4096,
            max_transfer_bytes: 1 << 20,
            volatile_cache: true,
            discard: false,
        }
    }
    async fn read(&self, at: Sector, mut into: Buf) -> (Buf, IoResult) {
        self.wait().await;
        let result = self.check(at, into.len());
        if result.is_ok() {
            self.state.read(at, into.as_mut_slice());
        }
        (into, result)
    }
    async fn write(&self, at: Sector, from: IoVec, _: Durability) -> IoResult {
        self.wait().await;
        self.check(at, from.len())?;
        self.state.write(at, &from);
        Ok(())
    }
    async fn flush(&self) -> IoResult {
        self.wait().await;
        Ok(())
    }
    async fn discard(&self, _: SectorRange) -> IoResult {
        Err(IoError::NotSupported)
    }
    async fn write_zeroes(&self, _: SectorRange) -> IoResult {
        Err(IoError::NotSupported)
    }
}

/// Client data as a load writes it: so many bytes, whole pages.
pub fn client_data(bytes: usize) -> IoVec {
    let mut buf = Buf::zeroed(bytes);
    for page in buf.as_mut_slice().chunks_mut(PAGE_BYTES) {
        page[..MARK.len()].copy_from_slice(MARK);
    }
    buf.into()
}

#[cfg(test)]
mod tests {
    use super::super::executor::NullWorld;
    use super::*;

    #[test]
    fn null_device_keeps_metadata_only() {
        let world = NullWorld::new(1);
        let device = NullDevice::new(world.env(), 64, 16, 4);
        world.run(async {
            let metadata = Buf::from_bytes(&[7; 8192]);
            device.write(Sector(8), metadata.into(), Durability::Fua).await.expect("writes");
            assert_eq!(device.kept_bytes(), 2 * 8192);
            let (buf, result) = device.read(Sector(16), Buf::for_sectors(8)).await;
            assert_eq!((result, buf.as_slice()), (Ok(()), &[7; 4096][..]));
            // Data takes the place of metadata in one region, and the other stays.
            device.write(Sector(24), client_data(4096), Durability::Fua).await.expect("writes");
            assert_eq!(device.kept_bytes(), 8192);
            let (buf, _) = device.read(Sector(16), Buf::for_sectors(8)).await;
            assert!(buf.as_slice().starts_with(MARK));
            let (buf, _) = device.read(Sector(8), Buf::for_sectors(8)).await;
            assert_eq!(buf.as_slice(), &[7; 4096]);
            let (_, result) = device.read(Sector(56), Buf::for_sectors(16)).await;
            assert!(matches!(result, Err(IoError::OutOfRange { .. })));
        });
    }
}
