//! `ubcache restore`: metadata from a dump, onto a new file or the device that has the data.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::json;
use ubcache_daemon::Failure;
use ubcache_daemon::size::show_size;
use ubcache_host::Host;
use ubcache_offline::{
    Dumped, Lines, OfflineError, On, Restored, Standing, TargetState, look_at_target, read_dump,
    restore,
};

use super::new_file::{NewFile, refuse_needed};
use super::offline::{Bar, confirm, failure, host, metadata_only, open_as_it_is};
use super::{complain, print};

const AFTER_HELP: &str = "\
DUMP is the output of `ubcache dump CACHE --format restore`: superblock, volume table, generations
and priorities of the buckets, and every extent, but not the data of the extents. So there are two
uses:

NEW is the cache device that was dumped, or a copy of it, and its metadata is broken: its data
gets its metadata back. This must be confirmed with --confirm NEW, or on a terminal. If the set was
used after the dump, it is refused, because buckets may have other data now. --older-dump restores
all the same; cached data is then wrong wherever a bucket was reused.

NEW does not exist: a sparse file of the right size is made. It has NO DATA: everything cached
reads as zeroes. Use it to examine the metadata, and never serve it.

The metadata goes to buckets that no extent uses; the set on NEW stays valid until the last step. A
device of another set, or a backing device, is refused. Afterwards, `ubcache check NEW -B DISK`
compares clean data with the disks; `ubcache serve` keeps dirty data and, as after the Linux
driver, drops clean data, unless --keep-clean is given.

Exit codes: 0 restored and checked, 1 failed on the way, 2 refused or could not run, nothing was
written.

Example:
  ubcache restore cache.dump /dev/nvme0n1p4 --dry-run
  ubcache restore cache.dump /dev/nvme0n1p4 --confirm /dev/nvme0n1p4";

/// Write the metadata of a dump to the cache device that has the data, or to a new file
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Output of `ubcache dump --format restore`
    #[arg(value_name = "DUMP")]
    dump: PathBuf,
    /// The cache device or a copy of it, or a file that does not exist yet
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// The path of NEW once more, instead of a question
    #[arg(long, value_name = "NEW")]
    confirm: Option<PathBuf>,
    /// Restore although the set was used after the dump was made
    #[arg(long)]
    older_dump: bool,
    /// Print the result, and write nothing
    #[arg(long, conflicts_with = "confirm")]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A dump in a file.
struct DumpFile(PathBuf);

impl Lines for DumpFile {
    fn lines(&self) -> Result<Box<dyn Iterator<Item = Result<String, String>> + '_>, String> {
        let file = File::open(&self.0).map_err(|error| error.to_string())?;
        Ok(Box::new(
            BufReader::new(file).lines().map(|line| line.map_err(|error| error.to_string())),
        ))
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let host = host()?;
    let source = DumpFile(args.dump.clone());
    let dumped = read_dump(&source).map_err(|error| unreadable(&args.dump, &error))?;
    let is_new = std::fs::symlink_metadata(&args.new).is_err();
    if is_new {
        return to_new_file(args, &host, &source, &dumped);
    }
    refuse_needed(&args.new, &[&args.dump])?;
    let target = open_as_it_is(&host, &args.new, !args.dry_run)?;
    if target.is_pack() {
        return Err(metadata_only(&args.new));
    }
    let bar = Bar::new();
    let state = host.block_on(async { look_at_target(&dumped, &target, &bar).await });
    bar.clear();
    let state = state.map_err(|error| failure(&error, &args.new, &[]))?;
    refuse(args, &dumped, &state)?;
    if state.standing == Standing::Unknown {
        complain(&format!(
            "{}: nothing of the set is readable here: is this the device with the data?\n",
            args.new.display()
        ));
    }
    if args.dry_run {
        return tell(args, &dumped, None, false);
    }
    confirm(&args.new, args.confirm.as_deref(), "To overwrite the metadata on it")?;
    let done = host.block_on(async { restore(&dumped, &source, &target, &state, &bar).await });
    bar.clear();
    let done = done.map_err(|error| failed(&args.new, &error))?;
    tell(args, &dumped, Some(&done), false)
}

