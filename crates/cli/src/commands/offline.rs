//! Shared parts of the commands for sets that are not running: opening devices, progress, refusals.

use std::cell::{Cell, RefCell};
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::complain;
use super::new_file::same_as;
use indicatif::{ProgressBar, ProgressStyle};
use ubcache_daemon::Failure;
use ubcache_daemon::backing::{Purpose, Remote};
use ubcache_daemon::failure::Code;
use ubcache_daemon::open::header::{FoundHeader, create_header, find_header};
use ubcache_daemon::open::superblock::has_superblock;
use ubcache_daemon::open::target::{Access, Target, host_open_failure};
use ubcache_env::joined::Header;
use ubcache_env::{Device, Joined, Witness};
use ubcache_format::BackingState;
use ubcache_host::{Host, HostDisk, HostFile, IoBackend, OpenError, OpenOptions, PageCache};
use ubcache_offline::{
    Cache, DeviceKind, Finding, Lost, OfflineError, On, PackError, Progress, Report, Severity,
    Site, Watcher, kind_of,
};

/// Time limit for waiting for a device that is in use.
const DEVICE_BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// A host to do I/O with.
pub fn host() -> Result<Host, Failure> {
    Host::new(IoBackend::Auto)
        .map_err(|error| Failure::usage("UBCACHE_IO", format_args!("can't start I/O: {error}")))
}

/// A device of a set, with its header if its superblock is not on it.
pub type Disk = Joined<HostDisk>;

/// Place of a device on the command line.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum DeviceArgument {
    /// CACHE.
    Cache,
    /// After -B.
    Backing,
}

/// The devices of a set, for reading only: the cache, or a pack of it, and backing devices.
pub fn open_all(
    host: &Host,
    cache: &Path,
    backings: &[PathBuf],
    headers: &[PathBuf],
) -> Result<(Cache<Disk>, Vec<Cache<Disk>>), Failure> {
    named_once(cache, backings)?;
    let cache_path = cache;
    let cache = open(host, cache, DeviceArgument::Cache, false)?;
    let backings = backings
        .iter()
        .map(|path| open_backing(host, path, (cache_path, headers), false))
        .collect::<Result<_, _>>()?;
    Ok((cache, backings))
}

/// Refuses a device that is named twice: it would be found in use, by ourselves.
pub fn named_once(cache: &Path, backings: &[PathBuf]) -> Result<(), Failure> {
    for (index, path) in backings.iter().enumerate() {
        let before: Vec<&Path> =
            std::iter::once(cache).chain(backings[..index].iter().map(PathBuf::as_path)).collect();
        if let Some(other) = same_as(path, &before) {
            return Err(Failure::could_not_run(path, "named twice")
                .found(format_args!("the same device as {}", other.display()))
                .expected("the cache device as CACHE, and each backing device once after -B")
                .advice("`ubcache show` says which device is which"));
        }
    }
    Ok(())
}

/// Opens a backing device for exclusive use, with its header if it has no superblock: one of those
/// given, or one that is looked for in the usual places and on the cache device.
pub fn open_backing(
    host: &Host,
    path: &Path,
    (cache, headers): (&Path, &[PathBuf]),
    write: bool,
) -> Result<Cache<Disk>, Failure> {
    let opened = match header_of(path, cache, headers)? {
        Some(header) => open_joined(host, path, &header, write)?,
        None => open_as_it_is(host, path, write)?,
    };
    check_kind(host, path, opened, DeviceArgument::Backing)
}

/// Opens a device for exclusive use, or a pack of one; for reading only unless `write`, which is
/// refused for a pack. A device whose superblock is of the other kind is refused.
pub fn open(
    host: &Host,
    path: &Path,
    argument: DeviceArgument,
    write: bool,
) -> Result<Cache<Disk>, Failure> {
    if argument == DeviceArgument::Backing {
        return open_backing(host, path, (Path::new(""), &[]), write);
    }
    check_kind(host, path, open_as_it_is(host, path, write)?, argument)
}

