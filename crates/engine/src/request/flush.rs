//! Making writes durable.

use ubcache_env::local::join;
use ubcache_env::{Env, IoError, IoResult, Sector, SectorRange, StreamId, VolumeError};

use crate::coherence::{Suspicion, WriteEnd};
use crate::errors::EngineError;
use crate::rules::Rule;
use crate::volume::CachedVolume;

/// Error that a client gets for somebody else's flush that failed.
const EIO: i32 = 5;

impl<E: Env> CachedVolume<E> {
    /// F1, F2: everything that was answered before this call is durable when it returns.
    pub(crate) async fn flush_all(&self, stream: StreamId) -> Result<(), VolumeError> {
        let number = self.coherence.stream_flush_begins(stream);
        let result = self.flush_devices().await;
        let news = self.coherence.stream_flush_ends(number, stream, result.is_ok());
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
            let any = self.context.keeps(Rule::F1FlushesBacking) && !self.coherence.is_flushed();
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
        let before = self.coherence.flushes_started();
        #[cfg(feature = "mutants")]
        let before = self.join_older_flush(before);
        let _one = self.coherence.flush_turn().await;
        if self.coherence.has_good_flush_after(before) {
            // One that started after we came has succeeded.
            self.context.env.mark("backing_flush_shared");
            return Ok(());
        }
        if self.coherence.is_flushed() {
            return Ok(());
        }
        self.coherence.flush_starts();
        let result = self.backing.flush().await;
        self.coherence.flush_ends(result.is_ok());
        if self.coherence.has_copies() {
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
        self.drop_read_ahead();
        let untracked = !self.lifecycle.uses_cache();
        self.coherence.flush_failed(untracked.then(|| Sector(self.backing.limits().sectors)));
    }

    /// W5, F5: see [`Coherence::backing_write_ended`](crate::coherence::Coherence).
    pub(crate) fn backing_write_ended(&self, range: SectorRange, failures: u64, end: WriteEnd) {
        let tracked = self.lifecycle.uses_cache();
        match self.coherence.backing_write_ended(range, failures, end, tracked) {
            Suspicion::None => {}
            Suspicion::Raised => self.context.env.mark("write_beside_a_failed_flush"),
            Suspicion::Removed => self.context.env.mark("suspect_range_written"),
        }
    }
}
