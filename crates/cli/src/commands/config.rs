//! `ubcache config`: checks and shows configuration files, and puts them into effect.

use std::path::PathBuf;

use serde_json::json;
use ubcache_daemon::Failure;
use ubcache_daemon::config_file::files::Resolved;
use ubcache_daemon::config_file::{Configuration, DEFAULT_DIRECTORY, Fault, Lookup, effective};
use ubcache_daemon::control::ask_process;
use ubcache_daemon::control::process::{ConfigChanges, ProcessRequest, SetChanges};

use super::choose::Daemon;
use super::{complain, print};

/// Check and show configuration files, and put them into effect
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache config check", disable_help_subcommand = true)]
pub struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand, Debug)]
enum Task {
    Check(CheckArgs),
    Show(ShowArgs),
    Diff(DiffArgs),
    Apply(ApplyArgs),
}

const AFTER_CHECK: &str = "\
All faults of all files are printed, a line each: FILE:LINE:COLUMN: the fault, and what is expected.
A device that is not there is a warning, as `ubcache daemon` starts without it.

Exit codes: 0 no fault, 1 faults, 2 could not run.

Example:
  ubcache config check /etc/ubcache/data.toml";

/// Check configuration files, and look for their devices
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_CHECK)]
pub struct CheckArgs {
    /// Files, and directories of them [default: /etc/ubcache]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const AFTER_SHOW: &str = "\
Every key of every set, a line each; those that the file does not give are comments, with their
defaults.

Exit codes: 0 shown, 1 faults, 2 could not run.

Example:
  ubcache config show /etc/ubcache/data.toml";

/// Show the values of configuration files, with defaults
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_SHOW)]
pub struct ShowArgs {
    /// Files, and directories of them [default: /etc/ubcache]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const AFTER_DIFF: &str = "\
The files are those of the daemon. A line for each key that differs: the value in effect, that of
the file, and if `ubcache config apply` changes it live, for new connections, or not before the next
start. Values that `ubcache set` has changed without --save are not among them.

Exit codes: 0 no difference, 1 some, or a fault in a file, 2 could not run, 3 no daemon answers.

Example:
  ubcache config diff";

/// Compare the configuration files with what the running daemon has in effect
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_DIFF)]
pub struct DiffArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const AFTER_APPLY: &str = "\
Clients go on. Attributes and limits change, new volumes are served, and removed ones are written
back and end. A new file is a set that is started, a set whose file is gone is stopped, and one that
could not be started is tried again. Everything else holds from the next start of the daemon, and is
named.

Exit codes: 0 all is in effect, 1 not all of it, 2 could not run, 3 no daemon answers.

Example:
  ubcache config apply";

/// Have the running daemon put its configuration files into effect
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_APPLY)]
pub struct ApplyArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    match args.task {
        Task::Check(args) => check(&args),
        Task::Show(args) => show(&args),
        Task::Diff(args) => diff(&args),
        Task::Apply(args) => apply(&args),
    }
}

fn diff(args: &DiffArgs) -> Result<(), Failure> {
    let changes = ask_process(&args.daemon.one()?, ProcessRequest::Diff)?;
    print_changes(&changes, args.json)?;
    match changes.sets.is_empty() && changes.faults.is_empty() {
        true => Ok(()),
        false => Err(Failure::refused_because("config diff", "not all of the files is in effect")
            .advice("ubcache config apply")),
    }
}

fn apply(args: &ApplyArgs) -> Result<(), Failure> {
    let changes = ask_process(&args.daemon.one()?, ProcessRequest::Apply)?;
    print_changes(&changes, args.json)?;
    let is_done = |set: &SetChanges| {
        let settled = ["serving", "started", "stopped"].contains(&set.state.as_str());
        settled && set.changes.iter().all(|it| it.result.as_deref() == Some("done"))
    };
    match changes.sets.iter().all(is_done) && changes.faults.is_empty() {
        true => Ok(()),
        false => Err(Failure::refused_because("config apply", "not all of the files is in effect")
            .advice("the lines above say why")),
    }
}

