//! Unix and TCP stream sockets.
//!
//! Accepting and connecting wait for the descriptor to be ready and then make a call that does
//! not block, with both backends: dropping the future never loses a connection.

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::fs::Permissions;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ubcache_env::{Buf, Env, IoVec, Nanos, Stream, StreamError};

use crate::activation::{PassedAddress, PassedSocket};
use crate::handover::Handover;
use crate::op::{IoRequest, SLICE_BYTES, fill_list};
use crate::reactor::HostEnv;
use crate::sys::{self, Address};

/// Send buffer asked for on Unix sockets. (TCP grows its buffers by itself, unless one asks.)
const UNIX_SEND_BYTES: i32 = 4 << 20;
/// Most bytes that are sent at once: a batch of small replies that ends with a longer one.
const SEND_NOW_BYTES: usize = 2 * SLICE_BYTES + 4096;
/// Connections that may wait for `accept`.
const BACKLOG: i32 = 1024;
/// Time after which the kernel gives up what the peer does not acknowledge, also of a socket that
/// was closed.
const UNSENT_MS: i32 = 10_000;
/// Between attempts to connect to a Unix socket whose backlog is full, and how many of them.
const CONNECT_PAUSE: Nanos = Nanos::from_millis(1);
const CONNECT_ATTEMPTS: u32 = 5_000;

/// A socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error("{address}: another process listens there; stop it or choose another address")]
    InUse {
        /// Path or IP address.
        address: String,
    },
    /// Something that is not a socket has the path.
    #[error("{}: exists and is not a socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// No server listens there.
    #[error("{address}: no server listens there; is it running?")]
    Refused {
        /// Path or IP address.
        address: String,
    },
    /// The operating system gave another error.
    #[error("{address}: {doing} failed: {source}")]
    Os {
        /// Path or IP address.
        address: String,
        /// The step that failed.
        doing: &'static str,
        /// The error.
        source: io::Error,
    },
}

fn failed(address: &str, doing: &'static str) -> impl FnOnce(io::Error) -> SocketError {
    let address = address.to_owned();
    move |source| match source.raw_os_error() {
        Some(libc::EADDRINUSE) => SocketError::InUse { address },
        Some(libc::ECONNREFUSED) => SocketError::Refused { address },
        _ => SocketError::Os { address, doing, source },
    }
}

/// Rights of a unix socket: who may connect.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct SocketAccess {
    /// Permission bits.
    pub mode: u32,
    /// Number of its group; none: that of the process.
    pub group: Option<u32>,
}

impl Default for SocketAccess {
    /// For this user only.
    fn default() -> SocketAccess {
        SocketAccess { mode: 0o600, group: None }
    }
}

/// The number of a group, by its name or as a number; none if there is no such group.
pub fn group_id(name: &str) -> io::Result<Option<u32>> {
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    CString::new(name).map_or(Ok(None), |name| sys::group_number(&name))
}

/// Address of a listener.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ListenAddress {
    /// A unix socket that this program has made.
    Unix {
        /// Its path.
        path: PathBuf,
        /// Device and inode of the socket that was made, to remove only that.
        made: (u64, u64),
    },
    /// Made by the parent process, which removes it.
    Passed(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
}

/// A socket that accepts connections. A Unix socket is removed when this is dropped.
#[derive(Debug)]
pub struct HostListener {
    pub(crate) env: HostEnv,
    pub(crate) fd: Rc<OwnedFd>,
    pub(crate) place: ListenAddress,
    /// Another program goes on with it: the path stays.
    pub(crate) left: Cell<bool>,
}

impl HostListener {
    /// Listens at a path that only this user can use.
    pub fn bind_unix(env: &HostEnv, path: impl AsRef<Path>) -> Result<HostListener, SocketError> {
        HostListener::bind_unix_for(env, path, SocketAccess::default())
    }

    /// Listens at a path. A socket that a dead process has left there is replaced; anything else
    /// is left alone.
    pub fn bind_unix_for(
        env: &HostEnv,
        path: impl AsRef<Path>,
        access: SocketAccess,
    ) -> Result<HostListener, SocketError> {
        let (fd, place) = bind_unix_socket(path.as_ref(), access)?;
        Ok(HostListener::new(env, fd, place))
    }

