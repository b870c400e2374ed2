//! `ubcache show`: a superblock in the fields and words of bcache-super-show.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use ubcache_daemon::Failure;
use ubcache_daemon::backing::is_uri;
use ubcache_daemon::open::header::{FoundHeader, find_header, witness_word};
use ubcache_daemon::open::superblock::{ExpectedKind, has_superblock, parse};
use ubcache_daemon::open::target::{Access, Target};
use ubcache_daemon::shell::shell_word;
use ubcache_env::{Buf, Device};
use ubcache_format::{
    FormatError, HEADER_SECTORS, Problem, SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR, Superblock, Uuid,
};
use ubcache_offline::is_pack;

use super::list::words_of_witness;
use super::members::absolute;
use super::offline::{host, open_as_it_is};
use super::print;

/// Show the superblock of a cache or backing device, as bcache-super-show does
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  ubcache show /dev/nvme0n1p4 --json")]
pub struct Args {
    /// The device or file, or a pack of a cache device
    #[arg(value_name = "DEVICE")]
    device: PathBuf,
    /// Go on in spite of a wrong checksum
    #[arg(short, long)]
    force: bool,
    /// Header of a disk that was adopted [default: it is looked for]
    #[arg(long, value_name = "PATH")]
    header: Option<PathBuf>,
    /// Print JSON: one object with the same names
    #[arg(long)]
    json: bool,
    /// Print properties for a rule of udev: UBCACHE_ROLE, UBCACHE_SET_UUID, UBCACHE_UUID and
    /// UBCACHE_LABEL, in which what can't stand in the name of a link is escaped (`\x20`)
    #[arg(long, conflicts_with = "json")]
    udev: bool,
}

/// One line: its name, its value, what follows in brackets. An empty name is an empty line.
type Line = (&'static str, Value, Option<String>);

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let target = Target::open(&args.device, Access::Look)?;
    let packed = packed_superblock(&target)?;
    if packed.is_none()
        && !has_superblock(&target)
        && let Some(header) = find_header(&target, args.header.as_slice(), None)?
    {
        return show_adopted(args, &target, &header);
    }
    let mut bytes = match packed {
        Some(bytes) => bytes,
        None => target.read_superblock_bytes()?,
    };
    let mut csum = [0; 8];
    csum.copy_from_slice(&bytes[..8]);
    let mut wrong = None;
    if let (true, Err(FormatError { problem: Problem::Checksum { expected, .. }, .. })) =
        (args.force, Superblock::parse(&bytes))
    {
        bytes[..8].copy_from_slice(&expected.to_le_bytes());
        wrong = Some(expected);
    }
    let superblock = parse(&target, &bytes, ExpectedKind::Any)?;
    if args.udev {
        return print(&as_properties(&superblock));
    }
    let lines = lines(&superblock, u64::from_le_bytes(csum), wrong);
    print(&if args.json { as_json(&lines, &superblock.label_str()) } else { as_text(&lines) })
}

/// The superblock in the header of a disk, and the header.
fn show_adopted(args: &Args, disk: &Target, header: &FoundHeader) -> Result<(), Failure> {
    let superblock = &header.superblock;
    if args.udev {
        return print(&as_properties(superblock));
    }
    let bytes = superblock.encode();
    let mut csum = [0; 8];
    csum.copy_from_slice(&bytes[..8]);
    let mut lines = lines(superblock, u64::from_le_bytes(csum), None);
    let witness = witness_word(header, disk)?;
    lines.extend([
        ("", Value::Null, None),
        ("header.path", json!(header.path.display().to_string()), None),
        ("header.witness", json!(witness), Some(words_of_witness(witness).to_owned())),
    ]);
    if args.json {
        if !is_uri(&disk.path) {
            lines.push(("driver.table", json!(table(disk, header)?), None));
        }
        return print(&as_json(&lines, &superblock.label_str()));
    }
    print(&(as_text(&lines) + &commands_for_the_driver(disk, header)?))
}

/// The table of device-mapper by which header and disk are one backing device.
fn table(disk: &Target, header: &FoundHeader) -> Result<[String; 2], Failure> {
    let path = absolute(&disk.path)?;
    Ok([
        format!("0 {HEADER_SECTORS} linear {} 0", header.path.display()),
        format!("{HEADER_SECTORS} {} linear {} 0", disk.sectors(), path.display()),
    ])
}

