//! A connection to an NBD server: a socket, or TLS over it.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use ubcache_env::{Buf, IoVec, Protection, Stream, StreamError};
use ubcache_host::HostSocket;
use ubcache_tls::{ClientConfig, ClientFiles, Refusal, ServerName, TlsStream, load_client};

use super::address::{NbdServer, NbdTls};
use crate::failure::Failure;

/// Authorities of the system.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Certificates for connections to a server, and its name in its own.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// Reads the certificates that a URI names.
    pub(super) fn read(uri: &Path, server: &NbdServer, tls: &NbdTls) -> Result<Tls, Failure> {
        let files = match &tls.certificates {
            None => ClientFiles { authorities: SYSTEM_AUTHORITIES.into(), own: None },
            Some(directory) => {
                let own = [directory.join("client-cert.pem"), directory.join("client-key.pem")];
                let there = own.iter().any(|file| file.exists());
                let [certificate, key] = own;
                ClientFiles {
                    authorities: directory.join("ca-cert.pem"),
                    own: there.then_some((certificate, key)),
                }
            }
        };
        let (config, warnings) = load_client(&files).map_err(refused)?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        let name = match (&tls.hostname, server) {
            (Some(name), _) | (None, NbdServer::Tcp(name, _)) => name.clone(),
            (None, NbdServer::Unix(_)) => "localhost".to_owned(),
        };
        let parsed = ServerName::try_from(name.clone()).map_err(|_| {
            Failure::could_not_run(uri, "no name that a certificate can have")
                .found(format_args!("{name:?}"))
                .expected("the name or address of the host, or tls-hostname=NAME")
        })?;
        Ok(Tls { config, name: parsed })
    }
}

fn refused(refusal: Refusal) -> Failure {
    let Refusal { path, what, expected, advice } = refusal;
    let failure = Failure::could_not_run(&path, what);
    let failure = if expected.is_empty() { failure } else { failure.expected(expected) };
    if advice.is_empty() { failure } else { failure.advice(advice) }
}

/// See the module.
pub enum NbdStream {
    /// In the clear.
    Plain(HostSocket),
    /// Encrypted from the negotiation on.
    Tls(Box<TlsStream<HostSocket>>),
}

impl NbdStream {
    pub(super) fn new(socket: HostSocket, tls: Option<&Tls>) -> NbdStream {
        match tls {
            None => NbdStream::Plain(socket),
            Some(Tls { config, name }) => {
                let stream = TlsStream::client(Rc::new(socket), config.clone(), name.clone());
                NbdStream::Tls(Box::new(stream))
            }
        }
    }
}

impl Stream for NbdStream {
    async fn recv_at(&self, into: Buf, at: usize) -> (Buf, Result<usize, StreamError>) {
        match self {
            NbdStream::Plain(stream) => stream.recv_at(into, at).await,
            NbdStream::Tls(stream) => stream.recv_at(into, at).await,
        }
    }

    async fn send(&self, from: IoVec) -> Result<(), StreamError> {
        match self {
            NbdStream::Plain(stream) => stream.send(from).await,
            NbdStream::Tls(stream) => stream.send(from).await,
        }
    }

    fn close(&self) {
        match self {
            NbdStream::Plain(stream) => stream.close(),
            NbdStream::Tls(stream) => stream.close(),
        }
    }

    fn memory_bytes(&self) -> u64 {
        match self {
            NbdStream::Plain(stream) => stream.memory_bytes(),
            NbdStream::Tls(stream) => stream.memory_bytes(),
        }
    }

    fn protection(&self) -> Protection {
        match self {
            NbdStream::Plain(stream) => stream.protection(),
            NbdStream::Tls(stream) => stream.protection(),
        }
    }

    async fn encrypt(&self) -> Result<(), StreamError> {
        match self {
            NbdStream::Plain(stream) => stream.encrypt().await,
            NbdStream::Tls(stream) => stream.encrypt().await,
        }
    }

    async fn say_goodbye(&self) {
        match self {
            NbdStream::Plain(stream) => stream.say_goodbye().await,
            NbdStream::Tls(stream) => stream.say_goodbye().await,
        }
    }
}
