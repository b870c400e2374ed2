//! Words for modes, states and policies, named for the program of bcache that has them: its sysfs
//! attributes, and `bcache-super-show`. The two differ.

use crate::superblock::{BackingState, CacheMode, Replacement};

impl CacheMode {
    /// All modes.
    pub const ALL: [CacheMode; 4] =
        [CacheMode::Writethrough, CacheMode::Writeback, CacheMode::Writearound, CacheMode::None];

    /// Word of the sysfs attribute `cache_mode`.
    pub const fn sysfs_word(self) -> &'static str {
        match self {
            CacheMode::Writethrough => "writethrough",
            CacheMode::Writeback => "writeback",
            CacheMode::Writearound => "writearound",
            CacheMode::None => "none",
        }
    }

    /// Word of `bcache-super-show` after `dev.data.cache_mode`.
    pub const fn super_show_word(self) -> &'static str {
        match self {
            CacheMode::None => "no caching",
            mode => mode.sysfs_word(),
        }
    }
}

impl BackingState {
    /// Word of `bcache-super-show` after `dev.data.cache_state`.
    pub const fn super_show_word(self) -> &'static str {
        match self {
            BackingState::None => "detached",
            BackingState::Clean => "clean",
            BackingState::Dirty => "dirty",
            BackingState::Stale => "inconsistent",
        }
    }

    /// Word of the sysfs attribute `state`.
    pub const fn sysfs_word(self) -> &'static str {
        match self {
            BackingState::None => "no cache",
            state => state.super_show_word(),
        }
    }
}

impl Replacement {
    /// Word of the sysfs attribute `cache_replacement_policy`, which `bcache-super-show` shares.
    pub const fn word(self) -> &'static str {
        match self {
            Replacement::Lru => "lru",
            Replacement::Fifo => "fifo",
            Replacement::Random => "random",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_mode_without_a_cache_has_two_words() {
        for mode in CacheMode::ALL {
            let is_same = mode.sysfs_word() == mode.super_show_word();
            assert_eq!(is_same, mode != CacheMode::None, "{mode:?}");
        }
    }
}
