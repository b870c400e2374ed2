//! Superblocks of devices that are not served yet, and messages about defects in them.

use std::path::Path;

use ubcache_env::{Buf, Device};
use ubcache_format::{
    FormatError, MoveRecord, MoveRole, Problem, SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR, Superblock,
};

use crate::backing::is_uri;
use crate::failure::Failure;
use crate::open::probe::{BCACHE_MAGIC, is_moved, moved, recognize};
use crate::open::target::{Access, Target};

/// Expected kind of a device.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum ExpectedKind {
    /// The cache of a set.
    Cache,
    /// A backing device.
    Backing,
    /// Either.
    Any,
}

/// Opens a device only to look at it, and reads its superblock.
pub fn look(path: &Path, expected: ExpectedKind) -> Result<(Target, Superblock), Failure> {
    if expected == ExpectedKind::Cache && is_uri(path) {
        return Err(remote_cache(path));
    }
    let target = Target::open(path, Access::Look)?;
    let superblock = read(&target, expected)?;
    Ok((target, superblock))
}

/// The failure for a cache device behind a network: a hit would cost as much as a miss.
pub fn remote_cache(path: &Path) -> Failure {
    Failure::could_not_run(path, "a cache device can't be behind a network")
        .found("a URI after -C")
        .expected("a block device or a file of this machine")
        .advice("name a local device after -C, and the URI after -B")
}

/// True if a bcache superblock is on the device, whole or damaged.
pub fn has_superblock(target: &Target) -> bool {
    let bytes = target.read_superblock_bytes();
    bytes.is_ok_and(|bytes| bytes.get(24..40) == Some(BCACHE_MAGIC.as_slice()))
}

/// A superblock in a header.
pub(crate) fn parse_bytes(path: &Path, bytes: &[u8]) -> Result<Superblock, Failure> {
    if let Some(record) = MoveRecord::parse(bytes) {
        return Err(of_a_move(path, &record));
    }
    Superblock::parse(bytes).map_err(|error| damaged(path, &error))
}

/// Reads and checks the superblock of an open device.
pub fn read(target: &Target, expected: ExpectedKind) -> Result<Superblock, Failure> {
    let bytes = target.read_superblock_bytes()?;
    parse(target, &bytes, expected)?;
    Superblock::read(&bytes, target.sectors(), target.logical_block_bytes)
        .map_err(|error| too_small(&target.path, &error))
}

/// Checks a superblock that was read from an open device, by itself.
pub fn parse(target: &Target, bytes: &[u8], expected: ExpectedKind) -> Result<Superblock, Failure> {
    if bytes.get(24..40) != Some(BCACHE_MAGIC.as_slice()) {
        return Err(not_bcache(target, expected));
    }
    let superblock = Superblock::parse(bytes).map_err(|error| damaged(&target.path, &error))?;
    match (expected, superblock.is_cache()) {
        (ExpectedKind::Cache, false) => Err(Failure::refused(&target.path, "not a cache device")
            .found(format_args!("a backing device (superblock version {})", superblock.version))
            .expected("a cache device after -C")
            .advice("name it with -B")),
        (ExpectedKind::Backing, true) => {
            Err(Failure::refused(&target.path, "not a backing device")
                .found(format_args!("a cache device (superblock version {})", superblock.version))
                .expected("a backing device after -B")
                .advice("name it with -C"))
        }
        _ => Ok(superblock),
    }
}

/// The superblock of a device that is open for the engine.
pub(crate) async fn superblock_of<D: Device>(file: &D) -> Result<Superblock, String> {
    let (buf, read) = file.read(SUPERBLOCK_SECTOR, Buf::zeroed(SUPERBLOCK_BYTES)).await;
    read.map_err(|error| error.to_string())?;
    let limits = file.limits();
    Superblock::read(buf.as_slice(), limits.sectors, limits.logical_block_bytes)
        .map_err(|error| error.to_string())
}

/// The failure for a device without a superblock.
pub(crate) fn not_bcache(target: &Target, expected: ExpectedKind) -> Failure {
    let path = target.path.display();
    let mut head = vec![0; 68 << 10];
    let count = target.read_some(0, &mut head).unwrap_or(0);
    let found = recognize(&head[..count]);
    if let Some(signature) = found.iter().find(|signature| is_moved(signature)) {
        return moved(target, signature);
    }
    let found = match found.first() {
        Some(signature) => format!("{} (byte {})", signature.name, signature.at),
        None => "no bcache magic number at byte 4120".to_owned(),
    };
    let record = target.read_superblock_bytes().ok();
    if let Some(record) = record.and_then(|bytes| MoveRecord::parse(&bytes)) {
        return of_a_move(&target.path, &record);
    }
    let failure = Failure::refused(&target.path, "not a bcache device").found(found);
    match expected {
        ExpectedKind::Cache => failure.expected("the superblock of a cache device").advice(
            format_args!("make one, which destroys the data on the device: ubcache make -C {path}"),
        ),
        ExpectedKind::Backing => failure
            .expected("the superblock of a backing device, or a header of this disk")
            .advice(format_args!(
                "make one, which destroys the data on the device: ubcache make -B {path}. Or keep \
                 the data: ubcache make --adopt {path}; where that was done, name its header: \
                 --header PATH"
            )),
        ExpectedKind::Any => failure.expected("a bcache superblock").advice(format_args!(
            "check the path; `ubcache make -C {path}` or `-B {path}` would make one"
        )),
    }
}

