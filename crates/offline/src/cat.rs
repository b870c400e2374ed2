//! The content of a volume (docs/reference/format.md §10.5): the backing device, with the cached
//! extents over it.
//!
//! Nothing is changed on any device. Memory: 24 bytes a segment, and 4 MiB of data on its way.

use ubcache_env::local::join_all;
use ubcache_env::{Buf, Device, SectorRange};
use ubcache_format::{BackingState, Inode, SECTOR_BYTES, Sector, Superblock, compare_runs};

use crate::error::{OfflineError, On};
use crate::io::progress::{Phase, Watcher};
use crate::io::read::read;
use crate::set::{Site, View};
use crate::walk::read_superblock;

const PIECE_SECTORS: u64 = 512;
const PIECES_AT_ONCE: usize = 16;
/// Length of the parts in which a piece is read again after an error.
const BLOCK_SECTORS: u64 = 8;

/// Origin of a part of a volume.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// The backing device.
    Backing,
    /// The cache, from this sector on; the backing device has the same.
    Clean(Sector),
    /// The cache, from this sector on, and nowhere else.
    Dirty(Sector),
    /// Nothing was ever written there.
    Zeroes,
    /// Unknown: the metadata of the cache is damaged here, and the backing device's data may be
    /// old.
    Lost,
}

impl Source {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Source::Backing => "backing",
            Source::Clean(_) => "clean",
            Source::Dirty(_) => "dirty",
            Source::Zeroes => "zeroes",
            Source::Lost => "lost",
        }
    }
}

/// A part of a volume, and where it comes from.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The part, in sectors of the volume.
    pub range: SectorRange,
    /// Its origin.
    pub source: Source,
}

/// A volume: how long it is, and where each part of it comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeMap {
    /// Its slot, if anything that is cached counts.
    pub inode: Option<Inode>,
    /// Sectors from the start of the backing device to volume sector 0.
    pub data_offset: Sector,
    /// Length in sectors.
    pub sectors: u64,
    /// Its parts, in order and without gaps.
    pub segments: Vec<Segment>,
    /// Dirty sectors beyond the end of the volume.
    pub dirty_beyond_end: u64,
}

impl VolumeMap {
    /// The parts of which the cache has the only copy.
    pub fn dirty(&self) -> impl Iterator<Item = (SectorRange, Sector)> + '_ {
        self.segments.iter().filter_map(|segment| match segment.source {
            Source::Dirty(at) => Some((segment.range, at)),
            _ => None,
        })
    }

    /// Sectors of which the cache has the only copy.
    pub fn dirty_sectors(&self) -> u64 {
        self.dirty().map(|(range, _)| range.sectors()).sum()
    }

    /// Sectors of which the newest content is not known.
    pub fn lost_sectors(&self) -> u64 {
        self.segments.iter().filter(|s| s.source == Source::Lost).map(|s| s.range.sectors()).sum()
    }
}

/// Relation of a backing device to a set, by its superblock.
pub(crate) struct Relation {
    pub superblock: Superblock,
    /// The slot, if what is cached counts.
    pub inode: Option<Inode>,
}

/// Reads the superblock of a backing device, and whether what the cache has of it counts
/// (docs/reference/format.md §10.2). With `anyway`, what the cache has counts whatever the backing
/// device says.
pub(crate) async fn relation<D: Device>(
    view: &View,
    backing: &D,
    anyway: bool,
) -> Result<Relation, OfflineError> {
    let superblock = read_superblock(backing, Site::Backing(0))
        .await
        .map_err(|finding| OfflineError::Damaged(Box::new(finding)))?;
    let state = superblock.state();
    let attached = superblock.set_uuid == view.superblock.set_uuid
        && matches!(state, BackingState::Clean | BackingState::Dirty);
    if superblock.is_cache() {
        return Err(not_attached(view, &superblock));
    }
    let slot = view.slot(superblock.uuid);
    if attached && state == BackingState::Dirty && slot.is_none() && view.complete {
        return Err(OfflineError::NoSlot(superblock.uuid));
    }
    let inode = slot.filter(|_| attached || anyway);
    if let Some(inode) = inode.filter(|_| attached && !anyway) {
        compare_runs(&view.superblock, inode, &superblock).map_err(OfflineError::OlderCopy)?;
    }
    if !attached && state == BackingState::Dirty && !anyway {
        // Its newest data is in a cache that is not this one.
        return Err(not_attached(view, &superblock));
    }
    Ok(Relation { superblock, inode })
}

