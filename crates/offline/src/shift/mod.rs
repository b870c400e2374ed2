//! Moving the data of a disk up or down by some sectors, in place: from behind a superblock to the
//! begin of the disk (`ubcache unmake --in-place`), and back (`ubcache convert`).
//!
//! ```text
//!          0      from           head          chunk                                 end
//!  before  │ free │ data ────────────────────────────────────────────────────────────│
//!  body    │ veil │     (head: in the work file)│ moved ──▶│ as before, up by `from` ─│
//!  after   │ data ────────────────────────────────────────────────────────────│ free   │
//! ```
//!
//! Source and destination overlap, so no order of writes alone can be cut off anywhere. A *work
//! file* on another device makes it safe: each chunk is durable there before its place on the disk
//! is written, and durable on the disk before the next chunk is named.
//!
//! **The invariant.** Let R be the newest whole record of the work file, of the chunk `[a, a+n)`
//! of the data. Then, at each moment and in what any power cut leaves:
//!
//! 1. all data behind R's chunk in the direction of the move is on the disk at its new place;
//! 2. R's chunk is in the work file;
//! 3. all data that R's chunk has yet before it is on the disk at its old place: a step writes the
//!    new place of its chunk only, and data moves towards what is moved already (down in ascending
//!    order, up in descending order);
//! 4. the head, the first 128 KiB, is in the work file from the first record on;
//! 5. from the first change of the data to the last, the disk is behind its *veil*: the places of
//!    file systems, partition tables and superblocks have what nobody mounts or serves. The last
//!    write removes it, and is of one block.
//!
//! **The key of the content has to be in its first 4 KiB**: what a mount looks at first, without
//! which nothing uses the content (ext4, XFS). Only that block is written alone, first and last. Of
//! content with another key (btrfs: byte 65536; bcachefs, MD 1.2: byte 4096; LUKS2: a second
//! header) a power cut between the blocks leaves a disk that can be mounted and written, which then
//! gets its old head back. The callers refuse such content.
//!
//! A step that is done twice writes the same bytes twice. So the same command, run again, goes on
//! from R; it refuses a disk whose veil is not there, which somebody else has written to.
//!
//! | module | holds |
//! |---|---|
//! | here | [`begin_move`], [`resume_move`]: the stages; [`has_head`] |
//! | `record` | [`MovePlan`], [`MoveState`]: records of the work file |
//! | `work` | the work file: records, head, chunks |
//! | `veil` | the veil, and [`veiled`] |
//! | `pieces` | reads and writes of many pieces |
//! | `error` | [`MoveError`] |

mod error;
mod pieces;
mod record;
mod veil;
mod work;

use ubcache_env::Device;
use ubcache_format::{SECTOR_BYTES, SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR, Sector};

use self::pieces::{read_pieces, write_pieces};
use self::veil::{BLOCK_BYTES, VEIL_BYTES, veil, veil_sector};
use self::work::{read_chunk, read_head, save_chunk, save_head, save_record};
use crate::io::progress::{Phase, Watcher};

pub use error::MoveError;
pub use record::{MovePlan, MoveState, Stage};
pub use veil::{VEIL_MAGIC, veiled};
pub use work::{NEW_WORK, is_new_work, read_move, work_bytes};

/// Sectors of the head, which is moved last: all places where a file system may say that it is one.
const HEAD_SECTORS: u64 = 256;
/// The fewest sectors of data that can be moved.
pub const LEAST_SECTORS: u64 = 2 * HEAD_SECTORS;

const SECTOR: usize = SECTOR_BYTES as usize;
const BLOCK_SECTORS: usize = BLOCK_BYTES / SECTOR;

/// Outcome of a move that was interrupted and goes on.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Resumed {
    /// The data is in its new place.
    Done,
    /// It was there before; only the work file was left.
    DoneBefore,
    /// Nothing was changed on the disk, which may have been used since: begin again, with a new
    /// work file.
    NotBegun,
}

