//! Tests of btree nodes.

use std::collections::BTreeMap;

use super::*;
use crate::bset::{bset_bytes, encode_bset};
use crate::bytes::put;
use crate::checksum::crc64_we;
use crate::error::Problem;
use crate::geometry::tests::example;
use crate::layer::combine_leaf;
use crate::pointer::Pointer;
use crate::units::{Generation, Inode, Sector, SectorRange};
use proptest::prelude::*;

fn pointer(offset: u64) -> Pointer {
    Pointer { device: 0, offset: Sector(offset), generation: Generation(0) }
}

fn extent(start: u64, end: u64, offset: u64) -> Key {
    Key::extent(
        Inode(1),
        SectorRange::from_bounds(Sector(start), Sector(end)),
        false,
        pointer(offset),
    )
}

fn hole(start: u64, end: u64) -> Key {
    Key::hole(Inode(1), SectorRange::from_bounds(Sector(start), Sector(end)))
}

/// The example of docs/reference/format.md §5.6.
#[test]
fn example_of_three_bsets_encodes() {
    let bsets = vec![vec![extent(0, 64, 1000)], vec![extent(16, 32, 5000)], vec![hole(24, 28)]];
    let combined = [
        extent(0, 16, 1000),
        extent(16, 24, 5000),
        hole(24, 28),
        extent(28, 32, 5012),
        extent(32, 64, 1032),
    ];
    assert_eq!(combine_leaf(bsets), combined);
    // The driver's form: with the upper remainder once more in the newer bset.
    let bsets = vec![
        vec![extent(0, 64, 1000)],
        vec![extent(16, 32, 5000), extent(32, 64, 1032)],
        vec![hole(24, 28)],
    ];
    assert_eq!(combine_leaf(bsets), combined);
}

/// A key of size 0 is left over from an overwritten one, at the start of what overwrote it; it
/// hides nothing.
#[test]
fn keys_of_size_zero_are_dropped() {
    let left_over = Key { sectors: 0, ..extent(8, 16, 3000) };
    assert_eq!(
        combine_leaf(vec![vec![extent(0, 32, 1000)], vec![left_over]]),
        [extent(0, 32, 1000)]
    );
}

#[test]
fn equal_interior_keys_are_newest_first() {
    let node = |end, offset| Key::node(Inode(1), Sector(end), 8, pointer(offset));
    let old = node(100, 8);
    let combined = combine_interior(vec![
        vec![old.clone(), node(200, 16)],
        vec![old.freeing(), node(50, 24), node(100, 32), node(100, 40)],
    ]);
    let expected = [old.freeing(), node(50, 24), node(100, 32), node(100, 40), old, node(200, 16)];
    assert_eq!(combined, expected);
}

/// A node of 8 KiB with blocks of 512 bytes, filled with leftovers.
struct Node {
    geometry: Geometry,
    key: Key,
    bytes: Vec<u8>,
    used: usize,
}

impl Node {
    fn new(bsets: &[Vec<Key>]) -> Self {
        let mut node = Self {
            geometry: example(128),
            key: Key::max_node(16, pointer(1280)),
            bytes: vec![0xA5; 8192],
            used: 0,
        };
        bsets.iter().for_each(|keys| node.append(77, keys));
        node
    }

    fn append(&mut self, seq: u64, keys: &[Key]) {
        let bset = encode_bset(&self.geometry, self.key.pointers[0], seq, keys);
        assert_eq!(bset.len() as u64, bset_bytes(&self.geometry, keys));
        put(&mut self.bytes, self.used, &bset);
        self.used += bset.len();
    }

    fn parse(&self) -> Result<ParsedNode, FormatError> {
        parse_node(&self.geometry, &self.key, &self.bytes)
    }

    fn refusal(&self) -> String {
        self.parse().expect_err("should be refused").to_string()
    }
}

#[test]
fn later_bsets_override_earlier_ones() {
    let bsets = vec![
        vec![],
        vec![extent(0, 8, 128)],
        (0..60).map(|n| extent(n * 8, n * 8 + 8, 256 + n * 8)).collect(),
    ];
    let mut node = Node::new(&bsets);
    assert_eq!(
        node.parse(),
        Ok(ParsedNode { seq: 77, bsets: bsets.clone(), used_bytes: 512 + 512 + 1536 })
    );
    // A bset of an earlier life of the bucket behind the end does no harm.
    node.append(78, &bsets[1]);
    assert_eq!(node.parse().map(|node| node.bsets), Ok(bsets));
}

