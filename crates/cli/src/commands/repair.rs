//! `ubcache repair`: a damaged set as far as it is certain, in a new image or in place.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use ubcache_daemon::Failure;
use ubcache_daemon::size::show_size;
use ubcache_format::SectorRange;
use ubcache_offline::{
    FindingKind, OfflineError, On, Repair, RepairOptions, copy_device, survey, unreadable_data,
    write_repaired,
};

use super::new_file::{NewFile, report_file, same_as};
use super::offline::{
    Bar, DeviceArgument, confirm as confirm_by_name, failure, host, metadata_only, named_once,
    open, open_as_it_is, show_finding, summary,
};
use super::print;

/// Uncertain ranges that are shown as text; all are in the JSON.
const SHOWN: usize = 50;

const AFTER_HELP: &str = "\
Reads everything that is readable, keeps what is certain, and lists the rest: volume, sectors, and
the places on the cache that may have newer data than the backing device. Uncertain data is left
out; --use-uncertain keeps it where only one version is known, and it is listed all the same.
Unreadable dirty data is left out and listed. Clean data is left out: the backing devices have it.

The result goes to a new image (--out), and CACHE is only read. With --in-place it goes to free
buckets of CACHE, and replaces the damaged set in one step; that must be confirmed with
--confirm CACHE, or on a terminal. The set must not be running.

Name all backing devices with -B: they are needed to rebuild a lost superblock or volume table,
and --in-place refuses to keep dirty data without a known owner. If no older volume table is left,
data is assigned to a disk only with --all-disks, and only if no other assignment is possible.

Exit codes: 0 nothing is damaged, 1 damage was found (repaired, or only listed with --dry-run), 2
could not run.

Example:
  ubcache repair /dev/nvme0n1p4 -B /dev/sdb --dry-run
  ubcache repair /dev/nvme0n1p4 -B /dev/sdb --out new.img --report repair.json
  ubcache check new.img -B /dev/sdb
  ubcache repair /dev/nvme0n1p4 -B /dev/sdb --in-place --confirm /dev/nvme0n1p4";

/// Rebuild a damaged set that is not running, from what is readable
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The cache device or file; with --dry-run also a pack of it
    #[arg(value_name = "CACHE")]
    cache: PathBuf,
    /// Backing devices of the set; only read
    #[arg(short = 'B', long = "bdev", value_name = "DEVICE", num_args = 1..)]
    bdev: Vec<PathBuf>,
    /// Write the repaired cache to this new file (sparse)
    #[arg(short, long, value_name = "NEW", required_unless_present_any = ["in_place", "dry_run"])]
    out: Option<PathBuf>,
    /// With --out: overwrite a file that is there already
    #[arg(long, requires = "out")]
    force: bool,
    /// Repair CACHE itself
    #[arg(long, conflicts_with = "out")]
    in_place: bool,
    /// With --in-place: the path of CACHE once more, instead of a question
    #[arg(long, value_name = "CACHE", requires = "in_place")]
    confirm: Option<PathBuf>,
    /// Print the repair, and write nothing
    #[arg(long, conflicts_with_all = ["in_place", "force"])]
    dry_run: bool,
    /// Keep data that is not certain where only one version of it is known
    #[arg(long)]
    use_uncertain: bool,
    /// The disks after -B are all disks of the set: a lost volume table is rebuilt from them
    #[arg(long, requires = "bdev")]
    all_disks: bool,
    /// With --in-place: leave out data that is not certain
    #[arg(long, requires = "in_place", conflicts_with = "use_uncertain")]
    drop_uncertain: bool,
    /// Write the report to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let host = host()?;
    named_once(&args.cache, &args.bdev)?;
    let cache = open(&host, &args.cache, DeviceArgument::Cache, args.in_place)?;
    if cache.is_pack() && !args.dry_run {
        return Err(metadata_only(&args.cache));
    }
    let backings = args.bdev.iter().map(|path| open(&host, path, DeviceArgument::Backing, false));
    let backings = backings.collect::<Result<Vec<_>, _>>()?;
    // Before the set is read, which may take long.
    let (out, report) = outputs(args)?;
    let bar = Bar::new();
    let options = RepairOptions {
        use_uncertain: args.use_uncertain,
        without_data: cache.is_pack(),
        all_disks: args.all_disks,
    };
    let found = host.block_on(async {
        survey(&cache, &backings.iter().collect::<Vec<_>>(), options, &bar).await
    });
    bar.clear();
    let mut repair = found.map_err(|error| failure(&error, &args.cache, &args.bdev))?;
    if repair.is_clean() || is_of_the_disks(&repair) || args.dry_run {
        return tell(args, &repair, None, report);
    }
    let done = if let Some(mut out) = out {
        out.set_size(repair.device_bytes())?;
        let new = open_as_it_is(&host, out.unfinished(), true)?;
        let done = host.block_on(async {
            let unreadable = copy_device(&cache, &new, &bar).await?;
            write_repaired(&mut repair, &new, &unreadable, true, &bar).await?;
            Ok(unreadable)
        });
        bar.clear();
        let done: Result<_, OfflineError> = done;
        let unreadable = done.map_err(|error| match &error {
            OfflineError::Io { on: On::Cache, .. } => out.cannot_write(&error),
            error => failure(error, &args.cache, &args.bdev),
        })?;
        let path = args.out.clone().unwrap_or_default();
        out.finish()?;
        (path, unreadable)
    } else {
        let unreadable = host.block_on(async { unreadable_data(&repair, &cache, &bar).await });
        bar.clear();
        let unreadable = unreadable.map_err(|error| failure(&error, &args.cache, &args.bdev))?;
        confirm(args, &repair, &unreadable)?;
        let done = host.block_on(async {
            write_repaired(&mut repair, &cache, &unreadable, false, &bar).await
        });
        bar.clear();
        done.map_err(|error| failure(&error, &args.cache, &args.bdev))?;
        (args.cache.clone(), unreadable)
    };
    tell(args, &repair, Some((&done.0, &done.1)), report)
}

