//! Sectors of the backing device: the durable content, and versions that are not.

use super::{Few, VERSIONS};

/// A content of a sector of the backing device that is not known to be durable.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default)]
pub struct Version {
    /// The content.
    pub value: u8,
    /// The operation that wrote it; `OPS`: background writeback.
    pub writer: u8,
    /// Its write has completed.
    pub completed: bool,
    /// The flush in flight covers it.
    pub covered: bool,
}

/// A sector of the backing device.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default)]
pub struct Disk {
    /// The version that a power failure leaves at least.
    pub durable: u8,
    /// Versions that have landed since, oldest first.
    pub versions: Few<Version, VERSIONS>,
    /// The value + 1 that a failed flush has lost and reads still return, until it shows or a write
    /// lands.
    phantom: u8,
}

impl Disk {
    /// A sector with this content, durable.
    pub fn new(durable: u8) -> Disk {
        Disk { durable, ..Disk::default() }
    }

    /// The value that a read returns.
    pub fn live(&self) -> u8 {
        self.phantom.checked_sub(1).unwrap_or_else(|| self.kept())
    }

    fn kept(&self) -> u8 {
        self.versions.last().map_or(self.durable, |version| version.value)
    }

    /// A write lands.
    pub fn land(&mut self, version: Version) {
        self.phantom = 0;
        self.versions.push(version);
    }

    /// A failed flush has lost all versions but so many. `late`: reads still return the newest one.
    pub fn lose(&mut self, kept: usize, late: bool) {
        let live = self.live();
        self.versions.truncate(kept);
        self.phantom = if late { live + 1 } else { 0 };
    }

    /// The loss shows. Says whether there was one that did not.
    pub fn show(&mut self) -> bool {
        std::mem::take(&mut self.phantom) > 0
    }

    /// The value that was lost and still is returned.
    pub fn phantom(&self) -> Option<u8> {
        self.phantom.checked_sub(1)
    }

    /// Everything up to this version is settled: it is durable.
    pub fn settle(&mut self, at: usize) {
        self.durable = self.versions[at].value;
        self.versions.drop_first(at + 1);
    }
}