fn print_changes(changes: &ConfigChanges, json: bool) -> Result<(), Failure> {
    if json {
        return print(&format!("{}\n", json!(changes)));
    }
    let mut text = String::new();
    for set in &changes.sets {
        if set.state != "serving" {
            text += &format!("{}: {}\n", set.name, set.state);
        }
        for change in &set.changes {
            let value = |value: &Option<String>| value.clone().unwrap_or("default".to_owned());
            let (before, after) = (value(&change.before), value(&change.after));
            let result = change.result.as_ref().unwrap_or(&change.applied);
            text += &format!("{}: {}: {before} -> {after}: {result}\n", set.name, change.key);
        }
    }
    print(&text)?;
    changes.faults.iter().for_each(|fault| complain(&format!("{fault}\n")));
    Ok(())
}

/// The configuration in files, or in the default directory.
fn read(paths: &[PathBuf]) -> Configuration {
    match paths {
        [] => Configuration::read(&[PathBuf::from(DEFAULT_DIRECTORY)]),
        paths => Configuration::read(paths),
    }
}

fn check(args: &CheckArgs) -> Result<(), Failure> {
    let mut all = read(&args.paths);
    let resolved = all.resolve(&Lookup::default());
    let warnings: Vec<Fault> = resolved.iter().flat_map(missing).collect();
    let sets: Vec<&str> = all.sets.iter().map(|set| set.name.as_str()).collect();
    if args.json {
        let list = |faults: &[Fault]| faults.iter().map(as_json).collect::<Vec<_>>();
        let (faults, warnings) = (list(&all.faults), list(&warnings));
        print(&format!("{}\n", json!({ "sets": sets, "faults": faults, "warnings": warnings })))?;
    } else {
        for fault in &all.faults {
            print(&format!("{fault}\n"))?;
        }
        for warning in &warnings {
            complain(&format!("warning: {warning}\n"));
        }
    }
    refuse_faults(&all, args.json)?;
    match args.json {
        true => Ok(()),
        false => print(&format!("{} good: {}\n", counted(sets.len(), "set"), sets.join(", "))),
    }
}

fn refuse_faults(all: &Configuration, json: bool) -> Result<(), Failure> {
    if all.files.is_empty() && all.faults.is_empty() {
        return Err(Failure::usage("config", "there is no configuration file")
            .expected(format_args!("NAME.toml in {DEFAULT_DIRECTORY}, or paths")));
    }
    match all.faults.len() {
        0 => Ok(()),
        faults => {
            let what = counted(faults, "fault");
            let failure = Failure::refused_because("config", format_args!("{what} found"));
            let first = all.faults.iter().map(ToString::to_string).next().unwrap_or_default();
            Err(if json { failure } else { failure.found(format_args!("the first is {first}")) })
        }
    }
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// The devices of a set that are not there.
fn missing(resolved: &Resolved) -> Vec<Fault> {
    let set = &resolved.set;
    let at = |place, what: &dyn std::fmt::Display| Fault::at(&set.file, place, what);
    match &resolved.serve {
        Err(why) => vec![at(set.cache.1, &format_args!("cache: {why:#}"))],
        Ok(serve) => {
            let volumes = set.volumes.iter().filter_map(|volume| {
                let (text, place) = &volume.backing;
                let missing =
                    serve.not_found.iter().find(|it| it.path.as_os_str() == text.as_str())?;
                let why = format!("backing: {:#}", missing.why);
                (!volume.optional).then(|| at(*place, &why))
            });
            volumes.collect()
        }
    }
}

fn as_json(fault: &Fault) -> serde_json::Value {
    let place = fault.place;
    json!({
        "file": fault.file,
        "line": place.map(|place| place.line),
        "column": place.map(|place| place.column),
        "message": fault.what,
    })
}

fn show(args: &ShowArgs) -> Result<(), Failure> {
    let all = read(&args.paths);
    if args.json {
        let sets: Vec<_> = all
            .sets
            .iter()
            .map(|set| {
                json!({ "name": set.name, "file": set.file, "settings": effective::effective(set) })
            })
            .collect();
        print(&format!("{}\n", json!({ "sets": sets })))?;
    } else {
        for set in &all.sets {
            print(&format!("# {}\n", set.file.display()))?;
            for setting in effective::effective(set) {
                let hash = if setting.is_default { "# " } else { "" };
                print(&format!("{hash}{} = {}\n", setting.key, setting.value))?;
            }
        }
        for fault in &all.faults {
            complain(&format!("{fault}\n"));
        }
    }
    refuse_faults(&all, args.json)
}
