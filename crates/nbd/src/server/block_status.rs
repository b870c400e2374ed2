//! Answers to `NBD_CMD_BLOCK_STATUS`.

use ubcache_env::bytes::ByteRange;
use ubcache_env::{BlockStatus, SectorRange};

use super::replies::Failure;
use crate::proto::constants::{STATE_HOLE, STATE_ZERO};
use crate::proto::{ErrorCode, StatusExtent};

/// Extents of one answer; the client asks again for the rest.
pub(super) const MAX_EXTENTS: usize = 8192;

/// The parts of the range in the form of the protocol: neighbours of a kind are one, nothing goes
/// beyond the range (*Metadata querying*, `NBD_CMD_BLOCK_STATUS`).
pub(super) fn extents(
    range: ByteRange,
    parts: &[(SectorRange, BlockStatus)],
    limit: usize,
) -> Result<Vec<StatusExtent>, Failure> {
    let mut extents: Vec<StatusExtent> = Vec::new();
    let std::ops::Range { start: mut at, end } = range.bytes();
    for (part, status) in parts {
        if part.end.bytes() <= at {
            // Before the first byte of the request, in its block.
            continue;
        }
        let part = part.start.bytes().max(at)..part.end.bytes().min(end);
        if part.is_empty() || part.start != at {
            break;
        }
        at = part.end;
        let flags = match status {
            BlockStatus::Data => 0,
            BlockStatus::Hole => STATE_HOLE | STATE_ZERO,
        };
        let length = u32::try_from(part.end - part.start).expect("not longer than the request");
        match extents.last_mut() {
            Some(last) if last.flags == flags => last.length += length,
            _ => extents.push(StatusExtent { length, flags }),
        }
        if extents.len() > limit {
            extents.pop();
            break;
        }
    }
    if extents.is_empty() {
        Err(Failure::new(ErrorCode::Io, "the volume gave no status"))
    } else {
        Ok(extents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ubcache_env::Sector;

    fn range(start: u64, end: u64) -> SectorRange {
        SectorRange::from_bounds(Sector(start), Sector(end))
    }

    fn allocation(
        range: SectorRange,
        parts: &[(SectorRange, BlockStatus)],
        limit: usize,
    ) -> Result<Vec<StatusExtent>, Failure> {
        extents(ByteRange::of_sectors(range, 512), parts, limit)
    }

    #[test]
    fn extents_are_joined_and_stay_within_the_request() {
        let parts = [
            (range(0, 8), BlockStatus::Data),
            (range(8, 16), BlockStatus::Data),
            (range(16, 24), BlockStatus::Hole),
            (range(24, 99), BlockStatus::Data),
        ];
        let data = |sectors: u32| StatusExtent { length: sectors * 512, flags: 0 };
        let hole =
            |sectors: u32| StatusExtent { length: sectors * 512, flags: STATE_HOLE | STATE_ZERO };
        assert_eq!(allocation(range(0, 32), &parts, 9), Ok(vec![data(16), hole(8), data(8)]));
        assert_eq!(allocation(range(0, 32), &parts, 1), Ok(vec![data(16)]));
        assert!(allocation(range(4, 32), &parts[2..], 9).is_err(), "the start is missing");
        assert!(allocation(range(0, 32), &[], 9).is_err());
        let bytes = ByteRange::new(8191, 514, 4096);
        let extent = |length, flags| StatusExtent { length, flags };
        assert_eq!(extents(bytes, &parts, 9), Ok(vec![extent(1, 0), extent(513, 3)]));
    }

    #[test]
    fn status_extent_covers_the_longest_request() {
        let whole = range(0, u64::from(u32::MAX) / 512);
        let parts = [(whole, BlockStatus::Hole)];
        assert_eq!(
            allocation(whole, &parts, 9).map(|extents| extents[0].length),
            Ok(u32::MAX - 511)
        );
    }
}
