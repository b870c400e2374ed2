//! Shared parts of `unmake --in-place` and `convert`: the data of a disk, moved up or down in
//! place, with a work file by which an interrupted command goes on.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::json;
use ubcache_daemon::Failure;
use ubcache_daemon::open::header::{identity, remove_header, state_files, state_path};
use ubcache_daemon::open::probe::{found_elsewhere, recognize};
use ubcache_daemon::open::superblock::has_superblock;
use ubcache_daemon::open::target::{Access, Target, create_marked};
use ubcache_daemon::size::{parse_size, show_size};
use ubcache_format::{SECTOR_BYTES, Sector, Uuid, crc64_we};
use ubcache_host::Host;
use ubcache_offline::{
    LEAST_SECTORS, MoveError, MovePlan, MoveState, NEW_WORK, Resumed, Stage, begin_move, has_head,
    is_new_work, read_move, resume_move, veiled, work_bytes,
};

use super::offline::{Bar, host, open_file};
use super::print;

/// Bytes of a disk that say that its data is being moved.
const VEIL_BYTES: usize = 8192;

/// Bytes of the data in which content is recognized.
const HEAD_BYTES: usize = 80 << 10;

/// Options of both commands.
#[derive(clap::Args, Debug)]
pub struct MoveArgs {
    /// Work file, on another disk; needed until the command has finished [default:
    /// /var/lib/ubcache/NAME.move]
    #[arg(long, value_name = "PATH")]
    work: Option<PathBuf>,
    /// Bytes that are moved in one step; the work file is twice as large
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "16M")]
    chunk: u64,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Data to be moved in place: sectors of a disk.
pub struct Span {
    /// First sector before the move.
    pub from: Sector,
    /// First sector after it.
    pub to: Sector,
    /// Number of sectors.
    pub sectors: u64,
}

/// The move that a disk is in the middle of, and its work file.
struct Unfinished {
    work: PathBuf,
    state: MoveState,
    /// The disk has the name that the work file speaks of, and no mark of the move.
    by_name: bool,
}

/// Looks at a disk whose data is to be moved down or up, after a former move went on to its end.
/// Returns it with its begin; `None`: that former move was this one.
pub fn prepare(
    disk: &Path,
    down: bool,
    args: &MoveArgs,
) -> Result<Option<(Target, Vec<u8>)>, Failure> {
    if !args.dry_run {
        // In use is said before all else.
        drop(Target::open(disk, Access::Change)?);
    }
    let target = Target::open(disk, Access::Look)?;
    if let Some(found) = find(&target, args)?
        && go_on(disk, down, found, args)?
    {
        return Ok(None);
    }
    // Before everything else that is read of it.
    let begin = begin_of(&target)?;
    Ok(Some((target, begin)))
}

/// The begin of a disk, by which it is known again when it is opened alone.
fn begin_of(disk: &Target) -> Result<Vec<u8>, Failure> {
    let mut begin = vec![0; VEIL_BYTES];
    let count = disk.read_some(0, &mut begin)?;
    begin.truncate(count);
    Ok(begin)
}

/// The first bytes of the data of a disk.
pub fn head_of_data(disk: &Target, at: Sector) -> Result<Vec<u8>, Failure> {
    let mut head = vec![0; HEAD_BYTES];
    let count = disk.read_some(at.bytes(), &mut head)?;
    head.truncate(count);
    Ok(head)
}

/// Refuses data that is found by more than its first 4 KiB: the rest of it could be mounted in the
/// middle of its move. `instead`: what to do.
pub fn refuse_content(disk: &Path, head: &[u8], instead: &str) -> Result<(), Failure> {
    let found = recognize(head);
    let Some(unfit) = found_elsewhere(&found) else { return Ok(()) };
    let beside = found.iter().find(|it| it.name != unfit.name);
    let beside = beside.map_or(String::new(), |it| format!(", beside {}", it.name));
    Err(Failure::refused(disk, "its data can't be moved in place")
        .found(format_args!("{} (byte {} of the data){beside}", unfit.name, unfit.at))
        .expected(
            "ext2, ext3, ext4 or XFS and nothing beside it: they are mounted by their first 4 KiB \
             only, so that nothing mounts them in the middle of the move",
        )
        .advice(format_args!(
            "{instead}. If these bytes are only a rest of former content, erase them (wipefs)"
        )))
}