/// Opens the output files: the new image and the report, neither in the place of a device of the
/// set.
fn outputs(args: &Args) -> Result<(Option<NewFile>, Option<NewFile>), Failure> {
    let needed: Vec<&Path> =
        std::iter::once(&args.cache).chain(&args.bdev).map(PathBuf::as_path).collect();
    let out = args.out.as_deref().filter(|_| !args.dry_run);
    if let (Some(out), Some(report)) = (out, &args.report)
        && (out == report || same_as(report, &[out]).is_some())
    {
        return Err(Failure::could_not_run(report, "both the new image and the report")
            .expected("two files")
            .advice("name another file for one of them; nothing was written"));
    }
    let out = out.map(|out| NewFile::create(out, args.force, &needed)).transpose()?;
    let report = args.report.as_deref().map(|path| report_file(path, &needed)).transpose()?;
    Ok((out, report))
}

/// Refuses a repair in place without the name of the device, or without a decision about uncertain
/// data.
fn confirm(args: &Args, repair: &Repair, unreadable: &[SectorRange]) -> Result<(), Failure> {
    let refuse = |what: &str| Failure::could_not_run(&args.cache, what);
    let ownerless = repair.ownerless_sectors();
    if ownerless > 0 && args.bdev.is_empty() {
        return Err(refuse(
            "dirty data would be kept that belongs to no volume in the volume table",
        )
        .found(format_args!("{} of volumes without a name", show_size(ownerless * 512)))
        .expected("-B with every backing device of the set")
        .advice(
            "name every backing device with -B: repair searches older volume tables for their \
                 slots, and a repair in place may overwrite those tables; or write to a new image \
                 with --out",
        ));
    }
    if ownerless > 0 && !args.drop_uncertain && !args.use_uncertain {
        return Err(refuse(
            "there is dirty data that belongs to none of the backing devices named",
        )
        .found(show_size(ownerless * 512))
        .expected("-B with every backing device of the set")
        .advice(
            "name all disks and add --all-disks (--dry-run prints the result); or write to a new \
             image with --out; or add --drop-uncertain: then no volume will show this data",
        ));
    }
    let unreadable: u64 = unreadable.iter().map(SectorRange::sectors).sum();
    if unreadable > 0 && !args.drop_uncertain && !args.use_uncertain {
        return Err(refuse("unreadable dirty data would be given up")
            .found(show_size(unreadable * 512))
            .advice(
                "write to a new image with --out, or add --drop-uncertain or --use-uncertain",
            ));
    }
    if repair.claimed_sectors() > 0 && !args.use_uncertain && !args.drop_uncertain {
        return Err(refuse("there is uncertain data that may be the only copy")
            .found(show_size(repair.claimed_sectors() * 512))
            .advice(
                "write to a new image with --out, or add --drop-uncertain or --use-uncertain",
            ));
    }
    let lost = repair.uncertain.iter().filter(|part| part.places.is_empty()).count();
    if lost > 0 && !args.use_uncertain && !args.drop_uncertain {
        return Err(refuse(
            "for some ranges no version of the cached data was found: newer data there would be \
             given up",
        )
        .found(format_args!("{lost} ranges without a version; --dry-run lists them"))
        .advice(
            "copy the cache first, or write to a new image with --out; or add --drop-uncertain",
        ));
    }
    confirm_by_name(&args.cache, args.confirm.as_deref(), "To overwrite the damaged set")
}

