//! Tests of keys.

use super::*;
use crate::geometry::tests::example;
use crate::plain_key::{are_keys, pointer_keys};
use crate::units::Generation;
use proptest::prelude::*;

fn any_key() -> impl Strategy<Value = Key> {
    let pointer = (prop_oneof![Just(0_u16), Just(4095), 0_u16..9], 0_u64..140_000, any::<u8>())
        .prop_map(|(device, offset, generation)| Pointer {
            device,
            offset: Sector(offset),
            generation: Generation(generation),
        });
    let end = prop_oneof![0_u64..300, Just(Key::MAX_END), Just(Key::MAX_END + 1)];
    let sectors = prop_oneof![0_u16..130, any::<u16>()];
    let count = prop_oneof![8 => 0_usize..2, 1 => 2_usize..7];
    let pointers =
        count.prop_flat_map(move |count| proptest::collection::vec(pointer.clone(), count));
    (0..=Key::MAX_INODE, end, sectors, any::<bool>(), 0_u8..4, pointers).prop_map(
        |(inode, end, sectors, dirty, csum, pointers)| Key {
            inode: Inode(inode),
            end: Sector(end),
            sectors,
            dirty,
            csum,
            pointers: pointers.into(),
        },
    )
}

proptest! {
    /// Plain keys are what the other decoder gives, as long as there are only such, and are
    /// judged alike.
    #[test]
    fn plain_keys_decode(keys in proptest::collection::vec(any_key(), 0..8),
        cut in 0_usize..40) {
        let geometry = example(128);
        let mut bytes = Vec::new();
        encode_keys(&keys, &mut bytes);
        bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(20)));
        let mut plain = Vec::new();
        let whole = plain_keys(&bytes, |key| plain.push(key));
        let decoded = decode_keys(&bytes);
        let expected = decoded.is_ok_and(|keys| keys.iter().all(|key| key.pointers.len() <= 1));
        prop_assert_eq!(whole, expected);
        prop_assert_eq!(are_keys(&bytes), decode_keys(&bytes).is_ok());
        let with_pointers = pointer_keys(&bytes).map(Iterator::collect::<Vec<_>>);
        let all = whole && plain.iter().all(|key| key.pointer.is_some());
        prop_assert_eq!(with_pointers, all.then(|| plain.clone()));
        for (plain, key) in plain.iter().zip(&keys) {
            let again = Key {
                inode: plain.inode,
                end: plain.end,
                sectors: plain.sectors,
                dirty: plain.dirty,
                csum: plain.csum,
                pointers: plain.pointer.into_iter().collect(),
            };
            prop_assert_eq!(&again, key);
            let area = geometry.data_area().expect("a power of two");
            prop_assert_eq!(plain.is_sound_in(&area), key.check_extent(&geometry).is_ok());
            prop_assert_eq!(plain.is_sound(&geometry), key.check_extent(&geometry).is_ok());
        }
    }
}

fn pointer(offset: u64, generation: u8) -> Pointer {
    Pointer { device: 0, offset: Sector(offset), generation: Generation(generation) }
}

fn words(key: &Key) -> Vec<u64> {
    let mut bytes = Vec::new();
    key.encode(&mut bytes);
    assert_eq!(Key::decode(&bytes), Ok((key.clone(), bytes.len())));
    bytes.chunks(8).map(|word| u64_at(word, 0)).collect()
}

/// The examples of docs/reference/format.md §4.1.
#[test]
fn example_keys_round_trip() {
    let range = SectorRange::new(Sector(1024), 8);
    let key = Key::extent(Inode(5), range, true, pointer(0x12000, 7));
    assert_eq!(words(&key), [0x9000_0010_0080_0005, 0x408, 0x0120_0007]);
    assert_eq!(key.range(), range);
    let root = Key::max_node(512, pointer(1280, 1));
    assert_eq!(words(&root), [0x9000_0000_200F_FFFF, 0x7FFF_FFFF_FFFF_FFFF, 0x0005_0001]);
    assert_eq!(words(&root.freeing()), [0x9000_0000_2000_0000, 0, 0x0005_0002]);
    assert_eq!(words(&Key::hole(Inode(1), range)), [0x8000_0000_0080_0001, 0x408]);
}

#[test]
fn placeholders_are_recognised_whatever_their_other_bits_are() {
    let mut bytes = Vec::new();
    Key::extent(Inode(0), SectorRange::new(Sector(16), 8), false, pointer(1, 1)).encode(&mut bytes);
    bytes[16..].copy_from_slice(&u64::MAX.to_le_bytes());
    let (key, _) = Key::decode(&bytes).expect("a key");
    assert!(key.is_placeholder() && key.pointer().is_none() && !key.is_hole());
    assert_eq!(key.check_extent(&example(128)), Ok(()));
}

#[test]
fn pointer_outside_one_usable_bucket_is_refused() {
    let geometry = example(128);
    let extent = |sectors, offset| {
        Key::extent(Inode(0), SectorRange::new(Sector(16), sectors), true, pointer(offset, 0))
    };
    assert_eq!(extent(128, 128).check_extent(&geometry), Ok(()));
    assert!(extent(128, 129).check_extent(&geometry).is_err());
    assert!(extent(8, 0).check_extent(&geometry).is_err());
    assert_eq!(extent(8, 1023 * 128).check_extent(&geometry), Ok(()));
    let error = extent(8, 1024 * 128).check_extent(&geometry).expect_err("past the last bucket");
    assert_eq!(
        error.to_string(),
        "key, byte 16: bucket of the pointer is 1024, expected 1 to 1023"
    );
    let early = Key { end: Sector(7), ..extent(8, 128) };
    assert!(early.check_extent(&geometry).is_err());
    assert_eq!(extent(0, 0).check_extent(&geometry), Ok(()));
    assert!(extent(0, 128).check_journaled(&geometry).is_err());
    let node = Key::max_node(128, pointer(128, 0));
    assert_eq!(node.check_node(&geometry), Ok(()));
    assert!(Key { dirty: true, ..node.clone() }.check_node(&geometry).is_err());
    assert!(Key { sectors: 0, ..node.clone() }.check_node(&geometry).is_err());
    assert!(Key { pointers: SmallVec::new(), ..node.clone() }.check_node(&geometry).is_err());
    let nowhere = Pointer::from_word(u64::MAX);
    let error = Key { pointers: smallvec![nowhere], ..node }
        .check_node(&geometry)
        .expect_err("leads nowhere");
    assert_eq!(
        error.to_string(),
        "key, byte 0: cache device of a node is none, expected the one of the set"
    );
}

#[test]
fn keys_merge_if_their_data_is_adjacent_in_one_bucket() {
    let geometry = example(128);
    let extent = |start, offset, generation| {
        Key::extent(Inode(3), SectorRange::new(Sector(start), 8), true, pointer(offset, generation))
    };
    let both = Key::extent(Inode(3), SectorRange::new(Sector(16), 16), true, pointer(256, 4));
    let left = extent(16, 256, 4);
    assert_eq!(left.merged_with(&extent(24, 264, 4), &geometry), Some(both.clone()));
    assert_eq!(both.cut_to(left.range()), left);
    assert_eq!(both.cut_to(SectorRange::new(Sector(24), 8)), extent(24, 264, 4));
    assert_eq!(left.merged_with(&extent(24, 264, 5), &geometry), None);
    assert_eq!(left.merged_with(&extent(24, 272, 4), &geometry), None);
    assert_eq!(left.merged_with(&extent(25, 264, 4), &geometry), None);
    assert_eq!(extent(16, 376, 4).merged_with(&extent(24, 384, 4), &geometry), None);
}
