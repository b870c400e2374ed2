//! The part of a start that needs no device for itself alone: looks at devices and certificates.

use std::net::SocketAddr;

use ubcache_host::{PassedAddress, PassedSocket};

use crate::config::{NbdAddress, ServeConfig};
use crate::failure::Failure;
use crate::open::io::start_io;
use crate::open::precheck::{Down, precheck};
use crate::upgrade::state::State;

/// Looks if this program can go on with the devices of another one, which uses them.
pub(crate) fn can_serve(config: &ServeConfig, state: &State) -> Result<(), Failure> {
    let config = state.adjust(config);
    let no_sockets = || tcp_port(&config, &[]);
    config.tls.load(inherited_tcp(state).or_else(no_sockets))?;
    let members = precheck(&config)?;
    let is_served = |it: &Down| state.volumes.iter().any(|volume| volume.name == it.name);
    if let Some(down) = members.down.into_iter().find(is_served) {
        return Err(down.why);
    }
    start_io().map(drop)
}

/// A TCP port among the sockets of the program before.
pub(crate) fn inherited_tcp(state: &State) -> Option<(&'static str, SocketAddr)> {
    state.listeners.iter().find_map(|listener| Some(("--nbd", listener.tcp?)))
}

/// A TCP port for clients, with the option that it comes from.
pub(crate) fn tcp_port(
    config: &ServeConfig,
    passed: &[PassedSocket],
) -> Option<(&'static str, SocketAddr)> {
    let given = config.nbd.iter().find_map(|address| match address {
        NbdAddress::Tcp(address) | NbdAddress::Tls(address) => Some(("--nbd", *address)),
        NbdAddress::Unix(_) => None,
    });
    given.or_else(|| {
        passed.iter().find_map(|socket| match &socket.address {
            PassedAddress::Tcp(address) => Some(("LISTEN_FDS", *address)),
            PassedAddress::Unix(_) => None,
        })
    })
}

/// Before any thread is started: see [`ubcache_host::memory`].
pub(crate) fn hold_memory(lock: bool) -> Result<(), Failure> {
    if let Err(error) = ubcache_host::memory::become_io_flusher() {
        tracing::debug!(%error, "not allowed to be an I/O flusher (PR_SET_IO_FLUSHER, \
            CAP_SYS_RESOURCE)");
    }
    if !lock {
        return Ok(());
    }
    ubcache_host::memory::lock_memory().map_err(|error| {
        Failure::usage(
            "--lock-memory",
            format_args!("can't keep memory from being paged out: {error}"),
        )
        .expected("root, or no limit for locked memory")
        .advice("`ulimit -l unlimited`, or LimitMEMLOCK=infinity in the systemd unit")
    })
}