/// Looks for a move that was interrupted.
///
/// # Errors
/// The disk is in the middle of a move whose work file is not found, or is its own work file.
fn find(disk: &Target, args: &MoveArgs) -> Result<Option<Unfinished>, Failure> {
    if let Some(work) = &args.work {
        refuse_itself(&disk.path, work)?;
    }
    let head = begin_of(disk)?;
    let uuid = veiled(&head);
    let words = identity(&disk.path);
    let host = host()?;
    let given = args.work.iter().filter(|path| path.exists()).cloned();
    let given = given.map(|work| Ok((read_work(&host, &work)?, work)));
    // Those of other disks may be in use, and are not of interest.
    let usual = state_files("move").into_iter().filter_map(|work| {
        let state = read_work(&host, &work).ok()?;
        Some(Ok((state, work)))
    });
    for found in given.chain(usual) {
        let (Some(state), work) = found? else { continue };
        let fits = match uuid {
            Some(uuid) => state.plan.uuid == uuid,
            None => !words.is_empty() && state.plan.identity == words,
        };
        if fits {
            return Ok(Some(Unfinished { work, state, by_name: uuid.is_none() }));
        }
    }
    match uuid {
        // A superblock in force: only a rest of the veil is behind it, which nothing reads.
        Some(_)
            if has_superblock(disk)
                && veiled(&head[..VEIL_BYTES.min(head.len()) / 2]).is_none() =>
        {
            Ok(None)
        }
        Some(uuid) => {
            // By a command that still runs, whose work file can't be read.
            drop(Target::open(&disk.path, Access::Change)?);
            Err(without_work(disk, uuid, &default_work(&words, uuid)))
        }
        None => Ok(None),
    }
}

fn without_work(disk: &Target, uuid: Uuid, work: &Path) -> Failure {
    Failure::refused(&disk.path, "its data is being moved, and the work file is not found")
        .found(format_args!("the mark of move {uuid}"))
        .expected(work.display())
        .advice(
            "name the work file of the command that began it: --work PATH. It has the first 128 \
             KiB of the data, and the part that was being moved; without it neither command can \
             finish",
        )
}

/// Place of a work file: the same for a disk that the machine knows by name, so that a command that
/// is killed at its start leaves nothing that the next one does not use.
fn default_work(words: &str, uuid: Uuid) -> PathBuf {
    if words.is_empty() {
        return state_path(uuid, "move");
    }
    let name = [crc64_we(words.as_bytes()), crc64_we(format!("move of {words}").as_bytes())];
    let mut bytes = [0; 16];
    for (part, half) in bytes.chunks_mut(8).zip(name) {
        part.copy_from_slice(&half.to_be_bytes());
    }
    state_path(Uuid(bytes), "move")
}

fn read_work(host: &Host, work: &Path) -> Result<Option<MoveState>, Failure> {
    let file = open_file(host, work, false)?;
    host.block_on(async { read_move(&file).await }).map_err(|error| failure(&error, work, work))
}

/// Goes on with a move; false if nothing was changed by it, and it has to begin again.
///
/// # Errors
/// It is a move in the other direction, or nothing says that it is of this disk.
fn go_on(disk: &Path, down: bool, found: Unfinished, args: &MoveArgs) -> Result<bool, Failure> {
    let Unfinished { work, state, by_name } = found;
    let plan = state.plan.clone();
    let span = Span { from: plan.from, to: plan.to, sectors: plan.sectors };
    if (plan.to < plan.from) != down {
        let [this, other] = match down {
            true => ["ubcache unmake --in-place", "ubcache convert"],
            false => ["ubcache convert", "ubcache unmake --in-place"],
        };
        return Err(Failure::refused(disk, format_args!("it is in the middle of `{other}`"))
            .found(format_args!("the work file {}", work.display()))
            .expected(format_args!("a disk that is whole, or in the middle of `{this}`"))
            .advice(format_args!("finish that first: {other} {}", disk.display())));
    }
    if args.dry_run {
        report(disk, &span, &work, true, args)?;
        return Ok(true);
    }
    let host = host()?;
    let (device, file) = (open_file(&host, disk, true)?, open_file(&host, &work, true)?);
    let bar = Bar::new();
    let resumed = host.block_on(async {
        // The work file of a disk that had the same name: without it, that disk is lost.
        let is_other =
            by_name && state.stage != Stage::Body && !has_head(&device, &file, &state).await?;
        if is_other {
            return Ok(None);
        }
        resume_move(&device, &file, state, &bar).await.map(Some)
    });
    bar.clear();
    drop((device, file));
    let resumed = resumed.map_err(|error| failure(&error, disk, &work))?;
    let Some(resumed) = resumed else { return Err(of_another_disk(disk, &plan, &work)) };
    remove_header(&work)?;
    if resumed == Resumed::NotBegun {
        return Ok(false);
    }
    report(disk, &span, &work, true, args)?;
    Ok(true)
}

