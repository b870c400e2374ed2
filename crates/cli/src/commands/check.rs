//! `ubcache check`: looks for damage in a set that is not running.

use std::fmt::Write;
use std::path::PathBuf;

use serde_json::json;
use ubcache_daemon::Failure;
use ubcache_daemon::size::show_size;
use ubcache_offline::{CheckOptions, Report, check};

use super::offline::{Bar, host, open_all, path_of, show_finding, show_lost, summary};
use super::print;

const AFTER_HELP: &str = "\
No device is changed. The set must not be running.

A finding names what was found, its place (device, bucket, sector, byte), its meaning for the data
and what to do. With -B, the superblocks of the backing devices are checked too, and every clean
extent is compared with them. CACHE may be a pack (`ubcache pack`): then no data is compared.

Exit codes: 0 no damage (warnings are possible), 1 damage, 2 could not run.

Example:
  ubcache check /dev/nvme0n1p4 -B /dev/sdb";

/// Check a cache set that is not running: every structure, and that clean data equals the backing
/// devices'
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The cache device or file, or a pack of it
    #[arg(value_name = "CACHE")]
    cache: PathBuf,
    /// Backing devices of the set, some or all
    #[arg(short = 'B', long = "bdev", value_name = "DEVICE", num_args = 1..)]
    bdev: Vec<PathBuf>,
    /// Header of a backing device that was adopted, once for each [default: it is looked for]
    #[arg(long, value_name = "PATH", requires = "bdev")]
    header: Vec<PathBuf>,
    /// Print JSON: one object with all findings
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let host = host()?;
    let (cache, backings) = open_all(&host, &args.cache, &args.bdev, &args.header)?;
    let bar = Bar::new();
    let checked = host.block_on(async {
        let backings: Vec<_> = backings.iter().collect();
        let options =
            CheckOptions { data: !cache.is_pack(), watcher: &bar, ..CheckOptions::default() };
        check(&cache, &backings, None, options).await
    });
    bar.clear();
    let report = checked.report;
    if args.json {
        let mut object = report.to_json();
        object["data_compared"] = json!(!args.bdev.is_empty() && !cache.is_pack());
        for (finding, shown) in
            report.findings.iter().zip(object["findings"].as_array_mut().into_iter().flatten())
        {
            shown["path"] =
                json!(path_of(finding.place.site, &args.cache, &args.bdev).to_string_lossy());
        }
        print(
            &(serde_json::to_string_pretty(&object).expect("plain data always serializes") + "\n"),
        )?;
    } else {
        print(&(as_text(&report, args, cache.is_pack()) + &show_lost(&checked.lost)))?;
    }
    if report.is_clean() {
        return Ok(());
    }
    Err(Failure::refused(&args.cache, "damaged")
        .found(summary(&report))
        .expected("no errors")
        .advice("copy the devices before anything else, then follow docs/guide/recover.md"))
}

fn as_text(report: &Report, args: &Args, is_pack: bool) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        text += &show_finding(finding, &args.cache, &args.bdev);
    }
    for (kind, count) in &report.counts {
        let shown = report.findings.iter().filter(|finding| finding.kind == *kind).count() as u64;
        if *count > shown {
            let _ = writeln!(text, "… and {} more of the kind {}", count - shown, kind.code());
        }
    }
    let stats = &report.stats;
    let _ = writeln!(
        text,
        "{}: {} journal entries, {} nodes, {} extents, {} cached, {} of it dirty, {} of {} buckets \
         free",
        args.cache.display(),
        stats.journal_entries,
        stats.nodes,
        stats.extents,
        show_size(stats.cached_sectors * 512),
        show_size(stats.dirty_sectors * 512),
        stats.free_buckets,
        stats.buckets,
    );
    let _ = writeln!(
        text,
        "the oldest pointers are {} (data) and {} (nodes) generations behind; the limit is 128",
        stats.oldest_data_pointer, stats.oldest_node_pointer,
    );
    if is_pack {
        text += "clean data was not compared with the backing devices: a pack has no data\n";
    } else if !args.bdev.is_empty() {
        let _ = writeln!(
            text,
            "{} compared with the backing devices",
            show_size(stats.compared_sectors * 512)
        );
    }
    let _ = writeln!(
        text,
        "{}: {}",
        if report.is_clean() { "clean" } else { "DAMAGED" },
        summary(report)
    );
    text
}
