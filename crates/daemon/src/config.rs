//! Configuration of `ubcache serve`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ubcache_env::Nanos;
use ubcache_host::{PageCache, SocketAccess};

use crate::backing::BackingName;
use crate::clients::ClientLimits;
use crate::failure::Failure;
use crate::page::StatusPageOptions;
use crate::tls::TlsOptions;
use crate::ublk::UblkOptions;
use crate::vhost_user::VhostUserExport;

/// Configuration of one daemon.
#[derive(Clone, Debug, Default)]
pub struct ServeConfig {
    /// The cache device. Absent only by mistake: the checks before the start then name the remedy.
    pub cache: Option<PathBuf>,
    /// The backing devices, in the order of their exports.
    pub backings: Vec<PathBuf>,
    /// The names given to them, in the same order; none, or none any more: label or file name.
    pub names: Vec<Option<String>>,
    /// Headers of backing devices that have no superblock, for those that are not found by
    /// themselves.
    pub headers: Vec<PathBuf>,
    /// Disks, by the names given to them, that are adopted if they have neither superblock nor
    /// header.
    pub adopt: Vec<String>,
    /// Addresses for clients; if empty, a unix socket beside the control socket.
    pub nbd: Vec<NbdAddress>,
    /// Block devices of the kernel.
    pub ublk: UblkOptions,
    /// Sockets for virtual machines.
    pub vhost_user: Vec<VhostUserExport>,
    /// Attributes to set at the start, in order.
    pub settings: Vec<(String, String)>,
    /// Attributes to set at the start after these, of one export each.
    pub volume_settings: Vec<(String, Vec<(String, String)>)>,
    /// The backing devices that were looked for in vain, by the paths that stand for them.
    pub not_found: Vec<NotFound>,
    /// The file that this comes from; none: a command line.
    pub origin: Option<Origin>,
    /// Path of the control socket; if absent, `<set-uuid>.sock` in the usual directory.
    pub control: Option<PathBuf>,
    /// The status page over TCP.
    pub status_page: StatusPageOptions,
    /// Serve clean disks without a cache if that is missing.
    pub cache_optional: bool,
    /// Keep the clean data of a set that the Linux driver ran last.
    pub keep_clean: bool,
    /// Drop the cached data of disks that are not of one run with the cache, unless it is dirty.
    pub drop_clean_cache: bool,
    /// Disks of that kind, by export or path, whose own content is trusted.
    pub believe_disk: Vec<String>,
    /// Disks of that kind, by export or path, whose dirty data in the cache is trusted.
    pub believe_cache: Vec<String>,
    /// Memory for the index, in bytes; None: the engine's own limit.
    pub index_memory: Option<u64>,
    /// Wait awake for so long at most, where waits are short; see
    /// [`ubcache_host::Host::set_busy_poll`].
    pub busy_poll: Duration,
    /// Threads that serve NBD clients; 1: that of the set.
    pub threads: usize,
    /// Discards go to block devices of which it is not known that discarded sectors read the same
    /// every time.
    pub trust_discards: bool,
    /// Keep in memory what was used once, see [`ubcache_host::memory::lock_memory`], and buffers
    /// for I/O from the start, see [`ubcache_env::BufPool::fill`].
    pub lock_memory: bool,
    /// Refuse writes of clients.
    pub read_only: ReadOnly,
    /// Rights of the unix sockets for clients.
    pub socket_access: SocketAccess,
    /// Networks of the clients that may connect over TCP; if empty, all.
    pub allow: Vec<Network>,
    /// Encryption of connections over TCP.
    pub tls: TlsOptions,
    /// Limits on clients.
    pub clients: ClientLimits,
    /// Time limit for the requests of clients at a stop.
    pub drain_timeout: Nanos,
    /// Least time of a read of a backing device, for a demonstration with disks that are none.
    pub read_time_min: Nanos,
    /// The devices that are used through the kernel's page cache.
    pub page_cache: PageCache,
}

