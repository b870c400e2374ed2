//! `ubcache map`: where the cached and the dirty ranges of a volume lie, and what the buckets hold.
//!
//! | module | holds |
//! |---|---|
//! | here | the command |
//! | `strip` | the cells as characters |
//! | `picture` | the cells as SVG |

use std::io::IsTerminal as _;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde_json::Value;
use ubcache_daemon::Failure;
use ubcache_daemon::control::{ControlRequest, ask};
use ubcache_daemon::served::maps::{BucketsReport, CELLS, CELLS_MAX, VolumeMapReport};

use self::strip::Strip;
use super::choose::Daemon;
use super::new_file::NewFile;
use super::print;

mod picture;
mod strip;

/// Show which parts of a volume the cache has, and which are dirty; or what the buckets hold
///
/// Each character is a cell: an equal part of the volume, or with --buckets of the cache device.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache map data\n  ubcache map data -o data.svg")]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// The export [default: the only one]
    #[arg(value_name = "EXPORT", conflicts_with = "buckets")]
    volume: Option<String>,
    /// The buckets of the cache device instead of a volume
    #[arg(long)]
    buckets: bool,
    /// Most cells
    #[arg(long, value_name = "N", default_value_t = CELLS,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(CELLS_MAX)))]
    cells: u32,
    /// Write a picture (SVG) to this file
    #[arg(short = 'o', long, value_name = "FILE", conflicts_with = "json")]
    out: Option<PathBuf>,
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let cells = args.cells;
    let request = match args.buckets {
        true => ControlRequest::Buckets { cells },
        false => ControlRequest::Map { volume: args.volume.clone(), cells },
    };
    let answer = ask(&args.daemon.one()?, &request)?;
    if args.json {
        let text = serde_json::to_string_pretty(&answer).expect("plain data always serializes");
        return print(&format!("{text}\n"));
    }
    let strip = match args.buckets {
        true => Strip::of_buckets(&read::<BucketsReport>(answer)?),
        false => Strip::of_volume(&read::<VolumeMapReport>(answer)?),
    };
    match &args.out {
        Some(path) => {
            let mut file = NewFile::create(path, true, &[])?;
            let written = file.write(picture::svg(&strip).as_bytes());
            written.map_err(|error| file.cannot_write(&error))?;
            file.finish()
        }
        None => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|it| !it.is_empty());
            print(&strip.text(std::io::stdout().is_terminal() && !plain))
        }
    }
}

fn read<T: DeserializeOwned>(answer: Value) -> Result<T, Failure> {
    serde_json::from_value(answer).map_err(|error| {
        Failure::refused_because("map", format_args!("the daemon's answer is unreadable: {error}"))
    })
}
