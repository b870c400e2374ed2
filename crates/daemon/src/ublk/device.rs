//! A block device that is served, and its end.

use std::path::PathBuf;
use std::rc::Rc;

use ubcache_env::Task;
use ubcache_env::local::join_all;
use ubcache_host::HostEnv;
use ubcache_ublk::features::{QUIESCE, USER_RECOVERY};
use ubcache_ublk::{Control, ControlError, DeviceInfo, Requests};

use super::driver::{Claim, Driver, block_device, claim, delete, refused};
use super::record;
use crate::failure::Failure;
use crate::log::STATE;

/// Time that the driver gets to keep new requests from the daemon, in milliseconds.
const QUIESCE_PATIENCE_MS: u64 = 10_000;

/// A block device that is served.
pub struct BlockDevice {
    /// Name of the export.
    pub export: String,
    /// The device, as it was made.
    pub info: DeviceInfo,
    /// A former daemon made it.
    pub recovered: bool,
    pub(crate) requests: Rc<Requests>,
    pub(crate) queues: Vec<Task>,
}

/// A way out for a device that somebody uses.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum InUse {
    /// It stays, and its requests wait for the next daemon, if the driver can do that.
    Keep,
    /// It stays as it is.
    Refuse,
    /// It goes, and its requests fail.
    Force,
}

/// The end of a device at a stop.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum DeviceEnd {
    /// It is gone.
    Removed,
    /// Somebody uses it: its requests wait for the next daemon.
    Kept,
    /// Somebody uses it, and it goes on.
    Refused,
}

impl BlockDevice {
    /// Its path.
    pub fn path(&self) -> PathBuf {
        block_device(self.info.device)
    }

    /// Lets requests wait, and returns when none is being carried out.
    pub(crate) async fn hold(&self) {
        self.requests.hold();
        self.requests.idle().await;
    }

    /// Goes on after [`BlockDevice::hold`].
    pub(crate) fn release(&self) {
        self.requests.release();
    }

    /// Has the next daemon go on with the device: answers the requests that this one was given, if
    /// the driver can keep the others from it, and lets those that come all the same wait. There is
    /// no way back: after this, requests go to the next daemon only.
    pub(crate) async fn leave(&self, host: &HostEnv) {
        if self.info.features.has(QUIESCE) {
            let info = self.info;
            let quiesced =
                control(host, move |driver| driver.quiesce(&info, QUIESCE_PATIENCE_MS)).await;
            match quiesced {
                Ok(()) => {
                    self.release();
                    // Requests that the driver gave before are in the ring, and begin within two
                    // turns.
                    host.nop().await;
                    host.nop().await;
                }
                Err(failure) => tracing::warn!(
                    target: STATE,
                    export = self.export,
                    device = %self.path().display(),
                    "requests that the daemon holds are left to the next one: {failure:#}"
                ),
            }
            self.requests.idle().await;
        }
        self.hold().await;
    }

    /// Removes the device, unless somebody uses it.
    pub(crate) async fn end(&self, host: &HostEnv, in_use: InUse) -> Result<DeviceEnd, Failure> {
        let (info, path) = (self.info, self.path());
        let number = info.device;
        let claimed = host.blocking(move || claim(&path)).await;
        let is_busy = matches!(claimed, Some(Claim::Busy));
        if is_busy && in_use == InUse::Refuse {
            return Ok(DeviceEnd::Refused);
        }
        if is_busy && in_use == InUse::Keep && self.info.features.has(USER_RECOVERY) {
            self.leave(host).await;
            let path = self.path();
            tracing::warn!(
                target: STATE,
                export = self.export,
                device = %path.display(),
                "the device is in use and stays: its requests wait for the next daemon. To end it \
                 all the same, with errors for those that use it: ubcache ublk remove {number}"
            );
            return Ok(DeviceEnd::Kept);
        }
        let stopped = control(host, move |driver| driver.stop(&info)).await;
        join_all(self.queues.iter().map(Task::join)).await;
        drop(claimed);
        stopped?;
        if !delete_device(host, info).await? {
            tracing::warn!(
                target: STATE,
                export = self.export,
                device = %self.path().display(),
                "the device has ended, and is still in use: its users get errors"
            );
        }
        record::remove(number);
        Ok(DeviceEnd::Removed)
    }
}

/// Removes a device that has been stopped: false if somebody still has it open.
pub(super) async fn delete_device(host: &HostEnv, info: DeviceInfo) -> Result<bool, Failure> {
    host.blocking(move || delete(info)).await.unwrap_or(Ok(true))
}

/// Gives the driver a command on a worker thread.
pub(super) async fn control(
    host: &HostEnv,
    command: impl FnOnce(&Control<Driver>) -> Result<(), ControlError> + Send + 'static,
) -> Result<(), Failure> {
    let done = host.blocking(move || -> Result<(), Failure> {
        command(&Driver::open()?).map_err(|error| refused(&error))
    });
    done.await.unwrap_or(Ok(()))
}
