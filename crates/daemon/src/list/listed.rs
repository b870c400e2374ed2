//! Devices of a list, their users, and problems with them, for people and scripts.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::failure::{Code, Failure};

/// A device with a superblock.
#[derive(Serialize, Debug, utoipa::ToSchema)]
pub struct ListedDevice {
    /// Its path.
    #[serde(serialize_with = "text_of")]
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// `block device`, `file` or `remote`.
    #[schema(value_type = String)]
    pub kind: &'static str,
    /// `cache` or `backing`.
    #[schema(value_type = String)]
    pub role: &'static str,
    /// UUID of its set, if it has one.
    pub set_uuid: Option<String>,
    /// Its own.
    pub uuid: String,
    /// Label of a backing device.
    pub label: Option<String>,
    /// State of a backing device, or `new` or `started` of a cache device.
    #[schema(value_type = String)]
    pub state: &'static str,
    /// Cache mode of a backing device.
    #[schema(value_type = Option<String>)]
    pub mode: Option<&'static str>,
    /// Its size.
    pub size_bytes: u64,
    /// Header file of a disk that was adopted.
    #[serde(serialize_with = "text_if_any")]
    #[schema(value_type = Option<String>)]
    pub header: Option<PathBuf>,
    /// Statement of the header on its disk, which nobody has open: `same` as a clean stop left it,
    /// `open` since a run that did not end with one, `changed` by another program, or `resized`.
    #[schema(value_type = Option<String>)]
    pub witness: Option<&'static str>,
    /// The one that has it open.
    pub user: Option<DeviceUser>,
    /// A device before this one that has the same UUID: the same device, or a copy of it.
    #[serde(serialize_with = "text_if_any")]
    #[schema(value_type = Option<String>)]
    pub same_uuid_as: Option<PathBuf>,
}

impl ListedDevice {
    /// Returns true if the data of this disk may be in a cache.
    pub fn needs_cache(&self) -> bool {
        self.role == "backing" && matches!(self.state, "clean" | "dirty")
    }
}

/// Something that has a device open.
#[derive(Serialize, Debug, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum DeviceUser {
    /// A daemon.
    Ubcache {
        /// Its control socket.
        #[serde(serialize_with = "text_of")]
        #[schema(value_type = String)]
        control: PathBuf,
    },
    /// bcache in the kernel.
    KernelBcache {
        /// Its block device.
        #[serde(skip_serializing_if = "Option::is_none")]
        device: Option<String>,
    },
    /// Another block device above this one.
    BlockDevice {
        /// Its name.
        name: String,
    },
}

impl fmt::Display for DeviceUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceUser::Ubcache { control } => write!(f, "ubcache ({})", control.display()),
            DeviceUser::KernelBcache { device: Some(device) } => write!(f, "the kernel's {device}"),
            DeviceUser::KernelBcache { device: None } => write!(f, "the kernel's bcache"),
            DeviceUser::BlockDevice { name } => write!(f, "/dev/{name}"),
        }
    }
}

/// A device that can't be listed, or not as it is.
#[derive(Serialize, Debug, utoipa::ToSchema)]
pub struct ListProblem {
    /// The device, or a control socket.
    #[serde(serialize_with = "text_of")]
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// The reason.
    pub why: String,
    /// Exit code of a command that names the device.
    #[serde(skip)]
    #[schema(ignore)]
    pub code: Code,
}

impl ListProblem {
    pub(super) fn new(path: &Path, why: &Failure) -> ListProblem {
        ListProblem { path: path.to_owned(), why: why.to_string(), code: why.code }
    }
}

/// A path in JSON, which knows text only: bytes that are none are replaced.
fn text_of<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

fn text_if_any<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(to)
}
