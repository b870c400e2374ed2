//! `ubcache recover`: brings all dirty data of a volume to its backing device.

use std::path::PathBuf;

use serde_json::json;
use ubcache_daemon::Failure;
use ubcache_daemon::size::show_size;
use ubcache_offline::{Outcome, RecoverOptions, Recovered, recover};

use super::offline::{
    Bar, DeviceArgument, failure, host, metadata_only, named_once, open, open_backing, show_finding,
};
use super::{complain, print};

const AFTER_HELP: &str = "\
Writes all dirty data to the backing device, and flushes it. Then the set is marked clean, or, with
--detach, the backing device is marked as having no cache; from then on it is complete by itself.

Can be interrupted at any moment and run again: until it has finished, the cache stays valid. The
set must not be running. Refuses a set whose damage makes the content uncertain; see `ubcache
check`.

Exit codes: 0 done, 1 refused because of damage, or failed on the way, 2 could not run.

Example:
  ubcache recover -C /dev/nvme0n1p4 -B /dev/sdb --dry-run
  ubcache recover -C /dev/nvme0n1p4 -B /dev/sdb --detach";

/// Write all dirty data of a set that is not running to the backing device
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The cache device; with --dry-run also a pack of it
    #[arg(short = 'C', long = "cache", value_name = "DEVICE")]
    cache: PathBuf,
    /// The backing device
    #[arg(short = 'B', long = "bdev", value_name = "DEVICE")]
    bdev: PathBuf,
    /// Header of a backing device that was adopted [default: it is looked for]
    #[arg(long, value_name = "PATH")]
    header: Option<PathBuf>,
    /// Detach the backing device: it needs no cache any more. Nothing is written to the cache
    #[arg(long)]
    detach: bool,
    /// Print how much would be written, and its places, and write nothing (see also `ubcache cat
    /// --map`)
    #[arg(long)]
    dry_run: bool,
    /// Write what is certain in spite of damage, and leave the devices marked as they are
    #[arg(long)]
    damaged: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let host = host()?;
    named_once(&args.cache, std::slice::from_ref(&args.bdev))?;
    let cache = open(&host, &args.cache, DeviceArgument::Cache, !args.dry_run && !args.detach)?;
    if cache.is_pack() && !args.dry_run {
        return Err(metadata_only(&args.cache));
    }
    let backing =
        open_backing(&host, &args.bdev, (&args.cache, args.header.as_slice()), !args.dry_run)?;
    let bar = Bar::new();
    let options =
        RecoverOptions { detach: args.detach, dry_run: args.dry_run, damaged: args.damaged };
    let result = host.block_on(async { recover(&cache, &backing, options, &bar).await });
    bar.clear();
    let (done, report) =
        result.map_err(|error| failure(&error, &args.cache, std::slice::from_ref(&args.bdev)))?;
    for finding in report.findings.iter().filter(|finding| finding.kind.spoils_content()) {
        complain(&show_finding(finding, &args.cache, std::slice::from_ref(&args.bdev)));
    }
    print(&if args.json { as_json(&done) } else { as_text(&done, args) })?;
    if done.outcome == Outcome::Partly {
        return Err(Failure::refused(&args.cache, "damaged: only certain data was written back")
            .found(format_args!("{} sectors whose newest data is lost", done.map.lost_sectors()))
            .advice(
                "keep both devices as they are; `ubcache cat --damaged` lists what is missing",
            ));
    }
    Ok(())
}

fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::AlreadyDetached => "already detached",
        Outcome::DryRun => "dry run",
        Outcome::Clean => "clean",
        Outcome::Detached => "detached",
        Outcome::Partly => "partly",
    }
}

fn as_text(done: &Recovered, args: &Args) -> String {
    let device = args.bdev.display();
    let dirty = show_size(done.map.dirty_sectors() * 512);
    let extents = done.map.dirty().count();
    match done.outcome {
        Outcome::AlreadyDetached => {
            format!("{device}: has no cache: nothing to do\n")
        }
        Outcome::DryRun => {
            let mut text =
                format!("{device}: {dirty} in {extents} extents would be written, nothing was\n");
            if let (Some(first), Some(last)) = (done.map.dirty().next(), done.map.dirty().last()) {
                text += &format!(
                    "  to bytes {} to {} of the volume; `ubcache cat --map` lists all of them\n",
                    first.0.start.bytes(),
                    last.0.end.bytes()
                );
            }
            text
        }
        Outcome::Clean => {
            format!(
                "{device}: {dirty} in {extents} extents written; clean, and attached to its cache\n"
            )
        }
        Outcome::Detached => {
            let at = done.map.data_offset.bytes();
            format!(
                "{device}: {dirty} in {extents} extents written; detached, and complete by \
                 itself\n  \
                 its data begins at byte {at}: `losetup --find --show --offset {at} {device}`\n"
            )
        }
        Outcome::Partly => {
            format!("{device}: {dirty} in {extents} extents written, which are certain\n")
        }
    }
}

fn as_json(done: &Recovered) -> String {
    let object = json!({
        "outcome": outcome_word(done.outcome),
        "dirty_bytes": done.map.dirty_sectors() * 512,
        "extents": done.map.dirty().count(),
        "lost_sectors": done.map.lost_sectors(),
        "data_offset_bytes": done.map.data_offset.bytes(),
    });
    serde_json::to_string_pretty(&object).expect("plain data always serializes") + "\n"
}
