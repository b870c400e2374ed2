//! Adoption: a disk is taken as it is. Its superblock goes to a header file with a copy on the
//! cache device, and nothing is written to the disk.

use std::path::{Path, PathBuf};

use ubcache_env::joined::place_for_copy;
use ubcache_env::{Buf, Device, Durability, IoError};
use ubcache_format::{
    CacheMode, DEFAULT_DATA_OFFSET, RECORD_BYTES, SECTOR_BYTES, Superblock, Uuid,
};
use ubcache_host::{HostFile, OpenOptions, PageCache};

use crate::config::ServeConfig;
use crate::failure::Failure;
use crate::open::header::{
    create_header, default_path, find_header, first_record_of, may_be_of, replace_header,
};
use crate::open::io::start_io;
use crate::open::probe::refuse_moved;
use crate::open::superblock::{ExpectedKind, has_superblock, look};
use crate::open::target::{Access, Target, host_open_failure};

/// Makes the header of a disk, durably; then its copy, if a cache device is given. A header that is
/// there already is replaced. False: the cache device has no room for the copy.
///
/// # Errors
/// The disk can't be read, or the header or its copy can't be written.
pub fn write_header(
    disk: &Target,
    superblock: &Superblock,
    header: &Path,
    cache: Option<(&Path, &Superblock)>,
) -> Result<bool, Failure> {
    let record = first_record_of(disk, superblock.uuid)?;
    let mut content = record.encode();
    content.resize(2 * RECORD_BYTES, 0);
    content.extend_from_slice(&superblock.encode());
    match header.exists() {
        true => replace_header(header, &content)?,
        false => create_header(header, &content)?,
    }
    let Some((cache, of_cache)) = cache else { return Ok(true) };
    on_cache(cache, async |device| {
        let place = place_for_copy(&device, of_cache, superblock.uuid).await?;
        let Some(at) = place else { return Ok(false) };
        device.write(at, Buf::from_bytes(&content).into(), Durability::Fua).await?;
        Ok(true)
    })
}

fn on_cache(
    cache: &Path,
    work: impl AsyncFnOnce(HostFile) -> Result<bool, IoError>,
) -> Result<bool, Failure> {
    let host = start_io()?;
    let options = OpenOptions { page_cache: PageCache::Needed, write: true, exclusive: true };
    let device = HostFile::open(&host.env(), cache, options);
    let device = device.map_err(|error| host_open_failure(cache, error))?;
    let done = host.block_on(Box::pin(async { work(device).await }));
    done.map_err(|error| {
        Failure::could_not_run(cache, format_args!("no copy of the header: {error}"))
    })
}

/// Adopts the disks of a set that its file wants to be adopted, and that have neither a superblock
/// nor a header. One that can't be adopted is not: the checks that follow leave it out.
pub(crate) fn adopt_new(config: &ServeConfig) {
    let Some(cache) = &config.cache else { return };
    for (path, name) in config.backings.iter().zip(&config.names) {
        let Some(name) = name.as_ref().filter(|name| config.adopt.contains(name)) else { continue };
        if config.not_found.iter().any(|missing| missing.path == *path) {
            continue;
        }
        match adopt_one(config, cache, path, name) {
            Ok(None) => {}
            Ok(Some(header)) => tracing::info!(
                volume = %name,
                header = %header.display(),
                "the disk {} is adopted: it has a header now, and was not changed",
                path.display()
            ),
            Err(why) => tracing::warn!(volume = %name, "the disk is not adopted: {why:#}"),
        }
    }
}

fn adopt_one(
    config: &ServeConfig,
    cache: &Path,
    path: &Path,
    name: &str,
) -> Result<Option<PathBuf>, Failure> {
    let (_, of_cache) = look(cache, ExpectedKind::Cache)?;
    let disk = Target::open(path, Access::Look)?;
    if has_superblock(&disk) || find_header(&disk, &config.headers, Some(cache))?.is_some() {
        return Ok(None);
    }
    // A second header would leave dirty data of the first one behind.
    if let Some(other) = may_be_of(&disk, name, of_cache.set_uuid, &config.headers, cache) {
        let other = other.display();
        return Err(Failure::refused(path, "the disk may have a header already")
            .found(format_args!("{other}, of this set, which does not know the disk again"))
            .expected("no header that may be of this disk")
            .advice(format_args!(
                "if that is its header, name it: header = \"{other}\"; else adopt the disk by \
                 hand, with another name: ubcache make --adopt {}",
                path.display()
            )));
    }
    drop(disk);
    // Nobody has it open, as after `ubcache make --adopt`.
    let disk = Target::open(path, Access::Change)?;
    refuse_moved(&disk)?;
    let uuid = Uuid(*uuid::Uuid::new_v4().as_bytes());
    let block = if disk.bytes.is_multiple_of(4096) { 4096 } else { SECTOR_BYTES as u32 };
    let block = block.max(disk.logical_block_bytes) / SECTOR_BYTES as u32;
    let mode = CacheMode::Writethrough;
    let superblock =
        Superblock::new_backing(uuid, of_cache.set_uuid, block, DEFAULT_DATA_OFFSET, mode, name);
    let has_room = on_cache(cache, async |device| {
        Ok(place_for_copy(&device, &of_cache, uuid).await?.is_some())
    })?;
    if !has_room {
        // The header would be the only one: lost with dirty data, a next start would make another.
        return Err(Failure::refused(cache, "no room for a copy of the header")
            .found("buckets that are too small, or 64 adopted disks")
            .expected("room for 8 KiB before the first bucket")
            .advice(format_args!("adopt it by hand: ubcache make --adopt {}", path.display())));
    }
    let header = default_path(uuid);
    write_header(&disk, &superblock, &header, Some((cache, &of_cache)))?;
    Ok(Some(header))
}
