//! Listening sockets that the parent process made (`sd_listen_fds(3)`): systemd's socket units,
//! libnbd's socket activation.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys;

/// The first descriptor that is passed.
const FIRST_FD: RawFd = 3;

/// A socket that was passed can not be used.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// LISTEN_FDS is no number.
    #[error("LISTEN_FDS is \"{0}\"; expected the number of sockets that are passed")]
    Count(String),
    /// A descriptor is no stream socket that listens.
    #[error(
        "descriptor {fd} of {count} (LISTEN_FDS) is {found}; expected a unix socket with a path or \
         a TCP socket, that listens (ListenStream= in a systemd unit)"
    )]
    NoListener {
        /// The descriptor.
        fd: RawFd,
        /// Number of descriptors.
        count: u16,
        /// The kind of descriptor.
        found: String,
    },
}

/// The address of a socket that was passed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PassedAddress {
    /// Path of a unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
}

/// A listening socket that was passed.
#[derive(Debug)]
pub struct PassedSocket {
    pub(crate) fd: OwnedFd,
    /// Its address.
    pub address: PassedAddress,
}

/// Takes the sockets that were passed to this process; none if there are none, or if they were
/// taken before. To be called before anything is opened: a descriptor that was announced and not
/// passed would be another's.
pub fn passed_sockets() -> Result<Vec<PassedSocket>, ActivationError> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let variable = |name: &str| std::env::var(name).ok();
    let for_us = variable("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string());
    let Some(count) = variable("LISTEN_FDS").filter(|_| for_us) else { return Ok(Vec::new()) };
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let count = count.parse::<u16>().map_err(|_| ActivationError::Count(count))?;
    (FIRST_FD..FIRST_FD + RawFd::from(count))
        .map(|fd| take(fd).map_err(|found| ActivationError::NoListener { fd, count, found }))
        .collect()
}

/// Takes one; says what it is if it is no listener.
fn take(number: RawFd) -> Result<PassedSocket, String> {
    let name = std::fs::read_link(format!("/proc/self/fd/{number}"));
    let name = name.map_or_else(|_| "not open".to_owned(), |name| name.display().to_string());
    let fd = sys::take_passed(number).map_err(|_| name.clone())?;
    let option = |option| sys::socket_option(&fd, option).map_err(|_| name.clone());
    if option(libc::SO_TYPE)? != libc::SOCK_STREAM {
        return Err("not a stream socket".to_owned());
    }
    if option(libc::SO_ACCEPTCONN)? == 0 {
        return Err("a socket that does not listen".to_owned());
    }
    let domain = option(libc::SO_DOMAIN)?;
    let copy = fd.try_clone().map_err(|error| error.to_string())?;
    let address = match domain {
        libc::AF_UNIX => UnixListener::from(copy)
            .local_addr()
            .ok()
            .and_then(|address| address.as_pathname().map(|path| path.to_owned()))
            .map(PassedAddress::Unix),
        libc::AF_INET | libc::AF_INET6 => {
            TcpListener::from(copy).local_addr().ok().map(PassedAddress::Tcp)
        }
        _ => None,
    };
    let address = address.ok_or("a socket without a path or port")?;
    sys::set_nonblocking(&fd, true).map_err(|error| error.to_string())?;
    Ok(PassedSocket { fd, address })
}
