//! Properties of an export, and their comparison when a connection is made anew.

use super::{OpenFailure, SECTOR_BYTES};
use crate::proto::constants::{MAX_PAYLOAD_BYTES, transmission};
use ubcache_env::{DeviceLimits, DeviceShape, Distance};

/// Largest block that a disk may have.
const BLOCK_MAX: u32 = 64 << 10;
/// Longest trim or write of zeroes: it has to end within the deadline.
const SPAN_BYTES_MAX: u64 = 64 << 20;

/// Sizes of requests that a server is believed to prefer.
const OPTIMAL_BYTES_MIN: u32 = 1 << 20;
const OPTIMAL_BYTES_MAX: u32 = 4 << 20;

/// An export as the negotiation has described it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Export {
    /// Size in bytes.
    pub size: u64,
    /// See [`transmission`].
    pub flags: u16,
    /// Smallest request in bytes.
    pub minimum: u32,
    /// Size of the requests that the server prefers, in bytes.
    pub preferred: u32,
    /// Longest payload in bytes.
    pub maximum: u32,
    /// Replies to reads come in chunks.
    pub structured: bool,
    /// Number of the context `base:allocation`, if there is one.
    pub allocation: Option<u32>,
}

impl Export {
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Returns true if a discard can be a write of zeroes, whose result is known.
    pub fn has_fast_zeroes(&self) -> bool {
        self.has(transmission::SEND_WRITE_ZEROES) && self.has(transmission::SEND_FAST_ZERO)
    }

    /// Returns true if a write can be durable by itself.
    pub fn has_fua(&self) -> bool {
        self.has(transmission::SEND_FUA)
    }

    /// Returns true if the answer to a write says nothing about a loss of power.
    pub fn is_volatile(&self) -> bool {
        self.has(transmission::SEND_FLUSH)
    }

    /// Block of the disk in bytes.
    pub fn block(&self) -> u32 {
        self.minimum.max(SECTOR_BYTES as u32)
    }

    /// Longest payload of a request in bytes: whole blocks.
    pub fn payload_max(&self) -> u64 {
        let most = self.maximum.min(MAX_PAYLOAD_BYTES) / self.block() * self.block();
        u64::from(most.max(self.block()))
    }

    /// Longest request without a payload in bytes.
    pub fn span_max(&self) -> u64 {
        SPAN_BYTES_MAX
    }

    pub fn limits(&self) -> DeviceLimits {
        DeviceLimits {
            sectors: self.size / SECTOR_BYTES,
            logical_block_bytes: self.block(),
            max_transfer_bytes: self.payload_max() as u32,
            volatile_cache: self.is_volatile(),
            discard: !self.has(transmission::READ_ONLY)
                && (self.has(transmission::SEND_TRIM) || self.has_fast_zeroes()),
        }
    }

    /// The server's word for the size of requests counts where it is more than what hides the
    /// cost of a round trip.
    pub fn shape(&self) -> DeviceShape {
        let preferred = self.preferred.clamp(OPTIMAL_BYTES_MIN, OPTIMAL_BYTES_MAX);
        DeviceShape { optimal_bytes: preferred.next_power_of_two(), distance: Distance::Remote }
    }

    /// Checks that the export can be a disk.
    pub fn check(&self, assume_durable: bool) -> Result<(), OpenFailure> {
        if !self.minimum.is_power_of_two() || self.minimum > BLOCK_MAX {
            return Err(OpenFailure::Block { found: self.minimum });
        }
        if self.size == 0 || !self.size.is_multiple_of(u64::from(self.block())) {
            return Err(OpenFailure::Size { found: self.size, multiple: self.block() });
        }
        let writes = !self.has(transmission::READ_ONLY);
        if writes && !self.is_volatile() && !assume_durable {
            return Err(OpenFailure::NoFlush);
        }
        Ok(())
    }

    /// Checks that this is the export that it was, or a longer one.
    pub fn check_same(&self, former: &Export) -> Result<(), OpenFailure> {
        let changed = |what, found: &dyn ToString, expected: &dyn ToString| {
            let (found, expected) = (found.to_string(), expected.to_string());
            Err(OpenFailure::Changed { what, found, expected })
        };
        if self.size < former.size {
            return changed("a size in bytes of", &self.size, &former.size);
        }
        if self.minimum > former.block() {
            return changed("a smallest request of", &self.minimum, &former.block());
        }
        if u64::from(self.maximum) < former.payload_max() {
            return changed("a largest request of", &self.maximum, &former.payload_max());
        }
        const ABILITIES: [(u16, &str); 7] = [
            (transmission::READ_ONLY, "read-only"),
            (transmission::SEND_FLUSH, "flush"),
            (transmission::SEND_FUA, "FUA"),
            (transmission::SEND_TRIM, "trim"),
            (transmission::SEND_WRITE_ZEROES, "write zeroes"),
            (transmission::SEND_FAST_ZERO, "fast zeroes"),
            (transmission::CAN_MULTI_CONN, "multi-conn"),
        ];
        for (flag, what) in ABILITIES {
            let (found, expected) = (self.has(flag), former.has(flag));
            // More than there was changes nothing, except that nobody may write.
            if found != expected && (expected || flag == transmission::READ_ONLY) {
                return changed(what, &found, &expected);
            }
        }
        if former.allocation.is_some() && self.allocation.is_none() {
            return changed("base:allocation", &false, &true);
        }
        Ok(())
    }
}
