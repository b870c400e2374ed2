//! `ubcache stop`, `set`, `get`, `gc`: talk to a running `ubcache serve`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use ubcache_daemon::attributes::{Owner, attribute};
use ubcache_daemon::config_file::save::{replace_file, with_attributes};
use ubcache_daemon::control::{ControlRequest, ask};
use ubcache_daemon::served::report::SetReport;
use ubcache_daemon::{Failure, default_of};

use super::choose::{Daemon, report};
use super::{print, visible};

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
    /// Write the values into the configuration file of the set as well, for its next start
    #[arg(long)]
    save: bool,
    /// Attributes and their new values
    #[arg(required = true, value_name = "NAME=VALUE")]
    assignments: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Read an attribute, with the names of bcache's sysfs, or all of them
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache get cache_mode\n  ubcache get --all")]
pub struct GetArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// Only this export [default: all]
    #[arg(long, value_name = "EXPORT")]
    volume: Option<String>,
    /// The attribute [default: all of them]
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// All attributes, with default, range, unit, effect, and how long a value is kept
    #[arg(long, conflicts_with = "name")]
    all: bool,
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
    // Before anything is set: what can't be saved is not set either.
    let saved =
        if args.save { Some(saved_file(&socket, volume.as_deref(), &pairs)?) } else { None };
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
    if let Some((file, text)) = saved {
        replace_file(&file, &text)?;
    }
    if args.json {
        print("{\"set\": true}\n")?;
    }
    Ok(())
}

/// The configuration file of the set, and its text with new values of attributes.
fn saved_file(
    socket: &Path,
    volume: Option<&str>,
    pairs: &[(&str, &str)],
) -> Result<(PathBuf, String), Failure> {
    let report = report(socket)?;
    let of_set = volume.and_then(|volume| volume.split_once('/'));
    let serves = |set: &&SetReport| {
        let has = |name: &str| set.volumes.iter().any(|volume| volume.name == name);
        volume.is_none_or(|it| has(it) || of_set.is_some_and(|(of, it)| of == set.name && has(it)))
    };
    let set = report.sets.iter().find(serves).filter(|set| !set.file.is_empty());
    let set = set.ok_or_else(|| {
        Failure::refused_because("--save", "the set has no configuration file")
            .found("a daemon with options on its command line (`ubcache serve`)")
            .expected("a daemon with configuration files (`ubcache daemon`)")
            .advice("leave out --save; change the command line, if the value is to stay")
    })?;
    let own = of_set.filter(|(of, _)| *of == set.name).map(|(_, export)| export);
    let volume = own.or(volume);
    let file = PathBuf::from(&set.file);
    let text = std::fs::read_to_string(&file)
        .map_err(|error| Failure::could_not_run(&file, format_args!("can't be read: {error}")))?;
    let settings: Vec<(String, String)> =
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let text = with_attributes(&file, &text, volume, &settings)?;
    Ok((file, text))
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
        return print_json(&if args.all { described(&value) } else { value });
    }
    if args.all {
        return print(&attribute_table(&described(&value)));
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
            let value = one_line(name, value.as_str().unwrap_or_default());
            let _ = writeln!(text, "{owner} {name}: {value}");
        }
    };
    add("set", &all["set"]);
    for (volume, values) in all["volumes"].as_object().into_iter().flatten() {
        add(&visible(volume), values);
    }
    text
}

/// All attributes with what the table says about each: an object like that of the values, in
/// which each value is an object.
fn described(all: &serde_json::Value) -> serde_json::Value {
    let describe = |owner: Owner, values: &serde_json::Value| -> serde_json::Value {
        let values = values.as_object().into_iter().flatten();
        let values = values.map(|(name, value)| {
            let text = |text: String| match text.is_empty() {
                true => serde_json::Value::Null,
                false => text.into(),
            };
            let found = attribute(owner, name);
            let described = serde_json::json!({
                "value": value,
                "default": found.and_then(default_of),
                "range": found.map_or(serde_json::Value::Null, |it| text(it.range())),
                "unit": found.map_or(serde_json::Value::Null, |it| text(it.unit.word().into())),
                "kept": found.map_or(serde_json::Value::Null, |it| text(it.kept.word().into())),
                "effect": found.map(|it| it.effect),
            });
            (name.clone(), described)
        });
        serde_json::Value::Object(values.collect())
    };
    let mut described = serde_json::Map::new();
    if let Some(set) = all.get("set") {
        described.insert("set".to_owned(), describe(Owner::Set, set));
    }
    let volumes = all["volumes"].as_object().into_iter().flatten();
    let volumes = volumes.map(|(name, values)| (name.clone(), describe(Owner::Volume, values)));
    described.insert("volumes".to_owned(), serde_json::Value::Object(volumes.collect()));
    described.into()
}

/// The same for people: two lines for each attribute.
fn attribute_table(all: &serde_json::Value) -> String {
    let mut text = String::new();
    let mut add = |owner: &str, values: &serde_json::Value| {
        for (name, described) in values.as_object().into_iter().flatten() {
            let field = |field: &str| described[field].as_str().unwrap_or_default();
            let value = one_line(name, field("value"));
            let _ = write!(text, "{owner} {name}: {value}");
            let unit = field("unit");
            let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
            let mut about = vec![field("effect").to_owned()];
            if !field("range").is_empty() {
                about.push(format!("takes {}{unit}", field("range")));
            }
            if described["default"].is_string() {
                about.push(format!("default {}", one_line(name, field("default"))));
            }
            if !field("kept").is_empty() {
                about.push(format!("kept: {}", field("kept")));
            }
            let _ = writeln!(text, "\n    {}", about.join("; "));
        }
    };
    add("set", &all["set"]);
    for (volume, values) in all["volumes"].as_object().into_iter().flatten() {
        add(&visible(volume), values);
    }
    text
}

/// A value in a line of its own.
fn one_line(name: &str, value: &str) -> String {
    match name {
        "label" => visible(value.trim_end()),
        _ => value.split_whitespace().collect::<Vec<_>>().join(" "),
    }
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
