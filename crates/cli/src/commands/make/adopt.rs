//! Disks that are taken as they are: their superblock goes to a header file, and nothing is written
//! to them.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use ubcache_daemon::Failure;
use ubcache_daemon::open::header::{create_header, default_path, first_record_of, header_of};
use ubcache_daemon::open::superblock::has_superblock;
use ubcache_daemon::open::target::Target;
use ubcache_env::joined::place_for_copy;
use ubcache_env::{Buf, Device, Durability};
use ubcache_format::{RECORD_BYTES, Superblock};

use super::{Args, Made};
use crate::commands::offline::{host, open_file};

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
/// header.
pub(super) fn plan(
    args: &Args,
    disk: &Target,
    superblock: &Superblock,
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
    if let Some(header) = header_of(disk)? {
        return Err(Failure::refused(&disk.path, "the disk is adopted already")
            .found(format_args!("its header {}", header.display()))
            .expected("a disk without a header")
            .advice(format_args!(
                "serve it: `ubcache serve -C CACHE -B {path}`, with any cache if it was not \
                 served yet; or release it: `ubcache release {path}`"
            )));
    }
    let header = args.header.clone().unwrap_or_else(|| default_path(superblock.uuid));
    match header.exists() {
        false => Ok(header),
        true => Err(Failure::refused(&header, "there is a header already")
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
    let host = host()?;
    let record = first_record_of(disk, superblock.uuid)?;
    let mut content = record.encode();
    content.resize(2 * RECORD_BYTES, 0);
    content.extend_from_slice(&superblock.encode());
    create_header(header, &content)?;
    if let Some(cache) = cache {
        let device = Rc::new(open_file(&host, &cache.path, true)?);
        let copied = host.block_on(async {
            let uuid = superblock.uuid;
            let Some(at) = place_for_copy(&*device, &cache.superblock, uuid).await? else {
                return Ok(false);
            };
            device.write(at, Buf::from_bytes(&content).into(), Durability::Fua).await?;
            Ok::<_, ubcache_env::IoError>(true)
        });
        let copied = copied.map_err(|error| {
            Failure::could_not_run(&cache.path, format_args!("no copy of the header: {error}"))
        })?;
        if !copied {
            crate::commands::complain(&format!(
                "ubcache: {}: no room for a copy of the header with such small buckets: keep a \
                 backup of {}\n",
                cache.path.display(),
                header.display()
            ));
        }
    }
    Ok(Made { path, bytes, superblock, header: Some(header.to_owned()) })
}
