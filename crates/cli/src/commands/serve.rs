//! `ubcache serve`: serves a cache set over NBD, in the foreground, until a stop is requested.

use std::path::PathBuf;
use std::time::Duration;

use ubcache_daemon::clients::{above_zero, split_limit};
use ubcache_daemon::config::split_name;
use ubcache_daemon::size::{parse_size, show_size};
use ubcache_daemon::{
    ClientLimits, Failure, NbdAddress, Network, PageCache, Rates, ReadOnly, Ready, ServeConfig,
    SocketAccess, TlsOptions, UblkExport, UblkFeatures, UblkOptions, VhostUserExport,
};
use ubcache_env::Nanos;

use super::process::Process;
use super::{print, visible};

/// Serve a cache set over NBD until SIGTERM, SIGINT or `ubcache stop`
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache serve -C /dev/nvme0n1p4 -B /dev/sdb --nbd \
        unix:/run/ubcache/data.nbd --mode writeback")]
pub struct Args {
    /// The cache device
    #[arg(short = 'C', long = "cache", value_name = "DEVICE")]
    cache: Option<PathBuf>,
    /// Backing devices, each an export of its own, whose name is NAME, else the label, else the
    /// file name; clients can ask for its UUID as well. A disk behind a network:
    /// nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH
    #[arg(short = 'B', long = "bdev", value_name = "[NAME=]DEVICE", num_args = 1..)]
    bdev: Vec<PathBuf>,
    /// Header of an adopted disk, where it is not in /var/lib/ubcache; more than once. It says
    /// itself of which disk it is
    #[arg(long, value_name = "PATH")]
    header: Vec<PathBuf>,
    /// Address for clients: unix:/PATH or tcp:ADDRESS:PORT; more than once [default: a unix socket
    /// beside the control socket]
    #[arg(long, value_name = "ADDRESS")]
    nbd: Vec<NbdAddress>,
    /// Make a block device of the kernel, /dev/ublkbN, for the export EXPORT (`--ublk EXPORT`),
    /// with the number ID (`--ublk EXPORT=ID`, or `--ublk ID` for the only export), or for every
    /// export; more than once. It outlives this daemon: requests wait for the next one
    #[arg(long, value_name = "[EXPORT=]ID", num_args = 0..=1, default_missing_value = "")]
    ublk: Vec<UblkExport>,
    /// Queues of a new block device
    #[arg(long, value_name = "NUMBER", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=64))]
    ublk_queues: u16,
    /// Requests that each queue of a new block device holds
    #[arg(long, value_name = "NUMBER", default_value_t = 128,
        value_parser = clap::value_parser!(u16).range(1..=4096))]
    ublk_depth: u16,
    /// Abilities of the kernel's driver not to use: user-copy, auto-buffers, recovery, reissue,
    /// update-size, quiesce, unprivileged; with commas between them
    #[arg(long, value_name = "ABILITIES", default_value = "")]
    ublk_without: UblkFeatures,
    /// Abilities without which a block device is not served, though the volume is, over NBD: the
    /// same names
    #[arg(long, value_name = "ABILITIES", default_value = "")]
    ublk_require: UblkFeatures,
    /// Listen at the unix socket PATH for virtual machines, which use the export EXPORT, or the
    /// only one, as a disk (vhost-user-blk); more than once. They outlive this daemon: their
    /// requests wait for the next one
    #[arg(long, value_name = "[EXPORT=]PATH")]
    vhost_user: Vec<VhostUserExport>,
    /// Cache mode: writethrough, writeback, writearound or none [default: as the superblock says]
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,
    /// Set an attribute, with the names of bcache's sysfs; more than once
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,
    /// Control socket [default: /run/ubcache/SET-UUID.sock or
    /// $XDG_RUNTIME_DIR/ubcache/SET-UUID.sock]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// If the cache device is missing or damaged, serve the disks that are complete without it, and
    /// leave out those with dirty data. What the cache had of them is void from then on; `ubcache
    /// attach --cache NEW` gives them a new one
    #[arg(long)]
    cache_optional: bool,
    /// Keep the clean data of a set that the Linux driver ran last; without this it is dropped at
    /// the first start after the driver, as it may be stale
    #[arg(long)]
    keep_clean: bool,
    /// Drop the cached data of a disk that is not of one run with the cache (one of them is a copy
    /// of an earlier state). Refused if the cache has dirty data of it
    #[arg(long)]
    drop_clean_cache: bool,
    /// Trust the content of such a disk, by the name of its export or its path; the cached data of
    /// it is dropped, dirty or not
    #[arg(long, value_name = "NAME")]
    believe_disk: Vec<String>,
    /// Trust the dirty data in the cache of such a disk, which is written over the disk's own;
    /// clean data is dropped
    #[arg(long, value_name = "NAME")]
    believe_cache: Vec<String>,
    /// Memory for the index; if the index is larger, some requests read a node of it first, and
    /// some write one
    #[arg(long, value_name = "SIZE", value_parser = parse_index_memory, default_value = "384M")]
    index_memory: u64,
    /// Poll for the next event for up to so many microseconds before sleeping, as long as events
    /// come that fast: waking a processor takes time, most of all in a virtual machine; 0: never
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 100)]
    busy_poll: u64,
    /// Serve NBD clients with so many threads, which read from the cache themselves, beside that of
    /// the set, which does everything else; 1: that of the set does all
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=64))]
    threads: u64,
    /// Pass discards on to block devices as well: only if a discarded sector of theirs reads the
    /// same every time until it is written. Files and loop devices get them anyway
    #[arg(long)]
    trust_discards: bool,
    /// Refuse writes of clients: to the export NAME, more than once, or without a name to all
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true,
        default_missing_value = "")]
    read_only: Vec<String>,
    /// Permissions of unix sockets for clients, in octal: 0660 for a group, see --socket-group
    #[arg(long, value_name = "MODE", value_parser = parse_mode, default_value = "0600")]
    socket_mode: u32,
    /// The group of unix sockets for clients, by name or number
    #[arg(long, value_name = "GROUP", value_parser = parse_group)]
    socket_group: Option<u32>,
    /// Take clients over TCP from this network only (10.0.0.0/8, 192.168.1.7, fd00::/8); more than
    /// once
    #[arg(long, value_name = "NETWORK")]
    allow: Vec<Network>,
    /// Encrypt TCP with the certificates in this directory: server-cert.pem, server-key.pem, and
    /// for --tls-verify-peer ca-cert.pem, the names that QEMU, libnbd and nbdkit use
    #[arg(long, value_name = "DIR")]
    tls_dir: Option<PathBuf>,
    /// The server's certificate, in PEM, with those of intermediate authorities behind it
    #[arg(long, value_name = "FILE")]
    tls_certificate: Option<PathBuf>,
    /// Its private key, in PEM, unencrypted
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Refuse TCP clients without a certificate that one of the authorities in this file signed
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// Refuse TCP clients without a certificate that the authority of --tls-dir signed. Without
    /// this or --tls-client-ca, clients need no certificate
    #[arg(long)]
    tls_verify_peer: bool,
    /// Serve TCP in the clear, which is refused otherwise, also for addresses of this machine: only
    /// where every user and machine that can reach the port is trusted
    #[arg(long)]
    insecure_tcp: bool,
    /// At a stop, wait so long for requests in flight before connections are closed; new requests
    /// are refused meanwhile (NBD_ESHUTDOWN)
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(..=86_400))]
    drain_timeout: u64,
    /// Memory for requests and replies of all clients together
    #[arg(long, value_name = "SIZE", value_parser = parse_client_memory, default_value = "256M")]
    client_memory: u64,
    /// Clients that may be connected at a time; more are turned away
    #[arg(long, value_name = "NUMBER", default_value_t = 256,
        value_parser = clap::value_parser!(u64).range(1..))]
    max_connections: u64,
    /// Requests a second of an export, all of its clients together; without a name, of every
    /// export; more than once
    #[arg(long, value_name = "[NAME=]NUMBER")]
    limit_iops: Vec<String>,
    /// Bytes a second of an export, likewise
    #[arg(long, value_name = "[NAME=]SIZE")]
    limit_bytes: Vec<String>,
    /// Requests a second of each connection
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    client_limit_iops: Option<u64>,
    /// Bytes a second of each connection
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    client_limit_bytes: Option<u64>,
    /// Let every read of a backing device take at least this many microseconds
    #[arg(long, value_name = "MICROSECONDS", hide = true, default_value_t = 0)]
    demo_delay: u64,
    /// Use devices that can't be opened with O_DIRECT, which are refused otherwise, through the
    /// kernel's page cache. A flush of such a device that fails ends all writes to it until the
    /// next start. With `=always` all devices, for measuring
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true,
        default_missing_value = "needed")]
    page_cache: Option<When>,
    #[command(flatten)]
    process: Process,
}

