//! Making a pack.

use std::ops::Range;

use serde_json::{Value, json};
use ubcache_env::{Buf, Device, SectorRange};
use ubcache_format::{Geometry, SECTOR_BYTES, Sector, Superblock, crc64_we};

use super::blank;
use super::layout::{
    BLOCK_BYTES, CHUNK_BYTES, CHUNK_SECTORS, Chunk, Header, PackedRange, Trailer, VERSION,
    add_to_index,
};
use super::plan::{Part, Planned, cut, of_superblock, plan};
use crate::error::{OfflineError, On};
use crate::io::progress::{Phase, Watcher};
use crate::io::read::read_around;
use crate::repair::superblock::search;
use crate::set::{Report, Site, View};
use crate::walk::{Findings, Visitor, WalkOptions, read_superblock, walk_from};

/// Compression level: higher ones are slow, and make keys hardly smaller.
const LEVEL: i32 = 6;

/// Result of packing.
#[derive(Clone, Debug)]
pub struct Packing {
    /// Findings of the walk over the set.
    pub report: Report,
    /// The way in which a damaged superblock was found again.
    pub superblock: Option<String>,
    /// True if the pack has more than the place of the superblock. False if the shape of the set is
    /// unknown.
    pub has_set: bool,
    /// Bytes of the device.
    pub device_bytes: u64,
    /// Bytes of the pack.
    pub file_bytes: u64,
    /// Bytes of the metadata.
    pub raw_bytes: u64,
    /// Journal buckets.
    pub journal_buckets: u64,
    /// Prio sets of the chain, and others that were found.
    pub prio_sets: [u64; 2],
    /// Volume tables: the one that counts, and what seem to be others.
    pub tables: [u64; 2],
    /// Buckets of nodes that the tree names, and others that look like nodes of the set.
    pub nodes: [u64; 2],
    /// Ranges that the device could not read.
    pub unreadable: Vec<SectorRange>,
}

impl Packing {
    /// Returns true if no damage was met.
    pub fn is_clean(&self) -> bool {
        self.has_set
            && self.superblock.is_none()
            && self.unreadable.is_empty()
            && self.report.is_clean()
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let unreadable =
            self.unreadable.iter().map(|range| json!([range.start.0, range.sectors()]));
        json!({
            "clean": self.is_clean(),
            "superblock": self.superblock,
            "set_found": self.has_set,
            "device_bytes": self.device_bytes,
            "file_bytes": self.file_bytes,
            "metadata_bytes": self.raw_bytes,
            "journal_buckets": self.journal_buckets,
            "prio_sets": self.prio_sets[0],
            "prio_sets_found": self.prio_sets[1],
            "volume_tables": self.tables[0],
            "volume_tables_found": self.tables[1],
            "nodes": self.nodes[0],
            "nodes_found": self.nodes[1],
            "unreadable": unreadable.collect::<Vec<_>>(),
            "check": self.report.to_json(),
        })
    }

    fn count(&mut self, part: Part) {
        match part {
            Part::Superblock => {}
            Part::Journal => self.journal_buckets += 1,
            Part::Prio => self.prio_sets[0] += 1,
            Part::Table => self.tables[0] += 1,
            Part::Node => self.nodes[0] += 1,
            Part::FoundPrio => self.prio_sets[1] += 1,
            Part::FoundTable => self.tables[1] += 1,
            Part::FoundNode => self.nodes[1] += 1,
        }
    }
}

