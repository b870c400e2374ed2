//! `ubcache flash`: volumes that have no backing device.

use std::fmt::Write as _;

use ubcache_daemon::Failure;
use ubcache_daemon::control::{ControlRequest, ask};
use ubcache_daemon::size::{parse_size, show_size};

use super::choose::{Daemon, report};
use super::{print, visible};

/// Make, list, resize and remove flash-only volumes: volumes without a backing device
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache flash create scratch --size 10G")]
#[command(disable_help_subcommand = true)]
pub struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand, Debug)]
enum Task {
    Create(CreateArgs),
    List(ListArgs),
    Resize(ResizeArgs),
    Remove(RemoveArgs),
}

const AFTER_CREATE: &str = "\
The data of a flash-only volume is in the cache and nowhere else: if the cache device is lost, so is
the volume. It is thin: it takes room when it is written, and gives it back when it is discarded.
When the cache has no room left for it, writes fail at once with \"no space\"; other volumes go on.

It becomes an export of that name at once, and at every start. `ubcache serve` takes no -B for it.

Exit codes: 0 done, 1 refused, 2 could not run.

Example:
  ubcache flash create scratch --size 10G";

/// Make a flash-only volume, and serve it
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_CREATE)]
pub struct CreateArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// Its label, which is the name of its export; 32 bytes at most
    #[arg(value_name = "NAME")]
    name: String,
    /// Its size; may be larger than the cache
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// List the flash-only volumes that are served
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache flash list")]
pub struct ListArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const AFTER_RESIZE: &str = "\
A volume can become longer at any time. Clients see the new size when they connect again. A volume
becomes shorter only while no client is connected, and only if nothing is written beyond the new
end, unless --discard-data is given; the message says how much it is.

Exit codes: 0 done, 1 refused, 2 could not run.

Example:
  ubcache flash resize scratch --size 20G";

/// Give a flash-only volume another size
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_RESIZE)]
pub struct ResizeArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// The export
    #[arg(value_name = "EXPORT")]
    volume: String,
    /// Its size from now on
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: u64,
    /// Give up data beyond the new end
    #[arg(long)]
    discard_data: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const AFTER_REMOVE: &str = "\
Refused while a client is connected, unless --force is given, and if anything is written in the
volume, unless --discard-data is given; the message says how much it is.

Exit codes: 0 done, 1 refused, 2 could not run.

Example:
  ubcache flash remove scratch --discard-data";

/// Remove a flash-only volume for good
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_REMOVE)]
pub struct RemoveArgs {
    #[command(flatten)]
    daemon: Daemon,
    /// The export
    #[arg(value_name = "EXPORT")]
    volume: String,
    /// Give up its data
    #[arg(long)]
    discard_data: bool,
    /// End it also if clients are connected
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.task {
        Task::Create(args) => {
            let (name, bytes) = (args.name.clone(), args.size);
            let said = ask(&args.daemon.one()?, &ControlRequest::FlashCreate { name, bytes })?;
            let name = said.as_str().unwrap_or_default();
            match args.json {
                true => print(&format!("{}\n", serde_json::json!({ "created": name }))),
                false => print(&format!("{}: created, {}\n", visible(name), show_size(bytes))),
            }
        }
        Task::List(args) => list(args),
        Task::Resize(args) => {
            let request = ControlRequest::FlashResize {
                volume: args.volume.clone(),
                bytes: args.size,
                discard_data: args.discard_data,
            };
            say(&ask(&args.daemon.one()?, &request)?, "resized", args.json)
        }
        Task::Remove(args) => {
            let request = ControlRequest::FlashRemove {
                volume: args.volume.clone(),
                discard_data: args.discard_data,
                force: args.force,
            };
            say(&ask(&args.daemon.one()?, &request)?, "removed", args.json)
        }
    }
}

fn say(said: &serde_json::Value, key: &str, json: bool) -> Result<(), Failure> {
    let said = said.as_str().unwrap_or_default();
    match json {
        true => print(&format!("{}\n", serde_json::json!({ key: said }))),
        false => print(&format!("{said}\n")),
    }
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let report = report(&args.daemon.one()?)?;
    let volumes: Vec<_> = report.sets.iter().flat_map(|set| &set.flash).collect();
    if args.json {
        return print(&format!("{}\n", serde_json::json!({ "flash": volumes })));
    }
    let mut text = String::new();
    for volume in volumes {
        let (size, used) = (show_size(volume.size_bytes), show_size(volume.used_bytes));
        let name = visible(&volume.name);
        let _ = writeln!(text, "{name}  {size}, {used} written  {}", volume.uuid);
    }
    print(&text)
}