/// True if the only errors are that cache and disk do not fit together, which no new image of the
/// cache changes.
fn is_of_the_disks(repair: &Repair) -> bool {
    let mut errors = repair.report.errors().into_iter();
    let of_disk = |kind| matches!(kind, FindingKind::OlderCopy | FindingKind::BeyondEndDirty);
    !repair.is_clean() && repair.slots.is_empty() && errors.all(|finding| of_disk(finding.kind))
}

fn tell(
    args: &Args,
    repair: &Repair,
    done: Option<(&Path, &[SectorRange])>,
    report: Option<NewFile>,
) -> Result<(), Failure> {
    let mut object = repair.to_json();
    object["written_to"] = serde_json::json!(done.map(|(path, _)| path.to_string_lossy()));
    let json = serde_json::to_string_pretty(&object).expect("plain data always serializes") + "\n";
    let text = if args.json { String::new() } else { as_text(args, repair, done) };
    let printed = print(if args.json { &json } else { &text });
    if let Some(mut report) = report {
        let written = report.write(json.as_bytes());
        written.map_err(|error| report.cannot_write(&error))?;
        report.finish()?;
    }
    printed?;
    if repair.is_clean() {
        return Ok(());
    }
    let failure = Failure::refused(&args.cache, "damaged").found(summary(&repair.report));
    if is_of_the_disks(repair) {
        return Err(Failure::refused(
            &args.cache,
            "the cache is not damaged, but it does not fit the disk",
        )
        .found(summary(&repair.report))
        .expected("damage that can be repaired")
        .advice("a repair would not help: follow the advice above; nothing was written"));
    }
    Err(match done {
        Some((path, _)) if !repair.without_slot.is_empty() => failure.advice(format_args!(
            "{}: repaired, except for the volume table, which lacks disks: their data is kept, \
             and no volume shows it. Keep the damaged original",
            path.display()
        )),
        Some((path, _)) if repair.slots_by_choice > 0 => failure.advice(format_args!(
            "{}: repaired, with a rebuilt volume table: keep the damaged original, and check file \
             systems on a copy first",
            path.display()
        )),
        Some((path, _)) if repair.uncertain.is_empty() => {
            failure.advice(format_args!("{}: repaired, and nothing is uncertain", path.display()))
        }
        Some((path, _)) => failure.advice(format_args!(
            "{}: repaired; keep the damaged original and the list of uncertain data, and check \
             file systems",
            path.display()
        )),
        None => failure
            .advice("nothing was written; `--out NEW` writes the certain data to a new image"),
    })
}

fn as_text(args: &Args, repair: &Repair, done: Option<(&Path, &[SectorRange])>) -> String {
    let mut text = String::new();
    for finding in repair.report.errors() {
        text += &show_finding(finding, &args.cache, &args.bdev);
    }
    if let Some(how) = &repair.superblock {
        let _ = writeln!(text, "superblock: {how}");
    }
    for line in &repair.slots {
        let _ = writeln!(text, "volume table: {line}");
    }
    for part in repair.uncertain.iter().take(SHOWN) {
        let end = if part.range.end.0 >= ubcache_format::Key::MAX_END {
            "the end".to_owned()
        } else {
            part.range.end.to_string()
        };
        let places =
            part.places.iter().map(|place| format!(" {}", place.offset)).collect::<String>();
        let found = match part.places.len() {
            0 => "nothing found".to_owned(),
            1 => format!("cache sector{places}"),
            count => format!("{count} versions, cache sectors{places}"),
        };
        let _ = writeln!(
            text,
            "uncertain: volume {} key sectors {} to {end}: {found}",
            part.inode, part.range.start
        );
    }
    if repair.uncertain.len() > SHOWN {
        let _ = writeln!(
            text,
            "… and {} more; --json or --report has all",
            repair.uncertain.len() - SHOWN
        );
    }
    if let Some((_, unreadable)) = done {
        for range in unreadable {
            let _ = writeln!(text, "unreadable on {}: sectors {range}", args.cache.display());
        }
    }
    let size = |sectors: u64| show_size(sectors * 512);
    let _ = writeln!(
        text,
        "{}: {} of dirty data is certain; {} intervals are uncertain, {} of data was found for \
         them; {} of clean data {} left \
         out",
        args.cache.display(),
        size(repair.kept_sectors),
        repair.uncertain.len(),
        size(repair.claimed_sectors()),
        size(repair.clean_dropped),
        if repair.is_clean() { "would be" } else { "is" },
    );
    let _ = match done {
        Some((path, _)) => writeln!(text, "{}: written and checked", path.display()),
        None if repair.is_clean() => {
            writeln!(text, "{}: not damaged, nothing to repair", args.cache.display())
        }
        None => writeln!(text, "nothing was written"),
    };
    text
}
