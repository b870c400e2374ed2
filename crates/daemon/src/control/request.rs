//! Requests to a set that is served.

use std::path::PathBuf;

use ubcache_nbd::Rates;

/// A request to a set, as its thread gets it and as commands make it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ControlRequest {
    /// The report of `status --json`.
    Status,
    /// A clean stop. The answer comes when everything is on the devices.
    Stop,
    /// Sets an attribute of a volume, or of the set when no volume has such an attribute.
    Set {
        /// Name of the attribute, as in bcache's sysfs.
        name: String,
        /// Its new value.
        value: String,
        /// The export whose attribute is meant; all volumes if absent.
        volume: Option<String>,
    },
    /// Sets several attributes in order, or none of them if one can't be set.
    SetAll {
        /// Names and new values.
        settings: Vec<(String, String)>,
        /// The export whose attributes are meant; all volumes if absent.
        volume: Option<String>,
    },
    /// Reads an attribute: an object from export to value, or the value of the set's attribute.
    Get {
        /// Name of the attribute, as in bcache's sysfs.
        name: String,
        /// The export whose attribute is meant; all volumes if absent.
        volume: Option<String>,
    },
    /// Reads all attributes: an object from export to name to value, and those of the set.
    GetAll {
        /// The export whose attributes are meant; all volumes and the set if absent.
        volume: Option<String>,
    },
    /// The map of a volume: what the cache has of each part of it.
    Map {
        /// The export; may be absent if there is only one.
        volume: Option<String>,
        /// Most cells of the map.
        cells: u32,
    },
    /// The map of the cache device: what each part of it holds.
    Buckets {
        /// Most cells of the map.
        cells: u32,
    },
    /// Settings that fit the traffic, and what other sizes of the cache would do.
    Advice,
    /// Starts a garbage collection.
    Gc,
    /// Writes back a volume's dirty data and detaches it from the set; it stays served. The
    /// response comes when that is done.
    Detach {
        /// The export; may be absent if there is only one.
        volume: Option<String>,
    },
    /// Forgets a backing device that is not served, with what the cache has of it.
    ForgetDisk {
        /// Its UUID.
        disk: String,
        /// Give up what only the cache has.
        discard_dirty: bool,
    },
    /// Gives the volumes that need no cache another one.
    ReplaceCache {
        /// The new cache device.
        cache: PathBuf,
    },
    /// Serves one more backing device.
    Add {
        /// The backing device.
        backing: PathBuf,
        /// Name of the export; if absent, its label or file name.
        name: Option<String>,
    },
    /// Ends an export, after its dirty data was written back.
    Remove {
        /// The export; may be absent if there is only one.
        volume: Option<String>,
        /// End it at once; dirty data stays in the cache.
        keep_dirty: bool,
    },
    /// Makes durable what was acknowledged.
    Flush {
        /// The export; all if absent.
        volume: Option<String>,
    },
    /// Writes back all dirty data.
    Drain {
        /// The export; all if absent.
        volume: Option<String>,
        /// The response comes when that is done.
        wait: bool,
    },
    /// Compares clean cached data with the backing devices.
    Scrub {
        /// The export; all if absent.
        volume: Option<String>,
        /// The response comes when that is done.
        wait: bool,
    },
    /// Ends scrubs.
    StopScrub {
        /// The export; all if absent.
        volume: Option<String>,
    },
    /// Lets another program go on in this process, with all clients. That program gives the
    /// response, or this one if it can't.
    Upgrade {
        /// Its path; if absent, the one by which this program was started.
        program: Option<PathBuf>,
    },
    /// Limits clients of these exports that connect from now on.
    Limit {
        /// Names, and requests and bytes a second.
        exports: Vec<(String, Rates)>,
    },
    /// Makes a flash-only volume and serves it.
    FlashCreate {
        /// Its label, and the name of its export.
        name: String,
        /// Its size.
        bytes: u64,
    },
    /// Gives a flash-only volume, or one on an object store, another size.
    FlashResize {
        /// The export.
        volume: String,
        /// Its size from now on.
        bytes: u64,
        /// Give up data beyond that.
        discard_data: bool,
    },
    /// Gives a volume the size that its disk has now.
    Resize {
        /// The export; may be absent if there is only one.
        volume: Option<String>,
    },
    /// Moves a volume to another disk.
    Move {
        /// The export.
        volume: String,
        /// The new disk.
        to: PathBuf,
        /// Overwrite what it has.
        force: bool,
        /// The response comes when the volume has moved.
        wait: bool,
        /// Bytes a second that are copied at most; 0: no limit; `None`: as before.
        rate: Option<u64>,
    },
    /// Ends a move.
    CancelMove {
        /// The export.
        volume: String,
    },
    /// Gives the cache the size that its device has now, at the next clean stop.
    ResizeCache,
    /// Makes the cache smaller.
    ShrinkCache {
        /// Its size from then on.
        bytes: u64,
        /// The response comes when it is smaller.
        wait: bool,
    },
    /// Has a cache that is becoming smaller keep its size.
    CancelShrink,
    /// Removes a flash-only volume for good.
    FlashRemove {
        /// The export.
        volume: String,
        /// Give up its data.
        discard_data: bool,
        /// Also if clients are connected to it.
        force: bool,
    },
    /// Gives a detached volume its cache again.
    Attach {
        /// The export; may be absent if there is only one.
        volume: Option<String>,
    },
}

impl ControlRequest {
    /// The command line's word for it.
    pub fn word(&self) -> &'static str {
        match self {
            ControlRequest::Status => "status",
            ControlRequest::Stop => "stop",
            ControlRequest::Set { .. } | ControlRequest::SetAll { .. } => "set",
            ControlRequest::Get { .. } | ControlRequest::GetAll { .. } => "get",
            ControlRequest::Map { .. } | ControlRequest::Buckets { .. } => "map",
            ControlRequest::Advice => "advise",
            ControlRequest::Gc => "gc",
            ControlRequest::Detach { .. } => "detach",
            ControlRequest::ForgetDisk { .. } => "forget-disk",
            ControlRequest::Attach { .. } | ControlRequest::ReplaceCache { .. } => "attach",
            ControlRequest::Add { .. } => "add",
            ControlRequest::Remove { .. } => "remove",
            ControlRequest::Flush { .. } => "flush",
            ControlRequest::Drain { .. } => "drain",
            ControlRequest::Scrub { .. } | ControlRequest::StopScrub { .. } => "scrub",
            ControlRequest::Upgrade { .. } => "upgrade",
            ControlRequest::Limit { .. } => "limit",
            ControlRequest::Resize { .. }
            | ControlRequest::ResizeCache
            | ControlRequest::ShrinkCache { .. }
            | ControlRequest::CancelShrink => "resize",
            ControlRequest::Move { .. } | ControlRequest::CancelMove { .. } => "move",
            ControlRequest::FlashCreate { .. }
            | ControlRequest::FlashResize { .. }
            | ControlRequest::FlashRemove { .. } => "flash",
        }
    }

    /// Returns true if it changes anything that another program would have to know.
    pub(crate) fn changes(&self) -> bool {
        !matches!(self.word(), "status" | "get" | "map" | "advise" | "stop" | "upgrade")
    }
}