/// The failure for a disk that a volume is moved to, or was moved from.
fn of_a_move(path: &Path, record: &MoveRecord) -> Failure {
    let MoveRecord { role, uuid, other, .. } = record;
    match role {
        MoveRole::Left => Failure::refused(path, "its volume was moved to another disk")
            .found(format_args!("the disk that backing device {uuid} was on"))
            .expected(format_args!("{other}, which it was moved to"))
            .advice(format_args!(
                "serve that: -B {other}; this disk is free: ubcache make -B {}",
                path.display()
            )),
        MoveRole::Target => Failure::refused(path, "a move to this disk did not come to its end")
            .found(format_args!("a part of backing device {uuid}"))
            .expected(format_args!("{other}, which has all of it"))
            .advice(format_args!(
                "serve that: -B {other}; then begin again: ubcache move EXPORT {}",
                path.display()
            )),
    }
}

/// The field with the number of cache devices of a set.
const SEVERAL_CACHES: &str = "number of cache devices in the set";

/// The failure for a superblock that can't be used.
fn damaged(path: &Path, error: &FormatError) -> Failure {
    let at = 4096 + error.at;
    match &error.problem {
        Problem::Checksum { found, expected, .. } => {
            Failure::refused(path, "the superblock is damaged: wrong checksum")
                .found(format_args!("checksum {found:016X} in byte {at}"))
                .expected(format_args!("{expected:016X}, computed from the superblock"))
                .advice(format_args!(
                    "see `ubcache show -f {}`; restore the 4096 bytes at byte 4096 from a backup",
                    path.display()
                ))
        }
        Problem::Value { field, found, expected } => {
            let advice = match *field {
                "version" => "use a version of ubcache that knows this format",
                field if field.contains("features") => {
                    "use a version of ubcache that knows these features"
                }
                "block size in sectors" => {
                    "use it on a machine with pages of that size; ubcache and this machine's \
                     kernel have pages of 4 KiB"
                }
                "number of buckets" => {
                    "the driver refuses such a cache as well: make it again, larger or with \
                     smaller buckets"
                }
                SEVERAL_CACHES => {
                    "Linux before 5.10 ran such sets: start it there, and detach the disks; then \
                     make a set of one cache"
                }
                _ => "examine it with `ubcache show -f`; restore the superblock from a backup",
            };
            let what = match *field {
                "version" => "unknown version of the superblock",
                field if field.contains("features") => "the superblock has unknown feature bits",
                "number of buckets" => "the cache has too few buckets",
                "block size in sectors" => "made on a machine with larger pages, or damaged",
                SEVERAL_CACHES => "the cache is one of several in its set, which is not supported",
                _ => "the superblock is invalid",
            };
            Failure::refused(path, what)
                .found(format_args!("{field} {found} (byte {at})"))
                .expected(expected)
                .advice(advice)
        }
        _ => Failure::refused(path, "the superblock is damaged")
            .found(error)
            .expected("a valid bcache superblock")
            .advice("restore the 4096 bytes at byte 4096 from a backup"),
    }
}

/// The failure for a superblock that does not fit its device.
pub(crate) fn too_small(path: &Path, error: &FormatError) -> Failure {
    let failure = Failure::refused(path, "the superblock does not fit the device");
    match &error.problem {
        Problem::Value { field, found, expected } => {
            let advice = match *field {
                "block size in bytes" => {
                    "the device has larger blocks than the original: copy it to a device with \
                     blocks as small, or to a file"
                }
                field if field.starts_with("alignment") => {
                    "no write could begin at a block of the device: copy it to a device with \
                     smaller blocks, or to a file; or make it anew with another --data-offset, \
                     which loses its data"
                }
                _ => {
                    "was the device or file truncated, or copied to a smaller one? Restore its \
                     full size"
                }
            };
            failure.found(format_args!("{field}: {found}")).expected(expected).advice(advice)
        }
        _ => failure.found(error),
    }
}
