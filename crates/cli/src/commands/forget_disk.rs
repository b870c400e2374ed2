//! `ubcache forget-disk`: a disk is gone for good, and with it the data that only the cache has.

use std::path::PathBuf;

use ubcache_daemon::Failure;
use ubcache_daemon::control::{ControlRequest, ask};
use ubcache_daemon::served::absent::forget_disk_of;

use super::choose::Daemon;
use super::print;

const AFTER_HELP: &str = "\
The cache keeps the dirty data of a disk that is absent until the disk returns. If it will not
return, that data takes room that nothing else frees: `ubcache status` lists absent disks.

The UUID alone says which disk is meant: labels are given twice. Refused for a disk that is served,
and for one whose newest data is only in the cache, unless --discard-dirty is given; the message
says how much it is. With -C the set must not be running; then no disk of it is served, so take care
that this one is gone: `ubcache check CACHE` lists them.

If the disk returns later, it is attached anew if it is clean, and refused if it is dirty.

Exit codes: 0 done, 1 refused, 2 could not run.

Example:
  ubcache forget-disk 1b2c3d4e-0000-4000-8000-000000000000 --discard-dirty";

/// Forget a disk that is gone for good, with what the cache has of it
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// Of the set of this cache device, which is not running
    #[arg(short = 'C', long = "cache", value_name = "DEVICE")]
    #[arg(conflicts_with_all = ["control", "daemon"])]
    cache: Option<PathBuf>,
    /// UUID of the disk
    #[arg(value_name = "UUID")]
    disk: String,
    /// Give up data that only the cache has
    #[arg(long)]
    discard_dirty: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let discard_dirty = args.discard_dirty;
    let said = match &args.cache {
        Some(cache) => forget_disk_of(cache, &args.disk, discard_dirty)?,
        None => {
            let request = ControlRequest::ForgetDisk { disk: args.disk.clone(), discard_dirty };
            let said = ask(&args.daemon.one()?, &request)?;
            said.as_str().unwrap_or_default().to_owned()
        }
    };
    match args.json {
        true => print(&format!("{}\n", serde_json::json!({ "forgotten": said }))),
        false => print(&format!("{said}\n")),
    }
}