    /// Listens at an IP address; port 0 lets the kernel choose.
    pub fn bind_tcp(env: &HostEnv, address: SocketAddr) -> Result<HostListener, SocketError> {
        let name = address.to_string();
        let listener = TcpListener::bind(address).map_err(failed(&name, "binding"))?;
        listener.set_nonblocking(true).map_err(failed(&name, "making it non-blocking"))?;
        let place = ListenAddress::Tcp(
            listener.local_addr().map_err(failed(&name, "asking for the address"))?,
        );
        let fd = OwnedFd::from(listener);
        sys::listen(&fd, BACKLOG).map_err(failed(&name, "listening"))?;
        Ok(HostListener::new(env, fd, place))
    }

    pub(crate) fn new(env: &HostEnv, fd: OwnedFd, place: ListenAddress) -> HostListener {
        HostListener { env: env.clone(), fd: Rc::new(fd), place, left: Cell::new(false) }
    }

    /// Listens on a socket that the parent process made.
    pub fn passed(env: &HostEnv, socket: PassedSocket) -> HostListener {
        let place = match socket.address {
            PassedAddress::Unix(path) => ListenAddress::Passed(path),
            PassedAddress::Tcp(address) => ListenAddress::Tcp(address),
        };
        HostListener::new(env, socket.fd, place)
    }

    /// The address of a TCP listener.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match self.place {
            ListenAddress::Tcp(address) => Some(address),
            ListenAddress::Unix { .. } | ListenAddress::Passed(_) => None,
        }
    }

    /// Waits for the next connection. An error such as "too many open files" does not end the
    /// listener; wait a little before the next call.
    pub async fn accept(&self) -> Result<HostSocket, SocketError> {
        let name = match &self.place {
            ListenAddress::Unix { path, .. } | ListenAddress::Passed(path) => {
                path.display().to_string()
            }
            ListenAddress::Tcp(address) => address.to_string(),
        };
        loop {
            readiness(&self.env, &self.fd, libc::POLLIN).await.map_err(failed(&name, "waiting"))?;
            match sys::accept(&self.fd) {
                Ok(fd) => {
                    return HostSocket::new(
                        &self.env,
                        fd,
                        matches!(self.place, ListenAddress::Tcp(_)),
                    )
                    .map_err(failed(&name, "setting options"));
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::ECONNABORTED | libc::EINTR | libc::EPROTO) => {}
                    _ => return Err(failed(&name, "accepting")(error)),
                },
            }
        }
    }
}

impl Drop for HostListener {
    fn drop(&mut self) {
        if !self.left.get() {
            remove_unix_socket(&self.place);
        }
    }
}

/// A socket that listens at a path, for any thread; see [`HostListener::bind_unix_for`]. It is not
/// removed by itself: see [`remove_unix_socket`].
pub fn bind_unix_socket(
    path: &Path,
    access: SocketAccess,
) -> Result<(OwnedFd, ListenAddress), SocketError> {
    let name = path.display().to_string();
    let address = Address::unix(path).map_err(failed(&name, "making the address"))?;
    let fd = sys::stream_socket(libc::AF_UNIX).map_err(failed(&name, "making a socket"))?;
    // On Linux the file of a socket gets the mode of its descriptor: never open to others.
    sys::set_mode(&fd, access.mode).map_err(failed(&name, "setting the mode"))?;
    let mut bound = sys::bind(&fd, &address);
    if bound.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EADDRINUSE)) {
        remove_stale(path, &name, &address)?;
        bound = sys::bind(&fd, &address);
    }
    bound.map_err(failed(&name, "binding"))?;
    let metadata =
        std::fs::symlink_metadata(path).map_err(failed(&name, "looking at the socket"))?;
    let place =
        ListenAddress::Unix { path: path.to_owned(), made: (metadata.dev(), metadata.ino()) };
    let ready = || {
        // Nobody can connect before it listens. The umask has taken bits from the mode.
        if access.group.is_some() {
            std::os::unix::fs::lchown(path, None, access.group)
                .map_err(failed(&name, "giving it to the group"))?;
        }
        std::fs::set_permissions(path, Permissions::from_mode(access.mode))
            .map_err(failed(&name, "setting the mode"))?;
        sys::listen(&fd, BACKLOG).map_err(failed(&name, "listening"))
    };
    if let Err(error) = ready() {
        remove_unix_socket(&place);
        return Err(error);
    }
    Ok((fd, place))
}

