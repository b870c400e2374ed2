//! Names of backing devices: paths, and URIs of those behind a network.
//!
//! A name stays a path wherever it is only carried from one place to another; it is read here, when
//! the device is opened. A URI begins with a scheme and `://`. A file with such a name is reached
//! with `./` before it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use percent_encoding::utf8_percent_encode;

use super::s3_address::{self, S3Volume};
use super::uri::{IN_EXPORT, IN_SOCKET, Wrong, without_fragment};
use crate::failure::Failure;

/// The port of NBD, registered for it.
const NBD_PORT: u16 = 10809;

/// The name of a backing device, read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackingName {
    /// A file or block device of this machine.
    Path(PathBuf),
    /// An export of an NBD server.
    Nbd(NbdExport),
    /// A volume on an object store.
    S3(S3Volume),
}

/// An export of an NBD server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NbdExport {
    /// The server.
    pub server: NbdServer,
    /// Name of the export; empty for the server's default.
    pub export: String,
    /// The connection is encrypted.
    pub tls: Option<NbdTls>,
}

impl NbdExport {
    /// Returns true if its URI has paths of this machine.
    fn names_files(&self) -> bool {
        let certificates = self.tls.as_ref().is_some_and(|tls| tls.certificates.is_some());
        certificates || matches!(self.server, NbdServer::Unix(_))
    }
}

/// Words of a URI about TLS, by the names that libnbd has for them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NbdTls {
    /// Directory with `ca-cert.pem`, and `client-cert.pem` and `client-key.pem` if the server wants
    /// them. None: the authorities of the system, and no certificate.
    pub certificates: Option<PathBuf>,
    /// The name in the certificate of the server, if it is not that of the host.
    pub hostname: Option<String>,
}

/// The place of an NBD server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NbdServer {
    /// A host by name or address, and a port.
    Tcp(String, u16),
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// The scheme of a URI, and what follows `://`.
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
    (is_scheme && scheme.chars().all(plain)).then_some((scheme, rest))
}

/// Returns true for a name that is a URI: nothing of the file system is asked for it.
pub fn is_uri(name: &Path) -> bool {
    name.to_str().is_some_and(|text| split_scheme(text).is_some())
}

/// Returns true if both names are URIs of the same device.
pub fn is_same_uri(one: &Path, other: &Path) -> bool {
    is_uri(one)
        && match (BackingName::parse(one), BackingName::parse(other)) {
            (Ok(one), Ok(other)) => one == other,
            _ => one == other,
        }
}

/// The name for a process whose working directory is another one.
///
/// # Errors
/// The working directory is not known.
pub fn absolute(name: &Path) -> io::Result<PathBuf> {
    match BackingName::parse(name) {
        Ok(BackingName::Nbd(mut export)) if export.names_files() => {
            if let NbdServer::Unix(socket) = &mut export.server {
                *socket = std::path::absolute(&*socket)?;
            }
            if let Some(directory) = export.tls.as_mut().and_then(|tls| tls.certificates.as_mut()) {
                *directory = std::path::absolute(&*directory)?;
            }
            Ok(export.to_string().into())
        }
        Ok(BackingName::Path(path)) => std::path::absolute(path),
        Ok(BackingName::Nbd(_) | BackingName::S3(_)) | Err(_) => Ok(name.to_owned()),
    }
}

impl BackingName {
    /// Reads a name.
    ///
    /// # Errors
    /// A URI of an unknown kind, or one that is not complete.
    pub fn parse(name: &Path) -> Result<BackingName, Failure> {
        let Some((scheme, rest)) = name.to_str().and_then(split_scheme) else {
            return Ok(BackingName::Path(name.to_owned()));
        };
        let wrong = Wrong::new(name, scheme);
        match scheme.to_ascii_lowercase().as_str() {
            "nbd" => nbd_over_tcp(rest, &wrong, false).map(BackingName::Nbd),
            "nbds" => nbd_over_tcp(rest, &wrong, true).map(BackingName::Nbd),
            "nbd+unix" => nbd_over_unix(rest, &wrong, false).map(BackingName::Nbd),
            "nbds+unix" => nbd_over_unix(rest, &wrong, true).map(BackingName::Nbd),
            "s3" => s3_address::parse(rest, &wrong).map(BackingName::S3),
            _ => Err(Failure::could_not_run(name, "no kind of backing device")
                .found(format_args!("the scheme \"{scheme}\""))
                .expected(
                    "a path, nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, the same \
                     with nbds for TLS, or s3://BUCKET/PREFIX",
                )
                .advice("a file with that name is ./NAME")),
        }
    }

    /// The URI of a remote device, the same for all ways to write it and to reach it, encrypted or
    /// not.
    pub fn uri(&self) -> Option<String> {
        match self {
            BackingName::Path(_) => None,
            BackingName::Nbd(export) => Some(NbdExport { tls: None, ..export.clone() }.to_string()),
            BackingName::S3(volume) => Some(volume.to_string()),
        }
    }

