//! Recovery: all dirty data of a volume goes to its backing device, and both devices say so.
//!
//! ```text
//!  1  dirty data ──▶ backing device, flush; may be repeated, as the cache still has it
//!  2  new tree without DIRTY ──▶ free buckets of the cache, flush;
//!     then one journal entry that names its root
//!  3  STATE clean, or none and no set, in the superblock of the backing device
//! ```
//!
//! It can be interrupted at any moment and run again: until the entry of step 2 is durable the set
//! is what it was, and after it nothing is dirty any more. With `detach`, step 2 is left out and
//! nothing is written to the cache: a device of state none is complete by itself, and what a cache
//! has of it is thrown away when it is attached again.

use ubcache_env::local::join_all;
use ubcache_env::{Buf, Device, Durability};
use ubcache_format::{BackingState, MoveRole, SECTOR_BYTES, SUPERBLOCK_SECTOR, Superblock, Uuid};

use crate::cat::{Segment, Source, VolumeMap, cut, map_backed, not_attached, relation};
use crate::error::{OfflineError, On};
use crate::io::progress::{Phase, Watcher};
use crate::io::read::read;
use crate::set::Report;
use crate::walk::open_set;
use crate::write::{flush, mark_volume_clean};

const PIECES_AT_ONCE: usize = 16;

/// Options of a recovery.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoverOptions {
    /// Detach the backing device: from then on it is complete by itself.
    pub detach: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Write what is certain although the set has damage. Nothing is marked then.
    pub damaged: bool,
}

/// Result of a recovery.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// The volume, as it was found.
    pub map: VolumeMap,
    /// The state that the backing device had.
    pub state_before: BackingState,
    /// The outcome.
    pub outcome: Outcome,
}

/// Outcome of a recovery.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The backing device was detached already, and is complete.
    AlreadyDetached,
    /// Nothing was written.
    DryRun,
    /// The backing device has everything, and is attached and clean.
    Clean,
    /// The backing device has everything, and is detached.
    Detached,
    /// Only certain data was written. The devices are marked as they were, because there is damage.
    Partly,
}

/// Brings the dirty data of a volume to its backing device.
pub async fn recover<D: Device>(
    cache: &D,
    backing: &D,
    options: RecoverOptions,
    watcher: &dyn Watcher,
) -> Result<(Recovered, Report), OfflineError> {
    let (view, report) = open_set(cache, options.damaged, watcher).await?;
    let found = relation(&view, backing, false).await?;
    let state_before = found.superblock.state();
    let map = map_backed(&view, backing, false).await?;
    let done = |outcome| Recovered { map: map.clone(), state_before, outcome };
    match state_before {
        BackingState::None => return Ok((done(Outcome::AlreadyDetached), report)),
        BackingState::Stale => return Err(not_attached(&view, &found.superblock)),
        BackingState::Clean | BackingState::Dirty => {
            if found.superblock.set_uuid != view.superblock.set_uuid {
                return Err(not_attached(&view, &found.superblock));
            }
        }
    }
    if map.dirty_beyond_end > 0 && !options.damaged {
        return Err(OfflineError::BeyondEnd { sectors: map.dirty_beyond_end });
    }
    if options.dry_run {
        return Ok((done(Outcome::DryRun), report));
    }
    let mut superblock = found.superblock;
    if superblock.attempt(MoveRole::Left).is_some() {
        // A13: what is written now is in no log.
        superblock.set_attempt(None);
        write_superblock(backing, &superblock).await?;
    }
    write_back(&map, cache, backing, watcher).await?;
    let certain = report.findings.iter().all(|finding| !finding.kind.spoils_content());
    if !certain || map.dirty_beyond_end > 0 {
        return Ok((done(Outcome::Partly), report));
    }
    let outcome = if options.detach {
        superblock.set_uuid = Uuid::default();
        superblock.set_state(BackingState::None);
        Outcome::Detached
    } else {
        if let Some(inode) = map.inode
            && map.dirty_sectors() > 0
        {
            mark_volume_clean(&view, cache, inode, watcher).await?;
        }
        superblock.set_state(BackingState::Clean);
        Outcome::Clean
    };
    write_superblock(backing, &superblock).await?;
    // A9: nothing is written any more.
    backing.seal().await.map_err(|error| OfflineError::Io {
        on: On::Backing,
        doing: "noting what is left of the disk",
        error: error.to_string(),
    })?;
    Ok((done(outcome), report))
}

async fn write_back<D: Device>(
    map: &VolumeMap,
    cache: &D,
    backing: &D,
    watcher: &dyn Watcher,
) -> Result<(), OfflineError> {
    let phase = Phase::new(watcher, "writing dirty data back", map.dirty_sectors() * SECTOR_BYTES);
    let mut dirty =
        map.segments.iter().filter(|s| matches!(s.source, Source::Dirty(_))).flat_map(cut);
    loop {
        let pieces: Vec<Segment> = dirty.by_ref().take(PIECES_AT_ONCE).collect();
        if pieces.is_empty() {
            break;
        }
        let copies = pieces.iter().map(async |piece| {
            let Source::Dirty(at) = piece.source else { return Ok(()) };
            let bytes =
                read(cache, at, piece.range.sectors()).await.map_err(|error| OfflineError::Io {
                    on: On::Cache,
                    doing: "reading dirty data from the cache",
                    error,
                })?;
            let to = map.data_offset + piece.range.start.0;
            let written = backing.write(to, bytes.into(), Durability::Volatile).await;
            written.map_err(|error| OfflineError::Io {
                on: On::Backing,
                doing: "writing to the backing device",
                error: format!("sector {to}: {error}"),
            })
        });
        join_all(copies.collect::<Vec<_>>()).await.into_iter().collect::<Result<(), _>>()?;
        pieces.iter().for_each(|piece| phase.add(piece.range.bytes()));
    }
    flush(backing, On::Backing, "flushing the backing device").await
}

/// Changes the superblock of a backing device. All that changes is in its first sector.
async fn write_superblock<D: Device>(
    backing: &D,
    superblock: &Superblock,
) -> Result<(), OfflineError> {
    const DOING: &str = "writing the superblock of the backing device";
    let bytes = superblock.encode();
    let first =
        (backing.limits().logical_block_bytes as usize).clamp(SECTOR_BYTES as usize, bytes.len());
    let head = Buf::from_bytes(bytes.get(..first).unwrap_or(&bytes));
    backing.write(SUPERBLOCK_SECTOR, head.into(), Durability::Fua).await.map_err(|error| {
        OfflineError::Io { on: On::Backing, doing: DOING, error: error.to_string() }
    })?;
    flush(backing, On::Backing, DOING).await
}