#[test]
fn full_node_is_read() {
    let mut node = Node::new(&[]);
    while node.used < node.bytes.len() {
        node.append(77, &[hole(0, 8)]);
    }
    let parsed = node.parse().expect("a full node");
    assert_eq!((parsed.bsets.len(), parsed.used_bytes), (16, 8192));
}

#[test]
fn malformed_nodes_are_refused() {
    let bsets = [vec![extent(0, 8, 128)], vec![extent(8, 16, 128)]];
    let changed = |at: usize, bytes: &[u8]| {
        let mut node = Node::new(&bsets);
        put(&mut node.bytes, at, bytes);
        node.refusal()
    };
    assert!(changed(16, &[0]).starts_with("btree node, byte 16: seq of the first bset is 0"));
    assert!(changed(24, &[2]).starts_with("btree node, byte 24: version of the bset is 2"));
    assert!(changed(512 + 8, &[0]).starts_with("btree node, byte 520: found magic number"));
    assert!(changed(512 + 40, &[1]).starts_with("btree node, byte 512: found checksum"));
    assert!(changed(512 + 28, &[0xFF; 4]).starts_with("btree node, byte 540: number of words"));
    assert!(
        changed(2048 + 16, &77_u64.to_le_bytes())
            .starts_with("btree node, byte 2064: seq of a leftover block")
    );
    let mut node = Node::new(&bsets);
    node.append(77, &[]);
    assert!(node.refusal().starts_with("btree node, byte 1052: number of words of the bset is 0"));
    let mut node = Node::new(&bsets);
    node.key.end = Sector(12);
    node.key.inode = Inode(1);
    assert_eq!(
        node.refusal(),
        "btree node, byte 0: key in the node is 1:[8, 16) -> 0:128 gen 0, expected at most 1:12"
    );
    let mut node = Node::new(&bsets);
    node.key.pointers[0].generation = Generation(1);
    assert!(matches!(node.parse().expect_err("another seed").problem, Problem::Checksum { .. }));
    node.key.pointers.clear();
    assert!(node.parse().is_err());
    let mut node = Node::new(&bsets);
    node.bytes.truncate(8191);
    assert!(node.refusal().contains("found only 8191 bytes, expected at least 8192"));
}

/// Bsets of version 0 have a checksum that does not depend on the place of the node.
#[test]
fn old_bsets_are_read() {
    let mut node = Node::new(&[vec![extent(0, 8, 128)]]);
    put(&mut node.bytes, 24, &[0]);
    let csum = crc64_we(&node.bytes[8..56]);
    put(&mut node.bytes, 0, &csum.to_le_bytes());
    assert_eq!(node.parse().map(|node| node.bsets.len()), Ok(1));
}

fn any_key() -> impl Strategy<Value = Key> {
    (0_u32..2, 0_u64..60, 0_u64..12, 0_u64..1000, 0..3).prop_map(
        |(inode, start, sectors, offset, kind)| {
            let range = SectorRange::new(Sector(start), sectors);
            let device = if kind == 1 { 4095 } else { 0 };
            let data = Pointer { device, offset: Sector(offset * 64), generation: Generation(3) };
            if kind == 2 {
                Key::hole(Inode(inode), range)
            } else {
                Key::extent(Inode(inode), range, kind == 0, data)
            }
        },
    )
}

/// Content of the sectors of volumes: the place in the extent's first pointer, if there is one.
type Model = BTreeMap<(u32, u64), Option<Pointer>>;

fn model(keys: &[Key]) -> Model {
    let mut model = Model::new();
    for key in keys {
        for sector in key.start().0..key.end.0 {
            let data = key.pointers.first().map(|pointer| pointer.advance(sector - key.start().0));
            model.insert((key.inode.0, sector), data);
        }
    }
    model
}

proptest! {
    /// Combining is the same as writing every sector of every key into a map, one key after the
    /// other - even of bsets that are neither in order nor free of overlaps.
    #[test]
    fn combining_agrees_with_single_sectors(
        bsets in proptest::collection::vec(proptest::collection::vec(any_key(), 0..8), 0..6),
        sorted: bool,
    ) {
        let mut bsets = bsets;
        if sorted {
            bsets = bsets.into_iter().map(|keys| combine_leaf(vec![keys])).collect();
        }
        let combined = combine_leaf(bsets.clone());
        prop_assert_eq!(model(&combined), model(&bsets.concat()));
        for pair in combined.windows(2) {
            prop_assert!((pair[0].inode, pair[0].end) <= (pair[1].inode, pair[1].start()));
        }
        prop_assert!(combined.iter().all(|key| key.sectors > 0));
        prop_assert_eq!(combine_leaf(vec![combined.clone()]), combined);
    }
}
