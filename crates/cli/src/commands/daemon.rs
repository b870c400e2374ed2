//! `ubcache daemon`, also as `ubcached`: serves the sets of configuration files.

use std::path::PathBuf;

use ubcache_daemon::Failure;
use ubcache_daemon::supervisor::{self, Options, Started};

use super::print;
use super::process::Process;
use super::serve::exports;

const AFTER_HELP: &str = "\
Each file NAME.toml is a set of that name; docs/reference/config.md and `man ubcache.toml` have its
keys. A file with a fault, or whose devices are missing, is logged, and the other sets are served.
SIGHUP does as `ubcache config apply` does, and has certificates read again. SIGTERM and SIGINT stop
all sets cleanly.

Exit codes: 0 stopped cleanly, 1 no set could be started, or one was not stopped cleanly, 2 could
not run, 5 a set has failed.

Example:
  ubcache daemon --config /etc/ubcache";

/// Serve the sets of configuration files over NBD, a thread for each, until SIGTERM or SIGINT
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// A configuration file, or a directory of them; more than once [default: /etc/ubcache]
    #[arg(long, value_name = "PATH")]
    config: Vec<PathBuf>,
    /// Control socket of all sets [default: /run/ubcache/ubcached.sock or
    /// $XDG_RUNTIME_DIR/ubcache/ubcached.sock]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    #[command(flatten)]
    process: Process,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    args.process.start_log()?;
    let options = Options {
        paths: args.config.clone(),
        control: args.control.clone(),
        status_page: args.process.status_page(),
        lock_memory: args.process.lock_memory,
    };
    // Clients are served even if standard output is closed.
    supervisor::run(&options, |sets, page| drop(print(&greeting(sets, page))))
}

fn greeting(sets: &[Started<'_>], page: Option<&str>) -> String {
    let mut text = String::new();
    if let Some(url) = page {
        text += &format!("status page {url}\n");
    }
    for Started { name, ready } in sets {
        match ready {
            Ok(ready) => {
                text += &exports(ready);
                text += &format!("set {name} {}\n", ready.set);
            }
            Err(why) => text += &format!("not started {name}: {why:#}\n"),
        }
    }
    let serving = sets.iter().filter(|set| set.ready.is_ok()).count();
    text + &format!("ready: {serving} of {} sets\n", sets.len())
}
