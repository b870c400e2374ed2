//! `ubcache daemon`, also as `ubcached`: serves the sets of configuration files.

use std::net::SocketAddr;
use std::path::PathBuf;

use ubcache_daemon::page::StatusPageOptions;
use ubcache_daemon::supervisor::{self, Options, Started};
use ubcache_daemon::{Failure, log};

use super::print;
use super::serve::{LogFormat, exports};

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
    /// Show a status page in browsers, read-only, and /v1/metrics for Prometheus
    #[arg(long, value_name = "ADDRESS:PORT")]
    status_page: Option<SocketAddr>,
    /// Readers of the status page have to know the token in this file; needed unless the address is
    /// a loopback one
    #[arg(long, value_name = "FILE")]
    status_token: Option<PathBuf>,
    /// Lock memory once used, so that it is not paged out: for clients on this machine, which may
    /// wait for the daemon when memory is short
    #[arg(long)]
    lock_memory: bool,
    /// Form of the log: lines of text or JSON objects, to standard error, or entries with fields,
    /// to the socket of systemd's journal
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// The socket of systemd's journal
    #[arg(long, value_name = "PATH", hide = true, default_value = log::JOURNAL_SOCKET)]
    journal_socket: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    log::start(&args.log_format.form(&args.journal_socket))?;
    let options = Options {
        paths: args.config.clone(),
        control: args.control.clone(),
        status_page: StatusPageOptions {
            address: args.status_page,
            token: args.status_token.clone(),
        },
        lock_memory: args.lock_memory,
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
