//! Certificates and keys: read at the start, and refused with the reason if clients could not use
//! them.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{Error, InconsistentKeys, RootCertStore, ServerConfig};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage};

use crate::reasons::date;

/// Time before the end of the certificate from which on every start warns of it.
const EXPIRES_SOON: u64 = 30 * 86_400;
/// Permission: readable by everyone.
const OTHERS_READ: u32 = 0o004;

/// Files in PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Files {
    /// The server's certificate, and behind it those of the authorities between it and the root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities that sign the certificates of clients. Without it, clients need none.
    pub client_authorities: Option<PathBuf>,
}

/// A configuration for [`crate::TlsStream`].
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Arc<ServerConfig>,
    /// Things that are not as they should be, though they work: sentences.
    pub warnings: Vec<String>,
}

/// A file that can't be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The file.
    pub path: PathBuf,
    /// The fault.
    pub what: String,
    /// The content that should be there.
    pub expected: String,
    /// A remedy; may be empty.
    pub advice: String,
}

impl Refusal {
    pub(crate) fn new(
        path: &Path,
        what: impl fmt::Display,
        expected: impl fmt::Display,
    ) -> Refusal {
        Refusal {
            path: path.to_owned(),
            what: what.to_string(),
            expected: expected.to_string(),
            advice: String::new(),
        }
    }

    pub(crate) fn advice(mut self, advice: impl fmt::Display) -> Refusal {
        self.advice = advice.to_string();
        self
    }
}

/// Reads the files, and checks what clients would find fault with. `now`: seconds since 1970.
pub fn load(files: &Files, now: u64) -> Result<Loaded, Refusal> {
    let mut warnings = Vec::new();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(&files.certificate)?;
    check_certificate(&files.certificate, &chain[0], now, &mut warnings)?;
    let key = private_key(&files.key, &mut warnings)?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Refusal::new(&files.certificate, error, "a usable library for TLS"))?;
    let builder = match &files.client_authorities {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| {
                    let what = format_args!("a certificate in it can't be that of an authority: ");
                    Refusal::new(path, format_args!("{what}{error}"), "certificates of authorities")
                })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|error| {
                Refusal::new(path, format_args!("clients can't be verified by it: {error}"), "")
            })?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => Refusal::new(
            &files.key,
            format_args!("the key does not belong to {}", files.certificate.display()),
            "the private key of that certificate",
        ),
        Error::General(_) => Refusal::new(
            &files.key,
            format_args!("the key can't be used: {error}"),
            "RSA with 2048 to 4096 bits, ECDSA on P-256 or P-384, or Ed25519, unencrypted",
        )
        .advice(format_args!(
            "if it is such a key, give it the usual form, which certtool does not always write: \
             openssl pkcs8 -topk8 -nocrypt -in {} -out NEW-KEY",
            files.key.display()
        )),
        error => Refusal::new(
            &files.certificate,
            format_args!("the certificate can't be used: {error}"),
            "an X.509 certificate of version 3",
        ),
    })?;
    // Every connection shows its certificate anew: none is taken up again after its end.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Loaded { config: Arc::new(config), warnings })
}

/// Refuses what every client would refuse.
fn check_certificate(
    path: &Path,
    certificate: &CertificateDer<'_>,
    now: u64,
    warnings: &mut Vec<String>,
) -> Result<(), Refusal> {
    let certificate = EndEntityCert::try_from(certificate).map_err(|error| {
        let what = format_args!("the certificate can't be used: {error}");
        Refusal::new(path, what, "an X.509 certificate of version 3")
    })?;
    let advice = "have the authority sign a new one, and start again";
    match fault(&certificate, now) {
        Some(webpki::Error::CertExpired { not_after, .. }) => {
            let what = format_args!("the certificate expired on {}", date(not_after.as_secs()));
            let expected = format_args!("one that is valid today, {}", date(now));
            return Err(Refusal::new(path, what, expected).advice(advice));
        }
        Some(webpki::Error::CertNotValidYet { not_before, .. }) => {
            let from = date(not_before.as_secs());
            let what = format_args!("the certificate is valid only from {from}");
            let expected = format_args!("one that is valid today, {}", date(now));
            let advice = "is the clock of this machine right? `date`";
            return Err(Refusal::new(path, what, expected).advice(advice));
        }
        Some(webpki::Error::RequiredEkuNotFoundContext(_)) => {
            let what = "the certificate is not for servers (extended key usage)";
            return Err(Refusal::new(path, what, "a certificate for servers").advice(advice));
        }
        _ => {}
    }
    if let Some(webpki::Error::CertExpired { not_after, .. }) =
        fault(&certificate, now + EXPIRES_SOON)
    {
        let end = date(not_after.as_secs());
        warnings.push(format!("{}: the certificate expires on {end}", path.display()));
    }
    Ok(())
}

/// The fault that clients would find at that time. No authority is known here, so there is always
/// something; dates and purpose come first.
fn fault(certificate: &EndEntityCert<'_>, at: u64) -> Option<webpki::Error> {
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
    let usage = KeyUsage::server_auth();
    certificate.verify_for_usage(ALL_VERIFICATION_ALGS, &[], &[], at, usage, None, None).err()
}

pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Refusal> {
    const EXPECTED: &str = "PEM: -----BEGIN CERTIFICATE-----";
    let content = read(path)?;
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&content).collect();
    let found = found
        .map_err(|error| Refusal::new(path, format_args!("it is not PEM: {error}"), EXPECTED))?;
    if found.is_empty() {
        return Err(Refusal::new(path, "there is no certificate in it", EXPECTED));
    }
    Ok(found)
}

pub(crate) fn private_key(
    path: &Path,
    warnings: &mut Vec<String>,
) -> Result<PrivateKeyDer<'static>, Refusal> {
    const EXPECTED: &str = "PEM: -----BEGIN PRIVATE KEY-----";
    let content = read(path)?;
    let mode = std::fs::metadata(path).map(|about| about.permissions().mode()).unwrap_or_default();
    if mode & OTHERS_READ != 0 {
        warnings.push(format!(
            "{}: every user of this machine can read the private key (mode {:04o}); `chmod 600` it",
            path.display(),
            mode & 0o7777
        ));
    }
    PrivateKeyDer::from_pem_slice(&content).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            let refusal = Refusal::new(path, "there is no private key in it", EXPECTED);
            match content.windows(9).any(|part| part == b"ENCRYPTED") {
                true => Refusal { what: "the private key is encrypted".to_owned(), ..refusal }
                    .advice(format_args!(
                        "openssl pkcs8 -topk8 -nocrypt -in {} -out NEW-KEY",
                        path.display()
                    )),
                false => refusal,
            }
        }
        error => Refusal::new(path, format_args!("it is not PEM: {error}"), EXPECTED),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Refusal> {
    std::fs::read(path).map_err(|error| {
        Refusal::new(path, format_args!("can't read it: {error}"), "a file in PEM")
    })
}
