//! Control sockets: where they are, and how they are made.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use ubcache_host::{
    ListenAddress, SocketAccess, SocketError, bind_unix_socket, remove_unix_socket,
};

/// A socket that listens for the control API. Its path is removed when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    fd: OwnedFd,
    place: ListenAddress,
    /// Another program goes on with it: the path stays.
    left: bool,
}

impl ControlSocket {
    /// Listens at a path, for this user only.
    pub fn bind(path: &Path) -> Result<ControlSocket, SocketError> {
        let (fd, place) = bind_unix_socket(path, SocketAccess::default())?;
        Ok(ControlSocket { fd, place, left: false })
    }

    /// Takes up the socket that another program has left.
    pub(crate) fn inherited(fd: OwnedFd, place: ListenAddress) -> ControlSocket {
        ControlSocket { fd, place, left: false }
    }

    /// Its address, for the program that takes it up.
    pub(crate) fn place(&self) -> &ListenAddress {
        &self.place
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        match &self.place {
            ListenAddress::Unix { path, .. } | ListenAddress::Passed(path) => path,
            ListenAddress::Tcp(_) => unreachable!("control sockets are unix sockets"),
        }
    }

    /// A descriptor of it, for another thread or another program.
    pub(crate) fn descriptor(&self) -> std::io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Leaves the path to the one who has its descriptor.
    pub(crate) fn leave(&mut self) {
        self.left = true;
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if !self.left {
            remove_unix_socket(&self.place);
        }
    }
}

/// The directories where control sockets are put and looked for, best first.
pub fn socket_directories() -> Vec<PathBuf> {
    let run = PathBuf::from("/run/ubcache");
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => vec![run, PathBuf::from(dir).join("ubcache")],
        None => vec![run],
    }
}

/// Control sockets in the usual directories.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sockets {
    /// Sockets at which somebody answers.
    pub live: Vec<PathBuf>,
    /// Sockets, and directories of them, that this user may not use.
    pub denied: Vec<PathBuf>,
    /// Sockets of daemons that were killed: nobody listens there any more.
    pub stale: Vec<PathBuf>,
}

/// Looks for control sockets in the usual directories.
pub fn find_sockets() -> Sockets {
    find_sockets_in(&socket_directories())
}

fn find_sockets_in(directories: &[PathBuf]) -> Sockets {
    let mut found = Sockets::default();
    for directory in directories {
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) => {
                if error.kind() == ErrorKind::PermissionDenied {
                    found.denied.push(directory.clone());
                }
                continue;
            }
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != "sock") {
                continue;
            }
            match UnixStream::connect(&path) {
                Ok(_) => found.live.push(path),
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    found.denied.push(path);
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    found.stale.push(path);
                }
                Err(_) => {}
            }
        }
    }
    found.live.sort();
    found.stale.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn socket_of_a_killed_daemon_is_stale() {
        let directory = tempfile::tempdir().expect("a directory");
        let [live, stale] = ["live.sock", "stale.sock"].map(|name| directory.path().join(name));
        let _listener = UnixListener::bind(&live).expect("a socket");
        drop(UnixListener::bind(&stale).expect("a socket"));
        let found = find_sockets_in(&[directory.path().to_owned()]);
        assert_eq!(found, Sockets { live: vec![live], denied: Vec::new(), stale: vec![stale] });
    }
}
