//! Stopping cleanly: everything that memory knows goes to the device, in a form that the driver
//! takes up as well.

use ubcache_env::Env;

use super::CacheSet;
use crate::errors::EngineError;
use crate::health::Phase;
use crate::stats::StopStep;

impl<E: Env> CacheSet<E> {
    /// Stops the set. New requests are refused, those under way complete; un-flushed data is
    /// flushed, leaves and journal are written. Dirty data stays in the cache.
    ///
    /// # Errors
    /// The set is stopped all the same, but something may not be durable: a device failed, or the
    /// set had failed before. The first error is given.
    pub async fn stop(&self) -> Result<(), EngineError> {
        let set = &self.set;
        if set.context.is_ending() {
            return Err(EngineError::Stopping);
        }
        set.context.health.enter(Phase::Ending);
        set.state_changed.notify_all();
        set.served().iter().for_each(|volume| volume.wake_background());
        // A volume that is being attached or released is so before, or is not.
        let _one = set.attach_lock.lock().await;
        let mut flushed = Ok(());
        // One that another set has taken over has ended.
        for volume in set.served().into_iter().filter(|volume| !volume.is_stopping()) {
            set.stopping_at.set(Some(StopStep::Volume(volume.uuid())));
            flushed = flushed.and(volume.stop().await);
        }
        for volume in set.served_flash() {
            set.stopping_at.set(Some(StopStep::Volume(volume.uuid())));
            volume.ends().await;
        }
        set.index.wake_all();
        set.gc.wake();
        set.stopping_at.set(Some(StopStep::Metadata));
        let result = match set.context.failure() {
            Some(reason) => Err(EngineError::Failed(reason)),
            None => self.write_everything().await,
        };
        set.context.health.enter(Phase::Ended);
        set.journal.wake_all();
        set.allocator.wake_all();
        set.state_changed.notify_all();
        set.index.wake_all();
        let tasks = std::mem::take(&mut *set.tasks.borrow_mut());
        set.stopping_at.set(Some(StopStep::Tasks));
        for task in tasks {
            task.join().await;
        }
        if result.is_ok() {
            set.stopping_at.set(Some(StopStep::Flush));
            // Writes that tasks still had under way mean nothing to the set, but are not left half
            // done either.
            set.context
                .cache
                .flush()
                .await
                .map_err(EngineError::io("flushing the cache device"))?;
        }
        if result.is_ok() && flushed.is_ok() {
            set.stopping_at.set(Some(StopStep::Runs));
            set.count_new_buckets().await?;
            set.end_run().await?;
            // A9: nothing is written any more.
            for volume in set.served() {
                let sealed = volume.backing.seal().await;
                sealed.map_err(EngineError::io("noting what is left of a disk"))?;
            }
        }
        result.and(flushed)
    }

    async fn write_everything(&self) -> Result<(), EngineError> {
        let set = &self.set;
        // The driver needs free buckets to start with (docs/reference/format.md §9.5).
        let grows = set.describe_new_buckets().await;
        if set.allocator.buckets().pending_len() > 0 {
            set.allocator.write_prios().await?;
        }
        set.journal.flush().await?;
        set.index.write_leaves_up_to(ubcache_format::JournalSeq(u64::MAX)).await?;
        // The last entry says that nothing is left to replay.
        set.journal.force().await?;
        grows
    }
}