/// Packs the metadata of a cache device. `sink` gets the bytes of the file, in order. With backing
/// devices of the set, a lost superblock can be found again; they are only asked for theirs.
///
/// Memory: that of the walk, 24 bytes a bucket of metadata, and some MiB.
pub async fn pack<D: Device>(
    cache: &D,
    backing: &[&D],
    sink: impl FnMut(&[u8]) -> Result<(), String>,
    watcher: &dyn Watcher,
) -> Result<Packing, OfflineError> {
    let mut findings = Findings::default();
    let (superblock, how) = match read_superblock(cache, Site::Cache).await {
        Ok(superblock) if superblock.is_cache() => (Some(superblock), None),
        Ok(_) => return Err(OfflineError::NotACache),
        Err(finding) => {
            findings.finding(finding);
            let found = search(cache, &superblocks(backing).await, watcher).await;
            found.map_or((None, None), |(superblock, how)| (Some(superblock), Some(how)))
        }
    };
    let view = match superblock {
        Some(superblock) => {
            Some(walk_from(cache, superblock, WalkOptions::SALVAGE, &mut findings, watcher).await)
        }
        None => None,
    };
    let planned = match &view {
        Some(view) => plan(cache, view, watcher).await,
        None => vec![of_superblock()],
    };
    let packing = Packing {
        report: findings.report,
        superblock: how,
        has_set: view.is_some(),
        device_bytes: cache.limits().sectors * SECTOR_BYTES,
        file_bytes: 0,
        raw_bytes: 0,
        journal_buckets: 0,
        prio_sets: [0; 2],
        tables: [0; 2],
        nodes: [0; 2],
        unreadable: Vec::new(),
    };
    let version = view.as_ref().and_then(|view| Some(view.journal.newest()?.version)).unwrap_or(1);
    let geometry = view.as_ref().map(|view: &View| view.geometry);
    drop(view);
    let writer =
        Writer { sink, at: 0, index: Vec::new(), chunks: 0, raw: Vec::new(), pieces: Vec::new() };
    write(cache, &planned, geometry, version, packing, writer, watcher).await
}

async fn superblocks<D: Device>(backing: &[&D]) -> Vec<Superblock> {
    let mut found = Vec::new();
    for (index, device) in backing.iter().enumerate() {
        found.extend(
            read_superblock(*device, Site::Backing(index)).await.ok().filter(|it| !it.is_cache()),
        );
    }
    found
}

async fn write<D: Device, S: FnMut(&[u8]) -> Result<(), String>>(
    cache: &D,
    planned: &[Planned],
    geometry: Option<Geometry>,
    version: u32,
    mut packing: Packing,
    mut writer: Writer<S>,
    watcher: &dyn Watcher,
) -> Result<Packing, OfflineError> {
    let block_bytes = cache.limits().logical_block_bytes;
    let header = Header { version: VERSION, block_bytes, device_bytes: packing.device_bytes };
    writer.put(&header.encode())?;
    let total = planned.iter().map(|planned| planned.range.bytes()).sum();
    let phase = Phase::new(watcher, "packing", total);
    for Planned { part, range } in planned {
        packing.count(*part);
        let read = read_around(cache, range.start, range.sectors()).await;
        let (mut bytes, holes) = read.map_err(|error| OfflineError::Io {
            on: On::Cache,
            doing: "reading the cache",
            error,
        })?;
        keep(*part, geometry.as_ref(), version, *range, &mut bytes);
        let mut at = 0;
        for hole in holes {
            packing.raw_bytes += writer.readable(range.start, at..hole.start, bytes.as_slice())?;
            let unreadable = sectors(range.start, &hole);
            // A pack has nothing of the part beyond the end of the device.
            let end = Sector(packing.device_bytes / SECTOR_BYTES);
            if unreadable.start < end {
                let there = SectorRange::from_bounds(unreadable.start, unreadable.end.min(end));
                cut(there, CHUNK_SECTORS).try_for_each(|piece| writer.piece(piece, None))?;
            }
            packing.unreadable.push(unreadable);
            at = hole.end;
        }
        packing.raw_bytes += writer.readable(range.start, at..range.bytes(), bytes.as_slice())?;
        phase.add(range.bytes());
    }
    packing.file_bytes = writer.end()?;
    Ok(packing)
}

fn keep(
    part: Part,
    geometry: Option<&Geometry>,
    version: u32,
    range: SectorRange,
    bytes: &mut Buf,
) {
    let bytes = bytes.as_mut_slice();
    match (part, geometry) {
        (Part::Superblock, _) => blank::superblock(geometry, bytes),
        (Part::Journal, Some(geometry)) => blank::journal(geometry, bytes),
        (Part::Prio | Part::FoundPrio, Some(geometry)) => blank::prio(geometry, bytes),
        (Part::Table, _) => blank::table(version, bytes),
        (Part::FoundTable, _) => blank::table(1, bytes),
        (Part::Node | Part::FoundNode, Some(geometry)) => {
            blank::nodes(geometry, range.start, bytes)
        }
        (_, None) => bytes.fill(0),
    }
}

