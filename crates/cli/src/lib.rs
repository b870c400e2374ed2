//! The `ubcache` command: what a user types.
//!
//! | module | command |
//! |---|---|
//! | [`commands::make`] | `ubcache make`: writes superblocks |
//! | [`commands::show`] | `ubcache show`: prints a superblock |
//! | [`commands::list`] | `ubcache list`: which devices are of which set |
//! | [`commands::serve`] | `ubcache serve`: serves a cache set over NBD |
//! | [`commands::daemon`] | `ubcache daemon`: serves the sets of configuration files |
//! | [`commands::config`] | `ubcache config`: checks and shows configuration files |
//! | [`commands::status`] | `ubcache status`: what is served, and what is wrong |
//! | [`commands::metrics`] | `ubcache metrics`: the numbers of `status` for Prometheus |
//! | [`commands::top`] | `ubcache top`: what every volume does at the moment |
//! | [`commands::why`] | `ubcache why`: what went past the cache, and why |
//! | [`commands::advise`] | `ubcache advise`: sizes and settings that fit the traffic |
//! | [`commands::map`] | `ubcache map`: which parts of a volume are cached |
//! | [`commands::control`] | `ubcache stop`, `set`, `get`, `gc`: talk to a daemon |
//! | [`commands::detach`] | `ubcache detach`, `attach`: a volume and its cache |
//! | [`commands::scrub`] | `ubcache scrub`: cached data against the disks |
//! | [`commands::members`] | `ubcache add`, `remove`, `flush`, `drain`: volumes that come and go |
//! | [`commands::move_backing`] | `ubcache move`: a volume goes on with another disk |
//! | [`commands::resize`] | `ubcache resize`: a volume gets the size of its disk |
//! | [`commands::flash`] | `ubcache flash`: volumes without a backing device |
//! | [`commands::ublk`] | `ubcache ublk`: block devices of the kernel |
//! | [`commands::doctor`] | `ubcache doctor`: what this machine offers |
//! | [`commands::upgrade`] | `ubcache upgrade`: another program goes on |
//! | [`commands::check`] and its neighbours for sets that are not running | `check`, `cat`, `recover`, `repair`, `dump`, `restore`, `pack` |
//! | [`commands::release`], [`commands::unmake`] | `ubcache release`, `unmake`: a disk without ubcache |
//! | [`commands::convert`] | `ubcache convert`: a superblock for a disk with data |
//! | [`commands::forget_cache`] | `ubcache forget-cache`: a disk goes on without its cache |
//! | [`commands::forget_disk`] | `ubcache forget-disk`: gives up the cached data of a lost disk |
//! | [`commands::demo`] | `ubcache demo`: shows what a cache does |
//! | [`nbd_client`] | a small blocking NBD client, for the demo and the tests |
//!
//! Everything that outlives a command is in `ubcache-daemon`.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the command lives in the real world, with its clock and its threads"
)]

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use ubcache_daemon::{Code, Failure};

pub mod commands;
pub mod nbd_client;

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  refused, or failed on the way: the message names the device, what was found and what to do
  2  wrong usage, or the command could not run: a path that can't be opened
  3  no daemon answers
  5  `serve`: the set has failed, and nothing is served any more; `daemon`: a set has failed
`status` has codes of its own: see `ubcache status --help`

Environment:
  UBCACHE_LOG  what `serve` logs to standard error, e.g. info, debug, ubcache_engine=trace \
  (default: info)
  UBCACHE_IO   how `serve` does I/O: ring (io_uring) or pool (epoll and threads); default: ring \
  where it works";

/// Version, with a suffix if this build's engine can be made to break its rules: such a build is
/// for the simulator only.
const VERSION: &str = match ubcache_daemon::MUTANTS_COMPILED {
    true => concat!(env!("CARGO_PKG_VERSION"), " +mutants"),
    false => env!("CARGO_PKG_VERSION"),
};

