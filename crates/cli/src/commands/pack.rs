//! `ubcache pack`: the metadata of a set in one file, for a bug report.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::json;
use ubcache_daemon::Failure;
use ubcache_daemon::size::show_size;
use ubcache_offline::{OfflineError, On, Packing, pack};

use super::new_file::NewFile;
use super::offline::{Bar, failure, host, open_all, show_finding, summary};
use super::print;

const AFTER_HELP: &str = "\
The file contains the superblock, the journal, the prio chain, the volume table (with labels and
UUIDs), every node of the tree, and whatever else looks like metadata of the set, so that a
damaged set can be examined too. It contains no user data, not even remains of it in buckets that
hold metadata now. It shows where files lie on the volumes, but not their content.

`check`, `dump`, `cat --map`, `recover --dry-run` and `repair --dry-run` read a pack in place of
CACHE. If the superblock is lost, name the backing devices with -B, so that the set can be found
again.

CACHE is only read; the set must not be running. FILE appears when it is complete, or not at all.

Exit codes: 0 no damage was found, 1 damage was found (FILE has all that could be read), 2 could
not run.

Example:
  ubcache pack /dev/nvme0n1p4 cache.pack
  ubcache check cache.pack";

/// Put the metadata of a set that is not running into one file, without any user data
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The cache device or file
    #[arg(value_name = "CACHE")]
    cache: PathBuf,
    /// The file to write
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Backing devices of the set, of which only the superblocks are read
    #[arg(short = 'B', long = "bdev", value_name = "DEVICE", num_args = 1..)]
    bdev: Vec<PathBuf>,
    /// Overwrite a file that is there already
    #[arg(long)]
    force: bool,
    /// Print JSON: one object that says what was packed
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let host = host()?;
    let (cache, backings) = open_all(&host, &args.cache, &args.bdev, &[])?;
    if cache.is_pack() {
        return Err(
            Failure::could_not_run(&args.cache, "a pack already").expected("a cache device")
        );
    }
    let needed: Vec<&Path> =
        std::iter::once(&args.cache).chain(&args.bdev).map(PathBuf::as_path).collect();
    let mut file = NewFile::create(&args.file, args.force, &needed)?;
    let bar = Bar::new();
    let packed = host.block_on(async {
        let backings: Vec<_> = backings.iter().collect();
        pack(&cache, &backings, |bytes| file.write(bytes), &bar).await
    });
    bar.clear();
    let packing = packed.map_err(|error| match &error {
        OfflineError::Io { on: On::Output, error, .. } => file.cannot_write(error),
        error => failure(error, &args.cache, &args.bdev),
    })?;
    if !packing.has_set {
        let finding = packing.report.findings.first();
        return Err(Failure::could_not_run(
            &args.cache,
            "no superblock, so the places of the metadata are unknown",
        )
        .found(finding.map_or("", |finding| &finding.detail))
        .advice(
            "is it the cache device? If so, name its backing devices with -B: with them \
                the set is found again",
        ));
    }
    file.finish()?;
    print(&if args.json { as_json(&packing, &args.file) } else { as_text(&packing, args) })?;
    if packing.is_clean() {
        return Ok(());
    }
    Err(Failure::refused(&args.cache, "damaged")
        .found(summary(&packing.report))
        .advice(format_args!("{} has all readable metadata", args.file.display())))
}

fn as_json(packing: &Packing, file: &Path) -> String {
    let mut object = packing.to_json();
    object["file"] = json!(file.to_string_lossy());
    serde_json::to_string_pretty(&object).expect("plain data always serializes") + "\n"
}

fn as_text(packing: &Packing, args: &Args) -> String {
    let mut text = String::new();
    for finding in packing.report.errors() {
        text += &show_finding(finding, &args.cache, &args.bdev);
    }
    if let Some(how) = &packing.superblock {
        let _ = writeln!(text, "superblock: {how}");
    }
    for range in &packing.unreadable {
        let _ = writeln!(text, "unreadable, so not in the pack: sectors {range}");
    }
    let found =
        |count: u64| if count > 0 { format!(" and {count} unnamed") } else { String::new() };
    let _ = writeln!(
        text,
        "{}: {} journal buckets, {}{} prio sets, {}{} volume tables, {}{} nodes",
        args.cache.display(),
        packing.journal_buckets,
        packing.prio_sets[0],
        found(packing.prio_sets[1]),
        packing.tables[0],
        found(packing.tables[1]),
        packing.nodes[0],
        found(packing.nodes[1]),
    );
    let _ = writeln!(
        text,
        "{}: {}, with {} of metadata of a device of {}; it contains labels and UUIDs, and no user \
         data",
        args.file.display(),
        show_size(packing.file_bytes),
        show_size(packing.raw_bytes),
        show_size(packing.device_bytes),
    );
    text
}
