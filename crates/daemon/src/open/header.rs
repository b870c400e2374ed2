//! Headers of disks that have no superblock of their own (docs/reference/format.md §16): finding
//! the one of a disk, and making and removing the file.
//!
//! Blocking calls only, like all of this module.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ubcache_env::joined::first_record;
use ubcache_format::{
    BackingState, HEADER_BYTES, HEADER_SECTORS, HeaderRecord, SECTOR_BYTES, SUPERBLOCK_BYTES,
    Sector, Superblock, Uuid, crc64_we, header_copy_places, witness_places,
};

use ubcache_host::{HostFile, OpenOptions as HostOptions, PageCache};

use crate::backing::{BackingName, absolute, is_uri};
use crate::failure::Failure;
use crate::open::io::start_io;
use crate::open::superblock::{
    ExpectedKind, has_superblock, look, not_bcache, parse_bytes, read, too_small,
};
use crate::open::target::{Access, Target, host_open_failure};

/// The directory of headers that are not given by their path.
const DIRECTORY: &str = "/var/lib/ubcache";
/// Names another one, or several with `:` between them; new headers go to the first.
const DIRECTORY_VARIABLE: &str = "UBCACHE_HEADERS";

/// The header of a disk.
#[derive(Clone, Debug)]
pub struct FoundHeader {
    /// Its file.
    pub path: PathBuf,
    /// The superblock in it.
    pub superblock: Superblock,
    /// Words by which the machine knows the disk now.
    pub identity: String,
    /// The file is lost, and has to be made again with this content, which the cache device has.
    pub lost: Option<Vec<u8>>,
}

/// The directories of headers.
fn directories() -> Vec<PathBuf> {
    match std::env::var_os(DIRECTORY_VARIABLE).filter(|given| !given.is_empty()) {
        Some(given) => std::env::split_paths(&given).collect(),
        None => vec![DIRECTORY.into()],
    }
}

/// Place of a new header.
pub fn default_path(uuid: Uuid) -> PathBuf {
    state_path(uuid, "header")
}

/// Place of a new file beside the headers.
pub fn state_path(uuid: Uuid, extension: &str) -> PathBuf {
    let first = directories().into_iter().next().unwrap_or_default();
    first.join(format!("{uuid}.{extension}"))
}

/// The headers in the usual directories.
fn all_headers() -> Vec<PathBuf> {
    state_files("header")
}

/// The files with that extension in the directories of headers.
pub fn state_files(extension: &str) -> Vec<PathBuf> {
    let listed = directories().into_iter().filter_map(|directory| fs::read_dir(directory).ok());
    let files = listed.flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|end| end == extension)).collect();
    found.sort();
    found
}

/// Words by which the machine knows a disk again: the path of a file; of a block device what its
/// driver calls unique; the URI of a remote one. Empty if there is nothing of that kind.
pub fn identity(path: &Path) -> String {
    if is_uri(path) {
        let uri = absolute(path).unwrap_or_else(|_| path.to_owned());
        let name = BackingName::parse(&uri).ok();
        return name.and_then(|name| name.uri()).unwrap_or_default();
    }
    let Ok(metadata) = fs::metadata(path) else { return String::new() };
    if !metadata.file_type().is_block_device() {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        return format!("file {}", path.display());
    }
    let number = metadata.rdev();
    let major = (number >> 32 & 0xFFFF_F000) | (number >> 8 & 0xFFF);
    let minor = (number >> 12 & 0xFFFF_FF00) | (number & 0xFF);
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let line = |path: PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let partition = line(device.join("partition"));
    let whole = match &partition {
        Some(_) => {
            fs::canonicalize(&device).ok().and_then(|path| path.parent().map(Path::to_owned))
        }
        None => Some(device),
    };
    let Some(whole) = whole else { return String::new() };
    let names = ["dm/uuid", "wwid", "device/wwid", "serial", "device/serial", "loop/backing_file"];
    let name =
        names.into_iter().find_map(|name| Some(format!("{name} {}", line(whole.join(name))?)));
    match (name, partition) {
        (Some(name), Some(partition)) => format!("{name}, partition {partition}"),
        (Some(name), None) => name,
        (None, _) => String::new(),
    }
}