    /// Name of the export of the backing device, where no other is known.
    pub fn file_name(name: &Path) -> Option<String> {
        match BackingName::parse(name) {
            Ok(BackingName::Nbd(NbdExport { export, .. })) => {
                let last = export.rsplit('/').find(|part| !part.is_empty());
                last.map(str::to_owned)
            }
            Ok(BackingName::S3(S3Volume { location, .. })) => {
                let last = location.prefix.rsplit('/').find(|part| !part.is_empty());
                Some(last.unwrap_or(&location.bucket).to_owned())
            }
            _ => name.file_name().map(|name| name.to_string_lossy().into_owned()),
        }
    }
}

/// Takes a parameter about TLS; false: it is none.
fn take_tls(tls: &mut Option<NbdTls>, parameter: &str, wrong: &Wrong<'_>) -> Result<bool, Failure> {
    let Some(tls) = tls else { return Ok(false) };
    match parameter.split_once('=') {
        Some(("tls-certificates", path)) if !path.is_empty() && tls.certificates.is_none() => {
            tls.certificates = Some(wrong.decode(path)?.into());
        }
        Some(("tls-hostname", name)) if !name.is_empty() && tls.hostname.is_none() => {
            tls.hostname = Some(wrong.decode(name)?);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn nbd_over_tcp(rest: &str, wrong: &Wrong<'_>, encrypted: bool) -> Result<NbdExport, Failure> {
    let rest = without_fragment(rest, wrong)?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut tls = encrypted.then(NbdTls::default);
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        if !take_tls(&mut tls, parameter, wrong)? {
            return Err(wrong.because(format_args!("the parameter \"{parameter}\"")));
        }
    }
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.contains('@') {
        return Err(wrong.because("a user, which is for keys that are shared before (PSK)"));
    }
    // An address of IPv6 has colons of its own, and stands in brackets.
    let (host, port) = match authority.strip_prefix('[').and_then(|it| it.split_once(']')) {
        Some((host, after)) => match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err(wrong.because(format_args!("\"{after}\" behind the address"))),
        },
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return Err(wrong.because("no host"));
    }
    let port = match port {
        None => NBD_PORT,
        Some(port) => match port.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err(wrong.because(format_args!("the port \"{port}\""))),
        },
    };
    let server = NbdServer::Tcp(wrong.decode(host)?, port);
    Ok(NbdExport { server, export: wrong.decode(export)?, tls })
}

fn nbd_over_unix(rest: &str, wrong: &Wrong<'_>, encrypted: bool) -> Result<NbdExport, Failure> {
    let rest = without_fragment(rest, wrong)?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, export) = path.split_once('/').unwrap_or((path, ""));
    if !authority.is_empty() {
        return Err(wrong.because(format_args!("\"{authority}\" where no host stands")));
    }
    let (mut socket, mut tls) = (None, encrypted.then(NbdTls::default));
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        if take_tls(&mut tls, parameter, wrong)? {
            continue;
        }
        match parameter.split_once('=') {
            Some(("socket", _)) if socket.is_some() => return Err(wrong.because("two sockets")),
            Some(("socket", path)) if !path.is_empty() => socket = Some(wrong.decode(path)?),
            _ => return Err(wrong.because(format_args!("the parameter \"{parameter}\""))),
        }
    }
    let socket = socket.ok_or_else(|| wrong.because("no socket"))?;
    let server = NbdServer::Unix(socket.into());
    Ok(NbdExport { server, export: wrong.decode(export)?, tls })
}

impl fmt::Display for NbdServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NbdServer::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            NbdServer::Tcp(host, port) => write!(f, "{host}:{port}"),
            NbdServer::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The URI, the same for all ways to write it.
