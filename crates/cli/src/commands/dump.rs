//! `ubcache dump`: the metadata of a set that is not running, as text or JSON lines.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use ubcache_daemon::Failure;
use ubcache_offline::{Dump, What, walk};

use super::offline::{host, open};

const AFTER_HELP: &str = "\
One line a thing; with --json one object a line, with a member \"type\". No user data is printed. Damage on the way is
printed where it was found, and the rest goes on.

Example:
  ubcache dump /dev/nvme0n1p4 --what journal";

/// Print the metadata of a cache set that is not running
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The cache device or file, or a pack of it
    #[arg(value_name = "CACHE")]
    cache: PathBuf,
    /// Which part [default: super, journal, prio, uuids and btree]
    #[arg(long, value_name = "PART", value_enum)]
    what: Option<Part>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

#[derive(clap::ValueEnum, Copy, Clone, PartialEq, Eq, Debug)]
enum Part {
    Super,
    Journal,
    Btree,
    Prio,
    Uuids,
    Extents,
    Buckets,
}

impl From<Part> for What {
    fn from(part: Part) -> What {
        match part {
            Part::Super => What::Super,
            Part::Journal => What::Journal,
            Part::Btree => What::Btree,
            Part::Prio => What::Prio,
            Part::Uuids => What::Uuids,
            Part::Extents => What::Extents,
            Part::Buckets => What::Buckets,
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let host = host()?;
    let cache = open(&host, &args.cache, false)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    // A closed pipe ends the output, and is not worth a word.
    let mut dump = Dump::new(args.what.map(What::from), args.json, |line: &str| {
        let _ = writeln!(out, "{line}");
    });
    let view = host.block_on(async {
        let view = walk(&cache, &mut dump, &()).await;
        if let Some(view) = &view {
            dump.view(view);
        }
        view
    });
    let _ = out.flush();
    match view {
        Some(view) if view.complete => Ok(()),
        _ => Err(Failure::refused(&args.cache, "damaged, so this is not all")
            .advice("`ubcache check` says what the damage means")),
    }
}
