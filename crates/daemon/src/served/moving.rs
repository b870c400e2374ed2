//! A move of a volume to another disk that is under way.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use ubcache_engine::BackingMove;
use ubcache_env::Nanos;
use ubcache_env::local::Event;

use super::move_report::MoveReport;
use super::world::World;
use crate::backing::Remote;
use crate::control::refusal::Refusal;

/// See the module.
pub(crate) struct Moving<W: World> {
    /// The export.
    pub name: String,
    /// The disk that it moves to.
    pub to: PathBuf,
    pub engine: BackingMove<W>,
    pub began: Nanos,
    /// The new disk, if it is behind a network.
    pub remote: Option<Rc<Remote>>,
    /// Words about the end, or the reason why the volume did not move.
    pub result: RefCell<Option<Result<String, Refusal>>>,
    pub ended: Event,
}

impl<W: World> Moving<W> {
    /// The part of the report that is about it.
    pub fn report(&self, now: Nanos) -> MoveReport {
        let seconds = now.since(self.began).0 / 1_000_000_000;
        let to = self.to.display().to_string();
        MoveReport::new(to, self.engine.progress(), (seconds, self.engine.rate()))
    }
}
