//! `ubcache scrub`: clean cached data is compared with the disks, while clients go on.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ubcache_daemon::Failure;
use ubcache_daemon::control::{ControlRequest, ask};
use ubcache_daemon::served::report::Report;
use ubcache_daemon::served::scrub_report::{ScrubReport, Scrubs};
use ubcache_daemon::size::show_size;

use super::choose::Daemon;
use super::print;

/// Interval between two requests for the progress.
const TICK: Duration = Duration::from_millis(200);

const AFTER: &str = "\
A clean cached sector equals its sector on the disk, unless somebody writes to the disk without
ubcache, or a device returns wrong data. A scrub finds such sectors, at most `scrub_rate` bytes a
second (`ubcache set scrub_rate=100M`; 0: no limit), and drops them from the cache: reads return
then what the disk has. The log names each place, and `ubcache status` counts them. Dirty data is
not compared, as the disk has an older state of it.

Without --wait the command only starts it; `ubcache status --json` has how far it is.

Exit codes: 0 done, 1 refused, or (with --wait) something differed or was unreadable, 2 could not
run.

Example:
  ubcache scrub data --wait";

/// Compare cached data with the disks, and drop what differs
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER)]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// The export [default: all that have a cache]
    #[arg(value_name = "EXPORT")]
    volume: Option<String>,
    /// Wait for the end; on a terminal with the progress
    #[arg(long, conflicts_with = "stop")]
    wait: bool,
    /// End a scrub that is under way
    #[arg(long)]
    stop: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `ubcache scrub`.
pub fn run(args: &Args) -> Result<(), Failure> {
    let socket = args.daemon.one()?;
    let volumes = match &args.volume {
        Some(volume) => vec![volume.clone()],
        None => with_cache(&socket)?,
    };
    let request = |volume: &String| match args.stop {
        true => ControlRequest::StopScrub { volume: Some(volume.clone()) },
        false => ControlRequest::Scrub { volume: Some(volume.clone()), wait: args.wait },
    };
    let scrubs = ask_all(&socket, volumes.iter().map(request).collect(), args.wait)?;
    if args.json {
        let text = serde_json::to_string(&scrubs).expect("plain data always serializes");
        print(&format!("{text}\n"))?;
    } else if scrubs.volumes.is_empty() {
        print("no volume has a cache\n")?;
    } else {
        let lines = scrubs.volumes.iter().map(|(name, scrub)| format!("{name}: {}\n", say(scrub)));
        print(&lines.collect::<String>())?;
    }
    let is_bad = |scrub: &ScrubReport| scrub.differing_bytes + scrub.unreadable_bytes > 0;
    if args.wait && scrubs.volumes.values().any(is_bad) {
        return Err(Failure::refused_because("scrub", "cached data differed, or was unreadable")
            .advice(
                "the log names the places: that of `ubcache serve`, or journalctl -u ubcached",
            ));
    }
    Ok(())
}

/// Volumes of all sets of a daemon that have a cache, by names that only one volume has.
fn with_cache(socket: &Path) -> Result<Vec<String>, Failure> {
    let sets = report(socket)?.sets;
    let volumes = sets.iter().flat_map(|set| {
        let volumes = set.volumes.iter().filter(|it| matches!(&*it.state, "clean" | "dirty"));
        // A daemon of one set has no name for it.
        volumes.map(|it| match set.name.is_empty() {
            true => it.name.clone(),
            false => format!("{}/{}", set.name, it.name),
        })
    });
    Ok(volumes.collect())
}

fn report(socket: &Path) -> Result<Report, Failure> {
    read(socket, ask(socket, &ControlRequest::Status)?)
}

fn read<T: serde::de::DeserializeOwned>(
    socket: &Path,
    answer: serde_json::Value,
) -> Result<T, Failure> {
    serde_json::from_value(answer).map_err(|error| {
        Failure::could_not_run(socket, format_args!("the daemon is of another version: {error}"))
    })
}

/// Asks for all of these at the same time, and shows how far they are, if that takes a while.
fn ask_all(socket: &Path, requests: Vec<ControlRequest>, wait: bool) -> Result<Scrubs, Failure> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = requests
            .iter()
            .map(|request| scope.spawn(move || read::<Scrubs>(socket, ask(socket, request)?)))
            .collect();
        if wait && std::io::stderr().is_terminal() {
            show_progress(socket, || asked.iter().all(|thread| thread.is_finished()));
        }
        let mut all = Scrubs::default();
        for thread in asked {
            all.volumes.extend(thread.join().expect("asking does not panic")?.volumes);
        }
        Ok(all)
    })
}

/// The state of a scrub in a line.
fn say(scrub: &ScrubReport) -> String {
    let mut said = format!("{}, {} compared", scrub.state, show_size(scrub.compared_bytes));
    for (bytes, what) in [
        (scrub.skipped_bytes, "changed meanwhile"),
        (scrub.differing_bytes, "differed and were dropped"),
        (scrub.unreadable_bytes, "unreadable"),
    ] {
        if bytes > 0 {
            said += &format!(", {} {what}", show_size(bytes));
        }
    }
    said
}

/// Shows how far scrubs are until they are over.
fn show_progress(socket: &Path, over: impl Fn() -> bool) {
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template(
        "comparing {bar:24} {bytes:>11} of {total_bytes:11} {bytes_per_sec:>13}, {eta} left",
    ) {
        bar.set_style(style);
    }
    while !over() {
        let sets = report(socket).map(|report| report.sets).unwrap_or_default();
        let volumes = sets.iter().flat_map(|set| &set.volumes);
        let running = volumes.filter(|it| it.scrub.state == "running");
        let (position, size) = running.fold((0, 0), |(position, size), it| {
            (position + it.scrub.position_bytes, size + it.size_bytes)
        });
        if size > 0 {
            bar.set_length(size);
            bar.set_position(position);
        }
        std::thread::sleep(TICK);
    }
    bar.finish_and_clear();
}