/// A backing device that is not there.
#[derive(Clone, Debug)]
pub struct NotFound {
    /// The path among those of the backing devices: the text of the file.
    pub path: PathBuf,
    /// The reason.
    pub why: Failure,
    /// It may be missing.
    pub optional: bool,
}

/// The configuration file of a set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Name of the set.
    pub set: String,
    /// The file.
    pub file: PathBuf,
}

impl ServeConfig {
    /// The attributes of an export at the start, in order: those of all come first.
    pub(crate) fn settings_of(&self, export: &str) -> Vec<(String, String)> {
        let own = self.volume_settings.iter().filter(|(name, _)| name == export);
        self.settings.iter().chain(own.flat_map(|(_, settings)| settings)).cloned().collect()
    }
}

/// The exports whose writes are refused.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ReadOnly {
    /// None of them.
    #[default]
    Nothing,
    /// All.
    All,
    /// Those of these names.
    Some(Vec<String>),
}

impl ReadOnly {
    /// Returns true if writes to the export are refused.
    pub fn holds_for(&self, name: &str) -> bool {
        match self {
            ReadOnly::Nothing => false,
            ReadOnly::All => true,
            ReadOnly::Some(names) => names.iter().any(|other| other == name),
        }
    }
}

/// A network: an address and the number of leading bits that count.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    /// Returns true if the address belongs to it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                (ours.to_bits() ^ theirs.to_bits()).checked_shr(32 - self.bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                (ours.to_bits() ^ theirs.to_bits()).checked_shr(128 - self.bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let wrong = || {
            format!(
                "\"{text}\" is not a network: expected an address, or ADDRESS/BITS as in 10.0.0.0/8"
            )
        };
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), str::parse).map_err(|_| wrong())?;
        if bits > most {
            return Err(wrong());
        }
        Ok(Network { address, bits })
    }
}

/// A way to a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ExportWay {
    /// The addresses of the set, where every volume is.
    Nbd,
    /// A block device of the kernel, with its number if one was chosen.
    Ublk(Option<u32>),
    /// A socket for virtual machines.
    VhostUser(PathBuf),
}

impl FromStr for ExportWay {
    type Err = String;

    fn from_str(text: &str) -> Result<ExportWay, String> {
        let wrong = || {
            format!(
                "\"{text}\" is not a way to a volume: expected nbd, ublk, ublk:N or \
                 vhost-user:/PATH"
            )
        };
        match text.split_once(':') {
            None if text == "nbd" => Ok(ExportWay::Nbd),
            None if text == "ublk" => Ok(ExportWay::Ublk(None)),
            Some(("ublk", number)) => {
                number.parse().map(|number| ExportWay::Ublk(Some(number))).map_err(|_| wrong())
            }
            Some(("vhost-user", path)) if path.starts_with('/') => {
                Ok(ExportWay::VhostUser(path.into()))
            }
            _ => Err(wrong()),
        }
    }
}

/// A place where clients connect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NbdAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port, in the clear: only for networks that can be trusted.
    Tcp(SocketAddr),
    /// A TCP port whose clients have to use TLS.
    Tls(SocketAddr),
}

impl FromStr for NbdAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<NbdAddress, String> {
        let wrong =
            || format!("\"{text}\" is not an address: expected unix:/PATH or tcp:ADDRESS:PORT");
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
            NbdAddress::Tls(address) => format!("nbds://{address}/{}", percent(export, "")),
        }
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NbdAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            NbdAddress::Tcp(address) | NbdAddress::Tls(address) => write!(f, "tcp:{address}"),
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

/// A backing device as it is known before it is served.
#[derive(Copy, Clone, Debug)]
pub struct Named<'a> {
    /// The name that was given to it.
    pub given: Option<&'a str>,
    /// Its label.
    pub label: &'a str,
    /// Its path.
    pub path: &'a Path,
}

