//! `ubcache why`: which share of I/O went past the cache, for which reason, and what changes that.

use std::fmt::Write as _;

use serde::Serialize;
use ubcache_daemon::Failure;
use ubcache_daemon::served::report::VolumeReport;
use ubcache_daemon::served::request_report::BypassReport;
use ubcache_daemon::shell::shell_word;
use ubcache_daemon::size::show_size;

use super::choose::Daemon;
use super::status::look;
use super::{complain, print, visible};

/// Show which share of I/O went past the cache, why, and the attribute that changes it
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache why data")]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// The export [default: all]
    #[arg(value_name = "EXPORT")]
    volume: Option<String>,
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// I/O of a volume that went past its cache.
#[derive(Serialize, Debug)]
struct Past {
    volume: String,
    read_bytes: u64,
    written_bytes: u64,
    /// Bytes of these that went past the cache.
    bypassed_read_bytes: u64,
    bypassed_written_bytes: u64,
    /// Reasons, the one with most bytes first; those that did not occur are left out.
    reasons: Vec<Reason>,
}

/// One reason.
#[derive(Serialize, Debug)]
struct Reason {
    reason: String,
    #[serde(flatten)]
    bypassed: BypassReport,
    /// Share of all bytes, in percent.
    percent: f64,
    meaning: String,
    /// A command that changes it, or words.
    remedy: String,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let (report, unknown) = look(&args.daemon)?;
    let volumes = report.sets.iter().flat_map(|set| &set.volumes);
    let meant = |volume: &&VolumeReport| args.volume.as_ref().is_none_or(|it| *it == volume.name);
    let found: Vec<Past> = volumes.clone().filter(meant).map(past).collect();
    if let (Some(name), true) = (&args.volume, found.is_empty()) {
        if let Some(failure) = unknown {
            return Err(failure);
        }
        let names: Vec<String> = volumes.map(|volume| visible(&volume.name)).collect();
        return Err(Failure::refused_because(
            format_args!("export \"{name}\""),
            "it is not served",
        )
        .expected(format_args!("one of {}", names.join(", "))));
    }
    if args.json {
        let text = serde_json::to_string_pretty(&found).expect("plain data always serializes");
        print(&format!("{text}\n"))?;
    } else {
        print(&found.iter().map(table).collect::<String>())?;
    }
    if let Some(failure) = unknown {
        complain(&format!("ubcache: {failure}\n"));
    }
    Ok(())
}

fn past(volume: &VolumeReport) -> Past {
    let bytes = |paths: &[&str]| -> u64 {
        paths.iter().filter_map(|path| volume.requests.get(*path)).map(|path| path.bytes).sum()
    };
    let read_bytes = bytes(&["hit", "miss", "bypass_read"]);
    let written_bytes = bytes(&["writeback_write", "writethrough_write", "bypass_write"]);
    let all = (read_bytes + written_bytes).max(1) as f64;
    let mut reasons: Vec<Reason> = volume
        .bypassed
        .iter()
        // A discard is no data.
        .filter(|(name, it)| it.reads + it.writes > 0 && name.as_str() != "discard")
        .map(|(name, bypassed)| {
            let (meaning, remedy) = explain(name, volume);
            let percent = (bypassed.read_bytes + bypassed.written_bytes) as f64 * 100.0 / all;
            Reason { reason: name.clone(), bypassed: *bypassed, percent, meaning, remedy }
        })
        .collect();
    reasons.sort_by(|a, b| b.percent.total_cmp(&a.percent));
    Past {
        volume: volume.name.clone(),
        read_bytes,
        written_bytes,
        bypassed_read_bytes: reasons.iter().map(|it| it.bypassed.read_bytes).sum(),
        bypassed_written_bytes: reasons.iter().map(|it| it.bypassed.written_bytes).sum(),
        reasons,
    }
}

