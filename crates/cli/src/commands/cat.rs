//! `ubcache cat`: the content of a volume, from cache and backing device, without changing
//! anything.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use ubcache_daemon::Failure;
use ubcache_format::{Inode, SectorRange};
use ubcache_offline::{
    DataPart, OfflineError, On, Report, Source, VolumeMap, map_backed, map_flash_only, open_set,
    read_volume,
};

use super::new_file::NewFile;
use super::offline::{
    Bar, DeviceArgument, failure, host, metadata_only, named_once, open, open_backing, show_finding,
};
use super::{cannot_print, complain, print};

/// Zeroes of at least this length and alignment become holes with `--sparse`.
const HOLE_BYTES: usize = 4096;

const AFTER_HELP: &str = "\
Writes the content of a volume: the data of the backing device, overlaid with newer data of the
cache. No device is changed. The set must not be running.

Refuses a set whose damage makes the content uncertain, and a backing device that ends before
dirty data of the cache. With --damaged it goes on: unreadable sectors become zeroes, ranges whose
newest data is lost come from the backing device, data beyond its end is left out. All of them are
listed, and the exit code is 1. FILE appears when it is complete, or not at all.

Exit codes: 0 all of the content is certain, 1 it is not, or reading or writing failed, 2 could
not run.

Example:
  ubcache cat -C /dev/nvme0n1p4 -B /dev/sdb -o /mnt/rescue/data.img --sparse";

/// Read a whole volume out of a set that is not running
#[derive(clap::Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The cache device; with --map also a pack of it
    #[arg(short = 'C', long = "cache", value_name = "DEVICE")]
    cache: PathBuf,
    /// The backing device of the volume
    #[arg(short = 'B', long = "bdev", value_name = "DEVICE", required_unless_present = "volume")]
    bdev: Option<PathBuf>,
    /// Header of a backing device that was adopted [default: it is looked for]
    #[arg(long, value_name = "PATH", requires = "bdev")]
    header: Option<PathBuf>,
    /// The number of a volume without a backing device (`ubcache dump --what uuids`)
    #[arg(long, value_name = "N", conflicts_with = "bdev")]
    volume: Option<u32>,
    /// Write to this new file [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Leave zeroes out of the file
    #[arg(long, requires = "output")]
    sparse: bool,
    /// Print the parts of the volume and where each comes from, instead of the content
    #[arg(long)]
    map: bool,
    /// With --map: print JSON
    #[arg(long, requires = "map")]
    json: bool,
    /// Go on in spite of damage
    #[arg(long)]
    damaged: bool,
    /// Use the dirty data of the cache although the superblock of the backing device names no cache
    #[arg(long)]
    dirty_anyway: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let host = host()?;
    let backings = args.bdev.iter().cloned().collect::<Vec<_>>();
    named_once(&args.cache, &backings)?;
    let cache = open(&host, &args.cache, DeviceArgument::Cache, false)?;
    if cache.is_pack() && !args.map {
        return Err(metadata_only(&args.cache));
    }
    let backing = args
        .bdev
        .as_ref()
        .map(|path| open_backing(&host, path, (&args.cache, args.header.as_slice()), false))
        .transpose()?;
    let bar = Bar::new();
    let fail = |error| failure(&error, &args.cache, &backings);
    // Before the set is read, which may take long.
    let mut out = if args.map { None } else { Some(Output::new(args)?) };
    let (map, report) = host.block_on(async {
        let (view, report) = open_set(&cache, args.damaged, &bar).await.map_err(fail)?;
        let map = match (&backing, args.volume) {
            (Some(backing), _) => {
                map_backed(&view, backing, args.dirty_anyway).await.map_err(fail)?
            }
            (None, volume) => {
                map_flash_only(&view, Inode(volume.unwrap_or(u32::MAX))).map_err(fail)?
            }
        };
        if map.dirty_beyond_end > 0 && !args.damaged {
            return Err(fail(OfflineError::BeyondEnd { sectors: map.dirty_beyond_end }));
        }
        Ok::<_, Failure>((map, report))
    })?;
    let unreadable = if let Some(out) = &mut out {
        let copied = host.block_on(async {
            let sink = |at, piece: DataPart<'_>| out.piece(at, piece);
            read_volume(&map, &cache, backing.as_ref(), args.damaged, &bar, sink).await
        });
        bar.clear();
        copied.map_err(|error| match (&error, &out) {
            (OfflineError::Io { on: On::Output, error, .. }, Output::File { file, .. }) => {
                file.cannot_write(error)
            }
            (OfflineError::Io { on: On::Output, error, .. }, _) => cannot_print(error),
            _ => fail(error),
        })?
    } else {
        bar.clear();
        print(&if args.json { map_as_json(&map) } else { map_as_text(&map) })?;
        Vec::new()
    };
    if let Some(out) = out {
        out.end(map.sectors * 512)?;
    }
    tell_damage(args, &map, &report, &unreadable)
}