fn check_kind(
    host: &Host,
    path: &Path,
    opened: Cache<Disk>,
    argument: DeviceArgument,
) -> Result<Cache<Disk>, Failure> {
    let found = host.block_on(async { kind_of(&opened).await });
    let expected = match argument {
        DeviceArgument::Cache => "the cache device",
        DeviceArgument::Backing => "a backing device",
    };
    let advice = "name the cache device as CACHE and the disks after -B: `ubcache show` says which \
        device is which";
    match (argument, found) {
        (DeviceArgument::Cache, DeviceKind::Backing) => {
            Err(Failure::could_not_run(path, "a backing device, not a cache device")
                .expected(expected)
                .advice(advice))
        }
        (DeviceArgument::Backing, DeviceKind::Cache) => {
            Err(Failure::could_not_run(path, "a cache device, not a backing device")
                .expected(expected)
                .advice(advice))
        }
        (_, DeviceKind::TooShort { bytes, needed }) => {
            Err(Failure::could_not_run(path, "too short for a bcache superblock")
                .found(format_args!("{bytes} bytes"))
                .expected(format_args!("{expected}, of {needed} bytes at least"))
                .advice("check the path, and that the copy was not truncated"))
        }
        _ => Ok(opened),
    }
}

/// The header of a backing device that has no superblock. One that is lost is made again from its
/// copy on the cache device, which is what `serve` does.
fn header_of(
    path: &Path,
    cache: &Path,
    headers: &[PathBuf],
) -> Result<Option<FoundHeader>, Failure> {
    // One that can't be opened is refused with the right words when it is opened for the command.
    let found = match Target::open(path, Access::Look) {
        Ok(disk) if !has_superblock(&disk) => {
            let cache = Some(cache).filter(|cache| cache.exists());
            find_header(&disk, headers, cache)?
        }
        _ => None,
    };
    if let Some(FoundHeader { path, lost: Some(content), .. }) = &found {
        create_header(path, content)?;
        complain(&format!(
            "ubcache: {}: the header was lost; made again from its copy on the cache device\n",
            path.display()
        ));
    }
    Ok(found)
}

/// Opens a disk and its header for exclusive use. Refuses to write to one that somebody else wrote
/// to while its cache has dirty data (A9).
pub fn open_joined(
    host: &Host,
    path: &Path,
    found: &FoundHeader,
    write: bool,
) -> Result<Cache<Disk>, Failure> {
    let disk = open_file(host, path, write)?;
    let file = open_file(host, &found.path, write)?;
    let joined = host.block_on(async {
        let header = Header::open(file, None, &found.identity).await;
        let joined = Joined::new(disk, header.map_err(|error| error.to_string())?);
        let witness = joined.witness().await.map_err(|error| error.to_string())?;
        Ok((joined, witness))
    });
    let (joined, witness) = joined.map_err(|error: String| Failure::could_not_run(path, error))?;
    let is_dirty = found.superblock.state() == BackingState::Dirty;
    let (found, expected) = match witness {
        Witness::Different { found, expected } if write && is_dirty => (found, expected),
        Witness::Resized { found, expected } if write && is_dirty => {
            (format!("{found} sectors"), format!("{expected} sectors"))
        }
        _ => return Ok(Cache::Device(joined)),
    };
    Err(Failure::refused(
        path,
        "the disk was written without its cache, or is another one, and the cache has dirty data \
         of it",
    )
    .found(found)
    .expected(expected)
    .advice(
        "name the disk as the last run left it; if the kernel's bcache had it last, `ubcache \
         serve` and `ubcache stop` once; or choose with `ubcache serve --believe-disk` or \
         `--believe-cache`, and stop that. Nothing was changed",
    ))
}

/// Opens a device or a pack, whatever kind of device it is.
pub fn open_as_it_is(host: &Host, path: &Path, write: bool) -> Result<Cache<Disk>, Failure> {
    let file = open_file(host, path, write)?;
    let cache = host.block_on(async { Cache::open(Disk::from(file)).await }).map_err(|error| {
        let failure = Failure::could_not_run(path, &error);
        match error {
            PackError::Version(_) => {
                failure.advice("read it with the ubcache that wrote it, or a later one")
            }
            PackError::TooLarge { .. } => failure.advice(
                "do not trust it (nothing of it was used), and get it again from its source",
            ),
            _ => failure.advice("copy it again from its source: nothing in it can be trusted"),
        }
    })?;
    if write && cache.is_pack() {
        return Err(metadata_only(path));
    }
    Ok(cache)
}

