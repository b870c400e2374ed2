//! Records of a move: its plan, and the step that it is at.
//!
//! ```text
//!   0 name │ 16 csum │ 24 seq │ 32 UUID │ 48 stage │ 56 from │ 64 to │ 72 sectors │ 80 chunk
//!   88 at │ 96 count │ 104 csum of the chunk │ 112 csum of the head │ 120 length of identity
//!   128 identity, up to 512 bytes │ zero, up to 4096
//! ```

use ubcache_format::{Sector, Uuid, crc64_we};

/// Bytes of a record, and of a block of the work file.
pub(super) const RECORD_BYTES: usize = 4096;
const NAME: [u8; 16] = *b"ubcache move\0\0\0\x01";
const IDENTITY: usize = 128;
const IDENTITY_BYTES: usize = 512;

/// The stage of a move.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The head is in the work file; the disk is as it was, or in part behind its veil.
    Begin = 1,
    /// Chunk after chunk is moved, behind the veil.
    Body = 2,
    /// Everything but the head is in its new place.
    Finish = 3,
}

/// Plan of a move, which does not change while it is carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MovePlan {
    /// Identity of this move.
    pub uuid: Uuid,
    /// First sector of the data before the move.
    pub from: Sector,
    /// First sector of the data after the move.
    pub to: Sector,
    /// Sectors of the data.
    pub sectors: u64,
    /// Sectors that are moved in one step.
    pub chunk_sectors: u64,
    /// Words by which the machine knows the disk; empty if there are none.
    pub identity: String,
}

/// State of a move: the newest record of its work file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MoveState {
    /// The plan.
    pub plan: MovePlan,
    /// The stage.
    pub stage: Stage,
    /// Counts the records.
    pub(super) seq: u64,
    /// First sector of the chunk in the work file, counted from the begin of the data.
    pub(super) at: u64,
    /// Sectors of that chunk.
    pub(super) count: u64,
    pub(super) chunk_csum: u64,
    pub(super) head_csum: u64,
}

impl MoveState {
    /// The newest whole record of two.
    pub(super) fn newest(bytes: &[u8]) -> Option<MoveState> {
        let records = bytes.chunks_exact(RECORD_BYTES).take(2);
        records.filter_map(MoveState::parse).max_by_key(|state| state.seq)
    }

    fn parse(bytes: &[u8]) -> Option<MoveState> {
        let word = |at: usize| {
            let part: [u8; 8] = bytes.get(at..at + 8)?.try_into().ok()?;
            Some(u64::from_le_bytes(part))
        };
        if bytes.get(..16)? != NAME || word(16)? != crc64_we(bytes.get(24..)?) {
            return None;
        }
        let stage = match word(48)? {
            1 => Stage::Begin,
            2 => Stage::Body,
            3 => Stage::Finish,
            _ => return None,
        };
        let length = usize::try_from(word(120)?).ok()?.min(IDENTITY_BYTES);
        let identity = String::from_utf8_lossy(bytes.get(IDENTITY..IDENTITY + length)?);
        Some(MoveState {
            plan: MovePlan {
                uuid: Uuid(bytes.get(32..48)?.try_into().ok()?),
                from: Sector(word(56)?),
                to: Sector(word(64)?),
                sectors: word(72)?,
                chunk_sectors: word(80)?,
                identity: identity.into_owned(),
            },
            stage,
            seq: word(24)?,
            at: word(88)?,
            count: word(96)?,
            chunk_csum: word(104)?,
            head_csum: word(112)?,
        })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let plan = &self.plan;
        let length = plan.identity.floor_char_boundary(IDENTITY_BYTES);
        let words = [
            (24, self.seq),
            (48, self.stage as u64),
            (56, plan.from.0),
            (64, plan.to.0),
            (72, plan.sectors),
            (80, plan.chunk_sectors),
            (88, self.at),
            (96, self.count),
            (104, self.chunk_csum),
            (112, self.head_csum),
            (120, length as u64),
        ];
        let mut bytes = vec![0; RECORD_BYTES];
        bytes[..16].copy_from_slice(&NAME);
        bytes[32..48].copy_from_slice(&plan.uuid.0);
        for (at, word) in words {
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes[IDENTITY..IDENTITY + length].copy_from_slice(&plan.identity.as_bytes()[..length]);
        let csum = crc64_we(&bytes[24..]);
        bytes[16..24].copy_from_slice(&csum.to_le_bytes());
        bytes
    }
}