fn to_new_file(
    args: &Args,
    host: &Host,
    source: &DumpFile,
    dumped: &Dumped,
) -> Result<(), Failure> {
    if args.dry_run {
        return tell(args, dumped, None, true);
    }
    let mut new = NewFile::create(&args.new, false, &[&args.dump])?;
    new.set_size(dumped.device_sectors * 512)?;
    let target = open_as_it_is(host, new.unfinished(), true)?;
    let bar = Bar::new();
    let state = TargetState::new_file();
    let done = host.block_on(async { restore(dumped, source, &target, &state, &bar).await });
    bar.clear();
    let done = done.map_err(|error| match &error {
        OfflineError::Io { on: On::Cache, .. } => new.cannot_write(&error),
        error => failed(&args.new, error),
    })?;
    drop(target);
    new.finish()?;
    tell(args, dumped, Some(&done), true)
}

/// Refuses a device that may not be restored to, even if confirmed.
fn refuse(args: &Args, dumped: &Dumped, state: &TargetState) -> Result<(), Failure> {
    let refused = |what: &str| Failure::could_not_run(&args.new, what);
    let ours = dumped.superblock().uuid;
    match state.standing {
        Standing::Unknown => Ok(()),
        Standing::Other { uuid, is_cache } => {
            let kind = if is_cache { "another cache device" } else { "a backing device" };
            Err(refused(kind).found(uuid).expected(ours).advice(
                "name the device that was dumped, or a copy of it; `ubcache show` says which is \
                 which",
            ))
        }
        Standing::OtherShape => Err(refused("the set was formatted anew since it was dumped")
            .expected("the sizes in the dump")
            .advice("restore to a new file, and examine that with `ubcache dump`")),
        Standing::SameSet { newest_seq } if newest_seq > dumped.journal_seq && !args.older_dump => {
            Err(refused(
                "the set was used after the dump was made, so buckets may have other data now",
            )
            .found(format_args!("journal entry {newest_seq}"))
            .expected(format_args!("{} at most", dumped.journal_seq))
            .advice(
                "`ubcache repair` keeps certain data; --older-dump restores the dump all the same",
            ))
        }
        Standing::SameSet { .. } => Ok(()),
    }
}

fn unreadable(dump: &Path, error: &OfflineError) -> Failure {
    Failure::could_not_run(dump, error)
        .expected("the whole output of `ubcache dump CACHE --format restore`")
        .advice("was it truncated or changed? Nothing was written")
}

fn failed(new: &Path, error: &OfflineError) -> Failure {
    match error {
        OfflineError::NoRoom(_) => {
            Failure::refused(new, "no room for the metadata in buckets without data")
                .advice("the set is unchanged; restore to a new file to examine the metadata")
        }
        error => failure(error, new, &[]),
    }
}

fn tell(
    args: &Args,
    dumped: &Dumped,
    done: Option<&Restored>,
    is_new: bool,
) -> Result<(), Failure> {
    let superblock = dumped.superblock();
    if args.json {
        let object = json!({
            "set_uuid": superblock.set_uuid.to_string(),
            "uuid": superblock.uuid.to_string(),
            "extents": dumped.extents,
            "cached_sectors": dumped.cached_sectors,
            "dirty_sectors": dumped.dirty_sectors,
            "written": done.is_some(),
            "journal_seq": done.map(|done| done.journal_seq),
            "new_file": is_new,
            "data": if is_new { "absent" } else { "as it is on the device" },
        });
        return print(
            &(serde_json::to_string_pretty(&object).expect("plain data always serializes") + "\n"),
        );
    }
    let new = args.new.display();
    let mut text = format!(
        "{new}: {} the metadata of cache {}: {} extents, {} cached, {} of it dirty\n",
        if done.is_some() { "has" } else { "would get" },
        superblock.uuid,
        dumped.extents,
        show_size(dumped.cached_sectors * 512),
        show_size(dumped.dirty_sectors * 512),
    );
    text += &match (done, is_new) {
        (_, true) => {
            format!(
                "{new}: a new file WITHOUT DATA: cached data reads as zeroes. Do not serve it\n"
            )
        }
        (Some(_), false) => {
            format!("{new}: written and checked; `ubcache check {new} -B DISK` compares its data\n")
        }
        (None, false) => "nothing was written\n".to_owned(),
    };
    print(&text)
}
