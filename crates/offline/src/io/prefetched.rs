//! Ranges that were read before the walk asks for them.

use std::cell::RefCell;

use ubcache_env::local::join_all;
use ubcache_env::{Buf, Device};
use ubcache_format::{Sector, SectorRange};

use super::read::read;

/// Ranges with the result of reading them.
#[derive(Default)]
pub(crate) struct Prefetched {
    read: RefCell<Vec<(SectorRange, Result<Buf, String>)>>,
}

impl Prefetched {
    /// Reads ranges that were not read yet, all at once.
    pub async fn read_all<D: Device>(&self, device: &D, mut ranges: Vec<SectorRange>) {
        ranges.retain(|range| self.read.borrow().iter().all(|(there, _)| there != range));
        let all =
            join_all(ranges.iter().map(|range| read(device, range.start, range.sectors()))).await;
        self.read.borrow_mut().extend(ranges.into_iter().zip(all));
    }

    /// Takes the result for this range, if it was read.
    pub fn take(&self, range: SectorRange) -> Option<Result<Buf, String>> {
        let mut read = self.read.borrow_mut();
        let index = read.iter().position(|(there, _)| *there == range)?;
        Some(read.swap_remove(index).1)
    }

    /// Returns the prefetched result, or reads the range.
    pub async fn read<D: Device>(
        &self,
        device: &D,
        at: Sector,
        sectors: u64,
    ) -> Result<Buf, String> {
        let there = self.take(SectorRange::new(at, sectors));
        match there {
            Some(result) => result,
            None => read(device, at, sectors).await,
        }
    }
}