/// Moves the data of a disk. `work`: an empty work file of [`work_bytes`]. `superblock`: for a move
/// up, what comes before the data. `looked_at`: the begin of the disk by which the plan was made,
/// before the disk was opened alone.
///
/// # Errors
/// The begin of the disk is another one by now: nothing was changed. A read or a write fails:
/// [`resume_move`] goes on then.
pub async fn begin_move<D: Device, W: Device>(
    disk: &D,
    work: &W,
    plan: MovePlan,
    superblock: Option<&[u8]>,
    looked_at: &[u8],
    watcher: &dyn Watcher,
) -> Result<(), MoveError> {
    if read_begin(disk, looked_at.len()).await? != looked_at {
        return Err(MoveError::Changed { part: "the begin of the disk" });
    }
    let data = read_pieces(disk, plan.from, HEAD_SECTORS).await;
    let mut head = vec![0; plan.to.bytes() as usize];
    if let Some(superblock) = superblock.filter(|_| !goes_down(&plan)) {
        let at = SUPERBLOCK_SECTOR.bytes() as usize;
        let bytes = superblock.len().min(SUPERBLOCK_BYTES);
        if let Some(place) = head.get_mut(at..at + bytes) {
            place.copy_from_slice(&superblock[..bytes]);
        }
    }
    head.extend(data.map_err(MoveError::disk("reading the head of the data"))?);
    let head_csum = save_head(work, &head).await?;
    let (stage, seq, at, count, chunk_csum) = (Stage::Begin, 1, 0, 0, 0);
    let state = MoveState { plan, stage, seq, at, count, chunk_csum, head_csum };
    save_record(work, &state).await?;
    draw_veil(disk, &state.plan).await?;
    Run { disk, work, watcher }.body(state, head).await
}

/// Goes on with a move that was interrupted. `state`: what [`read_move`] found, perhaps before the
/// work file was opened alone.
///
/// # Errors
/// The work file has another record by now. A read or a write fails; the disk or the work file is
/// not as the move left it.
pub async fn resume_move<D: Device, W: Device>(
    disk: &D,
    work: &W,
    state: MoveState,
    watcher: &dyn Watcher,
) -> Result<Resumed, MoveError> {
    if read_move(work).await?.as_ref() != Some(&state) {
        return Err(MoveError::Changed { part: "the record of the work file" });
    }
    let head = read_head(work, &state, head_bytes(&state.plan)).await?;
    let whole = || head.ok_or(MoveError::WorkDamaged { part: "the head of the data" });
    let run = Run { disk, work, watcher };
    let key = key_block(&state.plan);
    match state.stage {
        Stage::Begin => match is_begun(disk, &state.plan).await? {
            Begun::No => return Ok(Resumed::NotBegun),
            Begun::InPart => {
                // A file system can be mounted when a part of its first block is there.
                let head = whole()?;
                let before = head.get(state.plan.to.bytes() as usize..).unwrap_or_default();
                uncover(disk, &state.plan, 0, before).await?;
                return Ok(Resumed::NotBegun);
            }
            Begun::Yes => {
                draw_veil(disk, &state.plan).await?;
                run.body(state, whole()?).await?;
            }
        },
        Stage::Body => {
            check_veil(disk, &state.plan).await?;
            let chunk = read_chunk(work, &state).await?;
            let head = whole()?;
            run.place(&state, &chunk).await?;
            run.body(state, head).await?;
        }
        Stage::Finish => match covered_in(disk, &state.plan, key).await? {
            0 => return done_before(disk, &state.plan).await,
            BLOCK_SECTORS => remove_veil(disk, &state.plan, &whole()?).await?,
            // The last write had begun, so all others are durable, and the disk may have been used.
            _ => uncover(disk, &state.plan, key, &whole()?).await?,
        },
    }
    Ok(Resumed::Done)
}

/// Returns true if the begin of the disk is the head in the work file: before the first change, or
/// after the last one, it says that the move is of this disk.
///
/// # Errors
/// A read fails.
pub async fn has_head<D: Device, W: Device>(
    disk: &D,
    work: &W,
    state: &MoveState,
) -> Result<bool, MoveError> {
    let plan = &state.plan;
    let Some(head) = read_head(work, state, head_bytes(plan)).await? else { return Ok(false) };
    let (at, expected) = match state.stage {
        Stage::Begin => (plan.from, head.get(plan.to.bytes() as usize..).unwrap_or_default()),
        Stage::Body | Stage::Finish => (Sector(0), head.as_slice()),
    };
    let found = read_pieces(disk, at, (expected.len() / SECTOR) as u64).await;
    Ok(found.map_err(MoveError::disk("reading the head of the data"))? == expected)
}

fn goes_down(plan: &MovePlan) -> bool {
    plan.to < plan.from
}