/// Names for exports: the given one, else the label, else the file name of the device. A name
/// depends on its own device only, so that it never means another one because one is absent; two
/// equal names are refused.
pub fn export_names(volumes: &[Named<'_>]) -> Result<Vec<String>, Failure> {
    let mut names: Vec<(String, &Path)> = Vec::new();
    for Named { given, label, path } in volumes {
        let file = || BackingName::file_name(path).unwrap_or_else(|| "disk".to_owned());
        let name = match given {
            Some(name) => (*name).to_owned(),
            None if label.is_empty() => file(),
            None => (*label).to_owned(),
        };
        if let Some((_, other)) = names.iter().find(|(other, _)| *other == name) {
            return Err(Failure::refused(
                path,
                format_args!("its export would be named \"{name}\""),
            )
            .found(format_args!("the same name as that of {}", other.display()))
            .expected("names that differ: by label, by file name, or given with -B NAME=PATH")
            .advice(format_args!(
                "give them names: -B NAME={} -B OTHER={}",
                other.display(),
                path.display()
            )));
        }
        names.push((name, path));
    }
    Ok(names.into_iter().map(|(name, _)| name).collect())
}

/// Splits `NAME=PATH`; an existing path, or one with a slash before the first `=`, has no name.
pub fn split_name(text: &Path) -> (Option<String>, PathBuf) {
    let split = text.to_str().and_then(|text| text.split_once('='));
    match split {
        Some((name, path)) if !name.is_empty() && !name.contains('/') && !text.exists() => {
            (Some(name.to_owned()), path.into())
        }
        _ => (None, text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn networks_contain_addresses_by_their_leading_bits() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("192.168.7.9", "192.168.7.9", "192.168.7.8"),
            ("0.0.0.0/0", "1.2.3.4", "::1"),
            ("fe80::/10", "febf::1", "fec0::1"),
            ("::1", "::1", "127.0.0.1"),
        ] {
            let network: Network = network.parse().expect("a network");
            assert!(network.contains(inside.parse().expect("an address")), "{inside}");
            assert!(!network.contains(outside.parse().expect("an address")), "{outside}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0/8", "::/129", "host/8", "1.2.3.4/-1"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    fn named<'a>(volumes: &[(Option<&'a str>, &'a str, &'a str)]) -> Result<Vec<String>, Failure> {
        let volumes: Vec<Named<'_>> = volumes
            .iter()
            .map(|&(given, label, path)| Named { given, label, path: Path::new(path) })
            .collect();
        export_names(&volumes)
    }

    #[test]
    fn name_is_the_given_one_or_the_label_or_the_file_name() {
        let names =
            named(&[(None, "", "/a/disk"), (None, "data", "/b/disk"), (Some("x"), "data", "/c/x")]);
        assert_eq!(names, Ok(["disk", "data", "x"].map(str::to_owned).to_vec()));
    }

    #[test]
    fn equal_names_are_refused_with_both_devices() {
        for volumes in [
            [(None, "", "/a/disk"), (None, "", "/b/disk")],
            [(None, "data", "/a/disk"), (None, "data", "/b/disk")],
            [(None, "data", "/a/disk"), (Some("data"), "", "/b/disk")],
        ] {
            let refused = named(&volumes).expect_err("the same name twice").to_string();
            assert!(refused.contains("/a/disk") && refused.contains("/b/disk"), "{refused}");
        }
    }

    #[test]
    fn name_and_path_are_split_at_the_equals_sign() {
        assert_eq!(
            split_name(Path::new("data=/dev/sdb")),
            (Some("data".to_owned()), "/dev/sdb".into())
        );
        for plain in ["/dev/disk/by-id/a=b", "./a=b", "/dev/sdb", "=x"] {
            assert_eq!(split_name(Path::new(plain)), (None, plain.into()));
        }
    }
}
