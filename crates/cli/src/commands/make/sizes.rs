//! Sizes of a new set: options that fit each other, and devices with room for them.

use std::path::Path;

use ubcache_daemon::Failure;
use ubcache_daemon::open::target::Target;
use ubcache_daemon::size::show_size;
use ubcache_format::{
    DEFAULT_DATA_OFFSET, LABEL_BYTES, MAX_CACHE_SECTORS, MIN_BUCKETS, SECTOR_BYTES,
};

use super::Args;

const BUCKET_BYTES_DEFAULT: u64 = 512 << 10;
const BUCKET_BYTES_MIN: u64 = 4 << 10;
const BUCKET_BYTES_MAX: u64 = 16 << 20;
const BLOCK_BYTES_MAX: u64 = 4 << 10;

pub(super) fn check_options(args: &Args) -> Result<(), Failure> {
    if args.cache.is_empty() && args.bdev.is_empty() && args.adopt.is_empty() {
        return Err(
            Failure::usage("make", "no device given").expected("-C DEVICE, -B DEVICE or both")
        );
    }
    super::adopt::check_options(args)?;
    if args.cache.len() > 1 {
        return Err(Failure::usage("-C", "more than one cache device")
            .found(format_args!("{} devices", args.cache.len()))
            .expected("one: a set has exactly one cache device")
            .advice("make one set after the other"));
    }
    if let Some(block) = args.block {
        check_power_of_two("--block", block, SECTOR_BYTES, BLOCK_BYTES_MAX)?;
    }
    let bucket = bucket_bytes(args);
    check_power_of_two("--bucket", bucket, BUCKET_BYTES_MIN, BUCKET_BYTES_MAX)?;
    if args.data_offset < DEFAULT_DATA_OFFSET.0 {
        return Err(Failure::usage("--data-offset", "the superblock needs room before the data")
            .found(format_args!("{} sectors", args.data_offset))
            .expected("at least 16 sectors"));
    }
    for (option, size) in
        [("--size", args.size), ("--cache-size", args.cache_size), ("--bdev-size", args.bdev_size)]
    {
        let unit = args.block.unwrap_or(SECTOR_BYTES);
        match size {
            Some(0) => return Err(Failure::usage(option, "found 0, expected a size above zero")),
            Some(size) if size % unit != 0 => {
                return Err(Failure::usage(option, "not a whole number of blocks")
                    .found(format_args!("{size} bytes"))
                    .expected(format_args!("a multiple of {unit}")));
            }
            _ => {}
        }
    }
    if let Some(label) = args.label.as_deref().filter(|label| label.len() > LABEL_BYTES) {
        return Err(Failure::usage("--label", "too long")
            .found(format_args!("{} bytes", label.len()))
            .expected(format_args!("at most {LABEL_BYTES} bytes")));
    }
    if args.label.is_some() && args.bdev.len() + args.adopt.len() > 1 {
        return Err(Failure::usage("--label", "one label for several backing devices")
            .found(format_args!("{} devices after -B", args.bdev.len() + args.adopt.len()))
            .expected("a label for each: it is the name of the export, and has to be unique")
            .advice(
                "leave it out, and set labels when the disks are served: ubcache set --volume \
                 EXPORT label=LABEL",
            ));
    }
    if args.cset_uuid.is_some_and(|uuid| uuid.is_zero()) {
        return Err(Failure::usage("--cset-uuid", "found zero, expected a UUID that is not zero"));
    }
    Ok(())
}

pub(super) fn check_power_of_two(
    option: &str,
    found: u64,
    min: u64,
    max: u64,
) -> Result<(), Failure> {
    if found.is_power_of_two() && (min..=max).contains(&found) {
        return Ok(());
    }
    Err(Failure::usage(option, "not a possible size")
        .found(format_args!("{found} bytes"))
        .expected(format_args!("a power of two from {} to {}", show_size(min), show_size(max))))
}

pub(super) fn bucket_bytes(args: &Args) -> u64 {
    args.bucket.unwrap_or(BUCKET_BYTES_DEFAULT)
}

/// Refuses an export that ends before the size that its server announces.
pub(super) fn check_end(target: &Target) -> Result<(), Failure> {
    let last = target.bytes.saturating_sub(SECTOR_BYTES) / SECTOR_BYTES * SECTOR_BYTES;
    if target.read_some(last, &mut [0; SECTOR_BYTES as usize]).is_ok() {
        return Ok(());
    }
    Err(Failure::refused(&target.path, "the last sector can't be read")
        .found(format_args!("an error at byte {last}"))
        .expected(format_args!("the {} bytes that the server announces", target.bytes))
        .advice("check the size of the disk at the server: it must not announce more than it has"))
}

