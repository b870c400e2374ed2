//! An export of an NBD server as a backing device.

use std::cell::RefCell;
use std::net::ToSocketAddrs;
use std::path::Path;
use std::rc::Rc;

use ubcache_env::{Nanos, StreamError};
use ubcache_host::{HostEnv, HostSocket, SocketError};
use ubcache_nbd::client::{Connect, OpenFailure, RemoteDisk, RemoteEvent, RemoteOptions};

use super::address::{NbdExport, NbdServer};
use super::connection::{Connection, ConnectionState, LATE_WRITES_END, Purpose};
use super::nbd_stream::{NbdStream, Tls};
use crate::failure::Failure;

/// Time that a server has for an answer to a command that only looks.
const LOOK_TIMEOUT: Nanos = Nanos::from_secs(10);
/// Number of an error without one.
const EIO: i32 = 5;

type Disk = RemoteDisk<HostEnv, HostConnect>;

/// An export that is in use.
pub struct NbdDisk {
    name: String,
    disk: Rc<Disk>,
    state: Rc<RefCell<ConnectionState>>,
}

impl NbdDisk {
    /// Connects to the server, and opens the export. `name`: the URI as it was given.
    ///
    /// # Errors
    /// The server does not answer, has no such export, or one that is no disk.
    pub(super) async fn open(
        env: &HostEnv,
        name: &Path,
        to: &NbdExport,
        purpose: Purpose,
    ) -> Result<NbdDisk, Failure> {
        let state = Rc::<RefCell<ConnectionState>>::default();
        let last_error = Rc::<RefCell<Option<String>>>::default();
        let tls = match &to.tls {
            None => None,
            Some(tls) => Some(Tls::read(name, &to.server, tls)?),
        };
        let server = to.server.clone();
        let connect = HostConnect { env: env.clone(), to: server, tls, last: last_error.clone() };
        let mut options = RemoteOptions::default();
        match purpose {
            Purpose::Look => {
                options.connections = 1;
                options.deadline = LOOK_TIMEOUT;
                options.patience = Nanos(0);
            }
            Purpose::Change => options.connections = 1,
            Purpose::Serve => {
                let (state, name) = (state.clone(), name.display().to_string());
                options.fence = LATE_WRITES_END;
                options.events = Some(Rc::new(move |event| follow(&state, &name, event)));
            }
        }
        let opened = RemoteDisk::open(env.clone(), connect, to.export.clone(), options).await;
        let disk = opened.map_err(|error| {
            let why = last_error.borrow_mut().take();
            open_failure(name, to, &error, why.as_deref())
        })?;
        if purpose != Purpose::Look && disk.read_only() {
            disk.close().await;
            return Err(read_only(name));
        }
        Ok(NbdDisk { name: name.display().to_string(), disk, state })
    }

    /// The device.
    pub(super) fn device(&self) -> Rc<Disk> {
        self.disk.clone()
    }

    /// The state of the connection.
    pub(super) fn connection(&self) -> Connection {
        let counters = self.disk.counters();
        Connection {
            state: self.state.borrow().clone(),
            connections: counters.connections,
            reconnects: counters.reconnects,
            resent_requests: counters.resent,
        }
    }

    /// Waits until no write of a connection that was lost can land any more.
    pub(super) async fn landed(&self) {
        let left = self.disk.landing();
        if left > Nanos(0) {
            tracing::info!(
                device = self.name,
                seconds = left.as_millis().div_ceil(1000),
                "waiting until the server can't carry out any write of a connection that was lost"
            );
            self.disk.landed().await;
        }
    }

    /// Says goodbye to the server. Nothing is sent to it any more.
    pub(super) async fn close(&self) {
        self.disk.close().await;
    }
}

/// Notes and logs a change of state.
fn follow(state: &RefCell<ConnectionState>, device: &str, event: RemoteEvent) {
    match &event {
        RemoteEvent::Lost { reason } => {
            state.replace(ConnectionState::Lost(reason.clone()));
            tracing::warn!(device, "{event}; requests wait, and attempts to reach it go on");
        }
        RemoteEvent::Back { .. } => {
            state.replace(ConnectionState::Connected);
            tracing::info!(device, "{event}");
        }
        RemoteEvent::Failing { reason } => {
            state.replace(ConnectionState::Failing(reason.clone()));
            tracing::error!(device, "{event}");
        }
        RemoteEvent::GivenUp { reason } => {
            state.replace(ConnectionState::GivenUp(reason.clone()));
            tracing::error!(
                device,
                "{event}. To do: have the server give the former export again, and start again"
            );
        }
        RemoteEvent::Grown { .. } => tracing::warn!(device, "{event}"),
        RemoteEvent::MayBeLost { .. } => tracing::error!(device, "{event}"),
    }
}

fn read_only(name: &Path) -> Failure {
    Failure::could_not_run(name, "the export is read-only")
        .expected("an export that can be written")
        .advice("start its server without --read-only (nbdkit, qemu-nbd: -r)")
}

