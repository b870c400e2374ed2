//! The way of requests to a set: a control socket of its own, or the mailbox of the process.

use std::path::{Path, PathBuf};

use ubcache_env::{Env, Nanos};
use ubcache_format::Uuid;
use ubcache_host::{HostEnv, SocketError};

use crate::config::ServeConfig;
use crate::control::{ControlSocket, Mailroom, socket_directories};
use crate::failure::Failure;
use crate::served::process::Process;
use crate::served::world::{DEVICE_BUSY_TIMEOUT, World};
use crate::upgrade::heritage::Heritage;

/// The way of requests to the set.
pub(super) enum Way {
    /// A control socket of its own.
    Socket(ControlSocket),
    /// The mailbox that the control API of the process has.
    Mailroom(Mailroom),
}

/// The set's own control socket, made or inherited.
pub(super) async fn own_control<W: World>(
    world: &W,
    path: &Path,
    heritage: Option<&mut Heritage>,
) -> Result<Way, Failure> {
    match heritage.and_then(Heritage::take_control) {
        Some((fd, place)) => Ok(Way::Socket(ControlSocket::inherited(fd, place))),
        None => listen_for_control(world.host(), path).await.map(Way::Socket),
    }
}

/// Makes the control socket. One of a process that was killed gets a moment to go away.
pub(super) async fn listen_for_control(
    host: &HostEnv,
    path: &Path,
) -> Result<ControlSocket, Failure> {
    let end = host.now().after(DEVICE_BUSY_TIMEOUT);
    let mut made = ControlSocket::bind(path);
    while matches!(made, Err(SocketError::InUse { .. })) && host.now() < end {
        host.sleep(Nanos::from_millis(20)).await;
        made = ControlSocket::bind(path);
    }
    made.map_err(|error| {
        Failure::could_not_run(path, format_args!("can't make the control socket: {error}"))
            .advice("stop the daemon that uses it, or choose another path with --control PATH")
    })
}

/// Path of the control socket.
pub(super) fn control_path(config: &ServeConfig, uuid: Uuid) -> Result<PathBuf, Failure> {
    match &config.control {
        Some(path) => Ok(path.clone()),
        None => Ok(usable_directory()?.join(format!("{uuid}.sock"))),
    }
}

/// The place of kept memory: beside the control socket.
pub(super) fn kept_directory(config: &ServeConfig, process: &Process) -> Option<PathBuf> {
    let control = match process {
        Process::Own => control_path(config, Uuid::default()).ok()?,
        Process::Shared(shared) => shared.control.clone(),
    };
    control.parent().map(Path::to_owned)
}

/// The directory of the control socket, made if it is not there.
pub(crate) fn usable_directory() -> Result<PathBuf, Failure> {
    let mut why = None;
    for directory in socket_directories() {
        let made = std::fs::create_dir_all(&directory);
        let writable = made.and_then(|()| {
            // A directory that exists already may belong to another user.
            let probe = directory.join(format!(".{}", probe_number()));
            std::fs::write(&probe, "").and_then(|()| std::fs::remove_file(&probe))
        });
        match writable {
            Ok(()) => return Ok(directory),
            Err(error) => {
                why = Some(Failure::could_not_run(
                    &directory,
                    format_args!("can't put the control socket there: {error}"),
                ))
            }
        }
    }
    Err(why
        .unwrap_or_else(|| {
            Failure::usage("--control", "no default directory for the control socket exists")
        })
        .advice("give a path with --control PATH"))
}

/// A number that no other thread of this machine has at this time.
pub(super) fn probe_number() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
