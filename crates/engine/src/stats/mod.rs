//! Counters and states of a running set, in the shape of `status --json`.
//!
//! | module | holds |
//! |---|---|
//! | here | states, and counters of devices, volumes and sets |
//! | [`distance`] | reuse distances of blocks |
//! | [`reuse`] | hit ratios of caches of any size, from live traffic |
//! | [`histogram`] | latencies |
//! | [`maps`] | what is cached of each part of a volume, and what each part of a cache holds |
//! | [`requests`] | requests by their path, and reasons of bypassing |
//! | [`scrub`] | state and counts of a scrub |
//! | [`periods`] | sums of five minutes, an hour, a day, and in total |

use ubcache_format::{BackingState, CacheMode, Uuid};

use self::histogram::{Histogram, Latencies};
use self::periods::PeriodStatus;
use self::requests::RequestStatus;
use self::scrub::ScrubStatus;

pub mod distance;
pub mod histogram;
pub mod maps;
pub mod periods;
pub mod requests;
pub mod reuse;
pub mod scrub;

/// Traffic of a device since it was opened.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceCounters {
    /// Read requests.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write requests, zeroing included.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes that reached the device.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// Latencies of a device, by kind of request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceLatencies {
    /// Reads.
    pub read: Latencies,
    /// Writes, zeroing included.
    pub write: Latencies,
    /// Flushes that reached the device.
    pub flush: Latencies,
}

/// [`DeviceLatencies`] while they are counted.
#[derive(Debug, Default)]
pub(crate) struct DeviceHistograms {
    pub read: Histogram,
    pub write: Histogram,
    pub flush: Histogram,
}

impl DeviceHistograms {
    pub fn latencies(&self) -> DeviceLatencies {
        DeviceLatencies {
            read: self.read.latencies(),
            write: self.write.latencies(),
            flush: self.flush.latencies(),
        }
    }
}

/// Outcomes of the requests of a volume. Reads only, a partial hit is a miss, as in bcache.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct VolumeCounters {
    /// Reads found in the cache as a whole.
    pub cache_hits: u64,
    /// Reads with at least one sector not in the cache.
    pub cache_misses: u64,
    /// Bypassing reads found in the cache as a whole.
    pub cache_bypass_hits: u64,
    /// Bypassing reads with at least one sector not in the cache.
    pub cache_bypass_misses: u64,
    /// Bytes of requests that the policy decided to bypass.
    pub bypassed_bytes: u64,
    /// Fills of which nothing could be published.
    pub cache_miss_collisions: u64,
    /// Fills that a write doomed, in whole or in part.
    pub fills_doomed: u64,
    /// Backing writes that waited for the journal first (rule W3).
    pub durable_invalidations: u64,
    /// Bytes that background writeback has cleaned.
    pub written_back_bytes: u64,
    /// Extents cleaned by background writeback.
    pub writeback_keys_done: u64,
    /// Extents that writeback could not clean: overwritten meanwhile, or an error.
    pub writeback_keys_failed: u64,
    /// Clean cached bytes that scrubs have compared with the backing device.
    pub scrubbed_bytes: u64,
    /// Bytes of them that differed, in whole sectors.
    pub scrub_differing_bytes: u64,
    /// Failed requests to the backing device.
    pub backing_errors: u64,
    /// Clean hits that could not be read from the cache and came from the backing device.
    pub cache_read_retries: u64,
}

/// Activity of background writeback.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum WritebackActivity {
    /// Nothing is dirty.
    #[default]
    Idle,
    /// Switched off (`writeback_running`).
    Off,
    /// Everything that was dirty was seen; more of it waits for `writeback_delay`.
    Waiting,
    /// Dirty data is being written.
    Running,
    /// The last batch failed, in whole or in part, and is tried again.
    Failing,
}

impl WritebackActivity {
    /// The activity in a word.
    pub fn word(self) -> &'static str {
        match self {
            WritebackActivity::Idle => "idle",
            WritebackActivity::Off => "off",
            WritebackActivity::Waiting => "waiting",
            WritebackActivity::Running => "running",
            WritebackActivity::Failing => "failing",
        }
    }
}

