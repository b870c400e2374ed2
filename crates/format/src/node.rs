//! Btree nodes: logs of bsets, and how the bsets of a node combine (docs/reference/format.md
//! §5.3–5.6).
//!
//! ```text
//!   0                                                                                  size of the node
//!   │ bset, seq s │ bset, seq s │ bset, seq s │ leftovers: no block has s at its byte 16 │
//!                 └ every bset begins at a block; later ones are newer
//! ```

use crate::bset::{BSET_HEADER_BYTES, sealed_keys};
use crate::bytes::{round_up, u64_at};
use crate::error::{FormatError, Structure};
use crate::geometry::Geometry;
use crate::key::{Key, decode_keys};
use crate::units::SECTOR_BYTES;

/// The content of a node as it is on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParsedNode {
    /// The number that all bsets of the node carry.
    pub seq: u64,
    /// The keys of every bset, oldest bset first.
    pub bsets: Vec<Vec<Key>>,
    /// Offset of the next bset: whole blocks, counted in bytes from the start of the node.
    pub used_bytes: u64,
}

/// Reads a node from all of its bytes. `node_key` is the key by which it was found: it gives the
/// size, the seed of the checksums, and the limit of the keys. Everything is refused that
/// docs/reference/format.md §5.4 calls corruption.
pub fn parse_node(
    geometry: &Geometry,
    node_key: &Key,
    bytes: &[u8],
) -> Result<ParsedNode, FormatError> {
    let mut bsets = Vec::new();
    let log = scan_node(geometry, node_key, bytes, |keys| {
        bsets.push(decode_keys(keys)?);
        Ok(())
    })?;
    check_limit(&bsets, node_key)?;
    Ok(ParsedNode { seq: log.seq, bsets, used_bytes: log.used_bytes })
}

/// State of a node besides its keys.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct NodeLog {
    /// The number that all bsets of the node carry.
    pub seq: u64,
    /// Offset of the next bset: whole blocks, counted in bytes from the start of the node.
    pub used_bytes: u64,
}

/// [`parse_node`] without the keys: `take` gets those of each bset as they are on disk, oldest bset
/// first, and has to check them.
pub fn scan_node<'a>(
    geometry: &Geometry,
    node_key: &Key,
    bytes: &'a [u8],
    mut take: impl FnMut(&'a [u8]) -> Result<(), FormatError>,
) -> Result<NodeLog, FormatError> {
    let Some(&seed) = node_key.pointers.first() else {
        return Err(FormatError::value(
            Structure::Node,
            0,
            "number of pointers to the node",
            0,
            "at least 1",
        ));
    };
    let size = u64::from(node_key.sectors) * SECTOR_BYTES;
    let bytes = bytes
        .get(..size as usize)
        .ok_or_else(|| FormatError::too_short(Structure::Node, bytes.len(), size))?;
    let seq = u64_at(bytes, 16);
    if seq == 0 {
        return Err(FormatError::value(Structure::Node, 16, "seq of the first bset", 0, "not 0"));
    }
    let block = geometry.block_bytes().max(SECTOR_BYTES);
    let mut at = 0;
    while at < size && u64_at(bytes, at as usize + 16) == seq {
        let rest = bytes.get(at as usize..).unwrap_or_default();
        let (_, keys) =
            sealed_keys(geometry, seed, rest).map_err(|error| error.within(Structure::Node, at))?;
        take(keys).map_err(|error| error.within(Structure::Node, at + BSET_HEADER_BYTES))?;
        if keys.is_empty() && at > 0 {
            let expected = "at least 1 in all bsets but the first";
            return Err(FormatError::value(
                Structure::Node,
                at + 28,
                "number of words of the bset",
                0,
                expected,
            ));
        }
        at = round_up(at + BSET_HEADER_BYTES + keys.len() as u64, block).min(size);
    }
    check_leftovers(bytes, at, block, seq)?;
    Ok(NodeLog { seq, used_bytes: at })
}

/// Checks that no block after the end of the log looks as if it belonged to it.
fn check_leftovers(bytes: &[u8], end: u64, block: u64, seq: u64) -> Result<(), FormatError> {
    let blocks = bytes.get(end as usize..).unwrap_or_default().chunks_exact(block as usize);
    match blocks.zip((end..).step_by(block as usize)).find(|(bytes, _)| u64_at(bytes, 16) == seq) {
        Some((_, at)) => {
            let found = format_args!(
                "the node's own, {seq:#018x}, behind the end of its log at byte {end}"
            );
            Err(FormatError::value(
                Structure::Node,
                at + 16,
                "seq of a leftover block",
                found,
                "any other",
            ))
        }
        None => Ok(()),
    }
}

/// Checks that no key lies beyond the highest one that the node may hold. Keys of size 0 do not
/// count.
fn check_limit(bsets: &[Vec<Key>], node_key: &Key) -> Result<(), FormatError> {
    let limit = node_key.position();
    match bsets.iter().flatten().find(|key| key.sectors > 0 && key.position() > limit) {
        Some(key) => {
            let most = format_args!("at most {}:{}", limit.0, limit.1);
            Err(FormatError::value(Structure::Node, 0, "key in the node", key, most))
        }
        None => Ok(()),
    }
}

/// The keys of an interior node in order, from its bsets with the oldest first: where keys are
/// equal, those of newer bsets come first, and inside one bset the earlier one. Nothing is left
/// out: freeing keys are in front, and children may be stale.
pub fn combine_interior(bsets: Vec<Vec<Key>>) -> Vec<Key> {
    let mut keys: Vec<Key> = bsets.into_iter().rev().flatten().collect();
    keys.sort_by_key(Key::position);
    keys
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
