//! `ubcache status`: what is served, how well the cache does, and what is wrong.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use ubcache_daemon::served::frontend_report::FrontendsReport;
use ubcache_daemon::served::health::Health;
use ubcache_daemon::served::report::{Counters, Report, SetReport, VolumeReport};
use ubcache_daemon::size::show_size;
use ubcache_daemon::{Code, Failure};

use super::choose::{Daemon, report};
use super::{cannot_print, complain, visible};

const AFTER_HELP: &str = "\
Exit codes: 0 all sets are healthy, 1 degraded: all data is served, but something needs an operator,
2 failed: not all data is served, 3 no daemon answers, 4 the state could not be found out:
permission denied, wrong usage. The worst state of all sets counts.

Example:
  ubcache status --json";

/// Clears the screen of a terminal.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";

/// Show what is served, how well the cache does, and what is wrong
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// Print JSON, for scripts (docs/reference/status.md)
    #[arg(long)]
    json: bool,
    /// Show it again and again, every so many seconds, until there is no daemon any more; with
    /// --json an object a line
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..))]
    watch: Option<u64>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<Health, Failure> {
    loop {
        let (report, unknown) = look(&args.daemon)?;
        let mut text = if args.json { json(&report, args.watch.is_none()) } else { table(&report) };
        if args.watch.is_some() && !args.json && std::io::stdout().is_terminal() {
            text.insert_str(0, CLEAR);
        }
        let mut out = std::io::stdout().lock();
        let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        drop(out);
        match (printed, args.watch) {
            // The reader has seen enough.
            (Err(error), _) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            (Err(error), _) => return Err(cannot_print(&error)),
            (Ok(()), Some(seconds)) => {
                std::thread::sleep(Duration::from_secs(seconds));
                continue;
            }
            (Ok(()), None) => {}
        }
        let sets = report.sets.iter().map(|set| Health::parse(&set.health));
        let health = sets.max().unwrap_or(Health::Healthy);
        return match unknown {
            Some(failure) if health < Health::Failed => Err(failure),
            _ => Ok(health),
        };
    }
}

/// Exit code of a failure, whose usual ones are states here.
pub fn code(failure: &Failure) -> Code {
    if failure.code == Code::NoDaemon { Code::NoDaemon } else { Code::NotKnown }
}

/// Asks all daemons. A failure is that of one of several: the others are shown.
pub(super) fn look(daemon: &Daemon) -> Result<(Report, Option<Failure>), Failure> {
    let mut all = Report { version: env!("CARGO_PKG_VERSION").to_owned(), sets: Vec::new() };
    let sockets = daemon.all()?;
    let mut unknown = None;
    for socket in &sockets {
        match report(socket) {
            Ok(part) => {
                all.version = part.version;
                all.sets.extend(part.sets);
            }
            Err(failure) if sockets.len() == 1 => return Err(failure),
            Err(failure) => {
                complain(&format!("ubcache: {failure}\n"));
                unknown = Some(failure);
            }
        }
    }
    Ok((all, unknown))
}

fn json(report: &Report, pretty: bool) -> String {
    let text =
        if pretty { serde_json::to_string_pretty(report) } else { serde_json::to_string(report) };
    text.expect("plain data always serializes") + "\n"
}

/// The report for people.
fn table(report: &Report) -> String {
    let mut text = String::new();
    for set in &report.sets {
        let cache = &set.cache;
        let is_served = !set.uuid.is_empty();
        let name = match set.name.as_str() {
            name if is_served && !name.is_empty() => format!("{name} "),
            _ => String::new(),
        };
        let _ = writeln!(text, "set {name}{}  {}, {}", set.id(), set.state, set.health);
        for warning in &set.warnings {
            let mut lines = warning.lines();
            let _ = writeln!(text, "  warning  {}", lines.next().unwrap_or_default());
            for line in lines {
                let _ = writeln!(text, "           {line}");
            }
        }
        if !is_served {
            continue;
        }
        let _ = writeln!(
            text,
            "  cache    {}  {}, buckets of {}; {}",
            cache.path,
            show_size(cache.size_bytes),
            show_size(cache.bucket_bytes),
            fullness(set)
        );
        let _ =
            writeln!(text, "           {}{}", traffic(&cache.counters), errors(&cache.counters));
        if let Some(shrinking) = &cache.shrinking {
            let _ = writeln!(
                text,
                "           becomes smaller, to {}: {} of {} beyond that left",
                show_size(shrinking.size_bytes),
                show_size(shrinking.left_bytes),
                show_size(shrinking.total_bytes)
            );
        }
        for volume in &set.volumes {
            volume_table(&mut text, volume);
        }
        for flash in &set.flash {
            let _ = writeln!(
                text,
                "  flash    {}  {}, {} written, room for {} more in the cache",
                visible(&flash.name),
                show_size(flash.size_bytes),
                show_size(flash.used_bytes),
                show_size(cache.flash_room_bytes)
            );
            frontends(&mut text, &flash.frontends);
        }
        for down in &set.down {
            let _ = writeln!(text, "  down     {}  {}", down.name, down.path);
            for line in down.why.lines() {
                let _ = writeln!(text, "           {line}");
            }
        }
        for absent in &set.absent {
            let label = if absent.label.is_empty() {
                String::new()
            } else {
                format!(" ({})", visible(&absent.label))
            };
            let _ = writeln!(
                text,
                "  absent   disk {}{label}, not served, {} dirty",
                absent.uuid,
                show_size(absent.dirty_bytes)
            );
        }
    }
    text
}