/// Removes the path of a unix socket that this program, or one before in this process, has made;
/// nothing else that is at the path meanwhile.
pub fn remove_unix_socket(place: &ListenAddress) {
    if let ListenAddress::Unix { path, made } = place
        && std::fs::symlink_metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == *made)
        && let Err(error) = std::fs::remove_file(path)
    {
        tracing::warn!(path = %path.display(), %error, "can't remove the socket");
    }
}

/// Removes a stale socket.
fn remove_stale(path: &Path, name: &str, address: &Address) -> Result<(), SocketError> {
    let kind = std::fs::symlink_metadata(path)
        .map_err(failed(name, "reading the type of the existing file"))?
        .file_type();
    if !kind.is_socket() {
        return Err(SocketError::NotASocket { path: path.to_owned() });
    }
    let probe = sys::stream_socket(libc::AF_UNIX).map_err(failed(name, "making a socket"))?;
    match sys::connect(&probe, address) {
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {
            tracing::info!(path = name, "removing a stale socket");
            std::fs::remove_file(path).map_err(failed(name, "removing the old socket"))
        }
        _ => Err(SocketError::InUse { address: name.to_owned() }),
    }
}

pub(crate) async fn readiness(env: &HostEnv, fd: &Rc<OwnedFd>, events: i16) -> io::Result<()> {
    let request = IoRequest::Poll { fd: fd.clone(), events: events as u32 };
    match env.core().submit(request).await.1 {
        Ok(_) => Ok(()),
        Err(errno) => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// A connected stream socket. Dropping it ends the connection.
///
/// Dropping the future of a receive may lose the bytes that arrive at that moment, dropping that
/// of a send may have sent a part: after either, only closing makes sense.
#[derive(Debug)]
pub struct HostSocket {
    env: HostEnv,
    pub(crate) fd: Rc<OwnedFd>,
    /// Kept for its memory.
    list: RefCell<Vec<libc::iovec>>,
    /// See the module `handover`.
    pub(crate) handover: Handover,
}

impl HostSocket {
    fn new(env: &HostEnv, fd: OwnedFd, tcp: bool) -> io::Result<HostSocket> {
        if tcp {
            sys::set_socket_option(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
            sys::set_socket_option(&fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
        } else {
            // Beyond the system's limit if we may; up to it otherwise.
            sys::set_socket_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, UNIX_SEND_BYTES)
                .or_else(|_| {
                    sys::set_socket_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUF, UNIX_SEND_BYTES)
                })?;
        }
        Ok(HostSocket::over(env, fd))
    }

    /// Connects to a Unix socket.
    pub async fn connect_unix(
        env: &HostEnv,
        path: impl AsRef<Path>,
    ) -> Result<HostSocket, SocketError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let address = Address::unix(path).map_err(failed(&name, "making the address"))?;
        Self::connect(env, &address, &name, false).await
    }

    /// Connects to an IP address.
    pub async fn connect_tcp(
        env: &HostEnv,
        address: SocketAddr,
    ) -> Result<HostSocket, SocketError> {
        Self::connect(env, &Address::ip(address), &address.to_string(), true).await
    }

    async fn connect(
        env: &HostEnv,
        to: &Address,
        name: &str,
        tcp: bool,
    ) -> Result<HostSocket, SocketError> {
        let fd = Rc::new(sys::stream_socket(to.family()).map_err(failed(name, "making a socket"))?);
        let mut attempts = 0;
        loop {
            match sys::connect(&fd, to) {
                Ok(()) => break,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINPROGRESS | libc::EINTR) => {
                        readiness(env, &fd, libc::POLLOUT)
                            .await
                            .map_err(failed(name, "connecting"))?;
                        sys::take_socket_error(&fd).map_err(failed(name, "connecting"))?;
                        break;
                    }
                    Some(libc::EAGAIN) if attempts < CONNECT_ATTEMPTS => {
                        attempts += 1;
                        env.sleep(CONNECT_PAUSE).await;
                    }
                    _ => return Err(failed(name, "connecting")(error)),
                },
            }
        }
        // io_uring only waits on descriptors that may block; the pool never lets them.
        sys::set_nonblocking(&fd, false).map_err(failed(name, "setting options"))?;
        let fd =
            Rc::try_unwrap(fd).or_else(|fd| fd.try_clone()).map_err(failed(name, "connecting"))?;
        if tcp {
            // Bytes of a connection that was given up are not delivered long after that.
            sys::set_socket_option(&fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, UNSENT_MS)
                .map_err(failed(name, "setting options"))?;
        }
        HostSocket::new(env, fd, tcp).map_err(failed(name, "setting options"))
    }
}

