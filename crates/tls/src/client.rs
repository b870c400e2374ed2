//! Certificates of a client: the authorities that it trusts, and its own.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};

use crate::certificates::{Refusal, certificates, private_key};

/// Files in PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientFiles {
    /// Authorities that sign the certificates of servers.
    pub authorities: PathBuf,
    /// The client's own certificate and its private key, for servers that want one.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// Reads the files. Returns warnings as well.
///
/// # Errors
/// A file can't be used: with the fault, and a remedy.
pub fn load_client(files: &ClientFiles) -> Result<(Arc<ClientConfig>, Vec<String>), Refusal> {
    let mut warnings = Vec::new();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    // A bundle of a system may have some that are too old for the library.
    let (added, _) = roots.add_parsable_certificates(certificates(&files.authorities)?);
    if added == 0 {
        return Err(Refusal::new(
            &files.authorities,
            "no certificate in it can be that of an authority",
            "certificates of authorities",
        ));
    }
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Refusal::new(&files.authorities, error, "a usable library for TLS"))?
        .with_root_certificates(roots);
    let mut config = match &files.own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let own = builder.with_client_auth_cert(chain, private_key(key, &mut warnings)?);
            own.map_err(|error| {
                Refusal::new(
                    key,
                    format_args!("the key can't be used with {}: {error}", certificate.display()),
                    "the private key of that certificate, unencrypted",
                )
                .advice(format_args!(
                    "if it is that key, give it the usual form, which certtool does not always \
                     write: openssl pkcs8 -topk8 -nocrypt -in {} -out NEW-KEY",
                    key.display()
                ))
            })?
        }
    };
    // Every connection looks at the certificate of the server.
    config.resumption = Resumption::disabled();
    Ok((Arc::new(config), warnings))
}
