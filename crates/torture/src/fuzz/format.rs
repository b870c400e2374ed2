//! Every parser of `crates/format`. The first byte chooses the structure; its magic number and
//! checksum are put in, so that the code behind their checks is reached.

use ubcache_format::*;

const SHAPE: Geometry = Geometry {
    set_magic: 0x0706_0504_0302_0100,
    bucket_sectors: 8,
    block_sectors: 1,
    buckets: 1024,
    first_bucket: 3,
    journal_buckets: 8,
};

/// Seals `length` bytes with a checksum that begins with `seed`, if there are so many.
fn seal(bytes: &mut [u8], length: usize, magic: u64, seed: Option<u64>) {
    if bytes.len() < length.max(16) {
        return;
    }
    bytes[8..16].copy_from_slice(&magic.to_le_bytes());
    let covered = &bytes[8..length];
    let csum = seed.map_or_else(|| crc64_we(covered), |seed| crc64_we_seeded(seed, covered));
    bytes[..8].copy_from_slice(&csum.to_le_bytes());
}

fn words(bytes: &[u8]) -> usize {
    bytes.get(28..32).map_or(0, |bytes| {
        8 * u32::from_le_bytes(bytes.try_into().expect("4 bytes")) as usize % (1 << 16)
    })
}

/// See the module.
///
/// # Panics
/// Panics if a parser does, or if writing what was parsed gives other bytes.
pub fn format(data: &[u8]) {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    let pointer = Pointer { device: 0, offset: Sector(64), generation: Generation(3) };
    let node_key = Key::max_node(8, pointer);
    match choice % 6 {
        0 => {
            if bytes.len() >= SUPERBLOCK_BYTES {
                let keys = usize::from(u16::from_le_bytes([bytes[206], bytes[207]])).min(256);
                bytes[24..40].copy_from_slice(&SUPERBLOCK_MAGIC);
                seal(&mut bytes, 208 + 8 * keys, 8, None);
            }
            if let Ok(superblock) = Superblock::parse(&bytes) {
                assert_eq!(Superblock::parse(&superblock.encode()), Ok(superblock));
            }
        }
        1 => {
            let length = 240 + words(&bytes);
            seal(&mut bytes, length, SHAPE.journal_magic(), None);
            if let Ok((entry, _)) = parse_entry(&SHAPE, &bytes) {
                let again = encode_entry(&SHAPE, &entry);
                assert_eq!(parse_entry(&SHAPE, &again).map(|found| found.0.keys), Ok(entry.keys));
            }
            let _ = scan_bucket_strictly(&SHAPE, &bytes);
        }
        2 => {
            let length = 32 + words(&bytes);
            seal(&mut bytes, length, SHAPE.bset_magic(), Some(pointer.word()));
            bytes.resize(4096, 0);
            let _ = salvage_node(&SHAPE, &node_key, &bytes, &[]);
            if let Ok(node) = parse_node(&SHAPE, &node_key, &bytes) {
                let leaf = combine_leaf(node.bsets.clone());
                assert!(leaf.windows(2).all(|pair| pair[0].position() <= pair[1].position()));
                let _ = combine_interior(node.bsets);
            }
        }
        3 => {
            bytes.resize(4096, 0);
            seal(&mut bytes, 4096, SHAPE.prio_magic(), None);
            assert!(parse_prio(&SHAPE, &bytes).is_ok());
        }
        4 => {
            let _ = (parse_uuids(&bytes), parse_uuids_v0(&bytes));
        }
        _ => {
            if let Ok((key, used)) = Key::decode(&bytes) {
                assert!(used <= bytes.len());
                let _ = (
                    key.check_extent(&SHAPE),
                    key.check_node(&SHAPE),
                    key.check_journaled(&SHAPE),
                    key.to_string(),
                );
            }
        }
    }
}