fn of_another_disk(disk: &Path, plan: &MovePlan, work: &Path) -> Failure {
    let (path, work) = (disk.display(), work.display());
    let command = if plan.to < plan.from { "unmake --in-place" } else { "convert" };
    Failure::refused(disk, "there is a work file of a disk of this name")
        .found(format_args!("{work}, of move {}; nothing of it is on this disk", plan.uuid))
        .expected(format_args!("the mark of that move on {path}, or no work file"))
        .advice(format_args!(
            "if the disk of that move has another name now, finish it there: ubcache {command} \
             DISK --work {work}. If no disk is in the middle of a move (this one was used since), \
             remove {work}"
        ))
}

/// Moves the data of a disk, with a new work file. `looked_at`: the begin of the disk by which all
/// of this was chosen.
pub fn begin(
    disk: &Path,
    span: &Span,
    superblock: Option<&[u8]>,
    looked_at: &[u8],
    args: &MoveArgs,
) -> Result<(), Failure> {
    if span.sectors < LEAST_SECTORS {
        return Err(Failure::refused(disk, "too little data to be moved in place")
            .found(show_size(span.sectors * SECTOR_BYTES))
            .expected(format_args!("at least {}", show_size(LEAST_SECTORS * SECTOR_BYTES)))
            .advice("copy it: `ubcache unmake` prints the command"));
    }
    let chunk_sectors = args.chunk / SECTOR_BYTES;
    if !args.chunk.is_multiple_of(4096) || !(1..=1 << 21).contains(&chunk_sectors) {
        return Err(Failure::usage("--chunk", "not a size for a step")
            .found(args.chunk)
            .expected("a multiple of 4096 bytes, up to 1 GiB"));
    }
    let uuid = Uuid(*uuid::Uuid::new_v4().as_bytes());
    let work = args.work.clone().unwrap_or_else(|| default_work(&identity(disk), uuid));
    if args.dry_run {
        return report(disk, span, &work, false, args);
    }
    let host = host()?;
    let device = open_file(&host, disk, true)?;
    make_work(&work, work_bytes(chunk_sectors))?;
    let file = open_file(&host, &work, true)?;
    let Span { from, to, sectors } = *span;
    let plan = MovePlan { uuid, from, to, sectors, chunk_sectors, identity: identity(disk) };
    let bar = Bar::new();
    let moved = host
        .block_on(async { begin_move(&device, &file, plan, superblock, looked_at, &bar).await });
    bar.clear();
    drop((device, file));
    if matches!(moved, Err(MoveError::Changed { .. })) {
        // New, and without a record.
        remove_header(&work)?;
    }
    moved.map_err(|error| failure(&error, disk, &work))?;
    remove_header(&work)?;
    report(disk, span, &work, false, args)
}

/// Makes the work file. One that a command began to make, and that has no record yet, is made anew;
/// any other file stays.
fn make_work(work: &Path, bytes: u64) -> Result<(), Failure> {
    if let Some(directory) = work.parent().filter(|it| !it.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory).map_err(|error| {
            Failure::could_not_run(directory, format_args!("can't make it: {error}"))
        })?;
    }
    if work.is_file() {
        let target = Target::open(work, Access::Look)?;
        let mut head = vec![0; VEIL_BYTES];
        let count = target.read_some(0, &mut head)?;
        if count > 0 && !is_new_work(&head[..count]) {
            return Err(occupied(work)
                .found(format_args!("{} bytes, and no move of this disk", target.bytes)));
        }
        drop(target);
        remove_header(work)?;
    }
    match create_marked(work, &NEW_WORK, bytes, false)? {
        true => sync_name(work),
        false => Err(occupied(work)),
    }
}