impl fmt::Display for NbdExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = utf8_percent_encode(&self.export, IN_EXPORT);
        let scheme = if self.tls.is_some() { "nbds" } else { "nbd" };
        let mut parameters = Vec::new();
        match &self.server {
            NbdServer::Tcp(..) => write!(f, "{scheme}://{}/{export}", self.server)?,
            NbdServer::Unix(path) => {
                write!(f, "{scheme}+unix:///{export}")?;
                parameters.push(("socket", path.to_string_lossy().into_owned()));
            }
        }
        let tls = self.tls.iter();
        let directory = tls.clone().filter_map(|tls| tls.certificates.as_ref());
        parameters.extend(
            directory.map(|path| ("tls-certificates", path.to_string_lossy().into_owned())),
        );
        let hostname = tls.filter_map(|tls| tls.hostname.clone());
        parameters.extend(hostname.map(|name| ("tls-hostname", name)));
        for (index, (name, value)) in parameters.iter().enumerate() {
            let sign = if index == 0 { '?' } else { '&' };
            write!(f, "{sign}{name}={}", utf8_percent_encode(value, IN_SOCKET))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nbd(text: &str) -> NbdExport {
        match BackingName::parse(Path::new(text)) {
            Ok(BackingName::Nbd(export)) => export,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn uris_of_nbd_name_a_server_and_an_export() {
        for (text, server, export) in [
            ("nbd://host/disk", NbdServer::Tcp("host".into(), 10809), "disk"),
            ("NBD://host:7/a/b%20c", NbdServer::Tcp("host".into(), 7), "a/b c"),
            ("nbd://[::1]:9/", NbdServer::Tcp("::1".into(), 9), ""),
            ("nbd://[fe80::1]", NbdServer::Tcp("fe80::1".into(), 10809), ""),
            ("nbd+unix:///d?socket=/run/x%26y.sock", NbdServer::Unix("/run/x&y.sock".into()), "d"),
            ("nbd+unix://?socket=s", NbdServer::Unix("s".into()), ""),
        ] {
            let found = nbd(text);
            assert_eq!(found, NbdExport { server, export: export.into(), tls: None }, "{text}");
            assert_eq!(nbd(&found.to_string()), found, "{found}");
        }
    }

    #[test]
    fn uris_with_tls_may_name_certificates() {
        for (text, directory, hostname) in [
            ("nbds://host/disk", None, None),
            ("nbds://host/disk?tls-certificates=/etc/a%20b", Some("/etc/a b"), None),
            ("nbds+unix:///d?socket=/s&tls-hostname=host", None, Some("host")),
            ("nbds+unix:///?tls-hostname=h&tls-certificates=c&socket=/s", Some("c"), Some("h")),
        ] {
            let found = nbd(text);
            let tls = NbdTls {
                certificates: directory.map(PathBuf::from),
                hostname: hostname.map(str::to_owned),
            };
            assert_eq!(found.tls, Some(tls), "{text}");
            assert_eq!(nbd(&found.to_string()), found, "{found}");
        }
    }

    #[test]
    fn sockets_are_named_from_the_root_for_other_processes() {
        let here = std::env::current_dir().expect("a directory");
        let name = absolute(Path::new("nbd+unix:///d?socket=s")).expect("a name");
        let socket = here.join("s");
        assert_eq!(nbd(name.to_str().expect("text")).server, NbdServer::Unix(socket));
        let name = Path::new("nbd://host/disk");
        assert_eq!(absolute(name).expect("a name"), name);
        assert_eq!(absolute(Path::new("disk")).expect("a name"), here.join("disk"));
    }

    #[test]
    fn odd_paths_stay_paths() {
        for text in ["/dev/sdb", "./nbd://x", "nbd:/x", "a b://c", "1://x", "data=x", ""] {
            let parsed = BackingName::parse(Path::new(text));
            assert_eq!(parsed, Ok(BackingName::Path(text.into())), "{text}");
        }
    }

    #[test]
    fn bad_uris_are_refused_with_the_part_that_is_wrong() {
        for (text, found) in [
            ("nbd:///disk", "no host"),
            ("nbd://host:0/disk", "the port \"0\""),
            ("nbd://host:x/disk", "the port \"x\""),
            ("nbd://[::1]x/disk", "\"x\" behind the address"),
            ("nbd://me@host/disk", "a user"),
            ("nbd://host/disk?socket=/x", "the parameter \"socket=/x\""),
            ("nbd://host/disk?tls-hostname=x", "the parameter \"tls-hostname=x\""),
            ("nbds://host/disk?tls-hostname=", "the parameter \"tls-hostname=\""),
            ("nbds://host/?tls-hostname=a&tls-hostname=b", "the parameter \"tls-hostname=b\""),
            ("nbd://host/a#b", "\"#b\""),
            ("nbd://host/a%2", "\"%2\" instead of % and two digits"),
            ("nbd://host/%ff", "does not stand for UTF-8"),
            ("nbd://host/%00", "a byte that is zero"),
            ("nbd+unix:///disk", "no socket"),
            ("nbd+unix:///disk?socket=", "the parameter \"socket=\""),
            ("nbd+unix:///disk?socket=/a&socket=/b", "two sockets"),
            ("nbd+unix:///disk?socket=/a&tls=1", "the parameter \"tls=1\""),
            ("nbd+unix://host/disk?socket=/a", "\"host\" where no host stands"),
            ("http://host/disk", "the scheme \"http\""),
        ] {
            let refused = BackingName::parse(Path::new(text)).expect_err(text).to_string();
            assert!(refused.starts_with(text) && refused.contains(found), "{refused}");
        }
    }

    #[test]
    fn name_of_an_export_is_the_last_part_of_its_name() {
        let name = |text: &str| BackingName::file_name(Path::new(text));
        assert_eq!(name("/dev/sdb"), Some("sdb".into()));
        assert_eq!(name("nbd+unix:///a/disk?socket=/run/x.sock"), Some("disk".into()));
        assert_eq!(name("nbd://host"), None);
    }
}
