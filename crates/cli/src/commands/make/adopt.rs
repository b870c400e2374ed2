//! Disks that are taken as they are: their superblock goes to a header file, and nothing is written
//! to them.

use std::path::{Path, PathBuf};

use ubcache_daemon::Failure;
use ubcache_daemon::open::adopt::write_header;
use ubcache_daemon::open::header::{default_path, header_of, unserved};
use ubcache_daemon::open::probe::refuse_moved;
use ubcache_daemon::open::superblock::has_superblock;
use ubcache_daemon::open::target::Target;
use ubcache_format::Superblock;

use super::{Args, Made};

/// Options that do not go with `--adopt`.
pub(super) fn check_options(args: &Args) -> Result<(), Failure> {
    if args.header.is_some() && args.adopt.len() != 1 {
        return Err(Failure::usage("--header", "one header file is of one disk")
            .found(format_args!("{} disks after --adopt", args.adopt.len()))
            .expected("--adopt DISK --header PATH")
            .advice("adopt one disk after the other, or leave --header out"));
    }
    if !args.adopt.is_empty() && args.data_offset != ubcache_format::DEFAULT_DATA_OFFSET.0 {
        return Err(Failure::usage("--data-offset", "an adopted disk has its data at its begin")
            .expected("no --data-offset with --adopt"));
    }
    Ok(())
}

/// Place of the header of a disk that is to be adopted. Refuses a disk that has a superblock, or a
/// header; one that was not served yet, as an interrupted adoption leaves it, is made again.
pub(super) fn plan(
    args: &Args,
    disk: &Target,
    superblock: &mut Superblock,
) -> Result<PathBuf, Failure> {
    let path = disk.path.display();
    if has_superblock(disk) {
        return Err(Failure::refused(&disk.path, "the disk has a bcache superblock of its own")
            .found("a bcache superblock (byte 4120)")
            .expected("a disk without one")
            .advice(format_args!(
                "serve it as it is: `ubcache serve -C CACHE -B {path}`; `ubcache unmake {path}` \
                 says how to use its data without a cache"
            )));
    }
    refuse_moved(disk)?;
    if let Some(header) = header_of(disk)? {
        let is_its_place = args.header.as_ref().is_none_or(|given| *given == header);
        if let (true, Some(uuid)) = (is_its_place, unserved(&header, disk)?) {
            superblock.uuid = uuid;
            return Ok(header);
        }
        return Err(Failure::refused(&disk.path, "the disk is adopted already")
            .found(format_args!("its header {}", header.display()))
            .expected("a disk without a header")
            .advice(format_args!(
                "serve it: `ubcache serve -C CACHE -B {path}`, with any cache if it was not \
                 served yet; or release it: `ubcache release {path}`"
            )));
    }
    let header = args.header.clone().unwrap_or_else(|| default_path(superblock.uuid));
    match header.exists().then(|| unserved(&header, disk)) {
        None => Ok(header),
        Some(Ok(Some(uuid))) => {
            superblock.uuid = uuid;
            Ok(header)
        }
        Some(_) => Err(Failure::refused(&header, "there is a header already")
            .found("a file of that name")
            .expected("none")
            .advice("give this one another place: --header PATH")),
    }
}

/// Makes the header, durably; then its copy, if a cache is made as well.
pub(super) fn write(
    disk: &Target,
    superblock: Superblock,
    header: &Path,
    cache: Option<&Made>,
) -> Result<Made, Failure> {
    let (path, bytes) = (disk.path.clone(), disk.bytes);
    let of_cache = cache.map(|cache| (cache.path.as_path(), &cache.superblock));
    let copied = write_header(disk, &superblock, header, of_cache)?;
    if let (false, Some(cache)) = (copied, cache) {
        crate::commands::complain(&format!(
            "ubcache: {}: no room for a copy of the header with such small buckets: keep a backup \
             of {}\n",
            cache.path.display(),
            header.display()
        ));
    }
    Ok(Made { path, bytes, superblock, header: Some(header.to_owned()) })
}