/// When the page cache is used.
#[derive(Copy, Clone, Debug, clap::ValueEnum)]
enum When {
    /// Devices without O_DIRECT only
    Needed,
    /// For all devices
    Always,
}

fn parse_index_memory(text: &str) -> Result<u64, String> {
    above_zero(parse_size(text)?, 1 << 20)
}

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected permissions in octal, 0600 to 0777".to_owned()),
    }
}

fn parse_group(text: &str) -> Result<u32, String> {
    match ubcache_daemon::group_id(text) {
        Ok(Some(number)) => Ok(number),
        Ok(None) => Err("there is no such group; `getent group` lists them".to_owned()),
        Err(error) => Err(format!("can't look up the group: {error}")),
    }
}

fn parse_client_memory(text: &str) -> Result<u64, String> {
    above_zero(parse_size(text)?, 1 << 20)
}

fn parse_rate(text: &str) -> Result<u64, String> {
    above_zero(parse_size(text)?, 4096)
}

fn parse_iops(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is not a number of requests: expected 1 or more");
    text.parse().ok().filter(|number| *number > 0).ok_or_else(wrong)
}

/// Limits of exports, in the order of the command line.
fn export_limits(iops: &[String], bytes: &[String]) -> Result<ExportLimits, Failure> {
    let mut limits = ExportLimits::new();
    for text in iops {
        let (name, value) = split_limit(text);
        let requests = parse_iops(value)
            .map_err(|why| Failure::usage(format_args!("--limit-iops {text}"), why))?;
        limits.push((name, Rates { requests: Some(requests), bytes: None }));
    }
    for text in bytes {
        let (name, value) = split_limit(text);
        let bytes = parse_rate(value)
            .map_err(|why| Failure::usage(format_args!("--limit-bytes {text}"), why))?;
        limits.push((name, Rates { requests: None, bytes: Some(bytes) }));
    }
    Ok(limits)
}

