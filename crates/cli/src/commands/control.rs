//! `ubcache status`, `stop`, `set`, `get`, `gc`: talk to a running `ubcache serve`.

use std::fmt::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use ubcache_daemon::Failure;
use ubcache_daemon::control::{ControlRequest, ask, find_sockets, socket_directories};
use ubcache_daemon::served::report::{Report, VolumeReport};
use ubcache_daemon::size::show_size;

use super::print;

/// Options that choose a daemon.
#[derive(clap::Args, Debug)]
pub struct Daemon {
    /// Control socket of the daemon [default: the only one in /run/ubcache and
    /// $XDG_RUNTIME_DIR/ubcache]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

/// Show what is served, and how well the cache does
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache status --json")]
pub struct StatusArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// Print JSON, for scripts (docs/guide/operate.md)
    #[arg(long)]
    json: bool,
}

/// Stop a daemon cleanly: dirty data stays in the cache, safe
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache stop")]
pub struct StopArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Change attributes, with the names of bcache's sysfs: cache_mode, sequential_cutoff,
/// writeback_percent, …
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache set cache_mode=writeback --volume data")]
pub struct SetArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// Only this export [default: all]
    #[arg(long, value_name = "EXPORT")]
    volume: Option<String>,
    /// Attributes and their new values
    #[arg(required = true, value_name = "NAME=VALUE")]
    assignments: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Read an attribute, with the names of bcache's sysfs
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache get cache_mode")]
pub struct GetArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// Only this export [default: all]
    #[arg(long, value_name = "EXPORT")]
    volume: Option<String>,
    /// The attribute
    #[arg(value_name = "NAME")]
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Start a garbage collection now
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache gc")]
pub struct GcArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Daemon {
    /// The sockets of all daemons meant: the given one, or every live one in the usual places.
    fn all(&self) -> Result<Vec<PathBuf>, Failure> {
        if let Some(path) = &self.control {
            return Ok(vec![path.clone()]);
        }
        let live: Vec<PathBuf> =
            find_sockets().into_iter().filter(|path| UnixStream::connect(path).is_ok()).collect();
        if live.is_empty() {
            let places: Vec<String> = socket_directories()
                .iter()
                .map(|dir| format!("{}/*.sock", dir.display()))
                .collect();
            return Err(Failure::usage(
                "no daemon",
                "no `ubcache serve` answers at a control socket",
            )
            .expected(format_args!("a live socket among {}", places.join(", ")))
            .advice("start `ubcache serve`, or give its socket with --control PATH"));
        }
        Ok(live)
    }

    /// The socket of the one daemon meant.
    pub fn one(&self) -> Result<PathBuf, Failure> {
        let mut all = self.all()?;
        match (all.len(), all.pop()) {
            (1, Some(path)) => Ok(path),
            (count, _) => {
                let names: Vec<String> =
                    self.all()?.iter().map(|path| path.display().to_string()).collect();
                Err(Failure::usage("--control", "there is more than one daemon")
                    .found(format_args!("{count} live control sockets: {}", names.join(", ")))
                    .advice("choose one with --control PATH"))
            }
        }
    }
}

/// `ubcache status`.
pub fn status(args: &StatusArgs) -> Result<(), Failure> {
    let mut report = Report { version: env!("CARGO_PKG_VERSION").to_owned(), sets: Vec::new() };
    for socket in args.daemon.all()? {
        let value = ask(&socket, &ControlRequest::Status)?;
        let part: Report = serde_json::from_value(value).map_err(|error| {
            Failure::refused(&socket, format_args!("the daemon's report is unreadable: {error}"))
        })?;
        report.version = part.version;
        report.sets.extend(part.sets);
    }
    if args.json {
        print_json(&serde_json::to_value(&report).expect("a report is plain data"))?;
    } else {
        print(&table(&report))?;
    }
    Ok(())
}