/// Commands that make a device of [`table`] and give it to the kernel's bcache. A header is a file,
/// and device-mapper takes block devices only.
fn commands_for_the_driver(disk: &Target, header: &FoundHeader) -> Result<String, Failure> {
    if is_uri(&disk.path) {
        return Ok(String::new());
    }
    let loop_device =
        |file: &Path| format!("$(losetup --find --show {})", shell_word(&file.to_string_lossy()));
    let path = absolute(&disk.path)?;
    let device = match disk.is_block_device {
        true => shell_word(&path.to_string_lossy()),
        false => loop_device(&path),
    };
    let (header, sectors) = (loop_device(&header.path), disk.sectors());
    Ok(format!(
        "\nfor the kernel's bcache, while ubcache does not use the disk:\n  \
         header={header}\n  \
         disk={device}\n  \
         printf '0 {HEADER_SECTORS} linear %s 0\\n{HEADER_SECTORS} {sectors} linear %s 0\\n' \
         $header $disk | dmsetup create data\n  \
         echo /dev/mapper/data > /sys/fs/bcache/register\n",
    ))
}

/// The superblock that a pack has, if the file is one.
fn packed_superblock(target: &Target) -> Result<Option<Vec<u8>>, Failure> {
    let mut head = [0; 16];
    if target.read_some(0, &mut head)? < head.len() || !is_pack(&head) {
        return Ok(None);
    }
    let host = host()?;
    let pack = open_as_it_is(&host, &target.path, false)?;
    let (buf, read) =
        host.block_on(async { pack.read(SUPERBLOCK_SECTOR, Buf::zeroed(SUPERBLOCK_BYTES)).await });
    let damaged = |found: String| {
        Failure::refused(&target.path, "the superblock of the device that was packed is damaged")
            .found(found)
            .expected("a bcache superblock")
            .advice("`ubcache check` reports on the rest of the pack")
    };
    read.map_err(|error| damaged(error.to_string()))?;
    match Superblock::parse(buf.as_slice()) {
        Err(FormatError { problem: Problem::Magic { .. }, at, .. }) => {
            Err(damaged(format!("no magic number at byte {at} of it")))
        }
        _ => Ok(Some(buf.as_slice().to_vec())),
    }
}

fn lines(superblock: &Superblock, csum: u64, wrong: Option<u64>) -> Vec<Line> {
    let kind = if superblock.is_cache() { "cache device" } else { "backing device" };
    let check =
        wrong.map_or_else(|| "match".to_owned(), |expected| format!("expected {expected:X}"));
    let yes = |value: bool| json!(if value { "yes" } else { "no" });
    let empty = || ("", Value::Null, None);
    let mut lines = vec![
        ("sb.magic", json!("ok"), None),
        ("sb.first_sector", json!(8), Some("match".to_owned())),
        ("sb.csum", json!(format!("{csum:X}")), Some(check)),
        ("sb.version", json!(superblock.version), Some(kind.to_owned())),
        empty(),
        ("dev.label", json!(escaped(&superblock.label)), None),
        ("dev.uuid", json!(superblock.uuid.to_string()), None),
        ("dev.sectors_per_block", json!(superblock.block_sectors), None),
        ("dev.sectors_per_bucket", json!(superblock.bucket_sectors), None),
    ];
    if superblock.is_cache() {
        let bucket = u64::from(superblock.bucket_sectors);
        let first = u64::from(superblock.first_bucket) * bucket;
        let total = u64::from(superblock.nbuckets) * bucket;
        let replacement = superblock.replacement();
        lines.extend([
            ("dev.cache.first_sector", json!(first), None),
            ("dev.cache.cache_sectors", json!(total.saturating_sub(first)), None),
            ("dev.cache.total_sectors", json!(total), None),
            ("dev.cache.ordered", yes(superblock.sync()), None),
            ("dev.cache.discard", yes(superblock.discard()), None),
            ("dev.cache.pos", json!(0), None),
            (
                "dev.cache.replacement",
                json!(replacement as u32),
                Some(replacement.word().to_owned()),
            ),
        ]);
    } else {
        let (mode, state) = (superblock.cache_mode(), superblock.state());
        lines.extend([
            ("dev.data.first_sector", json!(superblock.data_offset().0), None),
            ("dev.data.cache_mode", json!(mode as u32), Some(mode.super_show_word().to_owned())),
            ("dev.data.cache_state", json!(state as u32), Some(state.super_show_word().to_owned())),
        ]);
    }
    lines.extend([empty(), ("cset.uuid", json!(superblock.set_uuid.to_string()), None)]);
    lines
}

