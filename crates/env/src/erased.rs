//! Devices behind one type: a world whose devices are of several kinds needs no parameter for each.
//!
//! Every call of an erased device allocates its future, which costs nothing beside the round trip
//! to a remote server. A device whose hits are counted in instructions is not erased.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use ubcache_format::{Sector, SectorRange};

use crate::buf::{Buf, IoVec};
use crate::device::{
    Device, DeviceLimits, DeviceShape, Durability, IoError, IoResult, Place, Witness,
};

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// [`Device`] with boxed futures, so that it can be a trait object.
trait ErasedDevice: 'static {
    fn limits_erased(&self) -> DeviceLimits;
    fn shape_erased(&self) -> DeviceShape;
    fn read_erased(&self, at: Sector, into: Buf) -> Boxed<'_, (Buf, IoResult)>;
    fn read_into_erased(&self, range: SectorRange, place: Place) -> Boxed<'_, IoResult>;
    fn write_erased(&self, at: Sector, from: IoVec, durability: Durability) -> Boxed<'_, IoResult>;
    fn flush_erased(&self) -> Boxed<'_, IoResult>;
    fn discard_erased(&self, range: SectorRange) -> Boxed<'_, IoResult>;
    fn write_zeroes_erased(&self, range: SectorRange) -> Boxed<'_, IoResult>;
    fn write_holes_erased(&self, range: SectorRange) -> Boxed<'_, IoResult>;
    fn holes_erased(
        &self,
        range: SectorRange,
        most: usize,
    ) -> Boxed<'_, IoResult<Vec<(SectorRange, bool)>>>;
    fn allocate_erased(&self, range: SectorRange) -> Boxed<'_, IoResult>;
    fn refresh_size_erased(&self) -> Boxed<'_, IoResult<u64>>;
    fn witness_erased(&self) -> Boxed<'_, IoResult<Witness>>;
    fn seal_erased(&self) -> Boxed<'_, IoResult>;
}

impl<D: Device> ErasedDevice for D {
    fn limits_erased(&self) -> DeviceLimits {
        self.limits()
    }
    fn shape_erased(&self) -> DeviceShape {
        self.shape()
    }
    fn read_erased(&self, at: Sector, into: Buf) -> Boxed<'_, (Buf, IoResult)> {
        Box::pin(self.read(at, into))
    }
    fn read_into_erased(&self, range: SectorRange, place: Place) -> Boxed<'_, IoResult> {
        Box::pin(self.read_into(range, place))
    }
    fn write_erased(&self, at: Sector, from: IoVec, durability: Durability) -> Boxed<'_, IoResult> {
        Box::pin(self.write(at, from, durability))
    }
    fn flush_erased(&self) -> Boxed<'_, IoResult> {
        Box::pin(self.flush())
    }
    fn discard_erased(&self, range: SectorRange) -> Boxed<'_, IoResult> {
        Box::pin(self.discard(range))
    }
    fn write_zeroes_erased(&self, range: SectorRange) -> Boxed<'_, IoResult> {
        Box::pin(self.write_zeroes(range))
    }
    fn write_holes_erased(&self, range: SectorRange) -> Boxed<'_, IoResult> {
        Box::pin(self.write_holes(range))
    }
    fn holes_erased(
        &self,
        range: SectorRange,
        most: usize,
    ) -> Boxed<'_, IoResult<Vec<(SectorRange, bool)>>> {
        Box::pin(self.holes(range, most))
    }
    fn allocate_erased(&self, range: SectorRange) -> Boxed<'_, IoResult> {
        Box::pin(self.allocate(range))
    }
    fn refresh_size_erased(&self) -> Boxed<'_, IoResult<u64>> {
        Box::pin(self.refresh_size())
    }
    fn witness_erased(&self) -> Boxed<'_, IoResult<Witness>> {
        Box::pin(self.witness())
    }
    fn seal_erased(&self) -> Boxed<'_, IoResult> {
        Box::pin(self.seal())
    }
}

/// A device of any kind. Clones are handles to the same device.
#[derive(Clone)]
pub struct AnyDevice {
    device: Rc<dyn ErasedDevice>,
    discards: bool,
}

impl AnyDevice {
    /// Erases the kind of a device.
    pub fn new(device: impl Device) -> AnyDevice {
        AnyDevice { device: Rc::new(device), discards: true }
    }

    /// A handle whose device reports that it can't discard: what it gives for a discarded sector
    /// may be something else at every read (rule D2).
    #[must_use]
    pub fn without_discards(self) -> AnyDevice {
        AnyDevice { discards: false, ..self }
    }
}

impl Device for AnyDevice {
    fn limits(&self) -> DeviceLimits {
        let limits = self.device.limits_erased();
        DeviceLimits { discard: limits.discard && self.discards, ..limits }
    }
    fn shape(&self) -> DeviceShape {
        self.device.shape_erased()
    }
    async fn read(&self, at: Sector, into: Buf) -> (Buf, IoResult) {
        self.device.read_erased(at, into).await
    }
    async fn read_into(&self, range: SectorRange, place: Place) -> IoResult {
        self.device.read_into_erased(range, place).await
    }
    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        self.device.write_erased(at, from, durability).await
    }
    async fn flush(&self) -> IoResult {
        self.device.flush_erased().await
    }
    async fn discard(&self, range: SectorRange) -> IoResult {
        match self.discards {
            true => self.device.discard_erased(range).await,
            false => Err(IoError::NotSupported),
        }
    }
    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        self.device.write_zeroes_erased(range).await
    }
    async fn write_holes(&self, range: SectorRange) -> IoResult {
        self.device.write_holes_erased(range).await
    }
    async fn holes(&self, range: SectorRange, most: usize) -> IoResult<Vec<(SectorRange, bool)>> {
        self.device.holes_erased(range, most).await
    }
    async fn allocate(&self, range: SectorRange) -> IoResult {
        self.device.allocate_erased(range).await
    }
    async fn refresh_size(&self) -> IoResult<u64> {
        self.device.refresh_size_erased().await
    }
    async fn witness(&self) -> IoResult<Witness> {
        self.device.witness_erased().await
    }
    async fn seal(&self) -> IoResult {
        self.device.seal_erased().await
    }
}

impl std::fmt::Debug for AnyDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnyDevice").field("limits", &self.limits()).finish_non_exhaustive()
    }
}
