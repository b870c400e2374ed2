//! Room that flash-only volumes leave to everything else (N6).
//!
//! Their data is never evicted, and nobody writes it back: a bucket that it takes is gone until a
//! client discards or overwrites what is in it. So they get buckets only while more than a reserve
//! could be used again:
//!
//! ```text
//!  all buckets ┬ metadata, dirty data, open buckets
//!              └ spare: free, given up, dead, or clean ──┬ any write
//!                                                        ├ writes over data that is there
//!                                                        └ reserve: none
//! ```

use super::buckets::Buckets;

/// This part of the buckets beyond the reserve is for writes over data that is there: it is given
/// back when garbage collection moves together what they leave.
const OVERWRITE_PART: usize = 16;

impl Buckets {
    /// Buckets that hold nothing, or nothing that could not be evicted.
    fn spare(&self) -> usize {
        // A bucket that is not counted yet may hold anything.
        let empty = self.empty_len() - self.unknown as usize;
        // A12: a bucket beyond the end is none, and what is in it may need one below.
        (empty + self.victims.len() as usize).saturating_sub(self.left_beyond())
    }

    /// Buckets that flash-only volumes leave: free ones for metadata, moves and data of other
    /// volumes, and those that are promised to the next start.
    fn flash_reserve(&self, overwrites: bool) -> usize {
        let needed = self.watermarks().1 + self.restart_reserve();
        match overwrites {
            true => needed,
            false => needed + self.end as usize / OVERWRITE_PART,
        }
    }

    /// N6: a flash-only volume may write so many sectors; `overwrites`: it has data there.
    pub fn admits_flash(&self, sectors: u64, overwrites: bool) -> bool {
        let wanted = sectors.div_ceil(u64::from(self.geometry.bucket_sectors)) as usize;
        self.spare() >= self.flash_reserve(overwrites) + wanted
    }

    /// Buckets get few for flash-only volumes: data in sparse ones is worth moving together.
    pub fn is_flash_short(&self) -> bool {
        self.spare() < self.flash_reserve(false) + self.end as usize / OVERWRITE_PART
    }

    /// Bytes that flash-only volumes could write now.
    pub fn flash_room_bytes(&self) -> u64 {
        let buckets = self.spare().saturating_sub(self.flash_reserve(false));
        buckets as u64 * self.geometry.bucket_bytes()
    }
}