pub(crate) fn not_attached(view: &View, superblock: &Superblock) -> OfflineError {
    OfflineError::NotAttached {
        state: if superblock.is_cache() {
            "that of a cache device"
        } else {
            superblock.state().super_show_word()
        },
        found: superblock.set_uuid,
        expected: view.superblock.set_uuid,
    }
}

/// The map of the volume on a backing device.
pub async fn map_backed<D: Device>(
    view: &View,
    backing: &D,
    anyway: bool,
) -> Result<VolumeMap, OfflineError> {
    let Relation { superblock, inode } = relation(view, backing, anyway).await?;
    let data_offset = superblock.data_offset();
    let sectors = backing.limits().sectors.saturating_sub(data_offset.0);
    Ok(map(view, inode, data_offset, sectors, Source::Backing))
}

/// The map of a volume that has no backing device.
pub fn map_flash_only(view: &View, inode: Inode) -> Result<VolumeMap, OfflineError> {
    let slot = view.uuids.get(inode.0 as usize).filter(|slot| slot.is_live() && slot.flash_only);
    let slot = slot.ok_or(OfflineError::NotFlashOnly(inode))?;
    Ok(map(view, Some(inode), Sector(0), slot.sectors, Source::Zeroes))
}

fn map(
    view: &View,
    inode: Option<Inode>,
    data_offset: Sector,
    sectors: u64,
    below: Source,
) -> VolumeMap {
    let all = SectorRange::new(data_offset, sectors);
    let mut map =
        VolumeMap { inode, data_offset, sectors, segments: Vec::new(), dirty_beyond_end: 0 };
    let mut at = all.start;
    for (extent, pointer) in inode.into_iter().flat_map(|inode| view.volume(inode)) {
        let range = extent.range().intersect(&all);
        if extent.is_dirty() {
            map.dirty_beyond_end += extent.range().sectors() - range.sectors();
        }
        if range.is_empty() || range.start < at {
            continue;
        }
        fill(view, &mut map, SectorRange::from_bounds(at, range.start), below);
        let place = pointer.offset + (range.start - extent.range().start);
        let source = if extent.is_dirty() { Source::Dirty(place) } else { Source::Clean(place) };
        push(&mut map, range, source);
        at = range.end;
    }
    fill(view, &mut map, SectorRange::from_bounds(at, all.end), below);
    map
}

/// A part that has no extent: known to have none, or lost.
fn fill(view: &View, map: &mut VolumeMap, gap: SectorRange, below: Source) {
    let mut at = gap.start;
    if let Some(inode) = map.inode {
        for lost in &view.lost {
            let Some(lost) = lost.in_volume(inode) else { continue };
            let lost = lost.intersect(&SectorRange::from_bounds(at, gap.end));
            if !lost.is_empty() {
                push(map, SectorRange::from_bounds(at, lost.start), below);
                push(map, lost, Source::Lost);
                at = lost.end;
            }
        }
    }
    push(map, SectorRange::from_bounds(at, gap.end), below);
}

/// Adds a part, given in key sectors.
fn push(map: &mut VolumeMap, range: SectorRange, source: Source) {
    if range.is_empty() {
        return;
    }
    let shift = |sector: Sector| Sector(sector - map.data_offset);
    let range = SectorRange::from_bounds(shift(range.start), shift(range.end));
    if let Some(last) = map.segments.last_mut() {
        let follows = match (last.source, source) {
            (Source::Clean(a), Source::Clean(b)) | (Source::Dirty(a), Source::Dirty(b)) => {
                a + last.range.sectors() == b
            }
            (a, b) => a == b,
        };
        if follows && last.range.end == range.start {
            last.range.end = range.end;
            return;
        }
    }
    map.segments.push(Segment { range, source });
}