/// The first record of a header: the disk as it is now.
///
/// # Errors
/// The disk can't be read.
pub fn first_record_of(disk: &Target, uuid: Uuid) -> Result<HeaderRecord, Failure> {
    let identity = identity(&disk.path);
    let taken = match disk.remote() {
        // Over the same connection: a server may take one client only.
        Some(remote) => {
            let device = remote.device();
            remote.block_on(Box::pin(first_record(&device, uuid, &identity)))
        }
        None => {
            let host = start_io()?;
            // `disk` has it for itself already; this one only reads.
            let page_cache = PageCache::Needed;
            let options = HostOptions { page_cache, write: false, exclusive: false };
            let file = HostFile::open(&host.env(), &disk.path, options);
            let file = file.map_err(|error| host_open_failure(&disk.path, error))?;
            host.block_on(Box::pin(first_record(&file, uuid, &identity)))
        }
    };
    taken.map_err(|error| {
        Failure::could_not_run(&disk.path, format_args!("the disk can't be read: {error}"))
    })
}

/// A header as it was read.
struct Candidate {
    path: PathBuf,
    record: HeaderRecord,
    superblock: Superblock,
    /// All of it, if it is a copy on the cache device.
    copy: Option<Vec<u8>>,
}

fn read_header(path: &Path) -> Result<Candidate, Failure> {
    let target = Target::open(path, Access::Look)?;
    let mut bytes = vec![0; HEADER_BYTES];
    let count = target.read_some(0, &mut bytes)?;
    let (record, _) = HeaderRecord::read(&bytes[..count]).ok_or_else(|| {
        Failure::refused(path, "not a header of a disk")
            .found(format_args!("{count} bytes without a whole record"))
            .expected(format_args!("the {HEADER_BYTES} bytes that `ubcache make --adopt` made"))
            .advice(
                "check the path after --header. If the header is damaged, move it away: the cache \
                 device has a copy, which is then used",
            )
    })?;
    let superblock = parse_bytes(path, &bytes[bytes.len() - SUPERBLOCK_BYTES..])?;
    Ok(Candidate { path: path.to_owned(), record, superblock, copy: None })
}

/// The copies on a cache device.
fn copies_on(cache: &Path) -> Vec<Candidate> {
    let Ok((target, superblock)) = look(cache, ExpectedKind::Cache) else { return Vec::new() };
    let read = |at: Sector| {
        let mut bytes = vec![0; HEADER_BYTES];
        let count = target.read_some(at.bytes(), &mut bytes).ok()?;
        let (record, _) = HeaderRecord::read(&bytes[..count])?;
        let superblock = Superblock::parse(&bytes[HEADER_BYTES - SUPERBLOCK_BYTES..]).ok()?;
        let path = default_path(record.uuid);
        Some(Candidate { path, record, superblock, copy: Some(bytes) })
    };
    header_copy_places(&superblock).filter_map(read).collect()
}

/// True if the disk has, at each place that the record vouches for, what was left there.
fn has_content(disk: &Target, record: &HeaderRecord) -> Result<bool, Failure> {
    let places = witness_places(record.sectors).into_iter().enumerate();
    let vouched = places.filter(|(index, _)| record.written >> index & 1 == 0);
    let mut any = false;
    for (index, place) in vouched {
        let mut bytes = vec![0; place.bytes() as usize];
        let count = disk.read_some(place.start.bytes(), &mut bytes)?;
        if count < bytes.len() || crc64_we(&bytes) != record.hashes[index] {
            return Ok(false);
        }
        any = true;
    }
    Ok(any)
}

/// The content of a header that is made again from its copy. The copy may be older than the last
/// writes to the disk: the cache was away, or another one had its place. So it vouches for nothing,
/// and what is cached and clean goes (A9).
fn restored(copy: &[u8], record: &HeaderRecord) -> Vec<u8> {
    let mut content = copy.to_vec();
    if let Some((_, half)) = HeaderRecord::read(copy) {
        let record = HeaderRecord { seq: record.seq + 1, sealed: false, ..record.clone() };
        let bytes = record.encode();
        content[half * bytes.len()..][..bytes.len()].copy_from_slice(&bytes);
    }
    content
}

