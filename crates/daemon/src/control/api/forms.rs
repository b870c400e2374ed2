//! Forms of what requests take, and of what they give beside the report.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::served::report::VolumeReport;

/// Type of the text of `GET /v1/metrics`.
pub(super) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Body of a request that takes no options.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// Options of a drain, or of a scrub.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitOptions {
    /// The response comes when it is over.
    #[serde(default)]
    pub(super) wait: bool,
}

/// Options of the removal of a volume.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveOptions {
    /// End it at once; dirty data stays in the cache.
    #[serde(default)]
    pub(super) keep_dirty: bool,
}

/// A backing device that is to be served.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AddOptions {
    /// Its path, from the root.
    #[schema(value_type = String, pattern = "^/")]
    pub(super) backing: PathBuf,
    /// Name of its export; if absent, its label or file name.
    #[serde(default)]
    pub(super) name: Option<String>,
}

/// Another cache device.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplaceOptions {
    /// Its path, from the root.
    #[schema(value_type = String, pattern = "^/")]
    pub(super) cache: PathBuf,
}

/// A disk that is gone for good.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ForgetOptions {
    /// Its UUID.
    pub(super) disk: String,
    /// Give up what only the cache has.
    #[serde(default)]
    pub(super) discard_dirty: bool,
}

/// A flash-only volume that is to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FlashOptions {
    /// Its label, of 32 bytes at most, and the name of its export.
    pub(super) name: String,
    /// Its size in bytes. It takes no room before it is written.
    pub(super) size_bytes: u64,
}

/// Another size of a volume.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResizeOptions {
    /// The size of a flash-only volume in bytes. Others get the size that their disk has.
    #[serde(default)]
    pub(super) size_bytes: Option<u64>,
    /// Give up data of a flash-only volume beyond it.
    #[serde(default)]
    pub(super) discard_data: bool,
}

/// Another size of a cache.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResizeCacheOptions {
    /// A size in bytes that is less than now; if absent, that of the device, from the next start
    /// on.
    #[serde(default)]
    pub(super) size_bytes: Option<u64>,
    /// The response comes when the cache is smaller.
    #[serde(default)]
    pub(super) wait: bool,
}

/// A disk that a volume is to be moved to.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MoveOptions {
    /// Its path, from the root, or its address.
    #[schema(value_type = String)]
    pub(super) to: PathBuf,
    /// Overwrite what it has.
    #[serde(default)]
    pub(super) force: bool,
    /// The response comes when the volume has moved.
    #[serde(default)]
    pub(super) wait: bool,
    /// Bytes a second that are copied at most; 0: no limit. Changes that of a move under way.
    #[serde(default)]
    pub(super) rate_bytes: Option<u64>,
}

/// Options of the removal of a flash-only volume.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveFlashOptions {
    /// Give up its data.
    #[serde(default)]
    pub(super) discard_data: bool,
    /// Also if clients are connected to it.
    #[serde(default)]
    pub(super) force: bool,
}

/// Options of an upgrade.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UpgradeOptions {
    /// The program; if absent, the one by which the daemon was started.
    #[serde(default)]
    #[schema(value_type = Option<String>, pattern = "^/")]
    pub(super) program: Option<PathBuf>,
}

/// The names of a set.
#[derive(Serialize, ToSchema)]
pub(super) struct SetNames {
    /// Its UUID.
    pub(super) uuid: String,
    /// Its name in the configuration; may be empty.
    pub(super) name: String,
    /// Its exports.
    pub(super) volumes: Vec<String>,
}

/// The sets of the daemon.
#[derive(Serialize, ToSchema)]
pub(super) struct Sets {
    pub(super) sets: Vec<SetNames>,
}

/// A volume, and its set.
#[derive(Serialize, ToSchema)]
pub(super) struct VolumeOfSet {
    /// UUID of its set.
    pub(super) set: String,
    /// Name of its set in the configuration; may be empty.
    pub(super) set_name: String,
    #[serde(flatten)]
    pub(super) volume: VolumeReport,
}

impl VolumeOfSet {
    /// Returns true if the name means this volume: its own, or `SET/EXPORT`.
    pub(super) fn is_named(&self, name: &str) -> bool {
        let of_set = |(set, export)| self.set_name == set && self.volume.name == export;
        self.volume.name == name || name.split_once('/').is_some_and(of_set)
    }
}

/// The volumes of the daemon.
#[derive(Serialize, ToSchema)]
pub(super) struct Volumes {
    pub(super) volumes: Vec<VolumeOfSet>,
}

/// The name of an export.
#[derive(Serialize, ToSchema)]
pub(super) struct VolumeName {
    /// The name.
    volume: String,
}

/// The work that was done, in words.
#[derive(Serialize, ToSchema)]
pub(super) struct Message {
    /// The words.
    message: String,
}

/// Another program goes on.
#[derive(Serialize, ToSchema)]
pub(super) struct Upgraded {
    /// Its version.
    version: String,
    /// The version before.
    before: String,
    /// Its path.
    program: String,
    /// Clients that it goes on with.
    clients: u64,
    /// Milliseconds for which they waited.
    pause_ms: u64,
}
