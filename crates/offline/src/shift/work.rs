//! The work file of a move: two records, the head, and two chunks.
//!
//! ```text
//!   0          4096       8192              8192 + 256 KiB
//!   │ record A │ record B │ head            │ chunk A │ chunk B │
//! ```
//!
//! Record and chunk of a step have the same letter, and the steps use A and B in turn: the record
//! and the chunk of the last step stay whole until the next ones are durable.

use ubcache_env::{Buf, Device, Durability, Sector};
use ubcache_format::{SECTOR_BYTES, crc64_we};

use super::error::MoveError;
use super::pieces::{read_pieces, write_pieces};
use super::record::{MoveState, RECORD_BYTES};

const HEAD_AT: u64 = 2 * RECORD_BYTES as u64;
const HEAD_ROOM: u64 = 256 << 10;

/// Begin of a new work file, until the second record takes its place.
pub const NEW_WORK: [u8; 16] = *b"ubcache move new";

/// Returns true for a work file that has no record yet, from its first 8192 bytes: no disk is in
/// the middle of its move. A file of anything else is not one.
pub fn is_new_work(head: &[u8]) -> bool {
    let rest = head.strip_prefix(&NEW_WORK);
    rest.is_some_and(|rest| rest.iter().all(|byte| *byte == 0))
}

/// Size of a work file, in bytes.
pub fn work_bytes(chunk_sectors: u64) -> u64 {
    HEAD_AT + HEAD_ROOM + 2 * chunk_sectors * SECTOR_BYTES
}

/// The state of the move that a work file is of; none if it has no whole record: nothing was
/// changed on the disk then.
///
/// # Errors
/// It can't be read.
pub async fn read_move<W: Device>(work: &W) -> Result<Option<MoveState>, MoveError> {
    if work.limits().sectors * SECTOR_BYTES < HEAD_AT {
        return Ok(None);
    }
    let failed = MoveError::work("reading the record");
    let bytes = read_pieces(work, Sector(0), HEAD_AT / SECTOR_BYTES).await.map_err(failed)?;
    Ok(MoveState::newest(&bytes))
}

fn chunk_at(state: &MoveState) -> Sector {
    let first = HEAD_AT + HEAD_ROOM + (state.seq % 2) * state.plan.chunk_sectors * SECTOR_BYTES;
    Sector(first / SECTOR_BYTES)
}

/// Makes the head durable; its checksum.
pub(super) async fn save_head<W: Device>(work: &W, head: &[u8]) -> Result<u64, MoveError> {
    let failed = MoveError::work("writing the head");
    let written = write_pieces(work, Sector(HEAD_AT / SECTOR_BYTES), head).await;
    written.map_err(&failed)?;
    work.flush().await.map_err(|error| failed(error.to_string()))?;
    Ok(crc64_we(head))
}

/// The head, of so many bytes; none if it is not what the record says.
pub(super) async fn read_head<W: Device>(
    work: &W,
    state: &MoveState,
    bytes: usize,
) -> Result<Option<Vec<u8>>, MoveError> {
    let sectors = bytes as u64 / SECTOR_BYTES;
    let read = read_pieces(work, Sector(HEAD_AT / SECTOR_BYTES), sectors).await;
    let head = read.map_err(MoveError::work("reading the head"))?;
    Ok((crc64_we(&head) == state.head_csum).then_some(head))
}

/// Makes the chunk of the state's step durable, which the state names only afterwards.
pub(super) async fn save_chunk<W: Device>(
    work: &W,
    state: &mut MoveState,
    chunk: &[u8],
) -> Result<(), MoveError> {
    let failed = MoveError::work("writing a chunk");
    state.chunk_csum = crc64_we(chunk);
    // A whole number of blocks, whatever the file system below has for blocks.
    let mut padded = chunk.to_vec();
    padded.resize(chunk.len().next_multiple_of(RECORD_BYTES), 0);
    write_pieces(work, chunk_at(state), &padded).await.map_err(&failed)?;
    work.flush().await.map_err(|error| failed(error.to_string()))
}

/// The chunk of the state's step.
pub(super) async fn read_chunk<W: Device>(
    work: &W,
    state: &MoveState,
) -> Result<Vec<u8>, MoveError> {
    let sectors = state.count.next_multiple_of(RECORD_BYTES as u64 / SECTOR_BYTES);
    let read = read_pieces(work, chunk_at(state), sectors).await;
    let mut chunk = read.map_err(MoveError::work("reading a chunk"))?;
    chunk.truncate((state.count * SECTOR_BYTES) as usize);
    match crc64_we(&chunk) == state.chunk_csum {
        true => Ok(chunk),
        false => Err(MoveError::WorkDamaged { part: "the chunk of the last step" }),
    }
}

/// Makes the state the newest record, durably.
pub(super) async fn save_record<W: Device>(work: &W, state: &MoveState) -> Result<(), MoveError> {
    let at = Sector((state.seq % 2) * RECORD_BYTES as u64 / SECTOR_BYTES);
    let bytes = Buf::from_bytes(&state.encode());
    let failed = MoveError::work("writing the record");
    let written = work.write(at, bytes.into(), Durability::Volatile).await;
    written.map_err(|error| failed(error.to_string()))?;
    work.flush().await.map_err(|error| failed(error.to_string()))
}
