//! A set whose cache was replaced, for as long as some volume needs it.

use std::rc::Rc;

use ubcache_engine::CacheSet;
use ubcache_env::local::Event;

use super::world::World;

/// A set whose cache was replaced.
pub(crate) struct Former<W: World> {
    /// The set.
    pub set: CacheSet<W>,
    /// Set when it has ended: nobody waits for its events any more.
    pub ended: Rc<Event>,
}