/// Reads a volume from its start to its end and hands it on piece by piece: the byte where a piece
/// begins, and the piece, or how many bytes of zeroes it has where nothing was ever written. What
/// is lost is given as the backing device has it.
///
/// With `damaged`, sectors that can't be read are given as zeroes, and returned as a list.
pub async fn read_volume<D: Device>(
    map: &VolumeMap,
    cache: &D,
    backing: Option<&D>,
    damaged: bool,
    watcher: &dyn Watcher,
    mut sink: impl FnMut(u64, DataPart<'_>) -> Result<(), String>,
) -> Result<Vec<SectorRange>, OfflineError> {
    let phase = Phase::new(watcher, "reading the volume", map.sectors.saturating_mul(SECTOR_BYTES));
    let mut unreadable = Vec::new();
    let mut pieces = Vec::new();
    let mut segments = map.segments.iter().flat_map(cut);
    loop {
        pieces.extend(segments.by_ref().take(PIECES_AT_ONCE));
        if pieces.is_empty() {
            return Ok(unreadable);
        }
        let reads = pieces.iter().map(|piece| read_piece(map, cache, backing, piece));
        let results = join_all(reads.collect::<Vec<_>>()).await;
        for (piece, result) in pieces.drain(..).zip(results) {
            let at = piece.range.start.bytes();
            let handed = match result {
                Ok(Some(bytes)) => sink(at, DataPart::Bytes(bytes.as_slice())),
                Ok(None) => sink(at, DataPart::Zeroes(piece.range.bytes())),
                Err(_) if damaged => {
                    let mut given = Ok(());
                    for part in cut_by(&piece, BLOCK_SECTORS) {
                        let at = part.range.start.bytes();
                        let handed = match read_piece(map, cache, backing, &part).await {
                            Ok(Some(bytes)) => sink(at, DataPart::Bytes(bytes.as_slice())),
                            Ok(None) => sink(at, DataPart::Zeroes(part.range.bytes())),
                            Err(_) => {
                                unreadable.push(part.range);
                                sink(at, DataPart::Zeroes(part.range.bytes()))
                            }
                        };
                        given = given.and(handed);
                    }
                    given
                }
                Err(error) => {
                    let on = match piece.source {
                        Source::Clean(_) | Source::Dirty(_) => On::Cache,
                        _ => On::Backing,
                    };
                    return Err(OfflineError::Io { on, doing: "reading the volume", error });
                }
            };
            handed.map_err(|error| OfflineError::Io {
                on: On::Output,
                doing: "writing the content",
                error,
            })?;
            phase.add(piece.range.bytes());
        }
    }
}

/// Reads a piece; nothing comes back where nothing was ever written.
async fn read_piece<D: Device>(
    map: &VolumeMap,
    cache: &D,
    backing: Option<&D>,
    piece: &Segment,
) -> Result<Option<Buf>, String> {
    let sectors = piece.range.sectors();
    match (piece.source, backing) {
        (Source::Clean(at) | Source::Dirty(at), _) => read(cache, at, sectors).await.map(Some),
        (Source::Backing | Source::Lost, Some(backing)) => {
            read(backing, map.data_offset + piece.range.start.0, sectors).await.map(Some)
        }
        _ => Ok(None),
    }
}

/// Some of the content of a volume.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum DataPart<'a> {
    /// The bytes.
    Bytes(&'a [u8]),
    /// Zeroes of this length.
    Zeroes(u64),
}

/// The pieces of a segment that are read at one time.
pub(crate) fn cut(segment: &Segment) -> impl Iterator<Item = Segment> + use<> {
    cut_by(segment, PIECE_SECTORS)
}

fn cut_by(segment: &Segment, sectors: u64) -> impl Iterator<Item = Segment> + use<> {
    let Segment { range, source } = *segment;
    let count = range.sectors().div_ceil(sectors);
    (0..count).map(move |index| {
        let skipped = index * sectors;
        let start = range.start + skipped;
        let source = match source {
            Source::Clean(at) => Source::Clean(at + skipped),
            Source::Dirty(at) => Source::Dirty(at + skipped),
            other => other,
        };
        let end = (start + sectors).min(range.end);
        Segment { range: SectorRange::from_bounds(start, end), source }
    })
}