/// The failure for a pack in the place of a device.
pub fn metadata_only(path: &Path) -> Failure {
    Failure::could_not_run(path, "a pack: it has the metadata of a cache device, and no data")
        .expected("the cache device or a copy of it")
        .advice(
            "`check`, `dump`, `cat --map`, `recover --dry-run` and `repair --dry-run` read packs",
        )
}

/// Opens a device for exclusive use.
pub fn open_file(host: &Host, path: &Path, write: bool) -> Result<HostDisk, Failure> {
    let purpose = if write { Purpose::Change } else { Purpose::Look };
    let env = host.env();
    if let Some(remote) = host.block_on(Box::pin(Remote::open(&env, path, purpose)))? {
        return Ok(remote.disk());
    }
    let options = OpenOptions { page_cache: PageCache::Needed, write, exclusive: true };
    let end = Instant::now() + DEVICE_BUSY_TIMEOUT;
    let mut opened = HostFile::open(&host.env(), path, options);
    // The kernel takes a moment to close the files of a process that was killed.
    while matches!(opened, Err(OpenError::InUse { .. })) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
        opened = HostFile::open(&host.env(), path, options);
    }
    opened.map(HostDisk::from).map_err(|error| {
        let mut failure = host_open_failure(path, error);
        failure.code = Code::CouldNotRun;
        failure
    })
}

/// Asks for the path of a device once more, before it is overwritten: as an option, or on the
/// terminal.
pub fn confirm(path: &Path, option: Option<&Path>, to_do_what: &str) -> Result<(), Failure> {
    let refuse = Failure::could_not_run(path, "not confirmed");
    let named = match option {
        Some(named) => named.to_owned(),
        None if std::io::stdin().is_terminal() => {
            complain(&format!("{to_do_what}, type the path of the device: "));
            let mut line = String::new();
            let _ = std::io::stdin().lock().read_line(&mut line);
            PathBuf::from(line.trim())
        }
        None => {
            let advice = format!("repeat the path of the device: --confirm {}", path.display());
            return Err(refuse.advice(advice));
        }
    };
    if named != path {
        return Err(refuse
            .found(named.display())
            .expected(path.display())
            .advice("repeat the path exactly as it was given; nothing was written"));
    }
    Ok(())
}

/// A progress bar on the terminal; nothing if there is none. With rate and time left.
pub struct Bar {
    bar: ProgressBar,
    phase: RefCell<&'static str>,
    drawn: Cell<Instant>,
}

impl Bar {
    /// A bar, if standard error is a terminal.
    pub fn new() -> Bar {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::no_length()
        } else {
            ProgressBar::hidden()
        };
        let style =
            "{msg:32} {bar:24} {bytes:>11} of {total_bytes:11} {bytes_per_sec:>13}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Bar { bar, phase: RefCell::new(""), drawn: Cell::new(Instant::now()) }
    }

    /// None, whatever standard error is.
    pub fn hidden() -> Bar {
        let bar = ProgressBar::hidden();
        Bar { bar, phase: RefCell::new(""), drawn: Cell::new(Instant::now()) }
    }

    /// Removes the bar.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Watcher for Bar {
    fn watch(&self, progress: Progress) {
        if self.phase.replace(progress.phase) != progress.phase {
            self.bar.reset();
            self.bar.set_message(progress.phase);
        } else if self.drawn.get().elapsed() < Duration::from_millis(50)
            && progress.done < progress.total
        {
            return;
        }
        self.drawn.set(Instant::now());
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done);
    }
}

/// The path of the device that a finding is about.
pub fn path_of<'a>(site: Site, cache: &'a Path, backings: &'a [PathBuf]) -> &'a Path {
    match site {
        Site::Cache => cache,
        Site::Backing(index) => backings.get(index).map_or(cache, PathBuf::as_path),
    }
}

/// A finding for people, with the path of its device.
pub fn show_finding(finding: &Finding, cache: &Path, backings: &[PathBuf]) -> String {
    format!("{}: {finding}\n", path_of(finding.place.site, cache, backings).display())
}