fn tell_damage(
    args: &Args,
    map: &VolumeMap,
    report: &Report,
    unreadable: &[SectorRange],
) -> Result<(), Failure> {
    let backings = args.bdev.iter().cloned().collect::<Vec<_>>();
    let spoiled = report.findings.iter().filter(|finding| finding.kind.spoils_content());
    for finding in spoiled.clone() {
        complain(&show_finding(finding, &args.cache, &backings));
    }
    for range in unreadable {
        complain(&format!("unreadable, given as zeroes: volume sectors {range}\n"));
    }
    for segment in map.segments.iter().filter(|segment| segment.source == Source::Lost) {
        complain(&format!(
            "newest data lost, taken from the backing device: volume sectors {}\n",
            segment.range
        ));
    }
    if map.dirty_beyond_end > 0 {
        complain(&format!(
            "left out: {} dirty sectors beyond the end of the backing device\n",
            map.dirty_beyond_end
        ));
    }
    let missing = map.lost_sectors() + map.dirty_beyond_end;
    if spoiled.count() == 0 && unreadable.is_empty() && missing == 0 {
        return Ok(());
    }
    let unreadable: u64 = unreadable.iter().map(SectorRange::sectors).sum();
    Err(Failure::refused(&args.cache, "the content is not certain")
        .found(format_args!(
            "{unreadable} unreadable sectors, {missing} sectors whose newest data is lost or left \
             out"
        ))
        .expected("a set without damage")
        .advice("keep the output and this list; check file systems on a copy of the output"))
}

fn map_as_text(map: &VolumeMap) -> String {
    let mut text = String::from("# volume sector, sectors, from, sector there\n");
    for segment in &map.segments {
        let from = match segment.source {
            Source::Clean(at) | Source::Dirty(at) => at.0,
            Source::Backing | Source::Lost => map.data_offset.0 + segment.range.start.0,
            Source::Zeroes => 0,
        };
        let (start, sectors) = (segment.range.start, segment.range.sectors());
        let _ = writeln!(text, "{start} {sectors} {} {from}", segment.source.word());
    }
    text
}

fn map_as_json(map: &VolumeMap) -> String {
    let segments = map.segments.iter().map(|segment| {
        let cache = match segment.source {
            Source::Clean(at) | Source::Dirty(at) => Some(at.0),
            _ => None,
        };
        json!({
            "sector": segment.range.start.0,
            "sectors": segment.range.sectors(),
            "from": segment.source.word(),
            "cache_sector": cache,
        })
    });
    let object = json!({
        "volume": map.inode.map(|inode| inode.0),
        "sectors": map.sectors,
        "data_offset": map.data_offset.0,
        "dirty_sectors": map.dirty_sectors(),
        "lost_sectors": map.lost_sectors(),
        "segments": segments.collect::<Vec<_>>(),
    });
    serde_json::to_string(&object).expect("plain data always serializes") + "\n"
}

/// Destination of the content.
enum Output {
    Stream(io::StdoutLock<'static>),
    File { file: NewFile, sparse: bool },
}

impl Output {
    fn new(args: &Args) -> Result<Output, Failure> {
        let Some(path) = &args.output else { return Ok(Output::Stream(io::stdout().lock())) };
        let needed: Vec<&Path> =
            std::iter::once(&args.cache).chain(&args.bdev).map(PathBuf::as_path).collect();
        Ok(Output::File { file: NewFile::create(path, false, &needed)?, sparse: args.sparse })
    }

    fn piece(&mut self, at: u64, piece: DataPart<'_>) -> Result<(), String> {
        match (self, piece) {
            (Output::Stream(out), DataPart::Bytes(bytes)) => {
                out.write_all(bytes).map_err(|error| error.to_string())
            }
            (Output::Stream(out), DataPart::Zeroes(count)) => {
                zeroes(count, |bytes| out.write_all(bytes).map_err(|error| error.to_string()))
            }
            (Output::File { sparse: true, .. }, DataPart::Zeroes(_)) => Ok(()),
            (Output::File { file, .. }, DataPart::Zeroes(count)) => {
                file.seek(at)?;
                zeroes(count, |bytes| file.write(bytes))
            }
            (Output::File { file, sparse }, DataPart::Bytes(bytes)) => {
                let chunk = if *sparse { HOLE_BYTES } else { bytes.len().max(1) };
                for (index, bytes) in bytes.chunks(chunk).enumerate() {
                    if *sparse && bytes.iter().all(|byte| *byte == 0) {
                        continue;
                    }
                    file.seek(at + (index * chunk) as u64)?;
                    file.write(bytes)?;
                }
                Ok(())
            }
        }
    }

    fn end(self, bytes: u64) -> Result<(), Failure> {
        match self {
            Output::Stream(mut out) => out.flush().map_err(|error| cannot_print(&error)),
            Output::File { file, .. } => file.finish_with(bytes),
        }
    }
}

fn zeroes(
    mut count: u64,
    mut write: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let block = [0; 64 << 10];
    while count > 0 {
        let step = count.min(block.len() as u64);
        write(&block[..step as usize])?;
        count -= step;
    }
    Ok(())
}