type ExportLimits = Vec<(Option<String>, Rates)>;

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    args.process.start_log()?;
    let config = args.into_config()?;
    // Clients are served even if standard output is closed.
    let ready = |ready: &Ready| drop(print(&greeting(ready)));
    ubcache_daemon::serve(&config, ready)
}

impl Args {
    /// The configuration of these arguments.
    pub(crate) fn into_config(self) -> Result<ServeConfig, Failure> {
        let args = self;
        let mut settings: Vec<(String, String)> = Vec::new();
        settings.extend(args.mode.map(|mode| ("cache_mode".to_owned(), mode)));
        for text in args.settings {
            let Some((name, value)) = text.split_once('=') else {
                return Err(Failure::usage(format_args!("--set {text}"), "not an assignment")
                    .expected("NAME=VALUE, as in sequential_cutoff=4M"));
            };
            if let Some((_, other)) = settings.iter().find(|(known, _)| known == name) {
                return Err(Failure::usage(
                    format_args!("--set {text}"),
                    "the attribute is given twice",
                )
                .found(format_args!("{name}={other} as well (--mode sets cache_mode)"))
                .expected("one value for each attribute"));
            }
            settings.push((name.to_owned(), value.to_owned()));
        }
        let (names, backings) = args.bdev.iter().map(|given| split_name(given)).unzip();
        Ok(ServeConfig {
            cache: args.cache,
            backings,
            names,
            headers: args.header,
            nbd: args.nbd,
            ublk: UblkOptions {
                exports: args.ublk,
                queues: args.ublk_queues,
                depth: args.ublk_depth,
                without: args.ublk_without,
                require: args.ublk_require,
            },
            vhost_user: args.vhost_user,
            settings,
            control: args.control,
            cache_optional: args.cache_optional,
            keep_clean: args.keep_clean,
            drop_clean_cache: args.drop_clean_cache,
            believe_disk: args.believe_disk,
            believe_cache: args.believe_cache,
            index_memory: Some(args.index_memory),
            busy_poll: Duration::from_micros(args.busy_poll),
            threads: args.threads as usize,
            trust_discards: args.trust_discards,
            lock_memory: args.process.lock_memory,
            read_only: match args.read_only {
                names if names.is_empty() => ReadOnly::Nothing,
                names if names.iter().any(String::is_empty) => ReadOnly::All,
                names => ReadOnly::Some(names),
            },
            socket_access: SocketAccess { mode: args.socket_mode, group: args.socket_group },
            allow: args.allow,
            tls: TlsOptions {
                directory: args.tls_dir,
                certificate: args.tls_certificate,
                key: args.tls_key,
                client_authorities: args.tls_client_ca,
                verify_peer: args.tls_verify_peer,
                insecure: args.insecure_tcp,
            },
            status_page: args.process.status_page(),
            drain_timeout: Nanos::from_secs(args.drain_timeout),
            clients: ClientLimits {
                memory: args.client_memory,
                connections: args.max_connections,
                each: Rates { requests: args.client_limit_iops, bytes: args.client_limit_bytes },
                exports: export_limits(&args.limit_iops, &args.limit_bytes)?,
            },
            read_time_min: Nanos::from_micros(args.demo_delay),
            page_cache: match args.page_cache {
                None => PageCache::Never,
                Some(When::Needed) => PageCache::Needed,
                Some(When::Always) => PageCache::Always,
            },
            ..ServeConfig::default()
        })
    }
}

fn greeting(ready: &Ready) -> String {
    let page = ready.status_page.iter().map(|url| format!("status page {url}\n"));
    let last = format!(
        "ready: set {}, control socket {}, I/O by {}\n",
        ready.set,
        ready.control.display(),
        ready.io
    );
    exports(ready) + &page.collect::<String>() + &last
}

/// The exports of a set, and the disks that are not served, a line each.
pub(super) fn exports(ready: &Ready) -> String {
    let mut text = String::new();
    for (name, bytes, uris) in &ready.exports {
        for uri in uris {
            text.push_str(&format!("export {} {} {uri}\n", visible(name), show_size(*bytes)));
        }
    }
    for (name, path) in &ready.down {
        text.push_str(&format!("down {name} {}\n", path.display()));
    }
    text
}