/// Finds the header of a disk: among those given, else in the usual directories, else as a copy on
/// the cache device. `None`: the disk was not adopted, as far as can be known.
///
/// # Errors
/// More than one says that it is of this disk; the only one that was given is of another disk, or
/// older than its copy.
pub fn find_header(
    disk: &Target,
    given: &[PathBuf],
    cache: Option<&Path>,
) -> Result<Option<FoundHeader>, Failure> {
    let identity = identity(&disk.path);
    let copies = cache.map(copies_on).unwrap_or_default();
    let there = given.iter().filter(|path| path.exists() || copies.is_empty());
    let named = there.map(|path| read_header(path)).collect::<Result<_, _>>()?;
    let file = match one_of(named, disk, &identity)? {
        None => {
            let usual = all_headers().into_iter().filter(|path| !given.contains(path));
            one_of(usual.filter_map(|path| read_header(&path).ok()).collect(), disk, &identity)?
        }
        named => named,
    };
    let found = match file {
        Some(file) => {
            let copy = copies.iter().find(|copy| copy.record.uuid == file.record.uuid);
            refuse_older(&file, copy)?;
            Some(file)
        }
        None => one_of(copies, disk, &identity)?,
    };
    let Some(Candidate { path, record, superblock, copy }) = found else {
        return match given {
            [only] if only.exists() => Err(of_another_disk(disk, only, &identity)),
            _ => Ok(None),
        };
    };
    if superblock.uuid != record.uuid {
        return Err(Failure::refused(&path, "the two parts of the header are of different disks")
            .found(format_args!("UUID {} in its superblock", superblock.uuid))
            .expected(record.uuid)
            .advice("move it away: the copy on the cache device is then used"));
    }
    let missing = given.iter().find(|path| !path.exists());
    let path = if copy.is_some() { missing.cloned().unwrap_or(path) } else { path };
    let lost = copy.map(|copy| restored(&copy, &record));
    Ok(Some(FoundHeader { path, superblock, identity, lost }))
}

/// Opens a backing device only to look at it, and reads its superblock, from its header if it has
/// none on it: one of those given, or one that is found by itself.
pub fn look_backing(
    path: &Path,
    headers: &[PathBuf],
    cache: Option<&Path>,
) -> Result<(Superblock, Option<FoundHeader>), Failure> {
    let target = Target::open(path, Access::Look)?;
    if has_superblock(&target) {
        return Ok((read(&target, ExpectedKind::Backing)?, None));
    }
    match find_header(&target, headers, cache)? {
        None => Err(not_bcache(&target, ExpectedKind::Backing)),
        Some(header) => {
            let (sectors, block) = (joined_sectors(&target), target.logical_block_bytes);
            let superblock = Superblock::read(&header.superblock.encode(), sectors, block)
                .map_err(|error| too_small(path, &error))?;
            Ok((superblock, Some(header)))
        }
    }
}

/// A header or a copy of this set that may be of the disk, though nothing says so: the volume has
/// that name there, or the machine has no words for the disk here and there.
pub(super) fn may_be_of(
    disk: &Target,
    name: &str,
    set: Uuid,
    given: &[PathBuf],
    cache: &Path,
) -> Option<PathBuf> {
    let usual = all_headers();
    let files = given.iter().chain(&usual).filter_map(|path| read_header(path).ok());
    let all: Vec<Candidate> = files.chain(copies_on(cache)).collect();
    let has_no_words = identity(&disk.path).is_empty();
    let may_be = |it: &Candidate| {
        it.superblock.set_uuid == set
            && (it.superblock.label_str() == name || has_no_words && it.record.identity.is_empty())
    };
    all.into_iter().find(may_be).map(|it| it.path)
}

/// The header in the usual places that names this disk.
///
/// # Errors
/// There are several.
pub fn header_of(disk: &Target) -> Result<Option<PathBuf>, Failure> {
    let identity = identity(&disk.path);
    let headers = all_headers();
    let read = headers.iter().filter_map(|path| read_header(path).ok());
    let of_it = read.filter(|it| !identity.is_empty() && it.record.identity == identity);
    Ok(of_it.map(|it| it.path).next())
}

/// UUID in the header of a disk that was adopted and not served since: `make --adopt` was
/// interrupted, or is given once more.
///
/// # Errors
/// It is no header.
pub fn unserved(header: &Path, disk: &Target) -> Result<Option<Uuid>, Failure> {
    let Candidate { record, superblock, .. } = read_header(header)?;
    let is_of_it = record.identity == identity(&disk.path) && !record.identity.is_empty();
    let is_new = record.seq == 1 && superblock.uuid == record.uuid;
    // An attach, and a detach after it, change state or set.
    let was_attached =
        superblock.state() != BackingState::None || superblock.set_uuid == Uuid::default();
    Ok((is_of_it && is_new && !was_attached).then_some(superblock.uuid))
}

/// Statement of a header on its disk, in words: `same` as a clean stop left it, `open` since a run
/// that did not end with one, `changed` by another program, or `resized`.
///
/// # Errors
/// The disk or the header can't be read.
pub fn witness_word(header: &FoundHeader, disk: &Target) -> Result<&'static str, Failure> {
    let record = match &header.lost {
        Some(copy) => HeaderRecord::read(copy).map(|(record, _)| record),
        None => Some(read_header(&header.path)?.record),
    };
    let Some(record) = record else { return Ok("open") };
    Ok(match has_content(disk, &record)? {
        _ if record.sectors != disk.sectors() => "resized",
        true if record.sealed => "same",
        false if record.written != u64::MAX => "changed",
        _ => "open",
    })
}

