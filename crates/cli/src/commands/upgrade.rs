//! `ubcache upgrade`: another program goes on in the place of a running `ubcache serve`; and the
//! question of the old one to the new.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;

use ubcache_daemon::control::{ControlRequest, ask};
use ubcache_daemon::{Failure, upgrade};

use super::choose::Daemon;
use super::members::absolute;
use super::print;

const AFTER_HELP: &str = "\
The new program is asked first, with the daemon's command line: if it can't be run or refuses,
nothing changes. Then requests in flight are answered, the set is stopped, and the new program goes
on in the same process, with the same command line, process id and sockets, and with all clients:
they notice a pause, and no error. If it can't open the set, the old program goes on instead. The
command says how long clients waited. The same command brings an older program back.

Exit codes: 0 done, 1 refused, or the old program goes on, 2 could not run, 3 no daemon answers.

Example:
  ubcache upgrade";

/// Let another program, or the new one at the same path, go on with all clients of a daemon
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    daemon: Daemon,
    /// The program [default: what is now at the path by which the daemon was started]
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Answer if this program can go on with a daemon of this command line
#[derive(clap::Args, Debug)]
pub struct CheckArgs {
    /// The command line
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let socket = args.daemon.one()?;
    let program = args.program.as_deref().map(absolute).transpose()?;
    let done = ask(&socket, &ControlRequest::Upgrade { program })?;
    if args.json {
        return print(&format!("{done}\n"));
    }
    let word = |name: &str| done[name].as_str().unwrap_or_default().to_owned();
    let number = |name: &str| done[name].as_u64().unwrap_or_default();
    print(&format!(
        "{}, version {}, goes on in place of version {}; {} clients waited for {} ms\n",
        word("program"),
        word("version"),
        word("before"),
        number("clients"),
        number("pause_ms")
    ))
}

/// Answers the question on standard input, for that command line.
pub fn check(args: super::serve::Args) -> Result<(), Failure> {
    const QUESTION_BYTES_MAX: u64 = 64 << 10;
    let refused = |why: &dyn std::fmt::Display| Failure::refused_because("upgrade-check", why);
    let mut question = String::new();
    std::io::stdin()
        .take(QUESTION_BYTES_MAX)
        .read_to_string(&mut question)
        .map_err(|error| refused(&error))?;
    let config = args.into_config()?;
    let answer = upgrade::answer(&question, &config).map_err(|why| refused(&why))?;
    print(&format!("{answer}\n"))
}
