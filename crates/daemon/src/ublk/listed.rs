//! Block devices of the driver, of any program, for people and scripts.

use serde::Serialize;

use super::driver::{Driver, block_device, devices, refused};
use super::record;
use crate::failure::Failure;

/// A device.
#[derive(Serialize, Debug, utoipa::ToSchema)]
pub struct ListedBlockDevice {
    /// Its path.
    pub path: String,
    /// Its number.
    pub device: u32,
    /// `served`, `waits for its daemon`, `stopped`, …
    #[schema(value_type = String)]
    pub state: &'static str,
    /// Process that serves it, or did so last.
    pub process: u32,
    /// Name of the export, if ubcache made the device.
    pub export: Option<String>,
    /// The user who made it without CAP_SYS_ADMIN.
    pub user: Option<u32>,
}

/// All devices of this machine.
pub fn all() -> Result<Vec<ListedBlockDevice>, Failure> {
    let found = devices(&Driver::open()?).map_err(|error| refused(&error))?;
    let listed = found.into_iter().map(|info| ListedBlockDevice {
        path: block_device(info.device).display().to_string(),
        device: info.device,
        state: info.state.word(),
        process: info.pid,
        // A file of that number may be left from a device of the machine.
        export: (!info.is_unprivileged()).then(|| record::export_of(info.device)).flatten(),
        user: info.is_unprivileged().then_some(info.owner.0),
    });
    Ok(listed.collect())
}
