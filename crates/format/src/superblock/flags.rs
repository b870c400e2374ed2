//! Flags of a superblock: modes, states and policies, and whether the metadata is valid.

use super::Superblock;
use crate::stamp::OwnPolicy;

/// The driver's choice of a bucket to reuse.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default, Debug)]
pub enum Replacement {
    /// The one used longest ago.
    #[default]
    Lru,
    /// The one filled longest ago.
    Fifo,
    /// Any.
    Random,
}

/// The use of the cache by writes to a volume.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default, Debug)]
pub enum CacheMode {
    /// Writes go to the cache and to the backing device.
    #[default]
    Writethrough,
    /// Writes go to the cache at first, to the backing device later.
    Writeback,
    /// Writes go to the backing device only.
    Writearound,
    /// Writes go to the backing device only; reads are not cached either.
    None,
}

/// State of a backing device, in its own superblock (docs/reference/format.md §10.1).
#[derive(Copy, Clone, PartialEq, Eq, Hash, Default, Debug)]
pub enum BackingState {
    /// It has no cache.
    #[default]
    None,
    /// It has a cache, and all of the data itself.
    Clean,
    /// It has a cache that may hold newer data.
    Dirty,
    /// It was used without its cache; the cached data must not be used any more.
    Stale,
}

impl Superblock {
    fn bits(&self, shift: u32, width: u32) -> u64 {
        self.flags >> shift & ((1 << width) - 1)
    }

    fn set_bits(&mut self, shift: u32, width: u32, value: u64) {
        let mask = ((1 << width) - 1) << shift;
        self.flags = self.flags & !mask | value << shift & mask;
    }

    /// True if the metadata of a cache device is valid. If not, the set starts empty.
    pub fn sync(&self) -> bool {
        self.bits(0, 1) != 0
    }

    /// Sets [`Superblock::sync`].
    pub fn set_sync(&mut self, sync: bool) {
        self.set_bits(0, 1, u64::from(sync));
    }

    /// True if freed buckets of a cache device are to be discarded.
    pub fn discard(&self) -> bool {
        self.bits(1, 1) != 0
    }

    /// Sets [`Superblock::discard`].
    pub fn set_discard(&mut self, discard: bool) {
        self.set_bits(1, 1, u64::from(discard));
    }

    /// Replacement policy of a cache device; values that mean nothing count as LRU.
    pub fn replacement(&self) -> Replacement {
        match self.bits(2, 3) {
            1 => Replacement::Fifo,
            2 => Replacement::Random,
            _ => Replacement::Lru,
        }
    }

    /// Sets [`Superblock::replacement`].
    pub fn set_replacement(&mut self, replacement: Replacement) {
        self.set_bits(2, 3, replacement as u64);
    }

    /// ubcache's own policy that the set of a cache device begins with that was never started;
    /// [`Superblock::replacement`] is LRU then (docs/reference/format.md §14).
    pub fn begins_with(&self) -> OwnPolicy {
        match self.replacement() {
            Replacement::Lru => OwnPolicy::named(&self.label_str()).unwrap_or_default(),
            _ => OwnPolicy::None,
        }
    }

    /// Sets [`Superblock::begins_with`]. The label of a cache device is empty otherwise.
    pub fn set_begins_with(&mut self, policy: OwnPolicy) {
        self.set_label(policy.word());
    }

    /// Cache mode of a backing device; values that mean nothing count as [`CacheMode::None`].
    pub fn cache_mode(&self) -> CacheMode {
        match self.bits(0, 4) {
            0 => CacheMode::Writethrough,
            1 => CacheMode::Writeback,
            2 => CacheMode::Writearound,
            _ => CacheMode::None,
        }
    }

    /// Sets [`Superblock::cache_mode`].
    pub fn set_cache_mode(&mut self, mode: CacheMode) {
        self.set_bits(0, 4, mode as u64);
    }

    /// State of a backing device.
    pub fn state(&self) -> BackingState {
        match self.bits(61, 2) {
            0 => BackingState::None,
            1 => BackingState::Clean,
            2 => BackingState::Dirty,
            _ => BackingState::Stale,
        }
    }

    /// Sets [`Superblock::state`].
    pub fn set_state(&mut self, state: BackingState) {
        self.set_bits(61, 2, state as u64);
    }
}
