//! `ubcache add`, `remove`, `flush`, `drain`: volumes that come and go, and their dirty data.

use std::path::{Path, PathBuf};

use ubcache_daemon::Failure;
use ubcache_daemon::config::split_name;
use ubcache_daemon::control::{ControlRequest, ask};
use ubcache_daemon::open::superblock::{ExpectedKind, look};

use super::choose::Daemon;
use super::detach::ask_with_progress;
use super::print;

const AFTER_ADD: &str = "\
The disk becomes an export beside the others; clients can connect when the command returns. A disk
that `serve` could not serve at its start is added the same way when it is back.

Exit codes: 0 done, 1 refused, 2 could not run.

Example:
  ubcache add -B data=/dev/sdc";

/// Serve one more backing device
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_ADD)]
pub struct AddArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// Backing devices, with the names of their exports if not their labels or file names
    #[arg(short = 'B', long = "bdev", value_name = "[NAME=]DEVICE")]
    #[arg(required = true, num_args = 1..)]
    bdev: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const AFTER_REMOVE: &str = "\
Dirty data is written back first, while clients go on. Then the export ends: requests fail with
\"shutdown\", and its connections are closed. Clean data stays in the cache, as it does over a stop,
for the day when the disk is added again; `ubcache status` lists it as absent until then. If the
disk is going to be changed without the cache, detach it first.

With --keep-dirty the export ends at once, also if the disk is dead. Dirty data stays in the cache.

Exit codes: 0 done, 1 refused, 2 could not run.

Example:
  ubcache remove data";

/// End an export, while others go on
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_REMOVE)]
pub struct RemoveArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// The export [default: the only one]
    #[arg(value_name = "EXPORT")]
    volume: Option<String>,
    /// End it at once; dirty data stays in the cache
    #[arg(long)]
    keep_dirty: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Make durable what clients were told is written, as their own FLUSH does
///
/// Dirty data may stay in the cache, durably; `ubcache drain` writes it to the disks.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache flush")]
pub struct FlushArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// The export [default: all]
    #[arg(value_name = "EXPORT")]
    volume: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Write all dirty data to the disks, at full speed, whatever the mode
///
/// Clients go on. Writes meanwhile go to the disks; afterwards a volume in mode writeback makes
/// dirty data again. Without --wait the command only starts it. An interrupted one goes on in the
/// daemon.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache drain data --wait")]
pub struct DrainArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// The export [default: all]
    #[arg(value_name = "EXPORT")]
    volume: Option<String>,
    /// Wait for the end; on a terminal with the progress
    #[arg(long)]
    wait: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The path for a daemon whose working directory is another one.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    ubcache_daemon::backing::absolute(path)
        .map_err(|error| Failure::could_not_run(path, format_args!("not a usable path: {error}")))
}

/// `ubcache add`.
pub fn add(args: &AddArgs) -> Result<(), Failure> {
    let socket = args.daemon.one()?;
    for given in &args.bdev {
        let (name, path) = split_name(given);
        // Its faults are reported best before the daemon is asked.
        look(&path, ExpectedKind::Backing)?;
        let request = ControlRequest::Add { backing: absolute(&path)?, name };
        say(&ask(&socket, &request)?, "added", args.json)?;
    }
    Ok(())
}

/// `ubcache remove`.
pub fn remove(args: &RemoveArgs) -> Result<(), Failure> {
    let socket = args.daemon.one()?;
    let (volume, keep_dirty) = (args.volume.clone(), args.keep_dirty);
    let request = ControlRequest::Remove { volume, keep_dirty };
    let said = ask_with_progress(&socket, &request, args.volume.as_deref())?;
    let said = said.as_str().unwrap_or_default();
    match args.json {
        true => print(&format!("{}\n", serde_json::json!({ "removed": said }))),
        false => print(&format!("{said}\n")),
    }
}

/// `ubcache flush`.
pub fn flush(args: &FlushArgs) -> Result<(), Failure> {
    let socket = args.daemon.one()?;
    ask(&socket, &ControlRequest::Flush { volume: args.volume.clone() })?;
    print(if args.json { "{\"flushed\": true}\n" } else { "flushed\n" })
}

/// `ubcache drain`.
pub fn drain(args: &DrainArgs) -> Result<(), Failure> {
    let socket = args.daemon.one()?;
    let request = ControlRequest::Drain { volume: args.volume.clone(), wait: args.wait };
    ask_with_progress(&socket, &request, args.volume.as_deref())?;
    let done = if args.wait { "drained" } else { "draining" };
    print(&if args.json { format!("{{\"{done}\": true}}\n") } else { format!("{done}\n") })
}

fn say(name: &serde_json::Value, done: &str, json: bool) -> Result<(), Failure> {
    match json {
        true => print(&format!("{}\n", serde_json::json!({ done: name }))),
        false => print(&format!("{}: {done}\n", name.as_str().unwrap_or_default())),
    }
}
