//! What `ubcache serve` is told to do.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Everything that one daemon needs to know.
#[derive(Clone, Debug, Default)]
pub struct ServeConfig {
    /// The cache device. Absent only by mistake: the checks before the start say what to do.
    pub cache: Option<PathBuf>,
    /// The backing devices, in the order of their exports.
    pub backings: Vec<PathBuf>,
    /// Where clients connect; if empty, a unix socket beside the control socket.
    pub nbd: Vec<NbdAddress>,
    /// Attributes to set at the start, in order.
    pub settings: Vec<(String, String)>,
    /// Path of the control socket; if absent, `<set-uuid>.sock` in the usual directory.
    pub control: Option<PathBuf>,
    /// Keep the clean data of a set that the Linux driver ran last.
    pub keep_clean: bool,
    /// Memory for the index, in bytes; None: the engine's own limit.
    pub index_memory: Option<u64>,
    /// Wait awake for so long at most, where waits are short; see [`ubcache_host::Host::set_busy_poll`].
    pub busy_poll: Duration,
    /// Discards go to block devices of which it is not known that discarded sectors read the same every time.
    pub trust_discards: bool,
    /// Refuse writes of clients.
    pub read_only: bool,
    /// The least that every read of a backing device takes: for the demo, and for tests.
    pub backing_delay: Duration,
    /// I/O to the devices goes through the kernel's page cache: for measuring what the server itself costs.
    pub page_cache: bool,
}

/// A place where clients connect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NbdAddress {
    /// A unix socket, for this user only.
    Unix(PathBuf),
    /// A TCP port. NBD has no passwords: bind it where only friends are.
    Tcp(SocketAddr),
}

impl FromStr for NbdAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<NbdAddress, String> {
        let wrong = || format!("\"{text}\" is not an address: expected unix:/PATH or tcp:ADDRESS:PORT");
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(NbdAddress::Unix(path.into()));
        }
        let address = text.strip_prefix("tcp:").ok_or_else(wrong)?;
        let address = match address.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => address.to_owned(),
        };
        address.parse().map(NbdAddress::Tcp).map_err(|_| wrong())
    }
}

impl NbdAddress {
    /// The URI of an export there.
    pub fn uri(&self, export: &str) -> String {
        match self {
            NbdAddress::Unix(path) => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                let path = path.to_string_lossy().into_owned();
                format!("nbd+unix:///{}?socket={}", percent(export, ""), percent(&path, "/"))
            }
            NbdAddress::Tcp(address) => format!("nbd://{address}/{}", percent(export, "")),
        }
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NbdAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            NbdAddress::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// Writes every byte that has a meaning in a URI as `%XX`.
fn percent(text: &str, also_plain: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~')
            || also_plain.as_bytes().contains(&byte);
        if plain {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Names for exports: the label, else the file name of the device; a name that is taken gets a number.
pub fn export_names<'a>(volumes: impl Iterator<Item = (&'a str, &'a std::path::Path)>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (label, path) in volumes {
        let file =
            || path.file_name().map_or_else(|| "disk".into(), |name| name.to_string_lossy().into_owned());
        let wanted = if label.is_empty() { file() } else { label.to_owned() };
        let mut name = wanted.clone();
        let mut number = 2;
        while names.contains(&name) {
            name = format!("{wanted}-{number}");
            number += 1;
        }
        names.push(name);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn addresses_parse_and_become_uris() {
        let unix: NbdAddress = "unix:/run/a b.sock".parse().expect("an address");
        assert_eq!(unix.uri("disk.img"), "nbd+unix:///disk.img?socket=/run/a%20b.sock");
        let tcp: NbdAddress = "tcp:localhost:10809".parse().expect("an address");
        assert_eq!(tcp.uri("a/b"), "nbd://127.0.0.1:10809/a%2Fb");
        for bad in ["", "unix:", "tcp:1.2.3.4", "udp:1.2.3.4:5", "/run/x"] {
            assert!(bad.parse::<NbdAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_labels_or_file_names_and_unique() {
        let volumes = [("", "/a/disk"), ("data", "/b/disk"), ("", "/b/disk"), ("data", "/c/x")];
        let names = export_names(volumes.iter().map(|(label, path)| (*label, Path::new(*path))));
        assert_eq!(names, ["disk", "data", "disk-2", "data-2"]);
    }
}
