//! The kept memory of a set: a file beside the control socket.
//!
//! With it a daemon that is killed loses no request that was answered, which clients that do not
//! notice its death count on (docs/internals/coherence.md, rule V3).

use std::path::Path;
use std::rc::Rc;

use ubcache_engine::{KEPT_BYTES, KeptOutcome, KeptState};
use ubcache_env::{Env, KeptMemory, Nanos};
use ubcache_format::Uuid;
use ubcache_host::{HostEnv, HostKept, KeptError};

use super::world::DEVICE_BUSY_TIMEOUT;

/// Interval between two attempts to get the file of a daemon that was killed.
const RETRY_INTERVAL: Nanos = Nanos::from_millis(20);

/// Opens the kept memory of a set. A process that was killed gets a moment to let go of it. None:
/// there is no place for it, and the set goes on without.
pub(crate) async fn kept_memory(
    host: &HostEnv,
    directory: Option<&Path>,
    set: Uuid,
) -> Option<Rc<dyn KeptMemory>> {
    let path = directory?.join(format!("{set}.kept"));
    let end = host.now().after(DEVICE_BUSY_TIMEOUT);
    let mut opened = HostKept::open(&path, set.0, KEPT_BYTES);
    while opened.as_ref().is_err_and(KeptError::is_in_use) && host.now() < end {
        host.sleep(RETRY_INTERVAL).await;
        opened = HostKept::open(&path, set.0, KEPT_BYTES);
    }
    match opened {
        Ok(kept) => Some(Rc::new(kept)),
        Err(error) => {
            tracing::warn!(
                "no kept memory, so a daemon that is killed loses the writes of the last moment \
                 that were not flushed: {error}"
            );
            None
        }
    }
}

/// Logs what a start found in the kept memory.
pub(crate) fn say_kept(KeptState { outcome, .. }: KeptState) {
    match outcome {
        // The last run has stopped, or this is the first one since the host was started.
        KeptOutcome::Continued { records: 0 } | KeptOutcome::Fresh => {}
        KeptOutcome::Continued { records } => tracing::info!(
            records,
            "nothing that was answered is lost: the kept memory has what the killed daemon had not \
             written to the journal"
        ),
        KeptOutcome::Mismatch => tracing::warn!(
            "the kept memory is not used: its daemon had failed, or another program has used the \
             cache since; writes that were answered and not flushed may be lost"
        ),
    }
}
