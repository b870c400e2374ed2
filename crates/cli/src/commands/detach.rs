//! `ubcache detach`, `ubcache attach`: detach a served volume from its cache, and attach it again.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ubcache_daemon::Failure;
use ubcache_daemon::control::{ControlRequest, ask};
use ubcache_daemon::served::report::Report;

use super::choose::Daemon;
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

/// `ubcache detach`.
pub fn detach(args: &VolumeArgs) -> Result<(), Failure> {
    let socket = args.daemon.one()?;
    let request = ControlRequest::Detach { volume: args.volume.clone() };
    let name = std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&socket, &request));
        show_progress(&socket, args.volume.as_deref(), || asked.is_finished());
        asked.join().expect("asking does not panic")
    })?;
    say(&name, "detached", args.json)
}

/// `ubcache attach`.
pub fn attach(args: &VolumeArgs) -> Result<(), Failure> {
    let socket = args.daemon.one()?;
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
    let mut volumes = report.sets.into_iter().flat_map(|set| set.volumes);
    volumes
        .find(|found| volume.is_none_or(|name| name == found.name))
        .map(|found| found.dirty_bytes)
}