/// The one header that is of the disk: by the machine's words, else by the disk's content.
fn one_of(
    mut all: Vec<Candidate>,
    disk: &Target,
    identity: &str,
) -> Result<Option<Candidate>, Failure> {
    let by_words = |it: &Candidate| !identity.is_empty() && it.record.identity == identity;
    let mut fitting: Vec<usize> = (0..all.len()).filter(|&index| by_words(&all[index])).collect();
    if fitting.is_empty() {
        for (index, candidate) in all.iter().enumerate() {
            if has_content(disk, &candidate.record)? {
                fitting.push(index);
            }
        }
    }
    if let [one, other, ..] = fitting[..] {
        return Err(Failure::refused(&disk.path, "more than one header is of this disk")
            .found(format_args!("{} and {}", all[one].path.display(), all[other].path.display()))
            .expected("one header for each disk")
            .advice(
                "name the right one: --header PATH; `ubcache show PATH` prints the set that it is \
                 of. Remove the other one when the disk is served",
            ));
    }
    Ok(fitting.first().map(|&index| all.swap_remove(index)))
}

fn of_another_disk(disk: &Target, header: &Path, identity: &str) -> Failure {
    let failure = Failure::refused(&disk.path, "the header is of another disk");
    let Ok(Candidate { record, .. }) = read_header(header) else { return failure };
    let words = |text: &str| {
        if text.is_empty() { "a disk without a name".to_owned() } else { text.to_owned() }
    };
    failure
        .found(format_args!(
            "{}, {} bytes, without the content that {} vouches for",
            words(identity),
            disk.bytes,
            header.display()
        ))
        .expected(format_args!(
            "{}, {} bytes, as it was left",
            words(&record.identity),
            record.sectors * SECTOR_BYTES
        ))
        .advice(
            "name the disk that belongs to the header, or the header of this disk: without \
             --header it is looked for",
        )
}

/// Refuses a header file that its copy on the cache device has left behind.
fn refuse_older(file: &Candidate, copy: Option<&Candidate>) -> Result<(), Failure> {
    match copy {
        Some(copy) if copy.record.seq > file.record.seq => Err(Failure::refused(
            &file.path,
            "the header is older than its copy on the cache device",
        )
        .found(format_args!("record {}", file.record.seq))
        .expected(format_args!("record {}, or a later one", copy.record.seq))
        .advice(format_args!(
            "was it restored from a backup? To go on with the copy: mv {0} {0}.old, and \
                     start again",
            file.path.display()
        ))),
        _ => Ok(()),
    }
}

/// Makes the file of a header, durably: all of it is there, or nothing. One that is there is not
/// touched.
///
/// # Errors
/// There is one; the directory can't be made or written.
pub fn create_header(path: &Path, content: &[u8]) -> Result<(), Failure> {
    make_header(path, content, false)
}

/// Makes the file of a header in place of the one that is there, durably: all of the old one is
/// there, or all of the new one.
///
/// # Errors
/// The directory can't be written.
pub fn replace_header(path: &Path, content: &[u8]) -> Result<(), Failure> {
    make_header(path, content, true)
}

fn make_header(path: &Path, content: &[u8], replace: bool) -> Result<(), Failure> {
    let failed = |doing: &'static str| {
        move |error: io::Error| {
            Failure::could_not_run(path, format_args!("{doing} failed: {error}"))
                .advice("name a place that can be written: --header PATH")
        }
    };
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory).map_err(failed("making its directory"))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).to_owned();
    let mut file = options.open(&new).map_err(failed("making it"))?;
    file.write_all(content).map_err(failed("writing it"))?;
    file.sync_all().map_err(failed("making it durable"))?;
    let linked = match replace {
        true => fs::rename(&new, path),
        false => fs::hard_link(&new, path),
    };
    if !replace {
        let _ = fs::remove_file(&new);
    }
    linked.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::refused(path, "there is a header already")
            .found("a file of that name")
            .expected("none")
            .advice("give this one another place: --header PATH"),
        _ => failed("naming it")(error),
    })?;
    sync_directory(directory).map_err(failed("making its name durable"))
}

/// Removes the file of a header, or another one beside it, durably.
///
/// # Errors
/// It can't be removed.
pub fn remove_header(path: &Path) -> Result<(), Failure> {
    let failed =
        |error: io::Error| Failure::could_not_run(path, format_args!("can't remove it: {error}"));
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_directory(directory).map_err(failed)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Sectors of the backing device that a header and a disk are together.
pub fn joined_sectors(disk: &Target) -> u64 {
    disk.sectors() + HEADER_SECTORS
}
