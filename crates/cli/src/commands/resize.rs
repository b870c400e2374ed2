//! `ubcache resize`: a served volume, or a cache, gets the size that its device has now.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ubcache_daemon::Failure;
use ubcache_daemon::control::{ControlRequest, ask, report};
use ubcache_daemon::served::larger_cache::grow_cache_of;
use ubcache_daemon::served::smaller_cache::shrink_cache_of;
use ubcache_daemon::size::parse_size;

use super::choose::Daemon;
use super::print;

/// Interval between two looks at the progress.
const TICK: Duration = Duration::from_millis(200);

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

A cache that is to become smaller: `ubcache resize --cache SIZE`, while clients go on, or `ubcache
resize -C DEVICE --size SIZE`. What is beyond SIZE goes before it: dirty data and flash-only volumes
are moved, clean data is dropped. Only then the device can be cut, by the command that is printed.
Interrupted, the daemon carries on; after a stop or a crash the cache has its former size, and the
same command begins again.

Exit codes: 0 done, 1 refused, 2 could not run.

Example:
  ubcache resize data && resize2fs /dev/ublkb0";

/// Give a volume or a cache the size of its device, or make a cache smaller, while clients use it
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER)]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// The export [default: the only one]
    #[arg(value_name = "EXPORT")]
    volume: Option<String>,
    /// Size of a volume on an object store from now on, or of a cache that becomes smaller
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// The cache: smaller, of this size, or of that of its device from the next start of the set on
    #[arg(long, value_name = "SIZE", value_parser = parse_size, num_args = 0..=1)]
    #[arg(conflicts_with_all = ["volume", "size"])]
    cache: Option<Option<u64>>,
    /// Return when the cache has begun to become smaller
    #[arg(long, requires = "cache", conflicts_with = "cancel")]
    no_wait: bool,
    /// Have a cache that is becoming smaller keep its size
    #[arg(long, requires = "cache")]
    cancel: bool,
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
    if args.size.is_some() && args.volume.is_none() && args.device.is_none() {
        let said = "--size is the size of an EXPORT, or of a cache that -C names";
        return Err(Failure::usage("--size", said).advice("ubcache resize --cache SIZE"));
    }
    let said = match (&args.device, args.size) {
        (Some(device), None) => grow_cache_of(device)?,
        (Some(device), Some(bytes)) => shrink_cache_of(device, bytes)?,
        (None, _) => asked(args)?,
    };
    match args.json {
        true => print(&format!("{}\n", serde_json::json!({ "resized": said }))),
        false => print(&format!("{said}\n")),
    }
}

fn asked(args: &Args) -> Result<String, Failure> {
    let socket = args.daemon.one()?;
    let request = match (args.cache, args.size, &args.volume) {
        (Some(_), ..) if args.cancel => ControlRequest::CancelShrink,
        (Some(Some(bytes)), ..) => ControlRequest::ShrinkCache { bytes, wait: !args.no_wait },
        (Some(None), ..) => ControlRequest::ResizeCache,
        (None, Some(bytes), Some(volume)) => {
            let volume = volume.clone();
            ControlRequest::FlashResize { volume, bytes, discard_data: false }
        }
        _ => ControlRequest::Resize { volume: args.volume.clone() },
    };
    let waits = matches!(request, ControlRequest::ShrinkCache { wait: true, .. });
    let said = std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&socket, &request));
        if waits && std::io::stderr().is_terminal() {
            show_progress(&socket, || asked.is_finished());
        }
        asked.join().expect("asking does not panic")
    })?;
    Ok(said.as_str().unwrap_or_default().to_owned())
}

/// Shows how far a cache is that becomes smaller, until that is over.
fn show_progress(socket: &Path, over: impl Fn() -> bool) {
    let bar = ProgressBar::no_length();
    if let Ok(style) =
        ProgressStyle::with_template("evacuating {bar:24} {bytes:>11} of {total_bytes:11}")
    {
        bar.set_style(style);
    }
    while !over() {
        let sets = report(socket).map_or_else(|_| Vec::new(), |report| report.sets);
        if let Some(shrinking) = sets.into_iter().find_map(|set| set.cache.shrinking) {
            bar.set_length(shrinking.total_bytes);
            bar.set_position(shrinking.total_bytes.saturating_sub(shrinking.left_bytes));
        }
        std::thread::sleep(TICK);
    }
    bar.finish_and_clear();
}