/// A block cache that speaks bcache's on-disk format, in user space.
#[derive(Parser, Debug)]
#[command(name = "ubcache", version = VERSION, about, after_help = AFTER_HELP,
    max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Make(commands::make::Args),
    Show(commands::show::Args),
    List(commands::list::Args),
    Serve(Box<commands::serve::Args>),
    Daemon(commands::daemon::Args),
    Config(commands::config::Args),
    Status(commands::status::Args),
    Metrics(commands::metrics::Args),
    Top(commands::top::Args),
    Why(commands::why::Args),
    Map(commands::map::Args),
    Advise(commands::advise::Args),
    Stop(commands::control::StopArgs),
    Set(commands::control::SetArgs),
    Get(commands::control::GetArgs),
    Gc(commands::control::GcArgs),
    /// Write back a volume's dirty data and detach it from the cache; it stays served
    ///
    /// Clients go on all the time. When the command returns, everything is on the backing device,
    /// flushed, and its superblock states that it has no cache: once it is not served any more, any
    /// program can use it. If the command is interrupted the daemon carries on.
    #[command(after_help = "Example:\n  ubcache detach data && ubcache status")]
    Detach(commands::detach::VolumeArgs),
    /// Give a detached volume its cache again, empty
    ///
    /// With --cache, all volumes go on with another cache device, while clients use them: one that
    /// was made by `ubcache make -C`, in place of a cache that has failed or was missing at the
    /// start, or from which they were detached.
    #[command(after_help = "Example:\n  ubcache attach data")]
    Attach(commands::detach::AttachArgs),
    Add(commands::members::AddArgs),
    Remove(commands::members::RemoveArgs),
    Flush(commands::members::FlushArgs),
    Drain(commands::members::DrainArgs),
    Resize(commands::resize::Args),
    Move(commands::move_backing::Args),
    Flash(commands::flash::Args),
    Scrub(commands::scrub::Args),
    Ublk(commands::ublk::Args),
    Doctor(commands::doctor::Args),
    Upgrade(commands::upgrade::Args),
    #[command(hide = true)]
    UpgradeCheck(commands::upgrade::CheckArgs),
    Check(commands::check::Args),
    Cat(commands::cat::Args),
    Recover(commands::recover::Args),
    Repair(commands::repair::Args),
    Dump(commands::dump::Args),
    Restore(commands::restore::Args),
    Pack(commands::pack::Args),
    Release(commands::release::Args),
    Unmake(commands::unmake::Args),
    Convert(commands::convert::Args),
    ForgetCache(commands::forget_cache::Args),
    #[command(visible_alias = "forget")]
    ForgetDisk(commands::forget_disk::Args),
    Demo(commands::demo::Args),
}

/// Runs the command line of the process.
pub fn main() -> ExitCode {
    if let Err(failure) = ubcache_daemon::upgrade::receive() {
        commands::complain(&format!("ubcache: {failure}\n"));
        return ExitCode::from(failure.code as u8);
    }
    let cli = match Cli::try_parse_from(arguments()) {
        Ok(cli) => cli,
        Err(error) => {
            ubcache_daemon::upgrade::go_back(&error.to_string());
            // Standard output or error may be closed: no place is left for a message.
            let _ = error.print();
            let usage = if is_status() { Code::NotKnown } else { Code::CouldNotRun };
            return ExitCode::from(if error.use_stderr() { usage as u8 } else { 0 });
        }
    };
    let code = match run(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            ubcache_daemon::upgrade::go_back(&format!("{failure:#}"));
            commands::complain(&format!("ubcache: {failure}\n"));
            ExitCode::from(failure.code as u8)
        }
    };
    ubcache_daemon::log::finish();
    code
}

/// The command line. A program of the name `ubcached` is `ubcache daemon`.
fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let named = arguments.first().map(Path::new).and_then(Path::file_name);
    if named.is_some_and(|name| name == "ubcached") {
        arguments.splice(..1, ["ubcache".into(), "daemon".into()]);
    }
    arguments
}

/// Returns true if the command line is one of `ubcache status`.
fn is_status() -> bool {
    std::env::args_os().nth(1).is_some_and(|command| command == "status")
}

