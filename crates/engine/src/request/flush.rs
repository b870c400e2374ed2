//! Making writes durable.

use ubcache_env::local::join;
use ubcache_env::{Env, IoResult, VolumeError};

use crate::errors::EngineError;
use crate::mutants::Mutant;
use crate::volume::CachedVolume;

/// What a client is told of an error of the engine.
pub(crate) fn to_client(error: EngineError) -> VolumeError {
    match error {
        EngineError::Io { source, .. } => VolumeError::Io(source),
        other => VolumeError::Unavailable(other.to_string()),
    }
}

impl<E: Env> CachedVolume<E> {
    /// F1, F2: everything that was answered before this call is durable when it returns.
    pub(crate) async fn flush_all(&self) -> Result<(), VolumeError> {
        if self.passthrough.get() {
            return self.backing.flush().await.map_err(VolumeError::Io);
        }
        let newest_dirty = self.set.newest_dirty(self.inode());
        let backing = async {
            // Nothing un-flushed: no flush (F1a).
            let nothing = self.unflushed.borrow().is_empty() || self.set.mutant(Mutant::FlushSkipsBacking);
            let result = if nothing { Ok(()) } else { self.flush_backing().await };
            if self.set.mutant(Mutant::FailedFlushAnsweredOk) { Ok(()) } else { result }
        };
        // No dirty insert waits: returns at once (F1b). Removals need not be waited for.
        let journal = async {
            if self.set.mutant(Mutant::FlushSkipsJournal) {
                return Ok(());
            }
            self.set.journal_wait(newest_dirty).await
        };
        let (backing, journal) = join(backing, journal).await;
        backing.map_err(VolumeError::Io)?;
        journal.map_err(to_client)
    }

    /// Flushes the backing device; shared by everybody who waits for one at the same time.
    pub(crate) async fn flush_backing(&self) -> IoResult {
        let before = self.flushes_started.get();
        let waited = self.flush_lock.is_locked();
        let _one = self.flush_lock.lock().await;
        let joins = self.set.mutant(Mutant::FlushJoinsOlder) && before > 0;
        if self.flush_good.get() > before || (joins && self.flush_good.get() == before && waited) {
            // One that started after we came has succeeded.
            self.set.env.mark("backing_flush_shared");
            return Ok(());
        }
        if self.unflushed.borrow().is_empty() {
            return Ok(());
        }
        self.flushes_started.set(self.flushes_started.get() + 1);
        self.unflushed.borrow_mut().flush_starts();
        let result = self.backing.flush().await;
        let lost = self.unflushed.borrow_mut().flush_ends(result.is_ok());
        match &result {
            Ok(()) => {
                self.flush_good.set(self.flushes_started.get());
                self.unpublished.borrow_mut().any_may_be_ready();
            }
            Err(error) => {
                self.set.env.mark("backing_flush_failed");
                self.note_backing_error(error);
                self.flush_failures.set(self.flush_failures.get() + 1);
                // The device may have dropped that data: let reads show what it has.
                for range in lost.into_iter().flat_map(|lost| lost.iter().collect::<Vec<_>>()) {
                    self.unpublished.borrow_mut().remove(range);
                }
            }
        }
        if !self.unpublished.borrow().is_empty() {
            self.wake_publisher.notify_all();
        }
        result
    }
}
