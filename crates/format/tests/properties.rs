//! Everything that is written reads back the same, for every structure; and no bytes make a parser
//! panic.

use proptest::collection::vec;
use proptest::prelude::*;
use ubcache_format::*;

const OWN_POLICIES: [OwnPolicy; 4] =
    [OwnPolicy::None, OwnPolicy::ScanResistant, OwnPolicy::TwoQueue, OwnPolicy::Adaptive];

fn geometry() -> impl Strategy<Value = Geometry> {
    (any::<u64>(), 3_u32..9, 0_u32..4, 513_u32..100_000, 1_u32..20, 2_u32..40).prop_map(
        |(set_magic, bucket, block, buckets, first_bucket, journal_buckets)| Geometry {
            set_magic,
            bucket_sectors: 1 << bucket,
            block_sectors: 1 << block,
            buckets,
            first_bucket,
            journal_buckets,
        },
    )
}

/// Any shape at all, such as a caller's mistake may produce.
fn odd_geometry() -> impl Strategy<Value = Geometry> {
    (any::<u64>(), 0_u32..70_000, 0_u32..100, any::<u32>(), any::<u32>(), any::<u32>()).prop_map(
        |(set_magic, bucket_sectors, block_sectors, buckets, first_bucket, journal_buckets)| {
            Geometry {
                set_magic,
                bucket_sectors,
                block_sectors,
                buckets,
                first_bucket,
                journal_buckets,
            }
        },
    )
}

fn pointer() -> impl Strategy<Value = Pointer> {
    (0_u16..4096, 0_u64..1 << 43, any::<u8>()).prop_map(|(device, offset, generation)| Pointer {
        device,
        offset: Sector(offset),
        generation: Generation(generation),
    })
}

fn key() -> impl Strategy<Value = Key> {
    (0..=Key::MAX_INODE, any::<u64>(), any::<u16>(), any::<bool>(), 0_u8..4, vec(pointer(), 0..=6))
        .prop_map(|(inode, end, sectors, dirty, csum, pointers)| Key {
            inode: Inode(inode),
            end: Sector(end),
            sectors,
            dirty,
            csum,
            pointers: pointers.into(),
        })
}

fn padding() -> impl Strategy<Value = Padding> {
    let stamp = (
        any::<bool>(),
        prop_oneof![Just(None), Just(Some(Drops::Driver)), Just(Some(Drops::Tool))],
        prop::sample::select(&OWN_POLICIES),
    );
    let stamp =
        stamp.prop_map(|(own_chain, drops, own_policy)| Stamp { own_chain, drops, own_policy });
    prop_oneof![
        stamp.clone().prop_map(Padding::Bound),
        stamp.prop_map(Padding::Unbound),
        any::<[u8; 16]>().prop_map(Padding::Other),
    ]
}

/// Extents of one leaf in order.
fn extents() -> impl Strategy<Value = Vec<Key>> {
    vec((0_u64..10, 1_u64..200, pointer()), 0..30).prop_map(|parts| {
        let mut at = Sector(0);
        let mut keys = Vec::new();
        for (gap, sectors, pointer) in parts {
            let range = SectorRange::new(at + gap, sectors);
            at = range.end;
            keys.push(Key::extent(Inode(7), range, sectors % 2 == 0, pointer));
        }
        keys
    })
}

fn label() -> impl Strategy<Value = String> {
    "[a-zäö ]{0,40}"
}