/// The state of a volume, in bcache's words.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum VolumeState {
    /// No cache: requests go to the backing device.
    NoCache,
    /// Attached, no dirty data.
    Clean,
    /// Attached, dirty data may exist.
    Dirty,
    /// The cache failed while there was dirty data.
    Failed,
}

impl VolumeState {
    /// The word of the `state` attribute.
    pub fn word(self) -> &'static str {
        match self {
            VolumeState::NoCache => BackingState::None.sysfs_word(),
            VolumeState::Clean => BackingState::Clean.sysfs_word(),
            VolumeState::Dirty => BackingState::Dirty.sysfs_word(),
            VolumeState::Failed => "failed",
        }
    }
}

/// A volume as `status` shows it.
#[derive(Clone, Debug)]
pub struct VolumeStatus {
    /// Export name.
    pub name: String,
    /// UUID of the backing device.
    pub uuid: Uuid,
    /// Traffic of the backing device.
    pub backing: DeviceCounters,
    /// Latencies of the backing device.
    pub backing_latencies: DeviceLatencies,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Cache mode.
    pub mode: CacheMode,
    /// State.
    pub state: VolumeState,
    /// Bytes that only the cache has.
    pub dirty_bytes: u64,
    /// Request counters.
    pub stats: VolumeCounters,
    /// Requests by their path.
    pub requests: RequestStatus,
    /// Counters by period.
    pub periods: PeriodStatus,
    /// Activity of background writeback.
    pub writeback: WritebackActivity,
    /// Bytes per second that background writeback may write at present.
    pub writeback_rate_bytes: u64,
    /// The scrub that is under way, or the last one.
    pub scrub: ScrubStatus,
}

/// State of a flash-only volume, and its counters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlashStatus {
    /// Export name.
    pub name: String,
    /// UUID of the volume.
    pub uuid: Uuid,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bytes of data in the cache.
    pub used_bytes: u64,
    /// Writes that failed for want of room.
    pub refused_writes: u64,
    /// Requests by their path.
    pub requests: RequestStatus,
}

/// Step of a stop. One that takes long waits for a device, or for requests of clients to one.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum StopStep {
    /// Requests, writeback and the flush of the backing device with this UUID.
    Volume(Uuid),
    /// Writes of the journal and the index to the cache device.
    Metadata,
    /// I/O of background tasks that is under way on the cache device.
    Tasks,
    /// The flush of the cache device.
    Flush,
    /// Run numbers in the superblocks of all devices.
    Runs,
}

/// A set as `status` shows it.
#[derive(Clone, Debug)]
pub struct SetStatus {
    /// UUID of the set.
    pub uuid: Uuid,
    /// Traffic of the cache device.
    pub cache: DeviceCounters,
    /// Latencies of the cache device.
    pub cache_latencies: DeviceLatencies,
    /// Size of the cache device in bytes, as far as the set uses it.
    pub size_bytes: u64,
    /// Bucket size in bytes.
    pub bucket_bytes: u64,
    /// Block size in bytes.
    pub block_bytes: u64,
    /// Percent of buckets that are free or hold only clean data.
    pub available_percent: u64,
    /// Percent of buckets that hold data or metadata; grows until every bucket was counted.
    pub filled_percent: u64,
    /// Bytes of these buckets.
    pub used_bytes: u64,
    /// Bytes for which the device has no room (ENOSPC), so that they are no part of the cache for
    /// now.
    pub put_aside_bytes: u64,
    /// True when every bucket has been counted since the start.
    pub counted: bool,
    /// Reason of the set's failure, if it has failed.
    pub failed: Option<String>,
    /// Leaf nodes of the index.
    pub btree_leaves: u64,
    /// Level of the root; 0: a single leaf.
    pub tree_depth: u64,
    /// Journal entries that a restart would replay.
    pub active_journal_entries: u64,
    /// The volumes that are served: those that are attached, then those that were detached since.
    pub volumes: Vec<VolumeStatus>,
    /// The flash-only volumes that are served.
    pub flash: Vec<FlashStatus>,
    /// Bytes that flash-only volumes could write now.
    pub flash_room_bytes: u64,
}