/// Runs a command; its exit code, if it has not failed.
fn run(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Status(args) => commands::status::run(&args)
            .map(|health| health as u8)
            .map_err(|failure| failure.clone().with_code(commands::status::code(&failure))),
        command => run_plain(command).map(|()| 0),
    }
}

fn run_plain(command: Command) -> Result<(), Failure> {
    match command {
        Command::Status(_) => unreachable!("it has exit codes of its own"),
        Command::Make(args) => commands::make::run(&args),
        Command::Release(args) => commands::release::run(&args),
        Command::Unmake(args) => commands::unmake::run(&args),
        Command::Convert(args) => commands::convert::run(&args),
        Command::Show(args) => commands::show::run(&args),
        Command::List(args) => commands::list::run(&args),
        Command::Serve(args) => commands::serve::run(*args),
        Command::Daemon(args) => commands::daemon::run(&args),
        Command::Config(args) => commands::config::run(args),
        Command::Metrics(args) => commands::metrics::run(&args),
        Command::Top(args) => commands::top::run(&args),
        Command::Why(args) => commands::why::run(&args),
        Command::Map(args) => commands::map::run(&args),
        Command::Advise(args) => commands::advise::run(&args),
        Command::Stop(args) => commands::control::stop(&args),
        Command::Set(args) => commands::control::set(&args),
        Command::Get(args) => commands::control::get(&args),
        Command::Gc(args) => commands::control::gc(&args),
        Command::Detach(args) => commands::detach::detach(&args),
        Command::Attach(args) => commands::detach::attach(&args),
        Command::Add(args) => commands::members::add(&args),
        Command::Remove(args) => commands::members::remove(&args),
        Command::Flush(args) => commands::members::flush(&args),
        Command::Drain(args) => commands::members::drain(&args),
        Command::Resize(args) => commands::resize::run(&args),
        Command::Move(args) => commands::move_backing::run(&args),
        Command::Flash(args) => commands::flash::run(&args),
        Command::Scrub(args) => commands::scrub::run(&args),
        Command::Ublk(args) => commands::ublk::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Upgrade(args) => commands::upgrade::run(&args),
        Command::UpgradeCheck(args) => check_upgrade(args),
        Command::Check(args) => commands::check::run(&args),
        Command::Cat(args) => commands::cat::run(&args),
        Command::Recover(args) => commands::recover::run(&args),
        Command::Repair(args) => commands::repair::run(&args),
        Command::Dump(args) => commands::dump::run(&args),
        Command::Restore(args) => commands::restore::run(&args),
        Command::Pack(args) => commands::pack::run(&args),
        Command::ForgetCache(args) => commands::forget_cache::run(&args),
        Command::ForgetDisk(args) => commands::forget_disk::run(&args),
        Command::Demo(args) => commands::demo::run(&args),
    }
}

/// Answers if this program can go on with a daemon of that command line.
fn check_upgrade(args: commands::upgrade::CheckArgs) -> Result<(), Failure> {
    let line = std::iter::once("ubcache".into()).chain(args.command);
    match Cli::try_parse_from(line) {
        Ok(Cli { command: Command::Serve(args) }) => commands::upgrade::check(*args),
        Ok(_) => Err(Failure::usage("upgrade-check", "the command is not `serve`")),
        Err(error) => {
            let why = error.to_string();
            Err(Failure::usage("upgrade-check", why.trim_start_matches("error: ").trim_end()))
        }
    }
}

/// The command line, for manual pages and completions.
pub fn command_line() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    /// The manual pages take their examples from there.
    #[test]
    fn every_command_has_an_example() {
        for command in
            super::command_line().get_subcommands().filter(|command| !command.is_hide_set())
        {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let example = help.split_once("Example:\n").map_or("", |(_, example)| example);
            let begins = format!("  ubcache {} ", command.get_name());
            assert!(
                format!("{example} ").replace('\n', " ").starts_with(&begins),
                "{begins}: {help}"
            );
        }
    }
}
