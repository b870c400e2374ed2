//! Admission of requests, and the end of a volume.

use ubcache_env::{Env, VolumeError};

use super::CachedVolume;
use super::state::{Gate, Transition};
use super::tickets::Request;
use crate::errors::EngineError;
use crate::rules::Rule;

/// Keeps requests from beginning. Dropped, they begin.
#[must_use = "requests begin when this is dropped"]
pub(crate) struct Pause<'a, E: Env> {
    volume: &'a CachedVolume<E>,
}

impl<E: Env> Drop for Pause<'_, E> {
    fn drop(&mut self) {
        if self.volume.lifecycle.gate() == Gate::Paused {
            self.volume.enter(Transition::Resumed);
        }
        self.volume.requests.resumed.notify_all();
    }
}

impl<E: Env> CachedVolume<E> {
    /// Returns true if requests have to wait.
    #[inline]
    pub(crate) fn is_paused(&self) -> bool {
        self.lifecycle.gate() == Gate::Paused
    }

    /// Waits until the gate is not paused.
    pub(crate) async fn opens(&self) {
        while self.is_paused() {
            self.requests.resumed.notified().await;
        }
    }

    /// Begins a request; the gate is not paused.
    #[inline]
    pub(crate) fn begin(&self) -> Result<Request<'_>, VolumeError> {
        if self.is_stopping() || self.context.is_ending() {
            return Err(VolumeError::Unavailable("the cache set is being stopped".to_owned()));
        }
        self.writeback.request();
        Ok(self.requests.begin())
    }

    /// The ticket of a request that was begun, and put aside.
    pub(crate) fn begun_before(&self) -> Request<'_> {
        self.requests.begun_before()
    }

    /// Begins a request that changes the volume.
    #[inline]
    pub(crate) fn begin_write(&self) -> Result<Request<'_>, VolumeError> {
        if self.info.read_only {
            return Err(VolumeError::ReadOnly);
        }
        self.begin()
    }

    /// Keeps new requests waiting, and waits for those under way and the fills that they left
    /// behind. One at a time pauses a volume.
    pub(crate) async fn pause(&self) -> Pause<'_, E> {
        if self.lifecycle.gate() == Gate::Open {
            self.enter(Transition::Paused);
        }
        let pause = Pause { volume: self };
        self.requests.end().await;
        self.drop_read_ahead();
        self.coherence.inflight.becomes_empty().await;
        pause
    }

    #[inline]
    pub(crate) fn is_stopping(&self) -> bool {
        self.lifecycle.gate() == Gate::Stopping
    }

    /// Ends the volume: requests complete, background work stops, what is un-flushed is flushed. An
    /// error of that flush is given when everything else is done.
    pub(crate) async fn stop(&self) -> Result<(), EngineError> {
        self.enter(Transition::Stopping);
        self.requests.resumed.notify_all();
        self.wake_background();
        self.requests.end().await;
        self.drop_read_ahead();
        self.coherence.inflight.becomes_empty().await;
        self.join_tasks().await;
        let flushed = if self.lifecycle.uses_cache() {
            self.flush_backing().await
        } else {
            self.backing.flush().await
        };
        if flushed.is_ok() && self.context.failure().is_none() {
            self.publish_all().await;
            self.mark_clean_if_so().await;
        }
        self.drop_unpublished();
        flushed.map_err(EngineError::io("flushing a backing device"))?;
        // An earlier attempt may have failed, half way or before its flush.
        self.save_attributes().await?;
        if self.coherence.is_error_owed() && self.context.keeps(Rule::F4StopTells) {
            self.context.env.mark("stop_tells_of_a_failed_flush");
            return Err(EngineError::LossUntold(self.uuid()));
        }
        Ok(())
    }
}