/// The sectors of some bytes behind a sector.
fn sectors(start: Sector, bytes: &Range<u64>) -> SectorRange {
    SectorRange::from_bounds(start + bytes.start / SECTOR_BYTES, start + bytes.end / SECTOR_BYTES)
}

/// Gathers pieces to chunks and gives them on.
struct Writer<S> {
    sink: S,
    at: u64,
    index: Vec<u8>,
    chunks: u64,
    raw: Vec<u8>,
    pieces: Vec<PackedRange>,
}

impl<S: FnMut(&[u8]) -> Result<(), String>> Writer<S> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), OfflineError> {
        self.at += bytes.len() as u64;
        (self.sink)(bytes).map_err(|error| OfflineError::Io {
            on: On::Output,
            doing: "writing the pack",
            error,
        })
    }

    fn compress(&self, bytes: &[u8]) -> Result<Vec<u8>, OfflineError> {
        let packed = zstd::bulk::compress(bytes, LEVEL);
        packed.map_err(|error| OfflineError::Io {
            on: On::Output,
            doing: "compressing",
            error: error.to_string(),
        })
    }

    /// Takes the readable bytes of an area; returns their number.
    fn readable(
        &mut self,
        start: Sector,
        part: Range<u64>,
        area: &[u8],
    ) -> Result<u64, OfflineError> {
        let bytes = area.get(part.start as usize..part.end as usize).unwrap_or_default();
        for (piece, bytes) in
            cut(sectors(start, &part), CHUNK_SECTORS).zip(bytes.chunks(CHUNK_BYTES))
        {
            self.piece(piece, Some(bytes))?;
        }
        Ok(bytes.len() as u64)
    }

    fn piece(&mut self, range: SectorRange, bytes: Option<&[u8]>) -> Result<(), OfflineError> {
        let bytes = bytes.unwrap_or_default();
        if self.raw.len() + bytes.len() > CHUNK_BYTES {
            self.chunk()?;
        }
        self.raw.extend_from_slice(bytes);
        let sectors = u32::try_from(range.sectors()).unwrap_or(0);
        self.pieces.push(PackedRange {
            start: range.start.0,
            sectors,
            unreadable: bytes.is_empty(),
        });
        Ok(())
    }

    fn chunk(&mut self) -> Result<(), OfflineError> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        let packed = self.compress(&self.raw)?;
        let chunk = Chunk {
            offset: self.at,
            packed: u32::try_from(packed.len()).unwrap_or(u32::MAX),
            raw: u32::try_from(self.raw.len()).unwrap_or(u32::MAX),
            crc: crc64_we(&packed),
            pieces: u32::try_from(self.pieces.len()).unwrap_or(u32::MAX),
        };
        add_to_index(&mut self.index, &chunk, &self.pieces);
        self.put(&packed)?;
        self.chunks += 1;
        self.raw.clear();
        self.pieces.clear();
        Ok(())
    }

    /// Writes what comes last; gives the length of the file.
    fn end(mut self) -> Result<u64, OfflineError> {
        self.chunk()?;
        let packed = self.compress(&self.index)?;
        let (index_offset, index_raw) = (self.at, self.index.len() as u64);
        self.put(&packed)?;
        let padding = self.at.next_multiple_of(BLOCK_BYTES as u64) - self.at;
        self.put(&vec![0; padding as usize])?;
        let trailer = Trailer {
            file_bytes: self.at + BLOCK_BYTES as u64,
            index_offset,
            index_packed: packed.len() as u64,
            index_raw,
            index_crc: crc64_we(&packed),
            chunks: self.chunks,
        };
        self.put(&trailer.encode())?;
        Ok(self.at)
    }
}
