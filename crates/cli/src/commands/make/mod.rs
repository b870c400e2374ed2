//! `ubcache make`: writes the superblocks of a cache set, with the options of make-bcache.
//!
//! Everything is checked on every device before the first byte is written to any of them; files
//! that were created for a refused command are removed again.

use std::fmt::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use ubcache_daemon::Failure;
use ubcache_daemon::open::probe::probe;
use ubcache_daemon::open::superblock::{Role, parse};
use ubcache_daemon::open::target::{Access, SUPERBLOCK_AT, Target, create_file};
use ubcache_daemon::size::{parse_size, show_size};
use ubcache_format::{
    BackingState, CacheMode, DEFAULT_DATA_OFFSET, Inode, LABEL_BYTES, MAX_CACHE_SECTORS,
    MIN_BUCKETS, Replacement, SECTOR_BYTES, Sector, Superblock, Uuid,
};
use ubcache_offline::{View, make_device, open_set};

use super::offline::{Bar, host, open_as_it_is, open_file};
use super::print;

const BUCKET_BYTES_DEFAULT: u64 = 512 << 10;
const BUCKET_BYTES_MIN: u64 = 4 << 10;
const BUCKET_BYTES_MAX: u64 = 16 << 20;
const BLOCK_BYTES_MAX: u64 = 4 << 10;

/// Format a cache device and backing devices, as make-bcache does
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache make -C /dev/nvme0n1p4 -B /dev/sdb")]
pub struct Args {
    /// The cache device: a block device or a file
    #[arg(short = 'C', long = "cache", value_name = "DEVICE", num_args = 1..)]
    cache: Vec<PathBuf>,
    /// Backing devices: block devices or files; data begins after the superblock (see
    /// --data-offset)
    #[arg(short = 'B', long = "bdev", value_name = "DEVICE", num_args = 1..)]
    bdev: Vec<PathBuf>,
    /// Size of a bucket, a power of two from 4k to 16M [default: 512k]
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    bucket: Option<u64>,
    /// Size of a block, a power of two from 512 to 4k [default: 4k where the devices allow]
    #[arg(short = 'w', long, value_name = "SIZE", value_parser = parse_size)]
    block: Option<u64>,
    /// Start of the data of backing devices, in sectors of 512 bytes
    #[arg(short = 'o', long, value_name = "SECTORS", default_value_t = DEFAULT_DATA_OFFSET.0)]
    data_offset: u64,
    /// UUID of the set [default: a new one]
    #[arg(long, value_name = "UUID")]
    cset_uuid: Option<Uuid>,
    /// Start the backing devices in writeback mode
    #[arg(long)]
    writeback: bool,
    /// Discard freed buckets of the cache
    #[arg(long)]
    discard: bool,
    /// Replacement policy: the data that goes first when the cache is full
    #[arg(
        long,
        value_name = "POLICY",
        alias = "cache_replacement_policy",
        value_enum,
        default_value_t = Policy::ScanResistant
    )]
    cache_replacement_policy: Policy,
    /// Overwrite existing bcache superblocks, unless dirty data would be lost with them
    #[arg(long, alias = "wipe_bcache")]
    wipe_bcache: bool,
    /// Label of the backing devices, up to 31 bytes: the name of the export
    #[arg(short, long, value_name = "LABEL")]
    label: Option<String>,
    /// Overwrite whatever is on the devices, the only copy of dirty data as well
    #[arg(short, long)]
    force: bool,
    /// Create the files that do not exist, with this size: cache files with room for all of it,
    /// backing files sparse
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// Size of new cache files only
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    cache_size: Option<u64>,
    /// Size of new backing files only
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    bdev_size: Option<u64>,
    /// Create cache files sparse as well: they grow as they are filled, and stop growing when the
    /// file system is full
    #[arg(long)]
    sparse: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::ValueEnum, Copy, Clone, PartialEq, Eq, Debug)]
enum Policy {
    /// The bucket least worth keeping, judged by reuse so far; the Linux driver takes the set for
    /// lru
    ScanResistant,
    /// The bucket used longest ago
    Lru,
    /// The bucket filled longest ago
    Fifo,
    /// Any bucket
    Random,
}

impl From<Policy> for Replacement {
    fn from(policy: Policy) -> Replacement {
        match policy {
            Policy::ScanResistant | Policy::Lru => Replacement::Lru,
            Policy::Fifo => Replacement::Fifo,
            Policy::Random => Replacement::Random,
        }
    }
}

