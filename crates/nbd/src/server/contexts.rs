//! Metadata contexts: what `NBD_CMD_BLOCK_STATUS` can be asked for.

use ubcache_env::BlockStatus;

use crate::proto::constants::{BASE_ALLOCATION, CACHED, DIRTY, STATE_HOLE, STATE_SET, STATE_ZERO};

/// A metadata context.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Context {
    /// Holes of the backing device.
    Allocation,
    /// Extents that the cache has.
    Cached,
    /// Extents that only the cache has.
    Dirty,
}

impl Context {
    pub(super) const ALL: [Context; 3] = [Context::Allocation, Context::Cached, Context::Dirty];

    pub(super) fn name(self) -> &'static str {
        match self {
            Context::Allocation => BASE_ALLOCATION,
            Context::Cached => CACHED,
            Context::Dirty => DIRTY,
        }
    }

    /// Its number in block status chunks.
    pub(super) fn id(self) -> u32 {
        self as u32 + 1
    }

    /// The flags of an extent.
    pub(super) fn flags(self, status: &BlockStatus) -> u32 {
        let set = |is: bool| if is { STATE_SET } else { 0 };
        match self {
            Context::Allocation if status.hole => STATE_HOLE | STATE_ZERO,
            Context::Allocation => 0,
            Context::Cached => set(status.cached),
            Context::Dirty => set(status.dirty),
        }
    }

    /// Returns true if a query of NBD_OPT_LIST_META_CONTEXT asks for it.
    pub(super) fn is_listed_by(self, query: &str) -> bool {
        let namespace = self.name().split_inclusive(':').next();
        query == self.name() || Some(query) == namespace
    }
}

/// The contexts that a client has chosen.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Contexts([bool; Context::ALL.len()]);

impl Contexts {
    pub(super) fn choose(&mut self, context: Context) {
        self.0[context as usize] = true;
    }

    pub(super) fn are_none(self) -> bool {
        self == Contexts::default()
    }

    pub(super) fn chosen(self) -> impl Iterator<Item = Context> {
        Context::ALL.into_iter().filter(move |context| self.0[*context as usize])
    }
}
