//! A start takes all that the newest entry asks for from the journal, wherever it is.

use ubcache_engine::{AttachOptions, CacheSet, SetOptions};
use ubcache_env::{Buf, Device, Durability, Sector, SectorRange, StreamId, Volume};
use ubcache_format::{
    CacheMode, Inode, JournalEntry, JournalSeq, Key, Replacement, Superblock, Uuid, encode_entry,
    scan_bucket_strictly,
};
use ubcache_sim::{DiskConfig, SimDisk, SimWorld, WorldConfig};

/// Enough for sixteen journal buckets.
const BUCKETS: u32 = 2048;
const BUCKET_SECTORS: u32 = 64;
/// First data sector of the backing device; keys count from the start of the device.
const OFFSET: u64 = 16;
const RANGE: SectorRange = SectorRange { start: Sector(0), end: Sector(8) };

async fn format(cache: &SimDisk, backing: &SimDisk) {
    let uuid = Uuid([7; 16]);
    let superblock = Superblock::new_cache(
        Uuid([1; 16]),
        uuid,
        1,
        BUCKET_SECTORS,
        BUCKETS,
        Replacement::Lru,
        false,
    );
    let bytes = Buf::from_bytes(&superblock.encode()).into();
    cache.write(Sector(8), bytes, Durability::Fua).await.expect("a good disk");
    let mode = CacheMode::Writeback;
    let superblock = Superblock::new_backing(Uuid([2; 16]), uuid, 1, Sector(OFFSET), mode, "v");
    let bytes = Buf::from_bytes(&superblock.encode()).into();
    backing.write(Sector(8), bytes, Durability::Fua).await.expect("a good disk");
}

/// Has the journal consist of these entries alone, each at the start of the bucket with its index.
async fn replace_journal(
    cache: &SimDisk,
    change: impl Fn(&JournalEntry) -> Vec<(u32, JournalEntry)>,
) {
    let superblock =
        Superblock::parse(&cache.peek(SectorRange::new(Sector(8), 8))).expect("a superblock");
    let geometry = superblock.geometry();
    let sectors = u64::from(geometry.bucket_sectors);
    let start = |index| geometry.bucket_start(geometry.journal_bucket(index));
    let all = (0..geometry.journal_buckets).flat_map(|index| {
        let bytes = cache.peek(SectorRange::new(start(index), sectors));
        scan_bucket_strictly(&geometry, &bytes).expect("a good journal")
    });
    let (_, newest) = all.max_by_key(|(_, entry)| entry.seq).expect("a journal has entries");
    for index in 0..geometry.journal_buckets {
        cache
            .write(start(index), Buf::for_sectors(sectors).into(), Durability::Fua)
            .await
            .expect("a good disk");
    }
    for (index, entry) in change(&newest) {
        let bytes = Buf::from_bytes(&encode_entry(&geometry, &entry)).into();
        cache.write(start(index), bytes, Durability::Fua).await.expect("a good disk");
    }
}

/// The newest entry may need data of a bucket that no entry read before it needed.
#[test]
fn newest_entry_may_need_a_bucket_that_the_one_before_it_did_not() {
    for removed in [false, true] {
        let world = SimWorld::new(WorldConfig::new(1));
        let cache =
            SimDisk::new(&world, DiskConfig::new("cache", u64::from(BUCKET_SECTORS * BUCKETS)));
        let backing = SimDisk::new(&world, DiskConfig::new("backing", 1000));
        let env = world.new_instance();
        let ended = world.run(async move {
            format(&cache, &backing).await;
            let open = async || {
                let set = CacheSet::open(env.clone(), cache.clone(), SetOptions::default())
                    .await
                    .expect("opens");
                let volume =
                    set.attach(backing.clone(), AttachOptions::default()).await.expect("attaches");
                volume.set_attribute("writeback_running", "0").expect("sets");
                (set, volume)
            };
            let (set, volume) = open().await;
            let mut data = Buf::for_sectors(RANGE.sectors());
            data.as_mut_slice().fill(1);
            volume.write(StreamId(0), RANGE, data.into(), true).await.expect("writes");
            set.stop().await.expect("stops");
            replace_journal(&cache, |newest| {
                let entry = |seq, last_seq, keys| {
                    let seq = JournalSeq(newest.seq.0 + seq);
                    let last_seq = JournalSeq(newest.seq.0 + last_seq);
                    JournalEntry { seq, last_seq, keys, ..newest.clone() }
                };
                // The third is read long after the second, which needs nothing of the first.
                let range = SectorRange::new(RANGE.start + OFFSET, RANGE.sectors());
                let hole = removed.then(|| Key::hole(Inode(0), range));
                vec![
                    (0, entry(1, 1, hole.into_iter().collect())),
                    (1, entry(2, 2, Vec::new())),
                    (9, entry(3, 1, Vec::new())),
                ]
            })
            .await;
            let (_set, volume) = open().await;
            let found =
                volume.read(StreamId(0), RANGE).await.expect("reads").to_buf().as_slice()[0];
            assert_eq!(found, u8::from(!removed), "what the first entry says counts");
        });
        ended.unwrap_or_else(|stuck| panic!("{stuck:?}\n{}", world.waiting()));
    }
}
