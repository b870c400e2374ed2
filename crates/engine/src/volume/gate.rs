//! Admission of requests, and the end of a volume.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Poll, ready};

use ubcache_env::local::Notified;
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
    /// Begins a request, when the gate is open.
    #[inline]
    pub(super) fn begin(&self) -> impl Future<Output = Result<Request<'_>, VolumeError>> {
        self.pass(false)
    }

    /// Begins a request that changes the volume, when the gate is open.
    #[inline]
    pub(crate) fn begin_write(&self) -> impl Future<Output = Result<Request<'_>, VolumeError>> {
        self.pass(self.info.read_only)
    }

    /// Mostly the gate is open, so the future has nothing in it but the place to wait at.
    #[inline]
    fn pass(&self, refused: bool) -> impl Future<Output = Result<Request<'_>, VolumeError>> {
        let mut resumed: Option<Notified<'_>> = None;
        poll_fn(move |context| {
            if refused {
                return Poll::Ready(Err(VolumeError::ReadOnly));
            }
            while self.lifecycle.gate() == Gate::Paused {
                let notified = resumed.get_or_insert_with(|| self.requests.resumed.notified());
                ready!(Pin::new(notified).poll(context));
                resumed = None;
            }
            Poll::Ready(self.enter_gate())
        })
    }

    /// The gate is open, or closed for good.
    fn enter_gate(&self) -> Result<Request<'_>, VolumeError> {
        if self.is_stopping() || self.context.is_ending() {
            return Err(VolumeError::Unavailable("the cache set is being stopped".to_owned()));
        }
        self.writeback.request();
        Ok(self.requests.begin())
    }

    /// Keeps new requests waiting, and waits for those under way and the fills that they left
    /// behind. One at a time pauses a volume.
    pub(crate) async fn pause(&self) -> Pause<'_, E> {
        if self.lifecycle.gate() == Gate::Open {
            self.enter(Transition::Paused);
        }
        let pause = Pause { volume: self };
        self.requests.end().await;
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
