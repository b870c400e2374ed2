//! Admission of requests, and the end of a volume.

use ubcache_env::{Env, Nanos, VolumeError};

use super::CachedVolume;
use crate::errors::EngineError;
use crate::rules::Rule;

impl<E: Env> CachedVolume<E> {
    /// New requests wait until [`CachedVolume::resume`]; those under way and the fills that they
    /// left behind complete.
    pub(crate) async fn pause(&self) {
        self.paused.set(true);
        self.requests_end().await;
        self.fills_end().await;
    }

    pub(crate) fn resume(&self) {
        self.paused.set(false);
        self.resumed.notify_all();
    }

    /// Ends the volume: requests complete, background work stops, what is un-flushed is flushed. An
    /// error of that flush is given when everything else is done.
    pub(crate) async fn stop(&self) -> Result<(), EngineError> {
        self.stopping.set(true);
        self.wake_background();
        self.requests_end().await;
        self.fills_end().await;
        self.join_tasks().await;
        let flushed = if self.passthrough.get() {
            self.backing.flush().await
        } else {
            self.flush_backing().await
        };
        if flushed.is_ok() && self.context.failure().is_none() {
            self.publish_all().await;
            self.mark_clean_if_so().await;
        }
        self.drop_unpublished();
        flushed.map_err(EngineError::io("flushing a backing device"))?;
        // An earlier attempt may have failed, half way or before its flush.
        self.save_attributes().await?;
        if self.flush_errors.borrow().are_owed() && self.context.keeps(Rule::F4StopTells) {
            self.context.env.mark("stop_tells_of_a_failed_flush");
            return Err(EngineError::LossUntold(self.uuid()));
        }
        Ok(())
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    pub(super) async fn begin(&self) -> Result<Request<'_, E>, VolumeError> {
        while self.paused.get() {
            self.resumed.notified().await;
        }
        self.begin_now()
    }

    pub(super) fn begin_now(&self) -> Result<Request<'_, E>, VolumeError> {
        if self.stopping.get() || self.context.is_ending() {
            return Err(VolumeError::Unavailable("the cache set is being stopped".to_owned()));
        }
        self.requests.set(self.requests.get() + 1);
        self.idle.borrow_mut().request();
        self.controller.borrow_mut().leave_idle();
        Ok(Request { volume: self })
    }

    pub(crate) async fn begin_write(&self) -> Result<Request<'_, E>, VolumeError> {
        if self.info.read_only {
            return Err(VolumeError::ReadOnly);
        }
        self.begin().await
    }

    async fn requests_end(&self) {
        while self.requests.get() > 0 {
            self.requests_done.notified().await;
        }
    }

    async fn fills_end(&self) {
        while !self.inflight.is_empty() {
            self.context.env.sleep(Nanos::from_micros(100)).await;
        }
    }
}

/// Counts a request while it runs.
pub(crate) struct Request<'a, E: Env> {
    volume: &'a CachedVolume<E>,
}

impl<E: Env> Drop for Request<'_, E> {
    fn drop(&mut self) {
        let left = self.volume.requests.get() - 1;
        self.volume.requests.set(left);
        if left == 0 {
            self.volume.requests_done.notify_all();
        }
    }
}