/// The failure of a command, from the error of a tool.
pub fn failure(error: &OfflineError, cache: &Path, backings: &[PathBuf]) -> Failure {
    let device = backings.first().map_or(cache, PathBuf::as_path);
    match error {
        OfflineError::Damaged(finding) => Failure::refused(
            path_of(finding.place.site, cache, backings),
            "damaged, so the \
                content is not certain",
        )
        .found(format_args!("{} ({})", finding.detail, finding.place))
        .expected(format_args!("no damage: {}", finding.kind.meaning()))
        .advice(format_args!(
            "`ubcache check` lists all damage, `ubcache cat --damaged` reads what is left. \
                     {}",
            finding.kind.advice()
        )),
        OfflineError::SuperblockLost { finding, with_backing } => {
            Failure::refused(cache, "the superblock is damaged, and could not be found again")
                .found(format_args!("{} ({})", finding.detail, finding.place))
                .expected(
                    "an entry of the journal, and the UUID of the set from a disk or from \
                     remaining metadata",
                )
                .advice(if *with_backing {
                    "is it the cache device of these disks? If so, the map of its content is \
                     lost, and with it the dirty data; the disks have the rest \
                     (docs/guide/recover.md, step 5c)"
                } else {
                    "name all disks of the set with -B: their superblocks have its UUID"
                })
        }
        OfflineError::NotACache => Failure::could_not_run(cache, error)
            .expected("the cache device")
            .advice("`ubcache show` says which device is which"),
        OfflineError::NeverStarted => Failure::could_not_run(cache, error)
            .advice("is it the right device? A cache that was never started contains no data"),
        OfflineError::TooSmall { .. } => Failure::could_not_run(cache, error)
            .expected("a device at least as large as when the set was made")
            .advice("was the copy truncated? Name the device itself, or copy all of it"),
        OfflineError::NotAttached { .. } => Failure::refused(device, error).advice(
            "`ubcache show` prints the UUID of its cache: find that one; a device in state none \
             is complete by itself",
        ),
        OfflineError::OlderCopy(_) => Failure::refused(device, error)
            .expected(format_args!(
                "{} of the same run, as every start and every clean stop leaves \
                them",
                cache.display()
            ))
            .advice(
                "find the right one; `ubcache serve` prints how to go on without it, and `ubcache \
                 cat --dirty-anyway` reads the disk with what this cache has over it. Nothing was \
                 changed",
            ),
        OfflineError::NoSlot(_) => Failure::refused(device, error).advice(
            "is it the right cache, or an older copy of it? Do not attach the device anew; \
             `ubcache repair --dry-run` with -B reports if its slot can be found again",
        ),
        OfflineError::NotFlashOnly(_) => Failure::could_not_run(cache, error)
            .expected("the number of a volume that has no backing device")
            .advice(
                "`ubcache dump --what uuids` lists the volumes; for one of state backed, name \
                its disk with -B",
            ),
        OfflineError::BeyondEnd { .. } => {
            Failure::refused(device, error).expected("a backing device as long as it was").advice(
                "restore its full size; --damaged writes the rest, and leaves these in the cache",
            )
        }
        OfflineError::NoRoom(_) => Failure::refused(cache, error).advice(
            "all dirty data is on the backing device now; run again with --detach, which needs no \
             room in the cache",
        ),
        OfflineError::Io { on, error: found, .. } => {
            let path = match on {
                On::Backing => device,
                On::Output => Path::new("standard output"),
                _ => cache,
            };
            Failure::refused(path, error).advice(match on {
                _ if found.contains("No space left") => "make room there, and run it again",
                On::Output => "run it again, and let it write everything",
                _ => {
                    "look at the system's log for errors of the device; the command can be run \
                     again"
                }
            })
        }
        _ => Failure::refused(device, error).advice(
            "look at the system's log for errors of the device; the command can be run again",
        ),
    }
}

/// One line that sums a report up.
pub fn summary(report: &Report) -> String {
    let count = |severity, word| match report.count(severity) {
        1 => format!("1 {word}"),
        n => format!("{n} {word}s"),
    };
    format!(
        "{}, {}, {}",
        count(Severity::Error, "error"),
        count(Severity::Warning, "warning"),
        count(Severity::Note, "note")
    )
}

/// Intervals of the tree that could not be read, for people.
pub fn show_lost(lost: &[Lost]) -> String {
    lost.iter()
        .map(|lost| {
            let (after, upto) = (lost.after, lost.upto);
            format!(
                "  lost: the part of the tree for volume {} key sector {} to volume {} key sector \
                 {}\n",
                after.0, after.1, upto.0, upto.1
            )
        })
        .collect()
}
