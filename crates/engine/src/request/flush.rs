//! Making writes durable.

use ubcache_env::local::join;
use ubcache_env::{Env, IoError, IoResult, Sector, SectorRange, StreamId, VolumeError};

use crate::errors::EngineError;
use crate::rules::Rule;
use crate::volume::CachedVolume;

/// Error that a client gets for somebody else's flush that failed.
const EIO: i32 = 5;

impl<E: Env> CachedVolume<E> {
    /// F1, F2: everything that was answered before this call is durable when it returns.
    pub(crate) async fn flush_all(&self, stream: StreamId) -> Result<(), VolumeError> {
        let number = self.coherence.flush_errors.borrow_mut().flush_begins(stream);
        let result = self.flush_devices().await;
        let news =
            self.coherence.flush_errors.borrow_mut().flush_ends(number, stream, result.is_ok());
        let told = self.context.keeps(Rule::F4StreamsTold);
        if news && told && result.is_ok() {
            // F4: what this stream wrote earlier may be gone, and whoever knows of it is somebody
            // else.
            self.context.env.mark("told_of_a_failed_flush");
            return Err(VolumeError::Io(IoError::Os(EIO)));
        }
        result
    }

    /// Flushes, and tells nobody of what happened before: for requests that answer for themselves
    /// only.
    pub(crate) async fn flush_devices(&self) -> Result<(), VolumeError> {
        if !self.lifecycle.uses_cache() {
            return self.backing.flush().await.map_err(VolumeError::Io);
        }
        let newest_dirty = self.index.newest_dirty(self.inode());
        let backing = async {
            // Nothing un-flushed: no flush (F1a).
            let any = self.context.keeps(Rule::F1FlushesBacking)
                && !self.coherence.unflushed.borrow().is_empty();
            let result = if any { self.flush_backing().await } else { Ok(()) };
            #[cfg(feature = "mutants")]
            let result = self.answer_flush(result);
            result
        };
        // No dirty insert waits: returns at once (F1b). Removals need not be waited for.
        let journal = async {
            if self.context.keeps(Rule::F1FlushesJournal) {
                self.journal.wait(newest_dirty).await?;
            }
            Ok::<(), EngineError>(())
        };
        let (backing, journal) = join(backing, journal).await;
        backing.map_err(VolumeError::Io)?;
        journal.map_err(VolumeError::from)
    }

    /// Flushes the backing device; shared by everybody who waits for one at the same time.
    pub(crate) async fn flush_backing(&self) -> IoResult {
        let before = self.coherence.flushes.started();
        #[cfg(feature = "mutants")]
        let before = self.join_older_flush(before);
        let _one = self.coherence.flushes.turn().await;
        if self.coherence.flushes.newest_good() > before {
            // One that started after we came has succeeded.
            self.context.env.mark("backing_flush_shared");
            return Ok(());
        }
        if self.coherence.unflushed.borrow().is_empty() {
            return Ok(());
        }
        self.coherence.flushes.starts();
        self.coherence.unflushed.borrow_mut().flush_starts();
        let result = self.backing.flush().await;
        self.coherence.unflushed.borrow_mut().flush_ends(result.is_ok());
        if result.is_ok() {
            self.coherence.flushes.succeeds();
            self.coherence.unpublished.borrow_mut().any_may_be_ready();
        }
        if !self.coherence.unpublished.borrow().is_empty() {
            self.wake_publisher.notify_all();
        }
        result
    }

    /// F4, F5: a flush of the backing device failed, whoever asked for it, and the next one
    /// succeeds over what is lost. In the step in which that is known: clients are to be told,
    /// reads show what the device has, and nothing of it is cached.
    pub(crate) fn backing_flush_failed(&self, error: &IoError) {
        self.context.env.mark("backing_flush_failed");
        self.note_backing_error(error);
        self.coherence.flushes.fails();
        if !self.lifecycle.uses_cache() {
            // Nobody keeps book of what was written.
            let everything = SectorRange::new(Sector(0), self.backing.limits().sectors);
            self.coherence.unflushed.borrow_mut().suspect(everything);
            self.coherence.flush_errors.borrow_mut().flush_failed();
            return;
        }
        let lost = self.coherence.unflushed.borrow().all();
        if !lost.is_empty() || !self.coherence.inflight.is_empty() {
            self.coherence.flush_errors.borrow_mut().flush_failed();
        }
        self.coherence.unflushed.borrow_mut().flush_failed();
        for range in lost.iter() {
            self.coherence.unpublished.borrow_mut().remove(range);
        }
    }

    /// W5, F5: a write to the backing device that was submitted when `failures` flushes had failed
    /// is complete. `durable`: with success, so are the data. `overwrites`: with success, nothing
    /// is left of what was there.
    pub(crate) fn backing_write_ended(
        &self,
        range: SectorRange,
        failures: u64,
        (ok, durable, overwrites): (bool, bool, bool),
    ) {
        let noted = match ok {
            true => self.context.keeps(Rule::W5UnflushedAtCompletion),
            false => self.context.keeps(Rule::W5FailureIsUnflushed),
        };
        let mut unflushed = self.coherence.unflushed.borrow_mut();
        let durable = ok && durable;
        if !durable && noted && self.lifecycle.uses_cache() {
            unflushed.add(range);
        }
        if failures != self.coherence.flushes.failures() && !durable {
            self.context.env.mark("write_beside_a_failed_flush");
            unflushed.suspect(range);
        } else if ok && overwrites && unflushed.written_anew(range) {
            self.context.env.mark("suspect_range_written");
        }
    }
}
