//! A simulated disk whose first 16 sectors are the header of the rest (A9): the image is that of
//! any backing device, while the engine reaches it through [`Joined`], as it does a disk without a
//! superblock and its header file.

use std::rc::Rc;

use ubcache_env::joined::{Header, HeaderRules};
use ubcache_env::{
    Buf, Device, DeviceLimits, Durability, IoResult, IoVec, Joined, Sector, SectorRange,
};
use ubcache_format::{HEADER_SECTORS, HeaderRecord, PLACES_MAX, Uuid, crc64_we, witness_places};

use super::SimDisk;

/// A part of a disk, as a device.
pub(super) struct Part {
    whole: SimDisk,
    range: SectorRange,
}

impl Part {
    fn there(&self, at: Sector) -> Sector {
        self.range.start + at.0
    }

    fn all_there(&self, range: SectorRange) -> SectorRange {
        range.shift(self.range.start.0 as i64)
    }
}

impl Device for Part {
    fn limits(&self) -> DeviceLimits {
        DeviceLimits { sectors: self.range.sectors(), ..self.whole.limits() }
    }
    async fn read(&self, at: Sector, into: Buf) -> (Buf, IoResult) {
        self.whole.read(self.there(at), into).await
    }
    async fn write(&self, at: Sector, from: IoVec, durability: Durability) -> IoResult {
        self.whole.write(self.there(at), from, durability).await
    }
    async fn flush(&self) -> IoResult {
        self.whole.flush().await
    }
    async fn discard(&self, range: SectorRange) -> IoResult {
        self.whole.discard(self.all_there(range)).await
    }
    async fn write_zeroes(&self, range: SectorRange) -> IoResult {
        self.whole.write_zeroes(self.all_there(range)).await
    }
    async fn holes(&self, range: SectorRange, most: usize) -> IoResult<Vec<(SectorRange, bool)>> {
        let found = self.whole.holes(self.all_there(range), most).await?;
        let back = -(self.range.start.0 as i64);
        Ok(found.into_iter().map(|(part, hole)| (part.shift(back), hole)).collect())
    }
    async fn allocate(&self, range: SectorRange) -> IoResult {
        self.whole.allocate(self.all_there(range)).await
    }
}

impl SimDisk {
    /// The disk as the engine sees one that is behind a header.
    ///
    /// # Errors
    /// There is no header on it.
    pub async fn behind_header(&self, rules: HeaderRules) -> Result<SimDisk, String> {
        let end = Sector(HEADER_SECTORS);
        let part = |start: Sector, end: Sector| Part {
            whole: self.clone(),
            range: SectorRange::from_bounds(start, end),
        };
        let header = Header::open(part(Sector(0), end), None, "").await;
        let header = header.map_err(|error| error.to_string())?;
        let header = header.with_rules(rules);
        let joined = Joined::new(part(end, Sector(self.limits().sectors)), header);
        Ok(SimDisk { inner: self.inner.clone(), joined: Some(Rc::new(joined)), remote: None })
    }

    /// Puts a header on a new disk, with a witness of what is on it.
    pub fn poke_header(&self, uuid: Uuid) {
        let sectors = self.limits().sectors - HEADER_SECTORS;
        let mut hashes = [0; PLACES_MAX];
        for (hash, place) in hashes.iter_mut().zip(witness_places(sectors)) {
            *hash = crc64_we(&self.peek(place.shift(HEADER_SECTORS as i64)));
        }
        let identity = String::new();
        let record =
            HeaderRecord { seq: 1, uuid, sectors, written: 0, sealed: true, identity, hashes };
        self.poke(Sector(0), &record.encode());
    }
}