/// Checks that a device of that size has room for its content.
pub(super) fn check_size(
    args: &Args,
    path: &Path,
    bytes: u64,
    is_cache: bool,
) -> Result<(), Failure> {
    let unit = args.block.unwrap_or(SECTOR_BYTES);
    if bytes == 0 {
        return Err(Failure::refused(path, "has no size")
            .found("0 bytes")
            .expected("room for a superblock and data")
            .advice("remove the empty file and use --size SIZE, or `truncate -s SIZE`"));
    }
    if !bytes.is_multiple_of(unit) {
        return Err(Failure::refused(path, "the size is not a whole number of blocks")
            .found(format_args!("{bytes} bytes"))
            .expected(format_args!("a multiple of {unit}"))
            .advice(match unit {
                SECTOR_BYTES => "give it another size: truncate -s SIZE",
                _ => "give it another size (truncate -s SIZE), or choose a smaller --block",
            }));
    }
    if is_cache {
        let most = MAX_CACHE_SECTORS * SECTOR_BYTES;
        if bytes > most {
            return Err(Failure::refused(path, "too large for a cache")
                .found(format_args!("{bytes} bytes"))
                .expected(format_args!(
                    "at most {most} bytes (4 PiB): pointers of the format have 43 bits"
                ))
                .advice("use a part of it: a partition, or a file with --size"));
        }
        let (bucket, buckets) = (bucket_bytes(args), bytes / bucket_bytes(args));
        if buckets >= u64::from(MIN_BUCKETS) {
            return Ok(());
        }
        let minimum = u64::from(MIN_BUCKETS) * bucket;
        let fitting = (BUCKET_BYTES_MIN.ilog2()..bucket.ilog2())
            .rev()
            .map(|shift| 1_u64 << shift)
            .find(|smaller| bytes / smaller >= u64::from(MIN_BUCKETS));
        let advice = match fitting {
            Some(smaller) => {
                format!("make it larger, or use smaller buckets: --bucket {}", show_size(smaller))
            }
            None => "make it larger".to_owned(),
        };
        return Err(Failure::refused(path, "too small for a cache")
            .found(format_args!("{bytes} bytes: {buckets} buckets of {}", show_size(bucket)))
            .expected(format_args!(
                "at least {MIN_BUCKETS} buckets: {minimum} bytes ({}) with buckets of this size",
                show_size(minimum)
            ))
            .advice(advice));
    }
    let minimum =
        args.data_offset.saturating_mul(SECTOR_BYTES).saturating_add(args.block.unwrap_or(4096));
    if bytes < minimum {
        return Err(Failure::refused(path, "too small for a backing device")
            .found(format_args!("{bytes} bytes"))
            .expected(format_args!(
                "at least {minimum} bytes: {} sectors before the data, and one block",
                args.data_offset
            )));
    }
    Ok(())
}

/// The block size for all devices: the requested one, or 4 KiB where every device allows it.
pub(super) fn choose_block<'a>(
    args: &Args,
    targets: impl Iterator<Item = (&'a Target, bool)>,
) -> Result<u64, Failure> {
    let mut logical_max = SECTOR_BYTES;
    let mut whole_pages = true;
    for (target, is_cache) in targets {
        let logical = u64::from(target.logical_block_bytes);
        logical_max = logical_max.max(logical);
        let data = if is_cache { 0 } else { args.data_offset * SECTOR_BYTES };
        whole_pages &=
            target.bytes.is_multiple_of(BLOCK_BYTES_MAX) && data.is_multiple_of(BLOCK_BYTES_MAX);
        if logical > BLOCK_BYTES_MAX {
            return Err(Failure::refused(&target.path, "its logical blocks are too large")
                .found(format_args!("{logical} bytes"))
                .expected("at most 4096 bytes"));
        }
        if !data.is_multiple_of(logical) {
            return Err(Failure::refused(
                &target.path,
                "the data would not begin at a block of the device",
            )
            .found(format_args!("--data-offset {}, in sectors of 512 bytes", args.data_offset))
            .expected(format_args!(
                "a multiple of {}: its logical blocks have {logical} bytes",
                logical / SECTOR_BYTES
            )));
        }
        if let Some(block) = args.block {
            if block < logical {
                return Err(Failure::refused(
                    &target.path,
                    "the block is smaller than the device's",
                )
                .found(format_args!("--block {block}"))
                .expected(format_args!("at least {logical}, its logical block size")));
            }
            if data.is_multiple_of(logical) && !data.is_multiple_of(block) {
                return Err(Failure::usage(
                    "--data-offset",
                    "the data would not begin at a whole block",
                )
                .found(format_args!("{} sectors", args.data_offset))
                .expected(format_args!("a multiple of {} sectors", block / SECTOR_BYTES)));
            }
        }
    }
    Ok(args.block.unwrap_or(if whole_pages { BLOCK_BYTES_MAX } else { logical_max }))
}
