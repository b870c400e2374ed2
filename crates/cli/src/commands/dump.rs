//! `ubcache dump`: the metadata of a set that is not running, as text or JSON lines.

use std::io::{BufWriter, IsTerminal, Write};
use std::path::PathBuf;

use ubcache_daemon::Failure;
use ubcache_env::Joined;
use ubcache_host::{Host, HostDisk};
use ubcache_offline::{Cache, Dump, DumpPart, dump_for_restore, walk};

use super::offline::{Bar, DeviceArgument, failure, host, open};
use super::{cannot_print, printed};

const AFTER_HELP: &str = "\
One line per item; with --json one object per line, with a member \"type\". No user data is
printed. Damage is printed where it was found, and the rest follows.

With --format restore, JSON lines from which `ubcache restore` builds the same metadata again: a
backup of the metadata that is valid until the set is used again. Nothing is printed of a damaged
set.

Exit codes: 0 all was printed, 1 damage was found, 2 could not run.

Example:
  ubcache dump /dev/nvme0n1p4 --what journal
  ubcache dump /dev/nvme0n1p4 --format restore > cache.dump";

/// Print the metadata of a cache set that is not running
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The cache device or file, or a pack of it
    #[arg(value_name = "CACHE")]
    cache: PathBuf,
    /// Part of the metadata [default: super, journal, prio, uuids and btree]
    #[arg(long, value_name = "PART", value_enum)]
    what: Option<Part>,
    /// Print JSON, one object a line: the same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Output format [default: text]
    #[arg(long, value_enum)]
    format: Option<Format>,
}

#[derive(clap::ValueEnum, Copy, Clone, PartialEq, Eq, Debug)]
enum Format {
    /// For people
    Text,
    /// One object a line
    Json,
    /// For `ubcache restore`
    Restore,
}

#[derive(clap::ValueEnum, Copy, Clone, PartialEq, Eq, Debug)]
enum Part {
    /// The superblock
    Super,
    /// Entries of the journal, with their records
    Journal,
    /// Nodes of the index, with their keys
    Btree,
    /// Generation and priority of each bucket, as the prio chain has them
    Prio,
    /// The volume table
    Uuids,
    /// Extents after replay: what is cached where
    Extents,
    /// The use of each bucket, after replay
    Buckets,
}

impl From<Part> for DumpPart {
    fn from(part: Part) -> DumpPart {
        match part {
            Part::Super => DumpPart::Super,
            Part::Journal => DumpPart::Journal,
            Part::Btree => DumpPart::Btree,
            Part::Prio => DumpPart::Prio,
            Part::Uuids => DumpPart::Uuids,
            Part::Extents => DumpPart::Extents,
            Part::Buckets => DumpPart::Buckets,
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let host = host()?;
    let cache = open(&host, &args.cache, DeviceArgument::Cache, false)?;
    // On the terminal of the output, a bar would stand between the lines.
    let bar = if std::io::stdout().is_terminal() { Bar::hidden() } else { Bar::new() };
    if args.format == Some(Format::Restore) {
        return for_restore(args, &host, &cache, &bar);
    }
    let json = args.json || args.format == Some(Format::Json);
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut written = Ok(());
    let mut dump = Dump::new(args.what.map(DumpPart::from), json, |line: &str| {
        if written.is_ok() {
            written = writeln!(out, "{line}");
        }
    });
    let view = host.block_on(async {
        let view = walk(&cache, &mut dump, &bar).await;
        if let Some(view) = &view {
            dump.view(view);
        }
        view
    });
    bar.clear();
    printed(written.and_then(|()| out.flush()))?;
    match view {
        Some(view) if view.complete => Ok(()),
        _ => Err(Failure::refused(&args.cache, "damaged, so this is not all")
            .advice("`ubcache check` says what the damage means")),
    }
}

/// Here every line counts: what can't be written is not passed over.
fn for_restore(
    args: &Args,
    host: &Host,
    cache: &Cache<Joined<HostDisk>>,
    bar: &Bar,
) -> Result<(), Failure> {
    if args.what.is_some() {
        return Err(
            Failure::usage("--what", "a part of a dump can't be restored").advice("leave it out")
        );
    }
    let mut out = BufWriter::new(std::io::stdout().lock());
    let dumped = host.block_on(async {
        let sink = |line: &str| writeln!(out, "{line}").map_err(|error| error.to_string());
        dump_for_restore(cache, sink, bar).await
    });
    bar.clear();
    dumped.map_err(|error| failure(&error, &args.cache, &[]))?;
    out.flush().map_err(|error| cannot_print(&error))
}
