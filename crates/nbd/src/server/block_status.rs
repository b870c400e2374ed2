//! Answers to `NBD_CMD_BLOCK_STATUS`.

use ubcache_env::bytes::ByteRange;
use ubcache_env::{BlockStatus, SectorRange, Volume};

use super::contexts::Context;
use super::replies::{Body, Failure};
use super::requests::Connection;
use crate::proto::constants::cmd_flag;
use crate::proto::{ErrorCode, Request, StatusExtent};

/// Extents of one answer in each context; the client asks again for the rest.
pub(super) const MAX_EXTENTS: usize = 8192;

/// The extents of every context that was negotiated.
pub(super) async fn status<V: Volume>(
    connection: &Connection<V>,
    request: &Request,
    range: ByteRange,
) -> Result<Body, Failure> {
    let limit = if request.has(cmd_flag::REQ_ONE) { 1 } else { MAX_EXTENTS };
    let parts = connection.volume.block_status(range.around()).await?;
    let contexts = connection.contexts.chosen();
    contexts
        .map(|context| Ok((context.id(), extents(context, range, &parts, limit)?)))
        .collect::<Result<_, _>>()
        .map(Body::Extents)
}

/// The parts of the range in the form of the protocol: neighbours of a kind are one, nothing goes
/// beyond the range (*Metadata querying*, `NBD_CMD_BLOCK_STATUS`).
fn extents(
    context: Context,
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
        let flags = context.flags(status);
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
    use crate::proto::constants::{STATE_HOLE, STATE_ZERO};
    use ubcache_env::Sector;

    const DATA: BlockStatus = BlockStatus { hole: false, cached: false, dirty: false };
    const HOLE: BlockStatus = BlockStatus { hole: true, ..DATA };

    fn range(start: u64, end: u64) -> SectorRange {
        SectorRange::from_bounds(Sector(start), Sector(end))
    }

    fn allocation(
        range: SectorRange,
        parts: &[(SectorRange, BlockStatus)],
        limit: usize,
    ) -> Result<Vec<StatusExtent>, Failure> {
        extents(Context::Allocation, ByteRange::of_sectors(range, 512), parts, limit)
    }

    #[test]
    fn extents_are_joined_and_stay_within_the_request() {
        let parts = [
            (range(0, 8), DATA),
            (range(8, 16), BlockStatus { cached: true, ..DATA }),
            (range(16, 24), HOLE),
            (range(24, 99), DATA),
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
        assert_eq!(
            extents(Context::Allocation, bytes, &parts, 9),
            Ok(vec![extent(1, 0), extent(513, 3)])
        );
        assert_eq!(
            extents(Context::Cached, bytes, &parts, 9),
            Ok(vec![extent(1, 1), extent(513, 0)])
        );
    }

    #[test]
    fn status_extent_covers_the_longest_request() {
        let whole = range(0, u64::from(u32::MAX) / 512);
        let found = allocation(whole, &[(whole, HOLE)], 9);
        assert_eq!(found.map(|extents| extents[0].length), Ok(u32::MAX - 511));
    }
}
