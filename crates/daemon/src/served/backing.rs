//! Opening of backing devices, with the header of one that has no superblock.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use ubcache_engine::CachedVolume;
use ubcache_env::joined::Header;
use ubcache_env::{Device, Joined, Witness};
use ubcache_format::SECTOR_BYTES;
use ubcache_host::{HostDisk, HostEnv, PageCache};

use super::header_copy::{CacheCopies, OpenHeader};
use super::world::{World, open as open_device, refuse_vague_discards};
use crate::backing::{Purpose, Remote};
use crate::config::ServeConfig;
use crate::failure::Failure;
use crate::open::header::{FoundHeader, create_header};

/// A backing device that is open.
pub(crate) struct Backing {
    pub(crate) device: Joined<HostDisk>,
    /// It takes no writes any more: see [`HostFile::lost`].
    pub(crate) lost: Rc<Cell<bool>>,
    /// The device, if it is behind a network.
    pub(crate) remote: Option<Rc<Remote>>,
    /// The header of a disk that has no superblock.
    pub(crate) header: Option<Rc<OpenHeader>>,
}

/// A disk that is open, without its header.
struct Disk {
    disk: HostDisk,
    lost: Rc<Cell<bool>>,
    remote: Option<Rc<Remote>>,
}

/// Opens a backing device for itself alone, and its header; `cache`: the device for the header's
/// copy. A header that was lost is made again.
pub(crate) async fn open_backing(
    host: &HostEnv,
    config: &ServeConfig,
    (path, header): (&Path, Option<&FoundHeader>),
    cache: Option<&CacheCopies>,
) -> Result<Backing, Failure> {
    let Disk { disk, lost, remote } = open_disk(host, config, path).await?;
    let (device, header) = match header {
        None => (disk.into(), None),
        Some(found) => {
            let header = open_header(host, config, found, cache).await?;
            (Joined::new(disk, header.device.clone()), Some(Rc::new(header)))
        }
    };
    Ok(Backing { device, lost, remote, header })
}

impl Backing {
    /// See [`Remote::may_write_late`].
    pub(crate) fn may_write_late(&self) -> bool {
        self.remote.as_ref().is_some_and(|remote| remote.may_write_late())
    }
}

async fn open_disk(host: &HostEnv, config: &ServeConfig, path: &Path) -> Result<Disk, Failure> {
    let not_passed_on = || {
        tracing::info!(
            device = %path.display(),
            "discards are not passed on to this device: discarded sectors may read differently \
             every time (--trust-discards passes them on)"
        );
    };
    if let Some(remote) = Box::pin(Remote::open(host, path, Purpose::Serve)).await? {
        let mut device = remote.device();
        if !config.trust_discards && remote.has_vague_discards() && device.limits().discard {
            device = device.without_discards();
            not_passed_on();
        }
        let remote = Some(Rc::new(remote));
        return Ok(Disk { disk: device.into(), lost: Rc::default(), remote });
    }
    let file = open_device(host, path, config.page_cache).await?;
    file.slow_down_reads(config.read_time_min);
    if !config.trust_discards && refuse_vague_discards(&file) {
        not_passed_on();
    }
    Ok(Disk { lost: file.lost(), disk: file.into(), remote: None })
}

async fn open_header(
    host: &HostEnv,
    config: &ServeConfig,
    found: &FoundHeader,
    cache: Option<&CacheCopies>,
) -> Result<OpenHeader, Failure> {
    let path = &found.path;
    if let Some(content) = &found.lost {
        create_header(path, content)?;
        tracing::warn!(
            header = %path.display(),
            "the header of the disk was lost; it was found on the cache device and made again. It \
             may be older than the last writes to the disk, so clean data in the cache is dropped"
        );
    }
    // Each write of it is durable when it completes, with and without a page cache.
    let page_cache = match config.page_cache {
        PageCache::Never => PageCache::Needed,
        given => given,
    };
    let file = open_device(host, path, page_cache).await?;
    let copy = match cache {
        Some(cache) => cache.place(path, found.superblock.uuid).await,
        None => None,
    };
    let header = Header::open(file.into(), copy, &found.identity).await.map_err(|error| {
        Failure::refused(path, format_args!("the header can't be read: {error}"))
            .expected("the header that `ubcache make --adopt` made")
            .advice("move it away: the copy on the cache device is then used")
    })?;
    Ok(OpenHeader::new(path, header))
}

/// Logs what a start found of a disk that has no superblock (A9).
pub(crate) fn say_witness<W: World>(name: &str, volume: &CachedVolume<W>) {
    match volume.witness() {
        Witness::Unneeded | Witness::Same => {}
        Witness::Unknown => tracing::info!(
            export = name,
            "the last run of this disk did not end with a clean stop: its clean data was dropped, \
             because nothing on the disk says whether somebody else wrote to it since. What that \
             run had not written is as it was"
        ),
        Witness::Different { found, expected } => tracing::warn!(
            export = name,
            %found,
            %expected,
            "the disk was written without its cache since the last run: what was cached of it was \
             dropped, except for dirty data that was to be kept"
        ),
        Witness::Resized { found, expected } => tracing::warn!(
            export = name,
            found_bytes = found * SECTOR_BYTES,
            expected_bytes = expected * SECTOR_BYTES,
            "the disk has another size than in the last run, which was accepted"
        ),
    }
}
