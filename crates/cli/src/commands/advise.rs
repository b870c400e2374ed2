//! `ubcache advise`: what other sizes of the cache would do, and which settings fit the traffic.

use std::fmt::Write as _;

use serde_json::Value;
use ubcache_daemon::Failure;
use ubcache_daemon::control::{ControlRequest, ask};
use ubcache_daemon::served::advice::report::AdviceReport;
use ubcache_daemon::size::show_size;

use super::choose::Daemon;
use super::{print, visible};

/// Show what half, twice and four times the cache would do, and which settings fit the traffic
///
/// Measured and estimated since the start of the daemon, from a sample of the blocks that clients
/// read and write. Each piece of advice has its reason in numbers, and the command that follows it.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache advise")]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let answer = ask(&args.daemon.one()?, &ControlRequest::Advice)?;
    if args.json {
        let text = serde_json::to_string_pretty(&answer).expect("plain data always serializes");
        return print(&format!("{text}\n"));
    }
    print(&text(&read(answer)?))
}

fn read(answer: Value) -> Result<AdviceReport, Failure> {
    serde_json::from_value(answer).map_err(|error| {
        Failure::refused_because(
            "advise",
            format_args!("the daemon's answer is unreadable: {error}"),
        )
    })
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "not known".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

fn text(report: &AdviceReport) -> String {
    let cache = &report.cache;
    let mut text = format!(
        "set {}: the cache answered {} of {} read ({})\n",
        report.set,
        show_size(cache.hit_bytes),
        show_size(cache.read_bytes),
        percent(cache.read_hit_ratio)
    );
    let _ = writeln!(
        text,
        "{} of data are in use; 1 of {:.0} blocks is followed, {} now\n\n  \
         cache     reads answered (estimated)",
        show_size(cache.footprint_bytes),
        1.0 / cache.sampled_share.max(f64::MIN_POSITIVE),
        cache.followed_blocks
    );
    for size in &cache.sizes {
        let now = if size.cache_bytes == cache.size_bytes { "  the present size" } else { "" };
        let (bytes, hits) = (show_size(size.cache_bytes), percent(size.read_hit_ratio));
        let _ = writeln!(text, "  {bytes:<9} {hits}{now}");
    }
    text.push('\n');
    if report.advice.is_empty() {
        text.push_str("nothing to change by what was seen\n");
    }
    for advice in &report.advice {
        let whose = match &advice.volume {
            Some(volume) => format!("{}: ", visible(volume)),
            None => String::new(),
        };
        let _ = writeln!(
            text,
            "{whose}{}: {}\n  {}",
            advice.subject,
            advice.reason,
            visible(&advice.command)
        );
    }
    text
}