/// Fullness of the cache.
fn fullness(set: &SetReport) -> String {
    let cache = &set.cache;
    let dirty = cache.dirty_bytes as f64 * 100.0 / cache.size_bytes.max(1) as f64;
    if !cache.counted {
        return "its content is being counted".to_owned();
    }
    format!(
        "{}% filled, {dirty:.0}% dirty, {:.0}% available",
        cache.filled_percent, cache.available_percent
    )
}

fn traffic(counters: &Counters) -> String {
    format!(
        "read {} ({} requests), written {} ({} requests)",
        show_size(counters.read_bytes),
        counters.reads,
        show_size(counters.written_bytes),
        counters.writes
    )
}

fn errors(counters: &Counters) -> String {
    match counters.errors {
        0 => String::new(),
        errors => format!(", {errors} errors"),
    }
}

/// Activity of writeback, and when it will be done.
fn writeback(volume: &VolumeReport) -> Option<String> {
    let writeback = &volume.writeback;
    let dirty = show_size(volume.dirty_bytes);
    Some(match writeback.state.as_str() {
        "waiting" => format!("{dirty} to write back, after writeback_delay"),
        "off" => format!("{dirty} to write back, but it is off (writeback_running)"),
        "failing" => format!("{dirty} to write back, which the disk refuses"),
        "running" if writeback.bytes_per_second == 0 => format!("{dirty} to write back"),
        "running" => {
            let left = writeback
                .seconds_left
                .map_or_else(String::new, |seconds| format!(", clean in {}", duration(seconds)));
            format!("{dirty} to write back at {}/s{left}", show_size(writeback.bytes_per_second))
        }
        _ => return None,
    })
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Block devices and virtual machines.
fn frontends(text: &mut String, report: &FrontendsReport) {
    for device in &report.ublk {
        let _ = writeln!(
            text,
            "           block device {}  {}{}, {}, {} in flight; {}",
            device.path,
            device.state,
            if device.recovered { " (recovered)" } else { "" },
            counted(device.queues, &format!("queue of {}", device.depth)),
            device.in_flight,
            device.abilities.join(", ")
        );
    }
    for guest in &report.vhost_user {
        let socket = visible(&guest.socket);
        if !guest.connected {
            let _ = writeln!(text, "           guest at {socket}  not connected");
            continue;
        }
        let broken = match guest.broken_queues {
            0 => String::new(),
            broken => format!(", {broken} of them broken"),
        };
        let _ = writeln!(
            text,
            "           guest at {socket}  connected, {}{broken}, {} in flight, {} carried out \
             again; {}",
            counted(guest.queues, "queue"),
            guest.in_flight,
            guest.reissued,
            guest.features.join(", ")
        );
    }
}

/// A number of things: `1 queue`, `2 queues of 128`.
fn counted(number: u64, thing: &str) -> String {
    match number {
        1 => format!("1 {thing}"),
        _ => format!("{number} {}", thing.replacen("queue", "queues", 1)),
    }
}

fn volume_table(text: &mut String, volume: &VolumeReport) {
    let (stats, backing) = (&volume.stats, &volume.backing);
    let _ = writeln!(
        text,
        "  volume   {}  {}, {}, {}, {} dirty",
        visible(&volume.name),
        show_size(volume.size_bytes),
        volume.mode,
        volume.state,
        show_size(volume.dirty_bytes)
    );
    let _ = writeln!(text, "           backing {}", backing.path);
    let _ = writeln!(
        text,
        "           {}, {} flushes{}",
        traffic(&backing.counters),
        backing.counters.flushes,
        errors(&backing.counters)
    );
    if let Some(moving) = &volume.moving {
        let left = moving
            .seconds_left
            .map_or_else(String::new, |seconds| format!(", {} left", duration(seconds)));
        let limit = match moving.rate_bytes {
            0 => String::new(),
            rate => format!(", at most {}/s", show_size(rate)),
        };
        let _ = writeln!(
            text,
            "           moves to {}: {} of {} to copy{left}{limit}",
            moving.to,
            show_size(moving.left_bytes),
            show_size(moving.total_bytes)
        );
    }
    if let Some(writeback) = writeback(volume) {
        let _ = writeln!(text, "           {writeback}");
    }
    let all = stats.cache_hits + stats.cache_misses;
    let ratio = (stats.cache_hits * 100)
        .checked_div(all)
        .map_or_else(|| "-".to_owned(), |it| format!("{it}%"));
    let _ = writeln!(
        text,
        "           hits {}, misses {} (hit ratio {ratio}); bypass hits {}, misses {}, {} bypassed",
        stats.cache_hits,
        stats.cache_misses,
        stats.cache_bypass_hits,
        stats.cache_bypass_misses,
        show_size(stats.bypassed_bytes)
    );
    frontends(text, &volume.frontends);
    for uri in &volume.uris {
        let _ = writeln!(text, "           {uri}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ubcache_daemon::served::report::SetReport;

    #[test]
    fn status_table_names_every_volume_and_counter() {
        let volume = VolumeReport {
            name: "disk".into(),
            mode: "writeback".into(),
            ..VolumeReport::default()
        };
        let set = SetReport { uuid: "u".into(), volumes: vec![volume], ..SetReport::default() };
        let text = table(&Report { version: "0".into(), sets: vec![set] });
        for word in ["set u", "cache", "volume   disk", "writeback", "hit ratio -", "0 dirty"] {
            assert!(text.contains(word), "{word} is missing in:\n{text}");
        }
    }
}
