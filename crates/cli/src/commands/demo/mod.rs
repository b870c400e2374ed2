//! `ubcache demo`: shows in a quarter of a minute what a cache does, and that it is safe to stop.
//!
//! | module | holds |
//! |---|---|
//! | `load` | the load: clients that know what every block has to hold |
//! | `child` | `ubcache make` and `ubcache serve` as child processes |
//!
//! Cache and "disk" are two files on the same device, so the disk would be as fast as the cache:
//! the demo has every read of it delayed, and says so.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ubcache_daemon::Failure;
use ubcache_daemon::served::report::{StatsReport, VolumeReport};
use ubcache_daemon::size::show_size;

use super::print;
use child::Server;
use load::{Disk, Measured, Work};

mod child;
mod load;

/// Show what a cache does: makes a small set in ./ubcache-demo, serves it, loads it, restarts it
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache demo")]
pub struct Args {
    /// Directory for the files of the demo
    #[arg(long, value_name = "DIRECTORY", default_value = "ubcache-demo")]
    directory: PathBuf,
    /// Seconds for each part of the load
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    seconds: u64,
}

/// Least duration of a read of the "disk": that of a quick hard disk.
const DISK_DELAY: Duration = Duration::from_millis(4);
const CACHE_BYTES: u64 = 256 << 20;
const DISK_BYTES: u64 = 1 << 30;

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let directory = &args.directory;
    let span = Duration::from_secs(args.seconds.max(1));
    std::fs::create_dir_all(directory).map_err(|error| {
        Failure::could_not_run(directory, format_args!("can't make it: {error}"))
    })?;
    print(&introduction(directory))?;
    child::make(directory, CACHE_BYTES, DISK_BYTES)?;
    let disk = Disk::prepare(&child::disk(directory))?;

    let server = Server::start(directory, DISK_DELAY)?;
    let mut rows = Vec::new();
    server.set("cache_mode=none")?;
    rows.push(row("without cache: random reads", &disk.run(&server.socket, Work::Reads, span)?));
    server.set("cache_mode=writethrough")?;
    disk.run(&server.socket, Work::Warm, span)?;
    let before = server.volume()?;
    rows.push(row("with cache: random reads", &disk.run(&server.socket, Work::Reads, span)?));
    let warm = server.volume()?;
    server.set("cache_mode=writeback")?;
    rows.push(row("with cache: mixed, 30% writes", &disk.run(&server.socket, Work::Mixed, span)?));
    let mixed = server.volume()?;
    disk.run(&server.socket, Work::Scan, span)?;
    let scanned = server.volume()?;
    print(&measurements(&rows))?;
    print(&counters(&[
        ("random reads", &before.stats, &warm.stats),
        ("mixed load", &warm.stats, &mixed.stats),
        ("a long sequential read", &mixed.stats, &scanned.stats),
    ]))?;
    print(&format!(
        "\nNow a restart: `ubcache stop`, then `ubcache serve` again. {} of writes are only in the \
         cache: state {}.\n",
        show_size(scanned.dirty_bytes),
        scanned.state
    ))?;
    server.stop()?;

    let server = Server::start(directory, DISK_DELAY)?;
    let begin = server.volume()?;
    let measured = disk.run(&server.socket, Work::CheckAll, span)?;
    let end = server.volume()?;
    print(&after_restart(&measured, &begin, &end))?;
    server.stop()?;
    print(&farewell(directory))
}

fn introduction(directory: &Path) -> String {
    format!(
        "ubcache demo: a cache of {} in front of a disk of {}, both sparse files in {}.\n\
         They are on the same device, so the \"disk\" is slowed down: every read of it takes at \
         least {} ms.\n\n",
        show_size(CACHE_BYTES),
        show_size(DISK_BYTES),
        directory.display(),
        DISK_DELAY.as_millis()
    )
}

fn row(name: &str, measured: &Measured) -> String {
    format!(
        "  {name:<32} {:>9.0} {:>9.1} {:>9.2}\n",
        measured.per_second(),
        measured.bytes_per_second() / f64::from(1 << 20),
        measured.latency().as_secs_f64() * 1000.0
    )
}

fn measurements(rows: &[String]) -> String {
    format!("\n  {:<32} {:>9} {:>9} {:>9}\n{}", "", "IO/s", "MiB/s", "ms each", rows.concat())
}

fn counters(parts: &[(&str, &StatsReport, &StatsReport)]) -> String {
    let mut text = format!("\n  {:<32} {:>9} {:>9} {:>9}\n", "", "hits", "misses", "bypassed");
    for (name, before, after) in parts {
        let _ = writeln!(
            text,
            "  {name:<32} {:>9} {:>9} {:>9}",
            after.cache_hits - before.cache_hits,
            after.cache_misses - before.cache_misses,
            show_size(after.bypassed_bytes - before.bypassed_bytes)
        );
    }
    text
}

fn after_restart(measured: &Measured, begin: &VolumeReport, end: &VolumeReport) -> String {
    let (hits, misses) = (
        end.stats.cache_hits - begin.stats.cache_hits,
        end.stats.cache_misses - begin.stats.cache_misses,
    );
    let from_disk = end.backing.counters.read_bytes - begin.backing.counters.read_bytes;
    format!(
        "All blocks were read again and compared: {} blocks intact, {hits} hits, {misses} misses, \
         {} read from the disk, {:.0} IO/s.\n",
        measured.operations,
        show_size(from_disk),
        measured.per_second()
    )
}

fn farewell(directory: &Path) -> String {
    format!(
        "\nTo serve a set for real (the data of DISK is lost, that of CACHE too):\n\
         \x20 ubcache make -C CACHE -B DISK --writeback\n\
         \x20 ubcache serve -C CACHE -B DISK --nbd unix:/run/disk.sock\n\
         \x20 nbd-client -unix /run/disk.sock /dev/nbd0     # or any other NBD client: nbdfuse, \
             qemu, libnbd\n\
         \x20 ubcache status\n\
         \x20 ubcache stop\n\
         The files of the demo can go: rm -r {}\n",
        directory.display()
    )
}
