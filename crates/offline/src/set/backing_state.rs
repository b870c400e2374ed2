//! Words for the state of a backing device.

use ubcache_format::BackingState;

/// The word for a state of a backing device.
pub(crate) fn state_word(state: BackingState) -> &'static str {
    match state {
        BackingState::None => "none",
        BackingState::Clean => "clean",
        BackingState::Dirty => "dirty",
        BackingState::Stale => "stale",
    }
}
