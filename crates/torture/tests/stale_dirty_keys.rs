//! A driver that is killed leaves dirty keys whose buckets were reused. Only the prio chain shows
//! that they are void; after ubcache has taken the set over, a lost prio chain must not bring them
//! back.

use std::rc::Rc;

use ubcache_engine::{AttachOptions, CacheSet, SetOptions};
use ubcache_env::{Buf, Device, Durability, Sector, SectorRange};
use ubcache_format::{crc64_we, encode_entry};
use ubcache_offline::{
    CheckOptions, FindingKind, RepairOptions, check, copy_device, survey, walk, write_repaired,
};
use ubcache_sim::{DiskConfig, SimDisk, SimWorld, WorldConfig};
use ubcache_torture::device::{Image, MemDevice, run};
use ubcache_torture::sets::{Base, content, map, small};

/// The set as a driver leaves it that is killed: not ubcache's, and the bucket of some dirty data
/// given away. Gives the volume sectors that the stale keys are for.
fn left_by_the_driver(base: &Base) -> (Image, Vec<SectorRange>) {
    let mut image = base.cache.clone();
    let cache = MemDevice::new(image.clone(), base.block);
    let view = run(walk(&cache, &mut (), &())).expect("a set");
    let newest = view.journal.newest().expect("an entry");
    let padding = ubcache_format::Padding::Other([0x5a; 16]);
    let entry = ubcache_format::JournalEntry { padding, ..newest.entry.clone() };
    image.put(
        base.parts.ring.last().expect("an entry").start,
        &encode_entry(&base.geometry, &entry),
    );

    // A bucket whose keys are in the tree, and not in the journal.
    let bucket = |sector: Sector| base.geometry.bucket_of(sector).0;
    let (_, at) = base
        .dirty
        .iter()
        .find(|(_, at)| {
            let keys = || {
                view.extents
                    .iter()
                    .filter(|e| e.pointer().is_some_and(|p| bucket(p.offset) == bucket(*at)))
            };
            keys().all(|extent| !extent.is_replayed() && extent.is_dirty())
        })
        .expect("dirty data that was written to a leaf");
    let given_away = bucket(*at);
    let prio = base.parts.prios.first().expect("a chain").clone();
    assert_eq!(base.parts.prios.len(), 1);
    image.change(prio.start + 40 + 3 * given_away as usize + 2, |generation| {
        generation.wrapping_add(1)
    });
    let csum = crc64_we(&image.get(prio.start + 8..prio.end));
    image.put(prio.start, &csum.to_le_bytes());
    let stale = base
        .dirty
        .iter()
        .filter(|(_, at)| bucket(*at) == given_away)
        .map(|(range, _)| *range)
        .collect();
    (image, stale)
}

/// Starts the engine on the set, attaches its volume, stops, and gives the devices back.
fn served(base: &Base, cache: &Image, keep_clean: bool) -> (Image, Image) {
    let world = SimWorld::new(WorldConfig::new(1));
    let disk = |name: &str, image: &Image| {
        let sectors = image.len() as u64 / 512;
        SimDisk::new(
            &world,
            DiskConfig { block_bytes: base.block, ..DiskConfig::new(name, sectors) },
        )
    };
    let disks = Rc::new((disk("cache", cache), disk("backing", &base.backing)));
    let env = world.new_instance();
    let (inside, images) = (disks.clone(), (cache.clone(), base.backing.clone()));
    let ended = world.run(async move {
        for (disk, image) in [(&inside.0, &images.0), (&inside.1, &images.1)] {
            let bytes = Buf::from_bytes(&image.get(0..image.len()));
            disk.write(Sector(0), bytes.into(), Durability::Fua).await.expect("a good disk");
        }
        let options = SetOptions { keep_clean, ..SetOptions::default() };
        let set = CacheSet::open(env, inside.0.clone(), options).await.expect("the set starts");
        let volume =
            set.attach(inside.1.clone(), AttachOptions::default()).await.expect("it is attached");
        volume.set_attribute("writeback_running", "0").expect("an attribute");
        set.stop().await.expect("it stops");
    });
    ended.unwrap_or_else(|stuck| panic!("{stuck:?}"));
    let image =
        |disk: &SimDisk| Image::new(&disk.peek(SectorRange::new(Sector(0), disk.config().sectors)));
    (image(&disks.0), image(&disks.1))
}

#[test]
fn stale_dirty_keys_stay_stale_without_the_prio_chain() {
    for base in &small() {
        for keep_clean in [false, true] {
            let (image, stale) = left_by_the_driver(base);
            assert!(!stale.is_empty());
            let cache = MemDevice::new(image.clone(), base.block);
            let backing = MemDevice::new(base.backing.clone(), base.block);
            let report = run(check(&cache, &[&backing], None, CheckOptions::default())).report;
            assert!(report.is_clean(), "{:?}", report.errors());
            assert!(report.counts.contains_key(&FindingKind::DirtyStale), "{:?}", report.counts);
            let expected = content(&map(&cache, &backing).expect("a set"), &cache, &backing).0;
            assert_ne!(expected, base.whole, "the backing device has something else");

            let (image, below) = served(base, &image, keep_clean);
            let (cache, backing) =
                (MemDevice::new(image.clone(), base.block), MemDevice::new(below, base.block));
            let report = run(check(&cache, &[&backing], None, CheckOptions::default())).report;
            assert!(report.is_clean(), "{:?}", report.errors());
            assert!(!report.counts.contains_key(&FindingKind::DirtyStale), "{:?}", report.counts);
            assert_eq!(
                content(&map(&cache, &backing).expect("a set"), &cache, &backing).0,
                expected
            );

            // Not even without the prio chain.
            let mut prio = 0;
            struct Prio<'a>(&'a mut usize);
            impl ubcache_offline::Visitor for Prio<'_> {
                fn prio(&mut self, element: &ubcache_offline::PrioElement<'_>) {
                    *self.0 = element.bucket.0 as usize;
                }
            }
            run(walk(&cache, &mut Prio(&mut prio), &())).expect("a set");
            let mut image = image;
            image.zero(prio * base.bucket()..(prio + 1) * base.bucket());
            let cache = MemDevice::new(image, base.block);
            let mut repair =
                run(survey(&cache, &[&backing], RepairOptions::default(), &())).expect("a survey");
            assert!(!repair.is_clean());
            assert_eq!(repair.uncertain, Vec::new(), "ubcache's own dirty keys are certain");
            let copy = MemDevice::new(Image::zeroed(cache.image().len()), base.block);
            let unreadable = run(copy_device(&cache, &copy, &())).expect("a copy");
            run(write_repaired(&mut repair, &copy, &unreadable, true, &())).expect("a repair");
            let now = content(&map(&copy, &backing).expect("a set"), &copy, &backing).0;
            for (sector, (now, then)) in now.chunks(512).zip(expected.chunks(512)).enumerate() {
                assert!(now == then, "{}: volume sector {sector} is what was void", base.name);
            }
        }
    }
}
