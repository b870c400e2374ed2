//! `ubcache ublk`: block devices of the kernel, with or without a daemon behind them.

use std::fmt::Write as _;

use ubcache_daemon::Failure;
use ubcache_daemon::ublk::driver::{
    Claim, Driver, block_device, claim, delete, is_running, refused,
};
use ubcache_daemon::ublk::listed::{ListedBlockDevice, all};
use ubcache_daemon::ublk::record;

use super::{print, visible};

/// List and remove block devices of the kernel: /dev/ublkbN
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache ublk list")]
#[command(disable_help_subcommand = true)]
pub struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand, Debug)]
enum Task {
    List(ListArgs),
    Remove(RemoveArgs),
    Owner(OwnerArgs),
}

/// List the devices of ublk, of any program
#[derive(clap::Args, Debug)]
#[command(after_help = "Exit codes: 0 done, 1 refused, 2 could not run.

Example:
  ubcache ublk list")]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const AFTER_REMOVE: &str = "\
For a device whose daemon is gone and does not come back. Its requests fail. What is in the cache
stays there. Refused while the device is mounted or otherwise in use, unless --force is given.

Exit codes: 0 done, 1 refused, 2 could not run.

Example:
  ubcache ublk remove 0";

/// Remove a device whose daemon does not come back
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_REMOVE)]
pub struct RemoveArgs {
    /// Its number: that of /dev/ublkbN
    #[arg(value_name = "ID")]
    device: u32,
    /// Remove it also if it is in use: those who use it get errors
    #[arg(long)]
    force: bool,
}

const AFTER_OWNER: &str = "\
For the rule of udev that gives such a device to its user: prints the numbers of user and group.
Exit codes: 0 done, 1 it was made by root, or there is none, 2 could not run.

Example:
  ubcache ublk owner 0";

/// Print who made a device without root
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_OWNER)]
pub struct OwnerArgs {
    /// Its number: that of /dev/ublkcN
    #[arg(value_name = "ID")]
    device: u32,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.task {
        Task::List(list) => {
            let listed = all()?;
            print(&if list.json { as_json(&listed) } else { as_text(&listed) })
        }
        Task::Remove(remove) => remove_device(remove),
        Task::Owner(owner) => print_owner(owner.device),
    }
}

fn print_owner(number: u32) -> Result<(), Failure> {
    let path = block_device(number);
    match Driver::open()?.info(number).map_err(|error| refused(&error))? {
        Some(info) if info.is_unprivileged() => {
            print(&format!("{} {}\n", info.owner.0, info.owner.1))
        }
        Some(_) => Err(Failure::refused(&path, "it was made by root")
            .expected("a device that a user has made without root")),
        None => Err(Failure::refused(&path, "there is no such device")
            .advice("`ubcache ublk list` shows all devices")),
    }
}

fn as_json(listed: &[ListedBlockDevice]) -> String {
    serde_json::to_string_pretty(&serde_json::json!({ "devices": listed }))
        .expect("plain data always serializes")
        + "\n"
}

/// A line for each device.
pub(super) fn as_text(listed: &[ListedBlockDevice]) -> String {
    let mut text = String::new();
    for device in listed {
        let ListedBlockDevice { path, state, process, export, user, .. } = device;
        let export = match (export, user) {
            (Some(name), _) => format!("export {}", visible(name)),
            (None, Some(user)) => format!("made by user {user}"),
            (None, None) => "another program".to_owned(),
        };
        let _ = writeln!(text, "  {path:14}  {state}, process {process}, {export}");
    }
    text
}

fn remove_device(args: &RemoveArgs) -> Result<(), Failure> {
    let (number, path) = (args.device, block_device(args.device));
    let driver = Driver::open()?;
    let Some(info) = driver.info(number).map_err(|error| refused(&error))? else {
        return Err(Failure::refused(&path, "there is no such device")
            .advice("`ubcache ublk list` shows all devices"));
    };
    if is_running(info.pid) && info.state == ubcache_daemon::ublk::DeviceState::Live && !args.force
    {
        return Err(Failure::refused(&path, "a daemon serves it")
            .found(format_args!("process {}", info.pid))
            .advice(format_args!(
                "`ubcache stop` ends the daemon and its devices; or: ubcache ublk remove {number} \
                 --force"
            )));
    }
    // A device that waits for its daemon answers no request, and opening asks for none.
    let claimed = claim(&path);
    if matches!(claimed, Claim::Busy) && !args.force {
        return Err(Failure::refused(&path, "it is in use").advice(format_args!(
            "unmount it first (`lsblk {}` shows its users); or, with errors for them: ubcache \
             ublk remove {number} --force",
            path.display()
        )));
    }
    driver.stop(&info).map_err(|error| refused(&error))?;
    drop(claimed);
    let is_gone = delete(info)?;
    record::remove(number);
    let later = if is_gone { "" } else { "; its number is free when nobody uses it any more" };
    print(&format!("{}: removed{later}\n", path.display()))
}
