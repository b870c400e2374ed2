//! `ubcache detach`, `ubcache attach`: detach a served volume from its cache, and attach it again.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ubcache_daemon::Failure;
use ubcache_daemon::control::{ControlRequest, ask};
use ubcache_daemon::open::superblock::{ExpectedKind, look};
use ubcache_daemon::served::report::Report;

use super::choose::Daemon;
use super::members::absolute;
use super::print;

/// Interval between two requests for the progress.
const TICK: Duration = Duration::from_millis(200);

/// Options that choose a volume of a daemon.
#[derive(clap::Args, Debug)]
pub struct VolumeArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// The export [default: the only one]
    #[arg(value_name = "EXPORT")]
    volume: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Options of `ubcache attach`.
#[derive(clap::Args, Debug)]
pub struct AttachArgs {
    #[command(flatten)]
    of_volume: VolumeArgs,
    /// Give all volumes this cache device, in place of one that has failed or is missing, or from
    /// which they were detached
    #[arg(long, value_name = "DEVICE", conflicts_with = "volume")]
    cache: Option<PathBuf>,
}

/// `ubcache detach`.
pub fn detach(args: &VolumeArgs) -> Result<(), Failure> {
    let socket = args.daemon.one()?;
    let request = ControlRequest::Detach { volume: args.volume.clone() };
    let name = ask_with_progress(&socket, &request, args.volume.as_deref())?;
    say(&name, "detached", args.json)
}

/// Asks for something that writes back dirty data, and shows how much is left.
pub(super) fn ask_with_progress(
    socket: &Path,
    request: &ControlRequest,
    volume: Option<&str>,
) -> Result<serde_json::Value, Failure> {
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(socket, request));
        show_progress(socket, volume, || asked.is_finished());
        asked.join().expect("asking does not panic")
    })
}

/// `ubcache attach`.
pub fn attach(args: &AttachArgs) -> Result<(), Failure> {
    let AttachArgs { of_volume: args, cache } = args;
    let socket = args.daemon.one()?;
    if let Some(cache) = cache {
        look(cache, ExpectedKind::Cache)?;
        let said = ask(&socket, &ControlRequest::ReplaceCache { cache: absolute(cache)? })?;
        return match args.json {
            true => print(&format!("{}\n", serde_json::json!({ "attached": said }))),
            false => print(&format!("{}\n", said.as_str().unwrap_or_default())),
        };
    }
    let name = ask(&socket, &ControlRequest::Attach { volume: args.volume.clone() })?;
    say(&name, "attached", args.json)
}

fn say(name: &serde_json::Value, done: &str, json: bool) -> Result<(), Failure> {
    if json {
        print(&format!("{}\n", serde_json::json!({ done: name })))
    } else {
        print(&format!("{}: {done}\n", name.as_str().unwrap_or_default()))
    }
}

/// Shows how much is left to write back, on a terminal, until it is over.
fn show_progress(socket: &Path, volume: Option<&str>, over: impl Fn() -> bool) {
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::no_length()
    } else {
        ProgressBar::hidden()
    };
    if let Ok(style) = ProgressStyle::with_template(
        "writing back {bar:24} {bytes:>11} of {total_bytes:11} {bytes_per_sec:>13}, {eta} left",
    ) {
        bar.set_style(style);
    }
    let mut most = 0;
    while !over() {
        if !bar.is_hidden()
            && let Some(dirty) = dirty_bytes(socket, volume)
        {
            most = most.max(dirty);
            bar.set_length(most);
            bar.set_position(most - dirty);
        }
        std::thread::sleep(TICK);
    }
    bar.finish_and_clear();
}

fn dirty_bytes(socket: &Path, volume: Option<&str>) -> Option<u64> {
    let report: Report = serde_json::from_value(ask(socket, &ControlRequest::Status).ok()?).ok()?;
    let volumes = report.sets.into_iter().flat_map(|set| set.volumes);
    let meant = volumes.filter(|found| volume.is_none_or(|name| name == found.name));
    Some(meant.map(|found| found.dirty_bytes).sum())
}
