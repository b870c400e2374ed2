//! Flushing a device, with the errors of the tools.

use ubcache_env::Device;

use crate::error::{OfflineError, On};

pub(crate) async fn flush<D: Device>(
    device: &D,
    on: On,
    doing: &'static str,
) -> Result<(), OfflineError> {
    device.flush().await.map_err(|error| OfflineError::Io { on, doing, error: error.to_string() })
}