fn open_failure(name: &Path, to: &NbdExport, error: &OpenFailure, why: Option<&str>) -> Failure {
    match error {
        OpenFailure::Connect(StreamError::Tls(why)) => {
            Failure::could_not_run(name, "the server can't be trusted, or does not trust ubcache")
                .found(why)
                .expected("certificates by which both sides know each other")
                .advice(
                    "tls-certificates=DIRECTORY in the URI, with the ca-cert.pem that has signed \
                     the server's certificate, and client-cert.pem and client-key.pem if it wants \
                     them; tls-hostname=NAME if its certificate is for another name",
                )
        }
        OpenFailure::NoTls(_) => Failure::could_not_run(name, "the server has no TLS")
            .found(error)
            .expected("a server that encrypts")
            .advice("start it with certificates, or name it by nbd:// on a network you trust"),
        OpenFailure::Connect(_) => Failure::could_not_run(name, "the server can't be reached")
            .found(why.map_or_else(|| error.to_string(), str::to_owned))
            .expected(format_args!("an NBD server at {}", to.server))
            .advice("start it, or check host, port and path of the URI"),
        OpenFailure::Silent(_) | OpenFailure::Ended(_) => {
            Failure::could_not_run(name, "the server does not answer")
                .found(error)
                .expected(format_args!("an NBD server at {}", to.server))
                .advice(
                    "is the server busy with another client, and takes only one? qemu-nbd: -t -e \
                     16. If it has hung, start it again",
                )
        }
        OpenFailure::Refused { message, .. } => {
            Failure::could_not_run(name, "the server does not give this export")
                .found(match message.as_str() {
                    "" => error.to_string(),
                    words => words.to_owned(),
                })
                .expected(format_args!("an export of the name {:?}", to.export))
                .advice("`nbdinfo --list URI` prints the names that the server has")
        }
        OpenFailure::Size { found, multiple } => {
            Failure::refused(name, "the size is not a whole number of blocks")
                .found(format_args!("{found} bytes"))
                .expected(format_args!("a multiple of {multiple}, more than 0"))
                .advice("give it another size; nbdkit: --filter=truncate round-down=512")
        }
        OpenFailure::NoFlush => Failure::refused(name, "the server can't flush")
            .found("an export without NBD_CMD_FLUSH")
            .expected("a server that makes durable what it has written when it is asked to")
            .advice(
                "use another server or plugin; if every write is durable when it is answered, have \
                 the server say that it flushes",
            ),
        OpenFailure::TlsRequired => Failure::could_not_run(name, "the server demands TLS")
            .expected("nbds:// or nbds+unix://")
            .advice("write nbds in the place of nbd, with tls-certificates=DIRECTORY"),
        OpenFailure::Block { found } => Failure::refused(name, "its blocks are too large")
            .found(format_args!("requests of {found} bytes at least"))
            .expected("a power of two, of 65536 bytes at most")
            .advice("let the server take smaller requests; nbdkit: --filter=blocksize-policy"),
        OpenFailure::Protocol(_) | OpenFailure::OldServer { .. } => {
            Failure::could_not_run(name, "it does not speak NBD as it should")
                .found(error)
                .expected(format_args!("an NBD server at {}", to.server))
                .advice("is another service at this port?")
        }
        error => Failure::could_not_run(name, error),
    }
}

/// Connects to a server of this or another machine.
pub struct HostConnect {
    env: HostEnv,
    to: NbdServer,
    tls: Option<Tls>,
    /// Words about the last attempt, which have more than a number.
    last: Rc<RefCell<Option<String>>>,
}

impl HostConnect {
    fn failed(&self, error: SocketError) -> StreamError {
        self.last.replace(Some(error.to_string()));
        match error {
            SocketError::Os { source, .. } => StreamError::Os(source.raw_os_error().unwrap_or(EIO)),
            _ => StreamError::Closed,
        }
    }

    /// Connects to the first address of a host that answers.
    async fn connect_tcp(&self, host: &str, port: u16) -> Result<HostSocket, StreamError> {
        let name = (host.to_owned(), port);
        let found = self.env.blocking(move || {
            name.to_socket_addrs().map(Vec::from_iter).map_err(|error| error.to_string())
        });
        let addresses = found.await.unwrap_or_else(|| Ok(Vec::new())).map_err(|error| {
            self.last.replace(Some(format!("the host {host} is not known: {error}")));
            StreamError::Os(EIO)
        })?;
        let mut failed = StreamError::Closed;
        for address in addresses {
            match HostSocket::connect_tcp(&self.env, address).await {
                Ok(socket) => return Ok(socket),
                Err(error) => failed = self.failed(error),
            }
        }
        Err(failed)
    }
}

impl Connect for HostConnect {
    type Stream = NbdStream;

    async fn connect(&self) -> Result<NbdStream, StreamError> {
        let socket = match &self.to {
            NbdServer::Tcp(host, port) => self.connect_tcp(host, *port).await,
            NbdServer::Unix(path) => {
                let connected = HostSocket::connect_unix(&self.env, path).await;
                connected.map_err(|error| self.failed(error))
            }
        };
        Ok(NbdStream::new(socket?, self.tls.as_ref()))
    }
}