/// `ubcache stop`.
pub fn stop(args: &StopArgs) -> Result<(), Failure> {
    let socket = args.daemon.one()?;
    ask(&socket, &ControlRequest::Stop)?;
    print(if args.json { "{\"stopped\": true}\n" } else { "stopped\n" })?;
    Ok(())
}

/// `ubcache set`.
pub fn set(args: &SetArgs) -> Result<(), Failure> {
    let pairs = args
        .assignments
        .iter()
        .map(|text| {
            text.split_once('=').ok_or_else(|| {
                Failure::usage(text, "not an assignment")
                    .expected("NAME=VALUE, as in cache_mode=writeback")
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let socket = args.daemon.one()?;
    let volume = args.volume.clone();
    let request = match pairs.as_slice() {
        [(name, value)] => {
            ControlRequest::Set { name: (*name).into(), value: (*value).into(), volume }
        }
        pairs => {
            let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            ControlRequest::SetAll { settings: pairs.iter().map(owned).collect(), volume }
        }
    };
    ask(&socket, &request)?;
    if args.json {
        print("{\"set\": true}\n")?;
    }
    Ok(())
}

/// `ubcache get`.
pub fn get(args: &GetArgs) -> Result<(), Failure> {
    let socket = args.daemon.one()?;
    let value = ask(
        &socket,
        &ControlRequest::Get { name: args.name.clone(), volume: args.volume.clone() },
    )?;
    if args.json {
        print_json(&value)?;
        return Ok(());
    }
    let show =
        |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match value.as_object() {
        Some(map) if map.len() > 1 => {
            for (volume, value) in map {
                print(&format!("{volume}: {}\n", show(value)))?;
            }
        }
        Some(map) => map.values().try_for_each(|value| print(&format!("{}\n", show(value))))?,
        None => print(&format!("{}\n", show(&value)))?,
    }
    Ok(())
}

/// `ubcache gc`.
pub fn gc(args: &GcArgs) -> Result<(), Failure> {
    let socket = args.daemon.one()?;
    ask(&socket, &ControlRequest::Gc)?;
    if args.json {
        print("{\"started\": true}\n")?;
    }
    Ok(())
}

fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).expect("plain data always serializes");
    print(&format!("{text}\n"))
}

/// The report for people.
fn table(report: &Report) -> String {
    let mut text = String::new();
    for set in &report.sets {
        let cache = &set.cache;
        let _ = writeln!(text, "set {}  {}", set.uuid, set.state);
        let _ = writeln!(
            text,
            "  cache    {}  {}, buckets of {}, {:.0}% available",
            cache.path,
            show_size(cache.size_bytes),
            show_size(cache.bucket_bytes),
            cache.available_percent
        );
        if cache.put_aside_bytes > 0 {
            let _ = writeln!(
                text,
                "           no room for {} of it: its file system is full",
                show_size(cache.put_aside_bytes)
            );
        }
        let _ = writeln!(
            text,
            "           read {} ({} requests), written {} ({} requests)",
            show_size(cache.counters.read_bytes),
            cache.counters.reads,
            show_size(cache.counters.written_bytes),
            cache.counters.writes
        );
        for volume in &set.volumes {
            volume_table(&mut text, volume);
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
                format!(" ({})", absent.label)
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

fn volume_table(text: &mut String, volume: &VolumeReport) {
    let (stats, backing) = (&volume.stats, &volume.backing);
    let _ = writeln!(
        text,
        "  volume   {}  {}, {}, {}, {} dirty",
        volume.name,
        show_size(volume.size_bytes),
        volume.mode,
        volume.state,
        show_size(volume.dirty_bytes)
    );
    let _ = writeln!(text, "           backing {}", backing.path);
    let _ = writeln!(
        text,
        "           read {} ({} requests), written {} ({} requests), {} flushes",
        show_size(backing.counters.read_bytes),
        backing.counters.reads,
        show_size(backing.counters.written_bytes),
        backing.counters.writes,
        backing.counters.flushes
    );
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