/// The meaning of a reason, and what changes it.
fn explain(reason: &str, volume: &VolumeReport) -> (String, String) {
    let set = |assignment: &str| {
        format!("ubcache set {assignment} --volume {}", shell_word(&volume.name))
    };
    let (meaning, remedy) = match reason {
        "sequential" => (
            "part of a sequential run longer than sequential_cutoff (0: no limit)",
            set("sequential_cutoff=0"),
        ),
        "congested" => (
            "the cache device answered more slowly than congested_read_threshold_us or \
             congested_write_threshold_us (0: no limit)",
            "ubcache set congested_read_threshold_us=0 congested_write_threshold_us=0".to_owned(),
        ),
        "mode_none" => ("the cache mode is none", set("cache_mode=writethrough")),
        "writearound" => {
            ("a write, and the cache mode is writearound", set("cache_mode=writethrough"))
        }
        "cache_full" => {
            ("more than 95 % of the cache holds dirty data or metadata", set("writeback_percent=5"))
        }
        "unaligned" => (
            "no multiple of the cache's block",
            "have the client use blocks of the size that `ubcache get block_size` shows".to_owned(),
        ),
        "zeroes" => ("a write of zeroes, which needs no place in the cache", String::new()),
        "detaching" => ("the volume is being detached", String::new()),
        "no_cache" => {
            ("the volume has no cache", format!("ubcache attach {}", shell_word(&volume.name)))
        }
        _ => ("", String::new()),
    };
    (meaning.to_owned(), remedy)
}

fn percent(part: u64, all: u64) -> String {
    let share = part as f64 * 100.0 / all.max(1) as f64;
    format!("{share:.1}%")
}

fn table(past: &Past) -> String {
    let mut text = String::new();
    let all = past.read_bytes + past.written_bytes;
    let bypassed = past.bypassed_read_bytes + past.bypassed_written_bytes;
    let _ = writeln!(
        text,
        "{}: {} of {} went past the cache ({}): {} of {} read, {} of {} written",
        visible(&past.volume),
        show_size(bypassed),
        show_size(all),
        percent(bypassed, all),
        show_size(past.bypassed_read_bytes),
        show_size(past.read_bytes),
        show_size(past.bypassed_written_bytes),
        show_size(past.written_bytes)
    );
    for reason in &past.reasons {
        let Reason { bypassed, .. } = reason;
        let _ = writeln!(
            text,
            "  {:>5.1}%  {}: {}; {} in {} reads, {} in {} writes",
            reason.percent,
            reason.reason,
            reason.meaning,
            show_size(bypassed.read_bytes),
            bypassed.reads,
            show_size(bypassed.written_bytes),
            bypassed.writes
        );
        if !reason.remedy.is_empty() {
            let _ = writeln!(text, "          to change it: {}", visible(&reason.remedy));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use ubcache_daemon::served::request_report::PathReport;

    use super::*;

    fn path(bytes: u64) -> PathReport {
        PathReport { bytes, ..PathReport::default() }
    }

    #[test]
    fn shares_and_reasons_are_those_of_the_report() {
        let mut volume = VolumeReport { name: "a disk".into(), ..VolumeReport::default() };
        volume.requests.insert("hit".into(), path(600));
        volume.requests.insert("bypass_read".into(), path(300));
        volume.requests.insert("bypass_write".into(), path(100));
        volume.requests.insert("discard".into(), path(5000));
        let reads = BypassReport { reads: 3, read_bytes: 300, ..BypassReport::default() };
        let writes = BypassReport { writes: 1, written_bytes: 100, ..BypassReport::default() };
        volume.bypassed.insert("sequential".into(), reads);
        volume.bypassed.insert("zeroes".into(), writes);
        volume.bypassed.insert("discard".into(), BypassReport { writes: 1, ..writes });
        volume.bypassed.insert("unaligned".into(), BypassReport::default());
        let past = past(&volume);
        assert_eq!((past.read_bytes, past.written_bytes), (900, 100));
        assert_eq!((past.bypassed_read_bytes, past.bypassed_written_bytes), (300, 100));
        let names: Vec<&str> = past.reasons.iter().map(|it| it.reason.as_str()).collect();
        assert_eq!(names, ["sequential", "zeroes"]);
        let text = table(&past);
        assert!(text.contains("(40.0%)") && text.contains(" 30.0%  sequential"), "{text}");
        assert!(text.contains("ubcache set sequential_cutoff=0 --volume 'a disk'"), "{text}");
    }
}
