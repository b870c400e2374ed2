//! Writes of a run that was cut off, which the server of a remote disk may still carry out (L1).
//!
//! A run that serves such a disk leaves a mark beside its kept memory, and takes it away when it
//! has stopped cleanly and nothing can land any more. A start that finds the mark, or a journal
//! that did not end with a clean stop, or a host that was started only now, waits first.

use std::path::{Path, PathBuf};

use ubcache_env::Nanos;
use ubcache_format::Uuid;

use super::world::World;
use crate::backing::LATE_WRITES_END;

/// See the module.
pub(crate) struct LateWrites {
    mark: Option<PathBuf>,
    /// Time until which they may land.
    end: Nanos,
}

impl LateWrites {
    /// Finds out whether the run before may have been cut off. `was_clean`: nothing else says so.
    pub(crate) fn of_start<W: World>(
        world: &W,
        directory: Option<&Path>,
        set: Uuid,
        was_clean: bool,
    ) -> LateWrites {
        let mark = directory.map(|directory| directory.join(format!("{set}.remote")));
        let is_marked = mark.as_ref().is_none_or(|mark| mark.exists());
        let end = match was_clean && !is_marked && host_is_up_for(LATE_WRITES_END) {
            true => Nanos(0),
            false => world.now().after(LATE_WRITES_END),
        };
        LateWrites { mark, end }
    }

    /// The start of a program that goes on in the process of the one before.
    pub(crate) fn of_upgrade(directory: Option<&Path>, set: Uuid) -> LateWrites {
        let mark = directory.map(|directory| directory.join(format!("{set}.remote")));
        LateWrites { mark, end: Nanos(0) }
    }

    /// A remote disk is about to be served: returns when nothing of the run before can land.
    pub(crate) async fn pass<W: World>(&self, world: &W) {
        if let Some(mark) = &self.mark
            && let Err(error) = std::fs::write(mark, [])
        {
            tracing::warn!(
                mark = %mark.display(),
                "a start after a kill may not know that a server can still carry out a write: \
                 {error}"
            );
        }
        let now = world.now();
        if now < self.end {
            tracing::info!(
                seconds = self.end.since(now).as_millis().div_ceil(1000),
                "the last run may not have ended with a clean stop: waiting until no server of a \
                 remote disk can still carry out a write of it"
            );
            world.sleep_until(self.end).await;
        }
    }

    /// The run has stopped cleanly, and nothing of it can land any more.
    pub(crate) fn over(&self) {
        if let Some(mark) = &self.mark {
            // There is none if no remote disk was served.
            let _ = std::fs::remove_file(mark);
        }
    }
}

/// Returns false if the host was started so lately that requests of before may be under way.
fn host_is_up_for(span: Nanos) -> bool {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split(' ').next().and_then(|text| text.parse::<f64>().ok());
    seconds.is_some_and(|seconds| seconds * 1e9 >= span.0 as f64)
}
