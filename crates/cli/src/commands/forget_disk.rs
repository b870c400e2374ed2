//! `ubcache forget-disk`: a disk is gone for good, and with it the data that only the cache has.

use ubcache_daemon::Failure;
use ubcache_daemon::control::{ControlRequest, ask};

use super::choose::Daemon;
use super::print;

const AFTER_HELP: &str = "\
The cache keeps the dirty data of a disk that is absent until the disk returns. If it will not
return, that data takes room that nothing else frees: `ubcache status` lists absent disks.

Refused for a disk that is served, and for one whose newest data is only in the cache, unless
--discard-dirty is given. If the disk returns later, it is attached anew if it is clean, and
refused if it is dirty.

Exit codes: 0 done, 1 refused, 2 could not run.

Example:
  ubcache forget-disk 1b2c3d4e-0000-4000-8000-000000000000 --discard-dirty";

/// Have a running set forget a disk that is gone
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// UUID or label of the disk
    #[arg(value_name = "DISK")]
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
    let socket = args.daemon.one()?;
    let request =
        ControlRequest::ForgetDisk { disk: args.disk.clone(), discard_dirty: args.discard_dirty };
    let said = ask(&socket, &request)?;
    if args.json {
        print(&format!("{}\n", serde_json::json!({ "forgotten": said })))
    } else {
        print(&format!("{}\n", said.as_str().unwrap_or_default()))
    }
}
