//! Encryption of connections over TCP: options, certificates, what is refused.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use ubcache_tls::{Files, Loaded, Refusal, ServerConfig};

use crate::failure::Failure;

/// Names of the files in a directory of certificates, as QEMU, libnbd and nbdkit have them.
const CERTIFICATE: &str = "server-cert.pem";
const KEY: &str = "server-key.pem";
const AUTHORITY: &str = "ca-cert.pem";

/// Options for TLS, as given.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TlsOptions {
    /// Directory with certificates under their usual names.
    pub directory: Option<PathBuf>,
    /// The server's certificate.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Authorities of the certificates of clients, which need one then.
    pub client_authorities: Option<PathBuf>,
    /// Clients need a certificate of the authority in the directory.
    pub verify_peer: bool,
    /// TCP without TLS is wanted.
    pub insecure: bool,
}

impl TlsOptions {
    /// Reads the certificates; none: TCP is in the clear. `tcp`: a TCP port, and the option that
    /// asks for it, if there is one; it has to be protected, or meant not to be.
    pub(crate) fn load(
        &self,
        tcp: Option<(&str, SocketAddr)>,
    ) -> Result<Option<Rc<Certificates>>, Failure> {
        let files = self.files()?;
        match (&files, tcp) {
            (Some(_), _) if self.insecure => {
                return Err(Failure::usage("--insecure-tcp", "certificates for TLS are given too")
                    .expected("one of the two: every TCP port is with TLS, or without"));
            }
            (None, Some((from, tcp))) if !self.insecure => return Err(unprotected(from, tcp)),
            (Some(_), None) => {
                tracing::warn!("certificates are given, but no TCP port: nothing is encrypted");
            }
            (None, Some((_, tcp))) => {
                tracing::warn!(
                    address = %tcp,
                    "TCP without TLS (--insecure-tcp): everyone on the way can read and change \
                     the data, and everyone who reaches the port is a client"
                );
            }
            _ => {}
        }
        let Some(files) = files else { return Ok(None) };
        let current = RefCell::new(read(&files)?);
        tracing::info!(
            certificate = %files.certificate.display(),
            clients = match &files.client_authorities {
                Some(path) => format!("with a certificate of {}", path.display()),
                None => "any".to_owned(),
            },
            "TCP is encrypted"
        );
        Ok(Some(Rc::new(Certificates { files, current })))
    }

    /// The files that the options mean; none: TLS is not wanted.
    fn files(&self) -> Result<Option<Files>, Failure> {
        let inside = |name: &str| self.directory.as_ref().map(|directory| directory.join(name));
        let certificate = self.certificate.clone().or_else(|| inside(CERTIFICATE));
        let key = self.key.clone().or_else(|| inside(KEY));
        let authority = || inside(AUTHORITY).filter(|_| self.verify_peer);
        let client_authorities = self.client_authorities.clone().or_else(authority);
        if self.verify_peer && client_authorities.is_none() {
            return Err(Failure::usage("--tls-verify-peer", "no authority is given")
                .expected("--tls-dir with ca-cert.pem, or --tls-client-ca FILE"));
        }
        match (certificate, key, client_authorities) {
            (Some(certificate), Some(key), client_authorities) => {
                Ok(Some(Files { certificate, key, client_authorities }))
            }
            (Some(_), None, _) => Err(Failure::usage("--tls-certificate", "its key is missing")
                .expected("--tls-key FILE as well")),
            (None, Some(_), _) => Err(Failure::usage("--tls-key", "its certificate is missing")
                .expected("--tls-certificate FILE as well")),
            (None, None, Some(_)) => {
                Err(Failure::usage("--tls-client-ca", "the server has no certificate of its own")
                    .expected(
                        "--tls-certificate FILE and --tls-key FILE, or --tls-dir DIR as well",
                    ))
            }
            (None, None, None) => Ok(None),
        }
    }
}

/// The certificates in use.
#[derive(Debug)]
pub(crate) struct Certificates {
    files: Files,
    current: RefCell<Arc<ServerConfig>>,
}

impl Certificates {
    /// For one more connection.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        self.current.borrow().clone()
    }

    /// Reads the files again, for connections from now on. If they can't be used, those before
    /// stay.
    pub(crate) fn reload(&self) {
        match read(&self.files) {
            Ok(config) => {
                *self.current.borrow_mut() = config;
                tracing::info!(
                    certificate = %self.files.certificate.display(),
                    "certificates were read again; they hold for new connections"
                );
            }
            Err(why) => {
                tracing::error!("certificates were not read again, those before stay: {why:#}");
            }
        }
    }
}

fn read(files: &Files) -> Result<Arc<ServerConfig>, Failure> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let Loaded { config, warnings } =
        ubcache_tls::load(files, now.map_or(0, |now| now.as_secs())).map_err(failure)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

fn unprotected(from: &str, address: SocketAddr) -> Failure {
    Failure::usage(
        format_args!("{from} tcp:{address}"),
        "TCP without TLS: everyone on the way could read and change the data",
    )
    .expected("certificates, or --insecure-tcp")
    .advice(
        "encrypt it: --tls-dir DIR, or --tls-certificate FILE --tls-key FILE (docs/guide/tls.md \
         makes them). If every machine and user that can reach the port is trusted: \
         --insecure-tcp. On one machine: --nbd unix:/PATH",
    )
}

fn failure(refusal: Refusal) -> Failure {
    let Refusal { path, what, expected, advice } = refusal;
    let failure = Failure::could_not_run(&path, what);
    let failure = if expected.is_empty() { failure } else { failure.expected(expected) };
    if advice.is_empty() { failure } else { failure.advice(advice) }
}
