//! `ubcache status`, `stop`, `set`, `get`, `gc`: talk to a running `ubcache serve`.

use std::fmt::Write;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use ubcache_daemon::Failure;
use ubcache_daemon::control::{ControlRequest, ask, find_sockets, socket_directories};
use ubcache_daemon::served::report::{Report, VolumeReport};
use ubcache_daemon::size::show_size;

use super::{print, visible};

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

/// Read an attribute, with the names of bcache's sysfs, or all of them
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  ubcache get cache_mode\n  ubcache get")]
pub struct GetArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// Only this export [default: all]
    #[arg(long, value_name = "EXPORT")]
    volume: Option<String>,
    /// The attribute [default: all of them]
    #[arg(value_name = "NAME")]
    name: Option<String>,
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
        let is_denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        let mut denied: Vec<PathBuf> = socket_directories()
            .into_iter()
            .filter(|dir| std::fs::read_dir(dir).is_err_and(|error| is_denied(&error)))
            .collect();
        let mut live = Vec::new();
        for path in find_sockets() {
            match UnixStream::connect(&path) {
                Ok(_) => live.push(path),
                Err(error) if is_denied(&error) => denied.push(path),
                Err(_) => {}
            }
        }
        if let (true, Some(path)) = (live.is_empty(), denied.first()) {
            return Err(Failure::could_not_run(path, "not allowed to use it")
                .found("permission denied: a control socket is for the user of its daemon")
                .expected("a control socket of this user")
                .advice("run the command as the user that runs `ubcache serve`, or as root"));
        }
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
    let volume = args.volume.clone();
    let value = match args.name.clone() {
        Some(name) => ask(&socket, &ControlRequest::Get { name, volume })?,
        None => ask(&socket, &ControlRequest::GetAll { volume })?,
    };
    if args.json {
        print_json(&value)?;
        return Ok(());
    }
    let is_label = args.name.as_deref() == Some("label");
    let show = |value: &serde_json::Value| match value.as_str() {
        Some(label) if is_label => visible(label),
        Some(text) => text.to_owned(),
        None => value.to_string(),
    };
    if args.name.is_none() {
        return print(&attribute_lines(&value));
    }
    match value.as_object() {
        Some(map) if map.len() > 1 => {
            for (volume, value) in map {
                print(&format!("{}: {}\n", visible(volume), show(value)))?;
            }
        }
        Some(map) => map.values().try_for_each(|value| print(&format!("{}\n", show(value))))?,
        None => print(&format!("{}\n", show(&value)))?,
    }
    Ok(())
}

/// All attributes, a line each: of the set, then of each export. Values of several lines are
/// joined.
fn attribute_lines(all: &serde_json::Value) -> String {
    let mut text = String::new();
    let mut add = |owner: &str, values: &serde_json::Value| {
        for (name, value) in values.as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().trim_end();
            let value = match name.as_str() {
                "label" => visible(value),
                _ => value.split_whitespace().collect::<Vec<_>>().join(" "),
            };
            let _ = writeln!(text, "{owner} {name}: {value}");
        }
    };
    add("set", &all["set"]);
    for (volume, values) in all["volumes"].as_object().into_iter().flatten() {
        add(&visible(volume), values);
    }
    text
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
            "  cache    {}  {}, buckets of {}, {}% filled, {:.0}% available",
            cache.path,
            show_size(cache.size_bytes),
            show_size(cache.bucket_bytes),
            cache.filled_percent,
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
