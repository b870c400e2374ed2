//! `ubcache make`: writes the superblocks of a cache set, with the options of make-bcache.
//!
//! Everything is checked on every device before the first byte is written to any of them; files
//! that were created for a refused command are removed again.
//!
//! | module | holds |
//! |---|---|
//! | `adopt` | disks that are taken as they are |
//! | `sizes` | options and sizes that fit each other |
//! | `contents` | what is on the devices so far |
//! | `describe` | the report of what was made |

mod adopt;
mod contents;
mod describe;
mod sizes;

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use ubcache_daemon::Failure;
use ubcache_daemon::backing::is_uri;
use ubcache_daemon::open::superblock::remote_cache;
use ubcache_daemon::open::target::{Access, Target, create_file, is_there};
use ubcache_daemon::size::parse_size;
use ubcache_format::{
    CacheMode, DEFAULT_DATA_OFFSET, OwnPolicy, Replacement, SECTOR_BYTES, Sector, Superblock, Uuid,
};
use ubcache_offline::make_device;

use self::contents::{check_content, known_disk, read_set, refuse_dirty_cache};
use self::describe::{describe, describe_json};
use self::sizes::{bucket_bytes, check_end, check_options, check_size, choose_block};
use super::new_file::same_as;
use super::offline::{Bar, host, open_file};
use super::print;

/// Format a cache device and backing devices, as make-bcache does
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache make -C /dev/nvme0n1p4 -B /dev/sdb")]
pub struct Args {
    /// The cache device: a block device or a file
    #[arg(short = 'C', long = "cache", value_name = "DEVICE", num_args = 1..)]
    cache: Vec<PathBuf>,
    /// Backing devices: block devices, files, or URIs of NBD exports; data begins after the
    /// superblock (see --data-offset)
    #[arg(short = 'B', long = "bdev", value_name = "DEVICE", num_args = 1..)]
    bdev: Vec<PathBuf>,
    /// Disks with data that stays: taken as they are, without a change of a single byte. Their
    /// superblock goes to a header file, with a copy on the cache device
    #[arg(long, value_name = "DISK", num_args = 1..)]
    adopt: Vec<PathBuf>,
    /// Header file of the disk after --adopt [default: /var/lib/ubcache/UUID.header]
    #[arg(long, value_name = "PATH")]
    header: Option<PathBuf>,
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
        default_value_t = Policy::Adaptive
    )]
    cache_replacement_policy: Policy,
    /// Overwrite existing bcache superblocks, unless dirty data would be lost with them
    #[arg(long, alias = "wipe_bcache")]
    wipe_bcache: bool,
    /// Label of the backing devices, up to 32 bytes: the name of the export
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
    /// Whichever of scan-resistant, two-queue and lru would have had most hits of late; the Linux
    /// driver takes the set for lru, as with the next two
    Adaptive,
    /// The bucket least worth keeping, judged by reuse so far
    ScanResistant,
    /// Data that was not used again, as long as there is much of it
    TwoQueue,
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
            Policy::Fifo => Replacement::Fifo,
            Policy::Random => Replacement::Random,
            _ => Replacement::Lru,
        }
    }
}

impl From<Policy> for OwnPolicy {
    fn from(policy: Policy) -> OwnPolicy {
        match policy {
            Policy::Adaptive => OwnPolicy::Adaptive,
            Policy::ScanResistant => OwnPolicy::ScanResistant,
            Policy::TwoQueue => OwnPolicy::TwoQueue,
            Policy::Lru | Policy::Fifo | Policy::Random => OwnPolicy::None,
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
    /// Header file of a disk that is taken as it is.
    header: Option<PathBuf>,
}

/// A device that has been written.
struct Made {
    path: PathBuf,
    bytes: u64,
    superblock: Superblock,
    /// Header file, if the superblock is there.
    header: Option<PathBuf>,
}

/// The part that a device is to have in the set.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Part {
    Cache,
    Backing,
    Adopted,
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
    let mut made: Vec<Made> = Vec::new();
    for plan in plans {
        let cache = made.first().filter(|made| made.superblock.is_cache());
        made.push(match &plan.header {
            Some(header) => adopt::write(&plan.target, plan.superblock, header, cache)?,
            None => write(plan, args.cset_uuid.is_some())?,
        });
    }
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

/// Opens and checks everything.
fn plan(args: &Args, created: &mut Created) -> Result<Vec<Plan>, Failure> {
    let caches = args.cache.iter().map(|path| (path, Part::Cache, args.cache_size.or(args.size)));
    let backings = args.bdev.iter().map(|path| (path, Part::Backing, args.bdev_size.or(args.size)));
    let adopted = args.adopt.iter().map(|path| (path, Part::Adopted, None));
    let mut targets: Vec<(Target, Part, bool)> = Vec::new();
    for (path, part, size) in caches.chain(backings).chain(adopted) {
        let is_cache = part == Part::Cache;
        let taken: Vec<&Path> = targets.iter().map(|(target, ..)| target.path.as_path()).collect();
        if let Some(other) = same_as(path, &taken) {
            return Err(Failure::usage(path.display(), "the same device is given twice")
                .found(format_args!("the same as {}", other.display()))
                .expected("another device for each -C and -B"));
        }
        if is_cache && is_uri(path) {
            return Err(remote_cache(path));
        }
        let mut is_new = false;
        if let (false, Some(size)) = (is_uri(path) || is_there(path), size) {
            check_size(args, path, size, is_cache)?;
            is_new = create_file(path, size, args.sparse || !is_cache)?;
            created.0.extend(is_new.then(|| path.clone()));
        }
        let target = Target::open(path, Access::Change)?;
        check_size(args, path, target.bytes, is_cache)?;
        if is_uri(path) {
            check_end(&target)?;
        }
        targets.push((target, part, is_new));
    }
    let block_bytes =
        choose_block(args, targets.iter().map(|(target, part, _)| (target, *part == Part::Cache)))?;
    let set_uuid = args.cset_uuid.unwrap_or_else(new_uuid);
    let disks: Vec<(PathBuf, Uuid)> =
        targets.iter().filter_map(|(target, ..)| known_disk(target)).collect();
    let mut plans = Vec::new();
    for (target, part, created) in targets {
        let is_adopted = part == Part::Adopted;
        let wipe = if is_adopted { Vec::new() } else { check_content(args, &target)? };
        let (target, set) =
            if args.force || is_adopted { (target, None) } else { read_set(target)? };
        if let Some(set) = set {
            refuse_dirty_cache(&target.path, &set, &disks)?;
        }
        let mut superblock = if part == Part::Cache {
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
        let header = match is_adopted {
            true => Some(adopt::plan(args, &target, &mut superblock)?),
            false => None,
        };
        plans.push(Plan { target, superblock, created, wipe, header });
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
    superblock.set_begins_with(args.cache_replacement_policy.into());
    superblock
}

fn write(plan: Plan, same_set: bool) -> Result<Made, Failure> {
    let Plan { target, superblock, created, wipe, .. } = plan;
    let made = Made { path: target.path.clone(), bytes: target.bytes, superblock, header: None };
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
