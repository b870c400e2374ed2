//! Tests of superblocks.

use super::*;
use crate::OwnPolicy;

fn uuid(text: &str) -> Uuid {
    text.parse().expect("a UUID")
}

fn new_cache() -> Superblock {
    let own = uuid("393f6258-01a0-4a49-b1d4-35fa0dffbd8c");
    let set = uuid("00010203-0405-0607-0809-0a0b0c0d0e0f");
    Superblock::new_cache(own, set, 8, 1024, 1200, Replacement::Lru, false)
}

/// The bytes with a right checksum, whatever was changed in them.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let journal_buckets = usize::from(u16_at(&bytes, 206)).min(256);
    let csum = crc64_we(&bytes[8..208 + 8 * journal_buckets]);
    put(&mut bytes, 0, &csum.to_le_bytes());
    bytes
}

/// The message with which a superblock is refused after `change`.
fn refusal(superblock: &Superblock, change: impl Fn(&mut [u8])) -> String {
    let mut bytes = superblock.encode();
    change(&mut bytes);
    Superblock::parse(&sealed(bytes)).expect_err("should be refused").to_string()
}

/// The example of docs/reference/format.md §2.7: what an existing tool wrote.
#[test]
fn example_of_a_new_cache_device() {
    let mut bytes = vec![0; 4096];
    put(&mut bytes, 0, &0x2170_8973_6b98_b5b6_u64.to_le_bytes());
    put(&mut bytes, 8, &[8]);
    put(&mut bytes, 24, &SUPERBLOCK_MAGIC);
    put(&mut bytes, 40, &uuid("393f625801a04a49b1d435fa0dffbd8c").0);
    put(&mut bytes, 56, &uuid("000102030405060708090a0b0c0d0e0f").0);
    put(
        &mut bytes,
        184,
        &[0xb0, 0x04, 0, 0, 0, 0, 0, 0, 8, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
    );
    let superblock = Superblock::parse(&bytes).expect("a good superblock");
    assert_eq!(
        (superblock.nbuckets, superblock.block_sectors, superblock.bucket_sectors),
        (1200, 8, 1024)
    );
    assert_eq!(
        (superblock.first_bucket, superblock.journal_buckets, superblock.sync()),
        (1, 0, false)
    );
    assert_eq!(superblock.geometry().journal_buckets, 9);
    assert_eq!(superblock.encode(), bytes);
    assert_eq!(new_cache().encode(), bytes);
}

#[test]
fn the_first_start_fills_in_the_journal() {
    let mut superblock = new_cache();
    superblock.journal_buckets = 9;
    superblock.set_sync(true);
    superblock.mark_started(1000);
    let again = Superblock::parse(&superblock.encode()).expect("a good superblock");
    assert_eq!(
        (again.version, again.seq, again.last_mount, again.journal_buckets),
        (3, 1, 1000, 9)
    );
    assert!(again.sync());
    assert_eq!(again.encode(), superblock.encode());
    assert_eq!(u64_at(&again.encode(), 208 + 8 * 8), 9);
    assert!(
        refusal(&again, |bytes| put(bytes, 208 + 8, &[7]))
            .contains("byte 216: journal bucket is 7, expected 2")
    );
}

#[test]
fn malformed_cache_superblocks_are_refused() {
    let cache = new_cache();
    for (at, value, message) in [
        (8, 9, "byte 8: sector of the superblock is 9, expected 8"),
        (16, 2, "byte 16: version is 2, expected 0, 1, 3, 4, 5 or 6"),
        (184, 512, "byte 184: number of buckets is 512, expected at least 513"),
        (192, 3, "byte 192: block size in sectors is 3, expected 1, 2, 4 or 8"),
        (192, 16, "byte 192: block size in sectors is 16, expected 1, 2, 4 or 8"),
        (194, 4, "byte 194: bucket size in sectors is 4, expected a power of two, at least 8"),
        (196, 0, "byte 196: number of cache devices in the set is 0, expected 1"),
        (198, 1, "byte 198: number of this device is 1, expected 0"),
        (204, 0, "byte 204: first sector of the first bucket is 0, expected at least 16"),
        (204, 1201, "byte 204: end of the journal buckets is 1201, expected at most 1200"),
        (206, 257, "byte 206: number of journal buckets is 257, expected at most 256"),
    ] {
        let found = refusal(&cache, |bytes| put(bytes, at, &u16::to_le_bytes(value)));
        assert_eq!(found, format!("superblock, {message}"));
    }
    assert!(refusal(&cache, |bytes| put(bytes, 40, &[0; 16])).contains("UUID of the device"));
    assert!(refusal(&cache, |bytes| put(bytes, 56, &[0; 16])).contains("UUID of the set"));
    assert!(refusal(&cache, |bytes| put(bytes, 24, &[0; 16])).contains("magic number"));
    let mut bytes = cache.encode();
    bytes[100] ^= 1;
    assert!(
        Superblock::parse(&bytes).expect_err("wrong checksum").to_string().contains("checksum")
    );
    assert!(Superblock::parse(&bytes[..4095]).is_err());
}

#[test]
fn device_that_does_not_fit_its_superblock_is_refused() {
    let cache = new_cache();
    assert_eq!(cache.check_device(1200 * 1024, 4096), Ok(()));
    assert!(cache.check_device(1200 * 1024 - 1, 512).is_err());
    assert!(cache.check_device(1200 * 1024, 8192).is_err());
    let backing = Superblock::new_backing(
        cache.uuid,
        cache.set_uuid,
        1,
        Sector(16),
        CacheMode::Writeback,
        "",
    );
    assert_eq!(backing.check_device(17, 512), Ok(()));
    assert!(backing.check_device(16, 512).is_err());
}

#[test]
fn large_buckets_have_their_logarithm_stored() {
    let own = uuid("393f6258-01a0-4a49-b1d4-35fa0dffbd8c");
    let large = Superblock::new_cache(own, own, 8, 1 << 17, 1000, Replacement::Fifo, true);
    let parsed = Superblock::parse(&large.encode()).expect("a good superblock");
    assert_eq!((parsed.version, parsed.bucket_sectors), (5, 1 << 17));
    assert!(parsed.discard() && parsed.replacement() == Replacement::Fifo);
    assert_eq!(parsed.encode(), large.encode());
    assert!(
        refusal(&large, |bytes| put(bytes, 128, &[6])).contains("incompatible features is 0x6")
    );
    assert!(refusal(&large, |bytes| put(bytes, 120, &[1])).contains("compatible features is 0x1"));
    assert!(refusal(&large, |bytes| put(bytes, 194, &[32])).contains("logarithm"));
    let mut obsolete = large.encode();
    put(&mut obsolete, 128, &[1]);
    put(&mut obsolete, 194, &[0, 0]);
    put(&mut obsolete, 2256, &[4, 0]);
    let obsolete = Superblock::parse(&sealed(obsolete)).expect("a good superblock");
    assert_eq!(obsolete.bucket_sectors, 1 << 18);
    assert!(obsolete.has_obsolete_large_buckets() && !parsed.has_obsolete_large_buckets());
}

#[test]
fn backing_superblock_keeps_unrelated_fields() {
    let cache = new_cache();
    let label = "a label that is a little too löng";
    let plain = Superblock::new_backing(
        cache.uuid,
        cache.set_uuid,
        1,
        Sector(16),
        CacheMode::Writeback,
        label,
    );
    assert_eq!((plain.version, plain.data_offset(), plain.is_cache()), (1, Sector(16), false));
    assert_eq!(plain.label_str(), "a label that is a little too lö");
    let shifted =
        Superblock::new_backing(cache.uuid, cache.set_uuid, 1, Sector(2048), CacheMode::None, "");
    let mut bytes = shifted.encode();
    put(&mut bytes, 204, &[0xAA, 0xBB]);
    put(&mut bytes, 3000, b"left alone");
    let bytes = sealed(bytes);
    let mut parsed = Superblock::parse(&bytes).expect("a good superblock");
    assert_eq!((parsed.version, parsed.data_offset(), parsed.first_bucket), (4, Sector(2048), 0));
    assert_eq!(parsed.encode(), bytes);
    parsed.set_state(BackingState::Dirty);
    parsed.set_cache_mode(CacheMode::Writearound);
    let again = Superblock::parse(&parsed.encode()).expect("a good superblock");
    assert_eq!((again.state(), again.cache_mode()), (BackingState::Dirty, CacheMode::Writearound));
    assert_eq!(again.encode()[3000..3010], *b"left alone");
    assert!(
        refusal(&shifted, |bytes| put(bytes, 184, &[15, 0]))
            .contains("first sector of the data is 15")
    );
}

#[test]
fn policy_unknown_to_the_driver_is_stored() {
    let mut cache = new_cache();
    assert_eq!(cache.begins_with(), OwnPolicy::None);
    cache.set_replacement(Replacement::Lru);
    for policy in [OwnPolicy::ScanResistant, OwnPolicy::TwoQueue, OwnPolicy::Adaptive] {
        cache.set_begins_with(policy);
        let parsed = Superblock::parse(&cache.encode()).expect("a good superblock");
        assert_eq!((parsed.begins_with(), parsed.replacement()), (policy, Replacement::Lru));
    }
    cache.set_replacement(Replacement::Fifo);
    assert_eq!(cache.begins_with(), OwnPolicy::None, "the number of another policy says more");
    cache.set_begins_with(OwnPolicy::None);
    assert_eq!(cache.label, [0; LABEL_BYTES]);
}

#[test]
fn flags_do_not_touch_each_other() {
    let mut superblock = new_cache();
    superblock.flags = u64::MAX;
    superblock.set_state(BackingState::None);
    assert_eq!(superblock.flags, !(3 << 61));
    superblock.set_replacement(Replacement::Random);
    assert_eq!(superblock.replacement(), Replacement::Random);
    assert_eq!(superblock.flags | 0b11100, !(3 << 61));
    for state in [BackingState::None, BackingState::Clean, BackingState::Dirty, BackingState::Stale]
    {
        superblock.set_state(state);
        assert_eq!(superblock.state(), state);
    }
}