proptest! {
    #[test]
    fn pointers_round_trip(pointer in pointer(), word: u64) {
        prop_assert_eq!(Pointer::from_word(pointer.word()), pointer);
        prop_assert_eq!(Pointer::from_word(word).word(), word & !(1 << 63));
    }

    #[test]
    fn keys_round_trip(key in key(), behind in vec(any::<u8>(), 0..20)) {
        let mut bytes = Vec::new();
        key.encode(&mut bytes);
        let used = bytes.len();
        prop_assert_eq!(used, 8 * key.words());
        bytes.extend(behind);
        prop_assert_eq!(Key::decode(&bytes), Ok((key, used)));
        prop_assert!(Key::decode(&bytes[..used - 1]).is_err());
    }

    #[test]
    fn nodes_round_trip(geometry in geometry(), seed in pointer(), seq in 1_u64..,
        bsets in vec(extents(), 1..5)) {
        let node_key = Key::max_node(512, seed);
        let mut bytes = Vec::new();
        let bsets: Vec<_> = bsets.into_iter().enumerate().filter(|(n, keys)| *n == 0
            || !keys.is_empty()).map(|(_, keys)| keys).collect();
        for keys in &bsets {
            let bset = encode_bset(&geometry, seed, seq, keys);
            prop_assert_eq!(bset.len() as u64, bset_bytes(&geometry, keys));
            bytes.extend(bset);
        }
        let used_bytes = bytes.len() as u64;
        bytes.resize(512 * 512, 0);
        prop_assert_eq!(parse_node(&geometry, &node_key, &bytes), Ok(ParsedNode { seq, bsets,
            used_bytes }));
    }

    #[test]
    fn journal_entries_round_trip(
        geometry in geometry(), seqs: [u64; 2], root_level: u16, prio: u32, padding in padding(),
        pointers in vec(pointer(), 2), keys in vec(key(), 0..40),
    ) {
        let entry = JournalEntry {
            seq: JournalSeq(seqs[0]),
            last_seq: JournalSeq(seqs[1]),
            uuid_bucket: Key::node(Inode(0), Sector(0), 8, pointers[0]),
            root: Key::max_node(8, pointers[1]),
            root_level,
            prio_bucket: BucketNr(prio),
            keys,
            padding,
        };
        prop_assert!(entry_bytes(&geometry, &entry.keys) <= geometry.max_journal_entry_bytes());
        let mut bytes = encode_entry(&geometry, &entry);
        let used = bytes.len();
        prop_assert_eq!(used as u64, entry_bytes(&geometry, &entry.keys));
        bytes.resize(geometry.bucket_bytes() as usize, 0);
        prop_assert_eq!(parse_entry(&geometry, &bytes), Ok((entry.clone(), used)));
        prop_assert_eq!(scan_bucket(&geometry, &bytes), vec![(0, entry)]);
    }

    /// The driver's entries carry the padding of entries that it read. Whatever entry a stamp is
    /// carried into, it is not taken for that entry's own.
    #[test]
    fn mark_copied_into_another_entry_is_rejected(
        geometry in geometry(), seqs in vec(any::<u64>(), 4), buckets: [u32; 2],
            padding in padding(),
        pointers in vec(pointer(), 4), keys in vec(vec(key(), 0..20), 2),
            same in vec(any::<bool>(), 5),
    ) {
        let entry = |n: usize, padding| {
            let of = |field: usize| if same[field] { 0 } else { n };
            JournalEntry {
                seq: JournalSeq(seqs[of(0)]),
                last_seq: JournalSeq(seqs[2 + of(1)]),
                uuid_bucket: Key::node(Inode(0), Sector(0), 8, pointers[0]),
                root: Key::max_node(8, pointers[2 + of(2)]),
                root_level: 1,
                prio_bucket: BucketNr(buckets[of(3)]),
                keys: keys[of(4)].clone(),
                padding,
            }
        };
        let read = encode_entry(&geometry, &entry(0, padding));
        let carried = Padding::Other(std::array::from_fn(|at| read[64 + at]));
        let written = encode_entry(&geometry, &entry(1, carried));
        let (found, _) = parse_entry(&geometry, &written).expect("what was written");
        if matches!(padding, Padding::Bound(_)) {
            prop_assert_eq!(matches!(found.padding, Padding::Bound(_)), written == read);
            prop_assert_eq!(LastRun::of(&found, None) == LastRun::Other, written != read);
        }
    }

    #[test]
    fn cache_superblocks_round_trip(
        ids: ([u8; 16], [u8; 16]), shape in (0_u32..4, 3_u32..20, 513_u32..u32::MAX),
        discard: bool, journal_buckets in 0_u32..=256, now: u32, changes: bool,
    ) {
        prop_assume!(ids.0 != [0; 16] && ids.1 != [0; 16]);
        let (block, bucket) = (1 << shape.0, 1 << shape.1);
        // Pointers reach 2^43 sectors.
        let buckets = u64::from(shape.2).min((1 << 43) >> shape.1) as u32;
        let mut superblock =
            Superblock::new_cache(Uuid(ids.0), Uuid(ids.1), block, bucket, buckets,
                Replacement::Random, discard);
        if changes {
            superblock.journal_buckets = journal_buckets;
            superblock.set_sync(true);
            superblock.mark_started(now);
        }
        let parsed = Superblock::parse(&superblock.encode()).expect("what was written");
        prop_assert_eq!(parsed.geometry(), superblock.geometry());
        prop_assert_eq!((parsed.uuid, parsed.set_uuid, parsed.flags), (Uuid(ids.0), Uuid(ids.1),
            superblock.flags));
        prop_assert_eq!((parsed.seq, parsed.last_mount, parsed.version), (superblock.seq,
            superblock.last_mount, superblock.version));
        prop_assert_eq!(parsed.encode(), superblock.encode());
    }

    #[test]
    fn backing_superblocks_round_trip(ids: ([u8; 16], [u8; 16]), offset in 16_u64..,
        label in label()) {
        prop_assume!(ids.0 != [0; 16]);
        let offset = Sector(offset);
        let superblock =
            Superblock::new_backing(Uuid(ids.0), Uuid(ids.1), 1, offset, CacheMode::Writeback,
                &label);
        let parsed = Superblock::parse(&superblock.encode()).expect("what was written");
        prop_assert_eq!(parsed.data_offset(), offset);
        prop_assert!(label.starts_with(&parsed.label_str()) && !parsed.is_cache());
        prop_assert_eq!(parsed.encode(), superblock.encode());
    }

    /// Random bytes, with the magic number of each structure put in so that parsers get further
    /// than that.
    #[test]
    fn no_bytes_make_a_parser_panic(
        geometry in odd_geometry(), node_key in key(), mut bytes in vec(any::<u8>(), 0..6000),
            cut in 0_usize..6000,
        scanned in vec(vec((any::<u32>(), any::<u64>(), any::<u64>()), 0..3), 0..4), discard: bool,
    ) {
        let parse_all = |bytes: &[u8]| {
            let _ = Key::decode(bytes).map(|(key, _)| {
                let _ = (key.check_extent(&geometry), key.check_node(&geometry),
                    key.check_journaled(&geometry));
                let _ = (key.range(), key.freeing(), key.merged_with(&key, &geometry),
                    key.to_string());
                let _ = combine_leaf(vec![vec![key.clone(), node_key.clone()], vec![key,
                    node_key.clone()]]);
            });
            let _ = Superblock::parse(bytes);
            let _ = parse_node(&geometry, &node_key, bytes);
            let _ = salvage_node(&geometry, &node_key, bytes, &[]);
            let _ = parse_node(&geometry, &Key { sectors: 8, ..node_key.clone() }, bytes);
            let _ = parse_entry(&geometry, bytes);
            let _ = scan_bucket(&geometry, bytes);
            let _ = parse_prio(&geometry, bytes);
            let _ = (parse_uuids(bytes), parse_uuids_v0(bytes));
        };
        parse_all(&bytes);
        parse_all(bytes.get(..cut).unwrap_or_default());
        for magic in [geometry.journal_magic(), geometry.prio_magic(), geometry.bset_magic()] {
            if let Some(place) = bytes.get_mut(8..16) {
                place.copy_from_slice(&magic.to_le_bytes());
                parse_all(&bytes);
            }
        }
        let _ = (geometry.prio_buckets(), geometry.node_bytes(), geometry.uuid_slots());
        let entry = |(at, seq, last_seq): (u32, u64, u64)| {
            let (uuid_bucket, root) = (node_key.clone(), node_key.clone());
            let (seq, last_seq) = (JournalSeq(seq), JournalSeq(last_seq));
            let prio_bucket = BucketNr(0);
            (at, JournalEntry { seq, last_seq, uuid_bucket, root, root_level: 0, prio_bucket,
                keys: vec![], padding: Padding::NONE })
        };
        let scanned = scanned.into_iter().map(|bucket| bucket.into_iter().map(entry).collect())
            .collect();
        let _ = select_replay(&geometry, scanned, discard);
    }

    /// A changed byte in the range of a bset's checksum, or in the checksum itself, is detected.
    #[test]
    fn changed_bytes_are_detected(geometry in geometry(), keys in extents(), at in 0_usize..2000,
        by in 1_u8..) {
        let seed = Pointer::from_word(0x0005_0001);
        let node_key = Key::max_node(128, seed);
        let mut bytes = encode_bset(&geometry, seed, 99, &keys);
        let covered = 32 + 8 * keys.iter().map(Key::words).sum::<usize>();
        bytes.resize(128 * 512, 0);
        bytes[at % covered] ^= by;
        prop_assert!(parse_node(&geometry, &node_key, &bytes).is_err());
    }

    /// Random content under a right magic number and checksum: what a broken writer may leave.
    #[test]
    fn no_sealed_bytes_make_a_parser_panic(
        geometry in geometry(), mut bytes in vec(any::<u8>(), 4096..=4096), words in 0_u16..450,
            seed in pointer(),
        version in 0_u8..8,
    ) {
        let node_key = Key::max_node(8, seed);
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(24, &1_u32.to_le_bytes());
        put(28, &u32::from(words).to_le_bytes());
        let words = 8 * usize::from(words);
        put(8, &geometry.journal_magic().to_le_bytes());
        let csum = crc64_we(&bytes[8..240 + words]);
        bytes[..8].copy_from_slice(&csum.to_le_bytes());
        prop_assert_eq!(parse_entry(&geometry, &bytes).is_ok(), !scan_bucket(&geometry, &bytes)
            .is_empty());
        let _ = scan_bucket_strictly(&geometry, &bytes);

        bytes[8..16].copy_from_slice(&geometry.bset_magic().to_le_bytes());
        let csum = crc64_we_seeded(seed.word(), &bytes[8..32 + words]);
        bytes[..8].copy_from_slice(&csum.to_le_bytes());
        let _ = salvage_node(&geometry, &node_key, &bytes, &[]);
        if let Ok(node) = parse_node(&geometry, &node_key, &bytes) {
            let _ = (combine_leaf(node.bsets.clone()), combine_interior(node.bsets));
        }

        let small = Geometry { bucket_sectors: 8, ..geometry };
        bytes[8..16].copy_from_slice(&small.prio_magic().to_le_bytes());
        let csum = crc64_we(&bytes[8..]);
        bytes[..8].copy_from_slice(&csum.to_le_bytes());
        prop_assert!(parse_prio(&small, &bytes).is_ok());

        for (at, value) in [(8, 8), (16, u64::from(version)), (112, 0), (120, 0), (128,
            u64::from(version & 3)), (136, 0)] {
            bytes[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
        }
        bytes[24..40].copy_from_slice(&SUPERBLOCK_MAGIC);
        bytes[206..208].copy_from_slice(&0_u16.to_le_bytes());
        let csum = crc64_we(&bytes[8..208]);
        bytes[..8].copy_from_slice(&csum.to_le_bytes());
        if let Ok(superblock) = Superblock::parse(&bytes) {
            prop_assert_eq!(superblock.encode(), bytes);
            let _ = (superblock.check_device(1 << 20, 512), superblock.geometry(),
                superblock.label_str());
        }
    }
}