/// Properties for udev. The label is part of a path, so it has no slashes and is not `.` or `..`.
fn as_properties(superblock: &Superblock) -> String {
    let role = if superblock.is_cache() { "cache" } else { "backing" };
    let mut text = format!("UBCACHE_ROLE={role}\nUBCACHE_UUID={}\n", superblock.uuid);
    if superblock.set_uuid != Uuid::default() {
        let _ = writeln!(text, "UBCACHE_SET_UUID={}", superblock.set_uuid);
    }
    let label = &superblock.label;
    if !superblock.is_cache() && label.iter().any(|byte| !matches!(byte, b'.' | 0)) {
        let _ = writeln!(text, "UBCACHE_LABEL={}", escaped(label).replace('%', "\\x"));
    }
    text
}

/// A label as bcache-super-show writes it.
fn escaped(label: &[u8]) -> String {
    let mut text = String::new();
    for &byte in label.iter().take_while(|byte| **byte != 0) {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_') {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:x}");
        }
    }
    if text.is_empty() { "(empty)".to_owned() } else { text }
}

fn as_text(lines: &[Line]) -> String {
    let mut text = String::new();
    for (name, value, note) in lines {
        if name.is_empty() {
            text.push('\n');
            continue;
        }
        // Values stand in a column of their own, three tabs to the right.
        let tabs = &"\t\t\t"[..3 - (name.len() / 8).min(2)];
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let note = note.as_ref().map(|note| format!(" [{note}]")).unwrap_or_default();
        let _ = writeln!(text, "{name}{tabs}{value}{note}");
    }
    text
}

/// The fields in JSON: the same names; words instead of the numbers that stand for them.
fn as_json(lines: &[Line], label: &str) -> String {
    let mut map = Map::new();
    for (name, value, note) in lines.iter().filter(|(name, _, _)| !name.is_empty()) {
        let value = match (*name, note) {
            (
                "dev.data.cache_mode" | "dev.data.cache_state" | "dev.cache.replacement",
                Some(word),
            ) => {
                json!(word)
            }
            ("dev.label", _) => json!(label),
            ("dev.cache.ordered" | "dev.cache.discard", _) => json!(value == "yes"),
            _ => value.clone(),
        };
        map.insert((*name).to_owned(), value);
        match (*name, note) {
            ("sb.csum", Some(note)) => {
                map.insert("sb.csum_matches".to_owned(), json!(note == "match"));
            }
            ("sb.version", Some(kind)) => {
                map.insert("dev.kind".to_owned(), json!(kind.trim_end_matches(" device")));
            }
            _ => {}
        }
    }
    let text =
        serde_json::to_string_pretty(&Value::Object(map)).expect("plain data always serializes");
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escaped(b"\0\0"), "(empty)");
        assert_eq!(escaped(b"a b-c_d.1\0x"), "a%20b-c_d.1");
    }

    /// A label is part of the name of a link in /dev.
    #[test]
    fn labels_for_udev_stay_in_their_directory() {
        for (label, shown) in
            [("data", Some("data")), ("../x y", Some("..\\x2fx\\x20y")), ("..", None), ("", None)]
        {
            let (uuid, set) = (Uuid([1; 16]), Uuid([2; 16]));
            let mode = ubcache_format::CacheMode::Writethrough;
            let offset = ubcache_format::DEFAULT_DATA_OFFSET;
            let disk = Superblock::new_backing(uuid, set, 8, offset, mode, label);
            let text = as_properties(&disk);
            assert!(text.contains("UBCACHE_ROLE=backing\n"), "{text}");
            let line = text.lines().find_map(|line| line.strip_prefix("UBCACHE_LABEL="));
            assert_eq!(line, shown, "{text}");
        }
    }
}
