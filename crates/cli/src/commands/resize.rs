//! `ubcache resize`: a served volume, or a cache, gets the size that its device has now.

use std::path::PathBuf;

use ubcache_daemon::Failure;
use ubcache_daemon::control::{ControlRequest, ask};
use ubcache_daemon::served::larger_cache::grow_cache_of;
use ubcache_daemon::size::parse_size;

use super::choose::Daemon;
use super::print;

const AFTER: &str = "\
After the disk has grown (`lvextend`, `truncate`): the volume grows while its clients go on. A block
device (ublk) and a virtual machine see the new size at once, NBD clients when they connect again;
then the file system on it can grow (`resize2fs`, `xfs_growfs`). The export of an NBD server has the
size that it had when the server was last reached: restart the server first. A volume on an object
store has the size that --size gives it.

A disk that has become shorter: refused while the volume is in use, and while the cache has dirty
data beyond the new end. Flash-only volumes: `ubcache flash resize`.

A cache that has grown: `ubcache resize --cache` of a set that runs, and then `ubcache upgrade`,
which starts it again with all of its clients; `ubcache resize -C DEVICE` of one that does not run.
What is cached stays. A power cut at any moment leaves the set with its former or its new size.

Exit codes: 0 done, 1 refused, 2 could not run.

Example:
  ubcache resize data && resize2fs /dev/ublkb0";

/// Give a volume, or a cache, the size that its device has now, while clients use it
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER)]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// The export [default: the only one]
    #[arg(value_name = "EXPORT")]
    volume: Option<String>,
    /// Size of a volume on an object store from now on
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "volume")]
    size: Option<u64>,
    /// The cache, from the next start of the set on
    #[arg(long, conflicts_with = "volume")]
    cache: bool,
    /// The cache on this device, whose set is not running
    #[arg(short = 'C', value_name = "DEVICE")]
    #[arg(conflicts_with_all = ["control", "daemon", "volume", "cache"])]
    device: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `ubcache resize`.
pub fn run(args: &Args) -> Result<(), Failure> {
    let said = match &args.device {
        Some(device) => grow_cache_of(device)?,
        None => {
            let request = match (args.cache, args.size, &args.volume) {
                (true, ..) => ControlRequest::ResizeCache,
                (false, Some(bytes), Some(volume)) => {
                    let volume = volume.clone();
                    ControlRequest::FlashResize { volume, bytes, discard_data: false }
                }
                _ => ControlRequest::Resize { volume: args.volume.clone() },
            };
            let said = ask(&args.daemon.one()?, &request)?;
            said.as_str().unwrap_or_default().to_owned()
        }
    };
    match args.json {
        true => print(&format!("{}\n", serde_json::json!({ "resized": said }))),
        false => print(&format!("{said}\n")),
    }
}