impl HostSocket {
    /// A socket that has its options.
    pub(crate) fn over(env: &HostEnv, fd: OwnedFd) -> HostSocket {
        let (env, list) = (env.clone(), RefCell::default());
        HostSocket { env, fd: Rc::new(fd), list, handover: Handover::default() }
    }

    /// The reactor's state.
    pub(crate) fn core(&self) -> &crate::reactor::Core {
        self.env.core()
    }

    /// Returns true if the peer has closed the connection altogether: it takes no reply any more.
    pub fn has_hung_up(&self) -> bool {
        // Asks for no event: the end is reported all the same.
        sys::poll_now(self.fd.as_raw_fd(), 0)
    }

    /// Address of the other end of a TCP connection.
    pub fn peer(&self) -> Option<SocketAddr> {
        let copy = self.fd.try_clone().ok()?;
        std::net::TcpStream::from(copy).peer_addr().ok()
    }

    /// Sends what there is room for. Returns how many bytes that is.
    fn send_now(&self, data: &IoVec) -> Result<usize, StreamError> {
        self.env.core().copies().count(data.len());
        let mut list = self.list.borrow_mut();
        fill_list(&mut list, data, 0, SEND_NOW_BYTES);
        // SAFETY: the list has just been made from memory that `data` holds.
        let sent = unsafe { sys::send_now(&self.fd, &list) };
        match sent {
            code if code == -libc::EAGAIN || code == -libc::EINTR => Ok(0),
            code if code < 0 => Err(stream_error(-code)),
            sent => Ok(sent as usize),
        }
    }
}

impl Stream for HostSocket {
    async fn recv_at(&self, into: Buf, at: usize) -> (Buf, Result<usize, StreamError>) {
        if into.len() <= at {
            return (into, Ok(0));
        }
        if self.handover.holds_input() {
            return (into, Err(StreamError::Closed));
        }
        let request = IoRequest::Recv { fd: self.fd.clone(), buf: into, at };
        let pending = self.env.core().submit(request);
        let under_way = self.handover.receives(pending.key());
        let (IoRequest::Recv { buf, .. }, outcome) = pending.await else {
            unreachable!("an operation gives its own request back")
        };
        drop(under_way);
        (buf, outcome.map_err(stream_error))
    }

    async fn send(&self, from: IoVec) -> Result<(), StreamError> {
        if from.is_empty() {
            return Ok(());
        }
        if self.handover.keeps_output() {
            self.handover.keep(from);
            return Ok(());
        }
        // Mostly it is short and there is room, and then nothing has to be waited for.
        let sent = if from.len() <= SEND_NOW_BYTES { self.send_now(&from)? } else { 0 };
        if sent == from.len() {
            return Ok(());
        }
        let data = if sent > 0 { from.cut(sent, from.len()) } else { from };
        let request = IoRequest::Send { fd: self.fd.clone(), data };
        let pending = self.env.core().submit(request);
        let under_way = self.handover.sends(pending.key());
        let (IoRequest::Send { data, .. }, outcome) = pending.await else {
            unreachable!("an operation gives its own request back")
        };
        drop(under_way);
        match outcome {
            Err(libc::ECANCELED) if self.handover.keeps_output() => self.handover.keep(data),
            Ok(sent) if sent < data.len() => self.handover.keep(data.cut(sent, data.len())),
            outcome => return outcome.map(drop).map_err(stream_error),
        }
        Ok(())
    }

    fn close(&self) {
        sys::shutdown(&self.fd);
    }
}

impl Drop for HostSocket {
    fn drop(&mut self) {
        // An abandoned operation may hold the descriptor for a moment; the peer shall not wait.
        if !self.handover.is_left() {
            sys::shutdown(&self.fd);
        }
    }
}

pub(crate) fn stream_error(errno: i32) -> StreamError {
    match errno {
        libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN | libc::ESHUTDOWN | libc::ECANCELED => {
            StreamError::Closed
        }
        errno => StreamError::Os(errno),
    }
}
