//! `ubcache doctor`: abilities of this machine, and those that ubcache uses.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use ubcache_daemon::Failure;
use ubcache_daemon::ublk::driver::{Driver, features};
use ubcache_host::{Host, IoBackend};

use super::print;

const AFTER_HELP: &str = "\
Nothing is changed. What needs root is told so.

Exit codes: 0 done, 2 could not run.

Example:
  ubcache doctor";

/// Tell what this machine offers: ways of I/O, block devices, limits, and what is used of it
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Abilities that were found.
#[derive(Serialize, Debug)]
struct Findings {
    kernel: String,
    /// `ring` or `pool`.
    io: String,
    ublk: Ublk,
    /// The kernel's NBD client can be used.
    nbd: bool,
    /// The kernel may be kept from making a daemon wait for its own clients when memory is short.
    io_flusher: bool,
    /// Bytes that may be locked in memory; none: without a limit.
    locked_memory_bytes: Option<u64>,
}

/// The driver of block devices.
#[derive(Serialize, Debug, Default)]
struct Ublk {
    available: bool,
    /// The reason why it is not.
    why: Option<String>,
    used: Vec<Ability>,
    /// Abilities of the driver that are not used.
    not_used: Vec<&'static str>,
}

/// An ability of the driver.
#[derive(Serialize, Debug)]
struct Ability {
    name: &'static str,
    there: bool,
    what: &'static str,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let found = findings();
    if args.json {
        let json = serde_json::to_string_pretty(&found).expect("plain data always serializes");
        return print(&(json + "\n"));
    }
    print(&as_text(&found))
}

fn findings() -> Findings {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    Findings {
        kernel: read("/proc/sys/kernel/osrelease"),
        io: match Host::new(IoBackend::Auto) {
            Ok(host) => host.backend_name().to_owned(),
            Err(error) => format!("none: {error}"),
        },
        ublk: ublk(),
        nbd: Path::new("/sys/module/nbd").exists(),
        io_flusher: ubcache_host::memory::is_io_flusher().is_ok(),
        locked_memory_bytes: locked_memory(&read("/proc/self/limits")),
    }
}

fn ublk() -> Ublk {
    let features = match Driver::open().and_then(|driver| features(&driver)) {
        Ok(features) => features,
        Err(failure) => return Ublk { why: Some(format!("{failure:#}")), ..Ublk::default() },
    };
    let used = features.used();
    let used = used.map(|(it, there)| Ability { name: it.name, there, what: it.what });
    Ublk { available: true, why: None, used: used.collect(), not_used: features.unused().collect() }
}

fn locked_memory(limits: &str) -> Option<u64> {
    let line = limits.lines().find(|line| line.starts_with("Max locked memory"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

fn as_text(found: &Findings) -> String {
    let mut text = format!("kernel {}\n", found.kernel);
    let io = match found.io.as_str() {
        "ring" => "io_uring".to_owned(),
        "pool" => "epoll and threads: io_uring is not available, which is slower, and block \
                   devices (--ublk) need it"
            .to_owned(),
        other => other.to_owned(),
    };
    let _ = writeln!(text, "I/O: {io}");
    match &found.ublk.why {
        Some(why) => {
            let _ = writeln!(text, "block devices (ublk): no; {why}");
        }
        None => {
            let _ = writeln!(text, "block devices (ublk): yes");
            for ability in &found.ublk.used {
                let there = if ability.there { "used" } else { "not in this kernel" };
                let _ = writeln!(text, "  {:12} {there}: {}", ability.name, ability.what);
            }
            if !found.ublk.not_used.is_empty() {
                let names = found.ublk.not_used.join(", ");
                let _ = writeln!(text, "  offered and not used: {names}");
            }
        }
    }
    let nbd = if found.nbd { "the module is loaded" } else { "no module; `modprobe nbd`" };
    let _ = writeln!(text, "NBD clients of the kernel: {nbd}");
    let flusher = if found.io_flusher {
        "yes"
    } else {
        "no: a file system on a block device of the daemon may make it wait for itself when \
         memory is short; CAP_SYS_RESOURCE"
    };
    let _ = writeln!(text, "I/O flusher (PR_SET_IO_FLUSHER): {flusher}");
    let locked = found.locked_memory_bytes.map_or("no limit".to_owned(), |bytes| {
        format!(
            "{} (--lock-memory needs no limit, or root)",
            ubcache_daemon::size::show_size(bytes)
        )
    });
    let _ = writeln!(text, "locked memory: {locked}");
    text
}
