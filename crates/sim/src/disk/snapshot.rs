//! A disk at one moment: what is on it, or what a power failure at this moment might leave.
//!
//! A [`Snapshot`] is a [`Device`] whose reads take no time and go through no queue, so that tools
//! for devices at rest can look at the disks of a run between two of its events. Drawing one
//! changes nothing about the disk.

use std::collections::BTreeMap;

use ubcache_env::{
    Buf, Device, DeviceLimits, Durability, IoError, IoResult, IoVec, Sector, SectorRange,
};

use super::SimDisk;
use super::image::SectorContent;
use super::io::Io;
use crate::rng::Rng;

/// See the module.
pub struct Snapshot {
    disk: SimDisk,
    /// Sectors that are not as the disk has them now.
    instead: BTreeMap<u64, SectorContent>,
}

/// Draws the fate of the un-flushed sectors: for each one that loses its newest version, the one
/// that it keeps; 0 is the durable content.
pub(super) fn draw_losses(
    counts: impl Iterator<Item = (u64, usize)>,
    per_block: u64,
    rng: &mut Rng,
) -> Vec<(u64, usize)> {
    // Cases at the rims are drawn more often than an even mixture would give them.
    let keep_newest = rng.pick(&[0, 8, 32, 56, 60, 64]);
    let mut last = None;
    let mut losses = Vec::new();
    for (sector, count) in counts {
        // All sectors of a block have the same history.
        let choice = match last {
            Some((block, choice)) if block == sector / per_block => choice,
            _ if rng.chance(keep_newest, 64) => count,
            _ => rng.below(count as u64) as usize,
        };
        let choice = choice.min(count);
        last = Some((sector / per_block, choice));
        if choice < count {
            losses.push((sector, choice));
        }
    }
    losses
}

impl SimDisk {
    /// The disk as it is now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { disk: self.clone(), instead: BTreeMap::new() }
    }

    /// Returns true if a sector has these bytes now and after any power failure, as far as
    /// completed writes go.
    pub fn holds_only(&self, sector: Sector, bytes: &[u8]) -> bool {
        let mut now = [0; 512];
        self.peek_into(sector, &mut now);
        now == *bytes && self.inner.state.borrow().versions.holds_only(sector.0, bytes)
    }

    /// The sectors that a power failure might change, writes in flight apart.
    pub fn unflushed(&self) -> Vec<Sector> {
        self.inner.state.borrow().versions.counts().map(|(sector, _)| Sector(sector)).collect()
    }

    /// Ranges that are being written, discarded or zeroed.
    pub fn writes_in_flight(&self) -> Vec<SectorRange> {
        let state = self.inner.state.borrow();
        state.ios.values().filter(|io| io.may_land()).map(Io::range).collect()
    }

    /// One of the disks that a power failure now might leave.
    pub fn survivor(&self, rng: &mut Rng) -> Snapshot {
        let state = self.inner.state.borrow();
        let per_block = self.inner.config.sectors_per_block();
        let mut instead = BTreeMap::new();
        for (sector, choice) in draw_losses(state.versions.counts(), per_block, rng) {
            instead.insert(sector, state.versions.content(sector, choice));
        }
        for io in state.ios.values().filter(|io| io.may_land()) {
            io.draw_end(per_block, rng, |index| {
                instead.insert(io.sector(index), io.content(index));
            });
        }
        drop(state);
        Snapshot { disk: self.clone(), instead }
    }
}

impl Snapshot {
    /// The bytes of a sector.
    pub fn peek(&self, sector: Sector, into: &mut [u8; 512]) {
        match self.instead.get(&sector.0) {
            Some(content) => content.copy_into(into),
            None => self.disk.peek_into(sector, into),
        }
    }
}

impl Device for Snapshot {
    fn limits(&self) -> DeviceLimits {
        self.disk.limits()
    }

    async fn read(&self, at: Sector, mut into: Buf) -> (Buf, IoResult) {
        let range = SectorRange::new(at, into.len() as u64 / 512);
        let sectors = self.disk.limits().sectors;
        if range.end.0 > sectors {
            return (into, Err(IoError::OutOfRange { range, sectors }));
        }
        self.disk.peek_into(at, into.as_mut_slice());
        for (sector, content) in self.instead.range(range.start.0..range.end.0) {
            let from = (sector - at.0) as usize * 512;
            content.copy_into(&mut into.as_mut_slice()[from..from + 512]);
        }
        (into, Ok(()))
    }

    async fn write(&self, _: Sector, _: IoVec, _: Durability) -> IoResult {
        Err(IoError::NotSupported)
    }

    async fn flush(&self) -> IoResult {
        Err(IoError::NotSupported)
    }

    async fn discard(&self, _: SectorRange) -> IoResult {
        Err(IoError::NotSupported)
    }

    async fn write_zeroes(&self, _: SectorRange) -> IoResult {
        Err(IoError::NotSupported)
    }
}