/// Bytes of the disk that are written last, from its begin on.
fn head_bytes(plan: &MovePlan) -> usize {
    plan.to.bytes() as usize + HEAD_SECTORS as usize * SECTOR
}

/// Bytes that the veil covers. The data that is moved up is at the begin of the disk: its head
/// goes behind the veil as a whole.
fn covered_bytes(plan: &MovePlan) -> usize {
    if goes_down(plan) { VEIL_BYTES } else { HEAD_SECTORS as usize * SECTOR }
}

/// The block by which the disk is used: after the move that of a file system, or the superblock.
/// The last one to be written.
fn key_block(plan: &MovePlan) -> usize {
    if goes_down(plan) { 0 } else { 1 }
}

/// The chunk after the state's, as its first sector and their number.
fn next_chunk(state: &MoveState) -> Option<(u64, u64)> {
    let plan = &state.plan;
    let begins = state.stage == Stage::Begin;
    let (start, end) = if goes_down(plan) {
        let start = if begins { HEAD_SECTORS } else { state.at + state.count };
        (start, plan.sectors.min(start + plan.chunk_sectors))
    } else {
        let end = if begins { plan.sectors } else { state.at };
        (end.saturating_sub(plan.chunk_sectors).max(HEAD_SECTORS), end)
    };
    (start < end).then(|| (start, end - start))
}

fn io<E: ToString>(failed: impl Fn(String) -> MoveError) -> impl Fn(E) -> MoveError {
    move |error| failed(error.to_string())
}

/// Covers the begin of the disk. The block by which the disk is used so far comes first.
async fn draw_veil<D: Device>(disk: &D, plan: &MovePlan) -> Result<(), MoveError> {
    let failed = MoveError::disk("covering the begin of the disk");
    let veil = veil(plan.uuid, covered_bytes(plan));
    let (block, rest) = veil.split_at(BLOCK_BYTES);
    let (first, second) = match goes_down(plan) {
        true => ((SUPERBLOCK_SECTOR, rest), (Sector(0), block)),
        false => ((Sector(0), block), (SUPERBLOCK_SECTOR, rest)),
    };
    for (at, bytes) in [first, second] {
        write_pieces(disk, at, bytes).await.map_err(&failed)?;
        disk.flush().await.map_err(io(&failed))?;
    }
    Ok(())
}

/// Extent of what a move has changed on a disk in its first stage. The head is what was saved of it
/// only if the disk can't have been used since.
enum Begun {
    No,
    InPart,
    Yes,
}

async fn is_begun<D: Device>(disk: &D, plan: &MovePlan) -> Result<Begun, MoveError> {
    if goes_down(plan) {
        // A superblock is in force by its first sector.
        let head = read_begin(disk, VEIL_BYTES).await?;
        let is_covered = sector(&head, 8) == veil_sector(plan.uuid, 8);
        return Ok(if is_covered { Begun::Yes } else { Begun::No });
    }
    Ok(match covered_in(disk, plan, 0).await? {
        0 => Begun::No,
        BLOCK_SECTORS => Begun::Yes,
        _ => Begun::InPart,
    })
}

/// The last block is in its place. The others were before it, or somebody else wrote this one.
async fn done_before<D: Device>(disk: &D, plan: &MovePlan) -> Result<Resumed, MoveError> {
    for block in 0..VEIL_BYTES / BLOCK_BYTES {
        if covered_in(disk, plan, block).await? > 0 {
            let sector = (key_block(plan) * BLOCK_SECTORS) as u64;
            return Err(MoveError::Foreign { sector });
        }
    }
    Ok(Resumed::DoneBefore)
}

/// Number of sectors of a block that are behind the veil.
async fn covered_in<D: Device>(
    disk: &D,
    plan: &MovePlan,
    block: usize,
) -> Result<usize, MoveError> {
    let found = read_begin(disk, VEIL_BYTES).await?;
    let numbers = block * BLOCK_SECTORS..(block + 1) * BLOCK_SECTORS;
    let covered = |at: &usize| sector(&found, *at) == veil_sector(plan.uuid, *at as u64);
    Ok(numbers.filter(covered).count())
}

