//! Salvage of a damaged btree node.
//!
//! ```text
//!   │ bset │ bset │ ▒▒ damaged ▒▒ │ bset │ bset │
//!   └── before ───┘               └── after ────┘
//! ```
//!
//! A whole bset is one of this node: its checksum begins with the node's place and generation.
//! Later bsets are newer, so bsets behind the last damage are certain. Bsets before it may have
//! been replaced by unreadable ones.

use std::ops::Range;

use crate::bset::{Bset, parse_bset};
use crate::bytes::{round_up, u64_at};
use crate::geometry::Geometry;
use crate::key::Key;
use crate::units::SECTOR_BYTES;

/// The readable bsets of a node, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SalvagedNode {
    /// The keys of whole bsets before the last damage.
    pub before: Vec<Vec<Key>>,
    /// The keys of those behind it: nothing in the node is newer.
    pub after: Vec<Vec<Key>>,
}

/// Reads the readable bsets of a node that [`parse_node`](crate::parse_node) refuses. If it is not
/// certain which bsets belong to the node, all of them count as before the damage. `holes` are
/// unreadable bytes.
pub fn salvage_node(
    geometry: &Geometry,
    node_key: &Key,
    bytes: &[u8],
    holes: &[Range<u64>],
) -> SalvagedNode {
    let Some(&seed) = node_key.pointers.first() else { return SalvagedNode::default() };
    let size = (u64::from(node_key.sectors) * SECTOR_BYTES).min(bytes.len() as u64);
    let block = geometry.block_bytes().max(SECTOR_BYTES);
    let bytes = bytes.get(..size as usize).unwrap_or_default();
    let whole = |at: u64| -> Option<(Bset, u64)> {
        let rest = bytes.get(at as usize..).filter(|rest| rest.len() >= 32)?;
        if u64_at(rest, 8) != geometry.bset_magic() {
            return None;
        }
        let (bset, used) = parse_bset(geometry, seed, rest).ok()?;
        let inside =
            bset.keys.iter().all(|key| key.sectors == 0 || key.position() <= node_key.position());
        (bset.seq != 0 && inside).then(|| (bset, round_up(used, block)))
    };
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        match whole(at) {
            Some((bset, used)) => {
                found.push((at, at + used, bset));
                at += used;
            }
            None => at += block,
        }
    }
    let Some(seq) = found.first().map(|(_, _, bset)| bset.seq) else {
        return SalvagedNode::default();
    };
    let first_is_whole = found.first().is_some_and(|(at, _, _)| *at == 0);
    if !first_is_whole && found.iter().any(|(_, _, bset)| bset.seq != seq) {
        return SalvagedNode {
            before: found.into_iter().map(|(_, _, bset)| bset.keys).collect(),
            after: Vec::new(),
        };
    }
    found.retain(|(_, _, bset)| bset.seq == seq);
    // Blocks that carry the node's number, and are in no whole bset of it.
    let marked = |at: u64| {
        bytes.get(at as usize..).is_some_and(|rest| rest.len() >= 24 && u64_at(rest, 16) == seq)
            && !found.iter().any(|(start, end, _)| (*start..*end).contains(&at))
    };
    let last_mark = (0..size).step_by(block as usize).filter(|at| marked(*at)).last();
    let mut node = SalvagedNode::default();
    let mut end = 0;
    for (start, stop, bset) in &found {
        if *start != end {
            node.before.append(&mut node.after);
        }
        end = *stop;
        node.after.push(bset.keys.clone());
    }
    // An append follows the one before it: further behind, nothing that can't be read was of the
    // node.
    if last_mark.is_some_and(|at| at >= end) || holes.iter().any(|hole| hole.contains(&end)) {
        node.before.append(&mut node.after);
    }
    node
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::tests::example;
    use crate::node::parse_node;
    use crate::units::{Generation, Inode, Sector, SectorRange};
    use crate::{Pointer, encode_bset};

    fn key(start: u64) -> Key {
        let pointer =
            Pointer { device: 0, offset: Sector(1280 + start), generation: Generation(1) };
        Key::extent(Inode(0), SectorRange::new(Sector(start), 8), true, pointer)
    }

    /// A node with a bset in each of its first blocks.
    fn node(geometry: &Geometry, bsets: &[Vec<Key>]) -> (Key, Vec<u8>) {
        let pointer = Pointer { device: 0, offset: Sector(1280), generation: Generation(3) };
        let mut bytes: Vec<u8> =
            bsets.iter().flat_map(|keys| encode_bset(geometry, pointer, 77, keys)).collect();
        bytes.resize(geometry.node_bytes() as usize, 0);
        (Key::max_node((geometry.node_bytes() / 512) as u16, pointer), bytes)
    }

    #[test]
    fn only_bsets_newer_than_the_damage_are_certain() {
        let geometry = example(128);
        let bsets: Vec<Vec<Key>> = (0..4).map(|n| vec![key(16 + 8 * n)]).collect();
        let (node_key, good) = node(&geometry, &bsets);
        assert!(parse_node(&geometry, &node_key, &good).is_ok());
        let block = geometry.block_bytes() as usize;
        for damaged in 0..4 {
            for at in [8, 16, 40] {
                let mut bytes = good.clone();
                bytes[damaged * block + at] ^= 4;
                let left = salvage_node(&geometry, &node_key, &bytes, &[]);
                let mut before = bsets[..damaged].to_vec();
                let mut after = bsets[damaged + 1..].to_vec();
                if damaged == 3 && at == 16 {
                    // No trace of a fourth one is left.
                    (before, after) = (after, before);
                }
                assert_eq!(left, SalvagedNode { before, after }, "byte {at} of bset {damaged}");
            }
        }
    }

    #[test]
    fn unreadable_sectors_make_older_keys_uncertain() {
        let geometry = example(128);
        let bsets: Vec<Vec<Key>> = (0..3).map(|n| vec![key(16 + 8 * n)]).collect();
        let (node_key, good) = node(&geometry, &bsets);
        let block = geometry.block_bytes();
        for hole in 0..5 {
            let hole = hole * block..(hole + 1) * block;
            let mut bytes = good.clone();
            bytes[hole.start as usize..hole.end as usize].fill(0);
            let left = salvage_node(&geometry, &node_key, &bytes, std::slice::from_ref(&hole));
            let first = (hole.start / block) as usize;
            let expected = match first {
                0..3 => SalvagedNode {
                    before: bsets[..first].to_vec(),
                    after: bsets[first + 1..].to_vec(),
                },
                3 => SalvagedNode { before: bsets.clone(), after: Vec::new() },
                _ => SalvagedNode { before: Vec::new(), after: bsets.clone() },
            };
            // Nothing but the unreadable block is left to show that the last one was of the node.
            let expected = if first == 2 {
                SalvagedNode { before: bsets[..2].to_vec(), after: Vec::new() }
            } else {
                expected
            };
            assert_eq!(left, expected, "bytes {hole:?}");
        }
    }

    #[test]
    fn bsets_of_another_node_are_ignored() {
        let geometry = example(128);
        let (node_key, mut bytes) = node(&geometry, &[vec![key(16)], vec![key(24)]]);
        let elsewhere = Pointer { generation: Generation(2), ..node_key.pointers[0] };
        bytes[..geometry.block_bytes() as usize].copy_from_slice(&encode_bset(
            &geometry,
            elsewhere,
            77,
            &[key(32)],
        ));
        let left = salvage_node(&geometry, &node_key, &bytes, &[]);
        assert_eq!(left, SalvagedNode { before: Vec::new(), after: vec![vec![key(24)]] });
        assert_eq!(salvage_node(&geometry, &node_key, &[], &[]), SalvagedNode::default());
    }
}
