//! `ubcache move`: a volume goes on with another disk, while clients use it.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ubcache_daemon::Failure;
use ubcache_daemon::control::{ControlRequest, ask, report};
use ubcache_daemon::served::move_report::MoveReport;
use ubcache_daemon::size::parse_size;

use super::choose::Daemon;
use super::members::absolute;
use super::print;

/// Interval between two looks at the progress.
const TICK: Duration = Duration::from_millis(200);

const AFTER: &str = "\
Everything is copied in the background, and clients go on; then the volume switches to the new disk,
for which requests wait a moment. What is cached stays, also dirty data. Until the switch the old
disk has everything: after a stop, a crash or an error of the new disk the volume goes on there, and
the same command goes on with the move: what was copied and has not changed is not copied again, if
the set was started once since. After the switch the old disk is no backing device any more, and may
go.

NEW is a block device, a file, or an address as after -B (nbd://, s3://), at least as large as the
volume and the 8 KiB before it, and empty: `--force` overwrites what it has. A larger one: `ubcache
resize EXPORT` afterwards.

The next start needs -B NEW: change the configuration or the command line.

If the command is interrupted the daemon carries on; the same command shows the progress again.

Exit codes: 0 moved, 1 refused, or the volume stays where it was, 2 could not run.

Example:
  ubcache move data /dev/sdc --rate 50M";

/// Move a volume to another disk, while clients use it
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER)]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// The export
    #[arg(value_name = "EXPORT")]
    volume: String,
    /// The new disk
    #[arg(value_name = "NEW", required_unless_present = "cancel", conflicts_with = "cancel")]
    to: Option<PathBuf>,
    /// Overwrite what the new disk has
    #[arg(long)]
    force: bool,
    /// Copy at most so many bytes a second; 0: no limit. Changes that of a move under way
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "cancel")]
    rate: Option<u64>,
    /// Return when the move has begun
    #[arg(long, conflicts_with = "cancel")]
    no_wait: bool,
    /// End a move that is under way; the volume stays where it is
    #[arg(long, conflicts_with = "force")]
    cancel: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `ubcache move`.
pub fn run(args: &Args) -> Result<(), Failure> {
    let socket = args.daemon.one()?;
    let volume = args.volume.clone();
    let request = match &args.to {
        None => ControlRequest::CancelMove { volume },
        Some(to) => ControlRequest::Move {
            volume,
            to: absolute(to)?,
            force: args.force,
            wait: !args.no_wait,
            rate: args.rate,
        },
    };
    let waits = args.to.is_some() && !args.no_wait;
    let said = std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&socket, &request));
        if waits && std::io::stderr().is_terminal() {
            show_progress(&socket, &args.volume, || asked.is_finished());
        }
        asked.join().expect("asking does not panic")
    })?;
    let said = said.as_str().unwrap_or_default();
    match args.json {
        true => print(&format!("{}\n", serde_json::json!({ "moved": said }))),
        false => print(&format!("{said}\n")),
    }
}

/// Shows how far a move is, until it is over.
fn show_progress(socket: &Path, volume: &str, over: impl Fn() -> bool) {
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template(
        "copying {bar:24} {bytes:>11} of {total_bytes:11} {bytes_per_sec:>13}, {eta} left",
    ) {
        bar.set_style(style);
    }
    while !over() {
        if let Some(MoveReport { total_bytes, left_bytes, .. }) = move_of(socket, volume) {
            bar.set_length(total_bytes);
            bar.set_position(total_bytes - left_bytes);
        }
        std::thread::sleep(TICK);
    }
    bar.finish_and_clear();
}

fn move_of(socket: &Path, volume: &str) -> Option<MoveReport> {
    let name = volume.rsplit('/').next().unwrap_or(volume);
    let sets = report(socket).ok()?.sets;
    let mut volumes = sets.into_iter().flat_map(|set| set.volumes);
    volumes.find(|it| it.name == name)?.moving
}