/// Puts what belongs there in place of those sectors of a block that are behind the veil. The
/// others stay: whoever has used the disk has written them.
async fn uncover<D: Device>(
    disk: &D,
    plan: &MovePlan,
    block: usize,
    head: &[u8],
) -> Result<(), MoveError> {
    let found = read_begin(disk, VEIL_BYTES).await?;
    let numbers = block * BLOCK_SECTORS..(block + 1) * BLOCK_SECTORS;
    let merged = numbers.flat_map(|at| match sector(&found, at) {
        covered if covered == veil_sector(plan.uuid, at as u64) => sector(head, at),
        found => found,
    });
    let merged: Vec<u8> = merged.copied().collect();
    let failed = MoveError::disk("uncovering the begin of the disk");
    let at = Sector((block * BLOCK_SECTORS) as u64);
    write_pieces(disk, at, &merged).await.map_err(&failed)?;
    disk.flush().await.map_err(io(&failed))
}

async fn check_veil<D: Device>(disk: &D, plan: &MovePlan) -> Result<(), MoveError> {
    let found = read_begin(disk, VEIL_BYTES).await?;
    let veil = veil(plan.uuid, VEIL_BYTES);
    let foreign = (0..VEIL_BYTES / SECTOR).find(|at| sector(&found, *at) != sector(&veil, *at));
    match foreign {
        Some(number) => Err(MoveError::Foreign { sector: number as u64 }),
        None => Ok(()),
    }
}

/// Writes the head in place of the veil: the block by which the disk is used comes last.
async fn remove_veil<D: Device>(disk: &D, plan: &MovePlan, head: &[u8]) -> Result<(), MoveError> {
    let failed = MoveError::disk("writing the head of the data");
    let (blocks, rest) = head.split_at(VEIL_BYTES.min(head.len()));
    let (first, second) = blocks.split_at(BLOCK_BYTES.min(blocks.len()));
    let (other, key) = match key_block(plan) {
        0 => ((SUPERBLOCK_SECTOR, second), (Sector(0), first)),
        _ => ((Sector(0), first), (SUPERBLOCK_SECTOR, second)),
    };
    write_pieces(disk, Sector((VEIL_BYTES / SECTOR) as u64), rest).await.map_err(&failed)?;
    write_pieces(disk, other.0, other.1).await.map_err(&failed)?;
    disk.flush().await.map_err(io(&failed))?;
    write_pieces(disk, key.0, key.1).await.map_err(&failed)?;
    disk.flush().await.map_err(io(&failed))
}

async fn read_begin<D: Device>(disk: &D, bytes: usize) -> Result<Vec<u8>, MoveError> {
    let read = read_pieces(disk, Sector(0), (bytes / SECTOR) as u64).await;
    read.map_err(MoveError::disk("reading the begin of the disk"))
}

fn sector(bytes: &[u8], number: usize) -> &[u8] {
    bytes.get(number * SECTOR..(number + 1) * SECTOR).unwrap_or_default()
}

/// A disk behind its veil, and its work file.
struct Run<'a, D, W> {
    disk: &'a D,
    work: &'a W,
    watcher: &'a dyn Watcher,
}

impl<D: Device, W: Device> Run<'_, D, W> {
    /// Moves what is left of the body, then the head.
    async fn body(&self, mut state: MoveState, head: Vec<u8>) -> Result<(), MoveError> {
        let phase = Phase::new(self.watcher, "moving the data", state.plan.sectors * SECTOR_BYTES);
        if state.stage == Stage::Body {
            let down = goes_down(&state.plan);
            let left = if down { state.plan.sectors - state.at - state.count } else { state.at };
            phase.add((state.plan.sectors - left) * SECTOR_BYTES);
        }
        while let Some((at, count)) = next_chunk(&state) {
            let read = read_pieces(self.disk, state.plan.from + at, count).await;
            let chunk = read.map_err(MoveError::disk("reading the data"))?;
            state = MoveState { stage: Stage::Body, seq: state.seq + 1, at, count, ..state };
            save_chunk(self.work, &mut state, &chunk).await?;
            save_record(self.work, &state).await?;
            self.place(&state, &chunk).await?;
            phase.add(count * SECTOR_BYTES);
        }
        state = MoveState { stage: Stage::Finish, seq: state.seq + 1, ..state };
        save_record(self.work, &state).await?;
        remove_veil(self.disk, &state.plan, &head).await
    }

    /// Writes a chunk to its new place, durably.
    async fn place(&self, state: &MoveState, chunk: &[u8]) -> Result<(), MoveError> {
        let failed = MoveError::disk("writing the data");
        write_pieces(self.disk, state.plan.to + state.at, chunk).await.map_err(&failed)?;
        self.disk.flush().await.map_err(io(&failed))
    }
}