fn occupied(work: &Path) -> Failure {
    Failure::refused(work, "there is a file of that name")
        .expected("no file, for a new work file")
        .advice("name another one: --work PATH. The file was not changed")
}

/// Refuses the disk as its own work file.
fn refuse_itself(disk: &Path, work: &Path) -> Result<(), Failure> {
    let same = |one: &Metadata, other: &Metadata| match one.file_type().is_block_device() {
        true => other.file_type().is_block_device() && one.rdev() == other.rdev(),
        false => (one.dev(), one.ino()) == (other.dev(), other.ino()),
    };
    match (std::fs::metadata(disk), std::fs::metadata(work)) {
        (Ok(one), Ok(other)) if same(&one, &other) => {
            Err(Failure::refused(work, "the work file is the disk itself")
                .found(disk.display())
                .expected("a new file on another disk")
                .advice("name another one: --work PATH"))
        }
        _ => Ok(()),
    }
}

/// Makes the name of a new file durable, and that of its directory: without the work file, a disk
/// in the middle of its move is lost.
fn sync_name(work: &Path) -> Result<(), Failure> {
    let work = std::path::absolute(work).unwrap_or_else(|_| work.to_owned());
    for directory in work.ancestors().skip(1).take(2) {
        let synced = std::fs::File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|error| {
            let what = format_args!("can't make the name of {} durable: {error}", work.display());
            Failure::could_not_run(directory, what)
                .advice("name a work file in another directory: --work PATH")
        })?;
    }
    Ok(())
}

fn failure(error: &MoveError, disk: &Path, work: &Path) -> Failure {
    let again = format!(
        "nothing is lost: mend the cause, keep {}, and run the same command again",
        work.display()
    );
    match error {
        MoveError::Work { .. } => Failure::could_not_run(work, error).advice(again),
        MoveError::Foreign { .. } => {
            Failure::refused(disk, "it is not as the move of its data left it")
                .found(error)
                .expected("the disk as it was when the command was interrupted")
                .advice(format_args!(
                    "is it the right disk? If something wrote to it, take that back first; {} has \
                     the first 128 KiB of the data (from byte 8192 on) and the part that was being \
                     moved. If that is of another disk, and not needed, remove it",
                    work.display()
                ))
        }
        MoveError::Changed { .. } => {
            Failure::refused(disk, "it was used by another program just now")
                .found(error)
                .expected("the disk and its work file as the command found them at its start")
                .advice("nothing was changed: run the command again")
        }
        MoveError::WorkDamaged { .. } => Failure::refused(work, "the work file is damaged")
            .found(error)
            .expected("the work file as the interrupted command left it")
            .advice("restore it from a copy, if there is one"),
        _ => Failure::could_not_run(disk, error).advice(again),
    }
}

/// Says what was done, or would be.
fn report(
    disk: &Path,
    span: &Span,
    work: &Path,
    resumed: bool,
    args: &MoveArgs,
) -> Result<(), Failure> {
    let (from, to, bytes) = (span.from.bytes(), span.to.bytes(), span.sectors * SECTOR_BYTES);
    if args.json {
        let text = json!({
            "path": disk.display().to_string(),
            "bytes": bytes,
            "from_byte": from,
            "to_byte": to,
            "resumed": resumed,
            "done": !args.dry_run,
            "work": work.display().to_string(),
        });
        return print(&format!("{text:#}\n"));
    }
    let verb = match (args.dry_run, resumed) {
        (true, true) => "the interrupted move would go on:",
        (true, false) => "would be moved in place:",
        (false, _) => "moved in place:",
    };
    let work = match args.dry_run {
        true => format!("\n  work file until then: {}", work.display()),
        false => String::new(),
    };
    print(&format!(
        "{}: {verb} {} of data, from byte {from} to byte {to}{work}\n",
        disk.display(),
        show_size(bytes)
    ))
}
