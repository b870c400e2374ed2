//! Choice of a running daemon, by its control socket, or by what it serves.

use std::path::{Path, PathBuf};

pub use ubcache_daemon::control::report;
use ubcache_daemon::control::{denied, find_sockets, socket_directories};
use ubcache_daemon::served::report::SetReport;
use ubcache_daemon::{Code, Failure};

/// Options that choose a daemon.
#[derive(clap::Args, Debug)]
pub struct Daemon {
    /// Control socket of the daemon [default: the only one in /run/ubcache and
    /// $XDG_RUNTIME_DIR/ubcache]
    #[arg(long, value_name = "PATH", conflicts_with = "daemon")]
    control: Option<PathBuf>,
    /// The daemon that serves this: UUID of a set or a disk, or the beginning of one, label, or
    /// name of an export
    #[arg(long, value_name = "NAME")]
    daemon: Option<String>,
}

impl Daemon {
    /// The sockets of all daemons meant: the given one, or every live one in the usual places.
    pub fn all(&self) -> Result<Vec<PathBuf>, Failure> {
        if let Some(path) = &self.control {
            return Ok(vec![path.clone()]);
        }
        let found = find_sockets();
        if found.live.is_empty() {
            return Err(match found.denied.as_slice() {
                [] => no_daemon(&found.stale),
                [path] => denied(path),
                [path, others @ ..] => {
                    let others: Vec<String> =
                        others.iter().map(|path| path.display().to_string()).collect();
                    denied(path).found(format_args!("the same for {}", others.join(", ")))
                }
            });
        }
        let Some(name) = &self.daemon else { return Ok(found.live) };
        let mut serve_it = Vec::new();
        for socket in &found.live {
            let report = report(socket)?;
            if report.sets.iter().any(|set| serves(set, name)) {
                serve_it.push(socket.clone());
            }
        }
        match serve_it.is_empty() {
            true => Err(Failure::usage(
                format_args!("--daemon {name}"),
                "no daemon serves a set, disk, label or export of that name",
            )
            .with_code(Code::NoDaemon)
            .advice("`ubcache status` shows all daemons of this user")),
            false => Ok(serve_it),
        }
    }

    /// The socket of the one daemon meant.
    pub fn one(&self) -> Result<PathBuf, Failure> {
        let mut all = self.all()?;
        match (all.len(), all.pop()) {
            (1, Some(path)) => Ok(path),
            (count, last) => {
                all.extend(last);
                let names: Vec<String> = all.iter().map(|path| name_of(path)).collect();
                Err(Failure::usage("--daemon", "there is more than one daemon")
                    .found(format_args!("{count}: {}", names.join("; ")))
                    .advice("choose one with --daemon NAME, or its socket with --control PATH"))
            }
        }
    }
}

/// The sets and exports of the daemon behind a socket, in a line.
fn name_of(socket: &Path) -> String {
    let Ok(report) = report(socket) else { return socket.display().to_string() };
    let sets = report.sets.iter().map(|set| {
        let exports: Vec<&str> = set.volumes.iter().map(|volume| volume.name.as_str()).collect();
        format!("set {} ({})", set.id(), exports.join(", "))
    });
    sets.collect::<Vec<_>>().join(", ")
}

fn serves(set: &SetReport, name: &str) -> bool {
    const UUID_DIGITS_MIN: usize = 4;
    let is_uuid =
        |uuid: &str| uuid == name || name.len() >= UUID_DIGITS_MIN && uuid.starts_with(name);
    let is_volume = set
        .volumes
        .iter()
        .any(|volume| volume.name == name || volume.label == name || is_uuid(&volume.uuid));
    is_volume || is_uuid(&set.uuid) || !name.is_empty() && set.name == name
}

fn no_daemon(stale: &[PathBuf]) -> Failure {
    let places: Vec<String> =
        socket_directories().iter().map(|dir| format!("{}/*.sock", dir.display())).collect();
    let failure = Failure::usage("no daemon", "no `ubcache serve` answers at a control socket")
        .with_code(Code::NoDaemon);
    let failure = match stale {
        [] => failure,
        stale => failure.found(format_args!(
            "left by a daemon that was killed: {}",
            stale.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        )),
    };
    failure
        .expected(format_args!("a live socket among {}", places.join(", ")))
        .advice("start `ubcache serve`, or give its socket with --control PATH")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ubcache_daemon::served::report::VolumeReport;

    #[test]
    fn a_set_is_found_by_what_it_serves() {
        let volume = VolumeReport {
            name: "data".into(),
            label: "archive".into(),
            uuid: "1b2c3d4e-0000".into(),
            ..VolumeReport::default()
        };
        let set = SetReport {
            uuid: "6dab8f32-0000".into(),
            volumes: vec![volume],
            ..SetReport::default()
        };
        for name in ["data", "archive", "1b2c3d4e-0000", "1b2c", "6dab8f32-0000", "6dab8"] {
            assert!(serves(&set, name), "{name}");
        }
        for name in ["", "dat", "6da", "b8f32", "6dab8f32-00001"] {
            assert!(!serves(&set, name), "{name}");
        }
    }
}
