//! What the commands for sets that are not running share: opening devices, progress, refusals.

use std::cell::{Cell, RefCell};
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use ubcache_daemon::Failure;
use ubcache_daemon::failure::Code;
use ubcache_daemon::target::host_open_failure;
use ubcache_host::{Host, HostFile, IoBackend, OpenError, OpenOptions};
use ubcache_offline::{
    Cache, Finding, Lost, OfflineError, PackError, Progress, Report, Severity, Site, Watcher,
};

/// How long a device that is in use is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// A host to do I/O with.
pub fn host() -> Result<Host, Failure> {
    Host::new(IoBackend::Auto)
        .map_err(|error| Failure::usage("UBCACHE_IO", format_args!("can't start I/O: {error}")))
}

/// Opens a device that nobody else uses, or a pack of one; for reading only unless `write`, which no pack is for.
pub fn open(host: &Host, path: &Path, write: bool) -> Result<Cache<HostFile>, Failure> {
    let file = open_file(host, path, write)?;
    let cache = host.block_on(async { Cache::open(file).await }).map_err(|error| {
        let failure = Failure::could_not_run(path, &error);
        match error {
            PackError::Version(_) => failure.advice("read it with the ubcache that wrote it, or a later one"),
            _ => failure.advice("copy it again from where it was made: nothing in it can be trusted"),
        }
    })?;
    if write && cache.is_pack() {
        return Err(metadata_only(path));
    }
    Ok(cache)
}

/// Why a pack will not do.
pub fn metadata_only(path: &Path) -> Failure {
    Failure::could_not_run(path, "a pack: it has the metadata of a cache device, and no data")
        .expected("the cache device or a copy of it")
        .advice("`check`, `dump`, `cat --map`, `recover --dry-run` and `repair --dry-run` read packs")
}

/// Opens a device that nobody else uses.
pub fn open_file(host: &Host, path: &Path, write: bool) -> Result<HostFile, Failure> {
    let options = OpenOptions { direct: true, write, exclusive: true };
    let patience = Instant::now() + PATIENCE;
    let mut opened = HostFile::open(&host.env(), path, options);
    // The kernel takes a moment to close the files of a process that was killed.
    while matches!(opened, Err(OpenError::InUse { .. })) && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(50));
        opened = HostFile::open(&host.env(), path, options);
    }
    opened.map_err(|error| {
        let mut failure = host_open_failure(path, error);
        failure.code = Code::CouldNotRun;
        failure
    })
}

/// Asks for the path of a device once more, before it is overwritten: as an option, or on the terminal.
pub fn confirm(path: &Path, option: Option<&Path>, to_do_what: &str) -> Result<(), Failure> {
    let refuse = Failure::could_not_run(path, "not confirmed");
    let named = match option {
        Some(named) => named.to_owned(),
        None if std::io::stdin().is_terminal() => {
            eprint!("{to_do_what}, type the path of the device: ");
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
        return Err(refuse.found(named.display()).expected(path.display()));
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
        let bar =
            if std::io::stderr().is_terminal() { ProgressBar::no_length() } else { ProgressBar::hidden() };
        let style = "{msg:32} {bar:24} {bytes:>11} of {total_bytes:11} {bytes_per_sec:>13}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Bar { bar, phase: RefCell::new(""), drawn: Cell::new(Instant::now()) }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Watcher for Bar {
    fn watch(&self, progress: Progress) {
        if self.phase.replace(progress.phase) != progress.phase {
            self.bar.reset();
            self.bar.set_message(progress.phase);
        } else if self.drawn.get().elapsed() < Duration::from_millis(50) && progress.done < progress.total {
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

/// Why a tool gave up, in words.
pub fn failure(error: &OfflineError, cache: &Path, backing: Option<&Path>) -> Failure {
    let device = backing.unwrap_or(cache);
    match error {
        OfflineError::Damaged(finding) => {
            let path = if finding.place.site == Site::Cache { cache } else { device };
            Failure::refused(path, "damaged, so the content is not certain")
                .found(format_args!("{} ({})", finding.detail, finding.place))
                .expected(format_args!("no damage: {}", finding.kind.meaning()))
                .advice(format_args!(
                    "`ubcache check` lists all damage, `ubcache cat --damaged` reads what is left. {}",
                    finding.kind.advice()
                ))
        }
        OfflineError::NotACache => Failure::could_not_run(cache, error)
            .expected("the cache device")
            .advice("`ubcache show` says which device is which"),
        OfflineError::NeverStarted => Failure::could_not_run(cache, error),
        OfflineError::TooSmall { .. } => Failure::could_not_run(cache, error).expected("a device as large as the one that was dumped"),
        OfflineError::NotAttached { .. } => Failure::refused(device, error).advice(
            "find the cache whose UUID it names with `ubcache show`; a device of state none is complete by itself",
        ),
        OfflineError::NoSlot(_) => Failure::refused(device, error)
            .advice("is it the right cache, or an older copy of it? Do not attach the device anew"),
        OfflineError::BeyondEnd { .. } => Failure::refused(device, error)
            .expected("a backing device as long as it was")
            .advice("give it its full size again"),
        OfflineError::NoRoom(_) => Failure::refused(cache, error).advice(
            "all dirty data is on the backing device now; run again with --detach, which needs no room in the cache",
        ),
        _ => Failure::refused(device, error)
            .advice("look at the system's log for errors of the device; what was begun can be run again"),
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
                "  lost: what the tree says of volume {} key sector {} to volume {} key sector {}\n",
                after.0, after.1, upto.0, upto.1
            )
        })
        .collect()
}