/// A device that is going to be written.
struct Plan {
    target: Target,
    superblock: Superblock,
    /// True if this command has created the file.
    created: bool,
    /// Bytes with magic numbers of other things, to be removed.
    wipe: Vec<Range<u64>>,
}

/// A device that has been written.
struct Made {
    path: PathBuf,
    bytes: u64,
    superblock: Superblock,
}

/// Files to remove again unless the command succeeds.
#[derive(Default)]
struct Created(Vec<PathBuf>);

impl Drop for Created {
    fn drop(&mut self) {
        for path in &self.0 {
            // Ignore errors: the first failure is reported.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    check_options(args)?;
    let mut created = Created::default();
    let plans = plan(args, &mut created)?;
    let made: Vec<Made> = plans
        .into_iter()
        .map(|plan| write(plan, args.cset_uuid.is_some()))
        .collect::<Result<_, _>>()?;
    created.0.clear();
    if args.json {
        let devices: Vec<Value> = made.iter().map(describe_json).collect();
        let text =
            serde_json::to_string_pretty(&json!({ "devices": devices })).expect("plain data");
        print(&(text + "\n"))?;
    } else {
        made.iter().try_for_each(|made| print(&describe(made)))?;
    }
    Ok(())
}

fn check_options(args: &Args) -> Result<(), Failure> {
    if args.cache.is_empty() && args.bdev.is_empty() {
        return Err(
            Failure::usage("make", "no device given").expected("-C DEVICE, -B DEVICE or both")
        );
    }
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
    if let Some(label) = args.label.as_deref().filter(|label| label.len() >= LABEL_BYTES) {
        return Err(Failure::usage("--label", "too long")
            .found(format_args!("{} bytes", label.len()))
            .expected(format_args!("at most {} bytes", LABEL_BYTES - 1)));
    }
    if args.label.is_some() && args.bdev.len() > 1 {
        return Err(Failure::usage("--label", "one label for several backing devices")
            .found(format_args!("{} devices after -B", args.bdev.len()))
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

fn check_power_of_two(option: &str, found: u64, min: u64, max: u64) -> Result<(), Failure> {
    if found.is_power_of_two() && (min..=max).contains(&found) {
        return Ok(());
    }
    Err(Failure::usage(option, "not a possible size")
        .found(format_args!("{found} bytes"))
        .expected(format_args!("a power of two from {} to {}", show_size(min), show_size(max))))
}

fn bucket_bytes(args: &Args) -> u64 {
    args.bucket.unwrap_or(BUCKET_BYTES_DEFAULT)
}

/// Opens and checks everything.
fn plan(args: &Args, created: &mut Created) -> Result<Vec<Plan>, Failure> {
    let caches = args.cache.iter().map(|path| (path, true, args.cache_size.or(args.size)));
    let backings = args.bdev.iter().map(|path| (path, false, args.bdev_size.or(args.size)));
    let mut targets = Vec::new();
    for (path, is_cache, size) in caches.chain(backings) {
        let mut is_new = false;
        if let (false, Some(size)) = (path.exists(), size) {
            check_size(args, path, size, is_cache)?;
            is_new = create_file(path, size, args.sparse || !is_cache)?;
            created.0.extend(is_new.then(|| path.clone()));
        }
        let target = Target::open(path, Access::Change)?;
        check_size(args, path, target.bytes, is_cache)?;
        targets.push((target, is_cache, is_new));
    }
    let block_bytes =
        choose_block(args, targets.iter().map(|(target, is_cache, _)| (target, *is_cache)))?;
    let set_uuid = args.cset_uuid.unwrap_or_else(new_uuid);
    let disks: Vec<(PathBuf, Uuid)> =
        targets.iter().filter_map(|(target, ..)| known_disk(target)).collect();
    let mut plans = Vec::new();
    for (target, is_cache, created) in targets {
        let wipe = check_content(args, &target)?;
        let (target, set) = if args.force { (target, None) } else { read_set(target)? };
        if let Some(set) = set {
            refuse_dirty_cache(&target.path, &set, &disks)?;
        }
        let superblock = if is_cache {
            new_cache(args, &target, set_uuid, block_bytes)
        } else {
            let mode = if args.writeback { CacheMode::Writeback } else { CacheMode::Writethrough };
            let block = (block_bytes / SECTOR_BYTES) as u32;
            let label = args.label.as_deref().unwrap_or("");
            Superblock::new_backing(
                new_uuid(),
                set_uuid,
                block,
                Sector(args.data_offset),
                mode,
                label,
            )
        };
        plans.push(Plan { target, superblock, created, wipe });
    }
    Ok(plans)
}

fn new_uuid() -> Uuid {
    Uuid(*uuid::Uuid::new_v4().as_bytes())
}

fn new_cache(args: &Args, target: &Target, set_uuid: Uuid, block_bytes: u64) -> Superblock {
    let bucket = bucket_bytes(args);
    // Bucket numbers have 32 bits in memory; what is beyond is not used.
    let buckets = u32::try_from(target.bytes / bucket).unwrap_or(u32::MAX - 1).min(u32::MAX - 1);
    let mut superblock = Superblock::new_cache(
        new_uuid(),
        set_uuid,
        (block_bytes / SECTOR_BYTES) as u32,
        (bucket / SECTOR_BYTES) as u32,
        buckets,
        args.cache_replacement_policy.into(),
        args.discard,
    );
    superblock.set_begins_scan_resistant(args.cache_replacement_policy == Policy::ScanResistant);
    superblock
}

/// Checks that a device of that size has room for its content.
fn check_size(args: &Args, path: &Path, bytes: u64, is_cache: bool) -> Result<(), Failure> {
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
            .advice("give it another size, or choose a smaller --block"));
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
fn choose_block<'a>(
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

/// Refuses to destroy anything unasked; gives the magic numbers to be wiped.
fn check_content(args: &Args, target: &Target) -> Result<Vec<Range<u64>>, Failure> {
    let found = probe(target)?;
    if args.force {
        let is_bcache = found.iter().any(|signature| signature.is_bcache);
        // User data begins behind a bcache superblock: nothing in there is touched.
        let own = |at: u64| !is_bcache || at < SUPERBLOCK_AT;
        return Ok(found
            .iter()
            .filter(|it| own(it.at))
            .map(|it| it.at..it.at + it.bytes)
            .collect());
    }
    let Some(first) = found.first() else { return Ok(Vec::new()) };
    let path = &target.path;
    let place = format!("{} (byte {})", first.name, first.at);
    if !first.is_bcache {
        return Err(Failure::refused(path, "the device is in use by something else's data")
            .found(place)
            .expected("an empty device")
            .advice("to destroy it: wipefs -a, or use --force"));
    }
    let superblock = parse(target, &target.read_superblock_bytes()?, Role::Any).ok();
    let dirty = superblock.is_some_and(|it| !it.is_cache() && it.state() == BackingState::Dirty);
    match (args.wipe_bcache, dirty) {
        (true, false) => Ok(Vec::new()),
        (true, true) => {
            Err(Failure::refused(path, "the newest data of this device is only in its cache")
                .found("a backing device in state dirty")
                .expected("a device without data in a cache")
                .advice(
                    "serve it with its cache and let it write back (writeback_percent=0); --force \
                gives the data up",
                ))
        }
        (false, _) => Err(Failure::refused(path, "already a bcache device")
            .found(place)
            .expected("a device without one")
            .advice("overwrite it with --wipe-bcache")),
    }
}

/// A backing device among those that are to be overwritten, by its UUID so far.
fn known_disk(target: &Target) -> Option<(PathBuf, Uuid)> {
    let superblock = parse(target, &target.read_superblock_bytes().ok()?, Role::Any).ok()?;
    (!superblock.is_cache()).then(|| (target.path.clone(), superblock.uuid))
}

/// The set on a cache device, if there is one that was started. It is read by the tools that read
/// sets, which open the device themselves.
fn read_set(target: Target) -> Result<(Target, Option<View>), Failure> {
    let superblock =
        target.read_superblock_bytes().and_then(|bytes| parse(&target, &bytes, Role::Any));
    if !superblock.is_ok_and(|superblock| superblock.is_cache() && superblock.sync()) {
        return Ok((target, None));
    }
    let path = target.path.clone();
    drop(target);
    let host = host()?;
    let cache = open_as_it_is(&host, &path, false)?;
    let bar = Bar::new();
    let read = host.block_on(async { open_set(&cache, false, &bar).await });
    bar.clear();
    drop((cache, host));
    let (set, _) = read.map_err(|error| {
        Failure::refused(&path, "it may have the only copy of dirty data: its set can't be read")
            .found(error)
            .expected("a cache without dirty data")
            .advice(format_args!(
                "examine it with `ubcache check {}`; --force gives up its content",
                path.display()
            ))
    })?;
    Ok((Target::open(&path, Access::Change)?, Some(set)))
}

/// Refuses to destroy the only copy of dirty data, whose ever it is.
fn refuse_dirty_cache(path: &Path, set: &View, disks: &[(PathBuf, Uuid)]) -> Result<(), Failure> {
    let mut whose = Vec::new();
    for (index, entry) in (0..).zip(&set.uuids).filter(|(_, entry)| entry.uuid != Uuid::INVALIDATED)
    {
        let extents = set.volume(Inode(index)).filter(|(extent, _)| extent.is_dirty());
        let sectors: u64 = extents.map(|(extent, _)| extent.range().sectors()).sum();
        if sectors == 0 {
            continue;
        }
        let label = String::from_utf8_lossy(&entry.label).trim_end_matches('\0').to_owned();
        let name = match disks.iter().find(|(_, uuid)| *uuid == entry.uuid) {
            Some((path, _)) => path.display().to_string(),
            None if label.is_empty() => format!("the backing device {}", entry.uuid),
            None => format!("the backing device {} (label {label:?})", entry.uuid),
        };
        whose.push(format!("{} of {name}", show_size(sectors * SECTOR_BYTES)));
    }
    if whose.is_empty() {
        return Ok(());
    }
    let whose = whose.join(", ");
    Err(Failure::refused(path, "the cache has the only copy of dirty data")
        .found(whose)
        .expected("a cache without dirty data")
        .advice(format_args!(
            "write it back first: ubcache recover -C {} -B DISK; --force gives the data up",
            path.display()
        )))
}

fn write(plan: Plan, same_set: bool) -> Result<Made, Failure> {
    let Plan { target, superblock, created, wipe } = plan;
    let made = Made { path: target.path.clone(), bytes: target.bytes, superblock };
    // Close it first: it is opened again for the I/O, and only one at a time can have it.
    drop(target);
    let host = host()?;
    let device = open_file(&host, &made.path, true)?;
    // Under the same set UUID, entries of an older journal would be valid.
    let erase_journal = made.superblock.is_cache() && same_set && !created;
    let bar = Bar::new();
    let written = host.block_on(async {
        make_device(&device, &made.superblock, &wipe, erase_journal, &bar).await
    });
    bar.clear();
    written.map_err(|error| {
        Failure::could_not_run(&made.path, error)
            .advice("look at the system's log, and run the command again")
    })?;
    Ok(made)
}

fn describe(made: &Made) -> String {
    let (superblock, path) = (&made.superblock, made.path.display());
    let is_cache = superblock.is_cache();
    let mut text = String::new();
    let _ = writeln!(text, "Name\t\t\t{path}");
    let _ = writeln!(text, "Label\t\t\t{}", superblock.label_str());
    let _ = writeln!(text, "Type\t\t\t{}", if is_cache { "cache" } else { "data" });
    let _ = writeln!(text, "UUID:\t\t\t{}", superblock.uuid);
    let _ = writeln!(text, "Set UUID:\t\t{}", superblock.set_uuid);
    let _ = writeln!(text, "version:\t\t{}", superblock.version);
    if is_cache {
        let _ = writeln!(text, "nbuckets:\t\t{}", superblock.nbuckets);
        let _ = writeln!(text, "block_size_in_sectors:\t{}", superblock.block_sectors);
        let _ = writeln!(text, "bucket_size_in_sectors:\t{}", superblock.bucket_sectors);
        let _ = writeln!(text, "nr_in_set:\t\t1\nnr_this_dev:\t\t0");
        let _ = writeln!(text, "first_bucket:\t\t{}", superblock.first_bucket);
    } else {
        let _ = writeln!(text, "block_size_in_sectors:\t{}", superblock.block_sectors);
        let _ = writeln!(text, "data_offset_in_sectors:\t{}", superblock.data_offset());
    }
    text + "\n"
}

fn describe_json(made: &Made) -> Value {
    let superblock = &made.superblock;
    let mut value = json!({
        "path": made.path.display().to_string(),
        "type": if superblock.is_cache() { "cache" } else { "backing" },
        "uuid": superblock.uuid.to_string(),
        "set_uuid": superblock.set_uuid.to_string(),
        "label": superblock.label_str(),
        "version": superblock.version,
        "block_bytes": u64::from(superblock.block_sectors) * SECTOR_BYTES,
        "size_bytes": made.bytes,
    });
    if superblock.is_cache() {
        value["bucket_bytes"] = json!(u64::from(superblock.bucket_sectors) * SECTOR_BYTES);
        value["buckets"] = json!(superblock.nbuckets);
        value["first_bucket"] = json!(superblock.first_bucket);
    } else {
        value["data_offset_bytes"] = json!(superblock.data_offset().bytes());
        value["mode"] = json!(superblock.cache_mode().super_show_word());
    }
    value
}
