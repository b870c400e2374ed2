//! Memory that a check and a repair take at most: the bounds of
//! docs/reference/offline-tools.md. Every damage may make a tool keep more than it does of an
//! undamaged set.
#![allow(unsafe_code, reason = "a global allocator can't be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use ubcache_format::{Replacement, Superblock, Uuid};
use ubcache_offline::{
    CheckOptions, RepairOptions, TargetState, check, read_dump, restore, survey,
};
use ubcache_torture::damage::damage;
use ubcache_torture::device::{Image, MemDevice, run};
use ubcache_torture::sets::bases;

/// Bytes that a check takes besides buckets and extents: nodes and journal buckets that are read
/// ahead, and reused buffers.
const CHECK_BYTES: usize = 25 << 20;
/// Bytes for an extent with a finding; the vector that grows included.
const CHECK_BYTES_AN_EXTENT: usize = 40;
/// Bytes for an extent without one: extents are added up, not kept. The rest is for their nodes.
const CHECK_BYTES_A_SOUND_EXTENT: usize = 1;
/// A repair keeps lists of its writes, of uncertain ranges, and of claimed ones.
const REPAIR_BYTES_AN_EXTENT: usize = 200;
/// Bytes for each bucket.
const BYTES_A_BUCKET: usize = 16;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn count(allocated: usize, freed: usize) {
    if allocated > 0 {
        MOST.fetch_max(LIVE.fetch_add(allocated, Ordering::Relaxed) + allocated, Ordering::Relaxed);
    }
    LIVE.fetch_sub(freed, Ordering::Relaxed);
}

// SAFETY: every call is passed on, unchanged, to the allocator of the system; counting does not
// allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same for both.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the memory came from `System`, with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // The system moves pages, where it is worth counting, and copies nothing.
        count(new_size.saturating_sub(layout.size()), layout.size().saturating_sub(new_size));
        // SAFETY: the memory came from `System`, with this layout, and the caller keeps the rest of
        // the contract.
        unsafe { System.realloc(memory, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that were live at a time while this ran, above those before.
fn peak(work: impl FnOnce()) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    work();
    MOST.load(Ordering::Relaxed) - before
}

fn peak_of_check(cache: &MemDevice) -> usize {
    peak(|| drop(run(check(cache, &[], None, CheckOptions::default())).report))
}

fn peak_of_repair(cache: &MemDevice, backing: &[&MemDevice]) -> usize {
    let options = RepairOptions { use_uncertain: true, ..RepairOptions::default() };
    peak(|| drop(run(survey(cache, backing, options, &()))))
}

/// A set with so many dirty extents of one sector, every other sector of a volume, none beside its
/// neighbour in the cache.
fn set_of(extents: u64) -> (Image, u64) {
    const BUCKET_SECTORS: u64 = 64;
    let data = extents.div_ceil(BUCKET_SECTORS);
    let buckets = (data + data / 8 + 2000) as u32;
    let (uuid, set) = (Uuid([1; 16]), Uuid([2; 16]));
    let mut superblock = Superblock::new_cache(
        uuid,
        set,
        1,
        BUCKET_SECTORS as u32,
        buckets,
        Replacement::Lru,
        false,
    );
    superblock.set_sync(true);
    let superblock = Superblock::parse(&superblock.encode()).expect("a superblock");
    let hex: String = superblock.encode().iter().map(|byte| format!("{byte:02x}")).collect();
    let sectors = u64::from(buckets) * BUCKET_SECTORS;
    let first = u64::from(superblock.first_bucket) + 600;
    let mut lines = vec![
        json!({ "type": "restore", "version": 1, "device_sectors": sectors, "journal_seq": 7 }),
        json!({
            "type": "superblock", "uuid": uuid.to_string(), "set_uuid": set.to_string(),
            "bucket_sectors": BUCKET_SECTORS, "block_sectors": 1, "buckets": buckets, "bytes": hex,
        }),
        json!({
            "type": "volume", "slot": 0, "uuid": Uuid([3; 16]).to_string(), "label": "",
            "first_reg": 0, "last_reg": 0,
            "invalidated": 0, "flash_only": false, "sectors": 0,
        }),
    ];
    for start in (0..buckets).step_by(1024) {
        let zeroes = vec![0; (buckets - start).min(1024) as usize];
        lines.push(json!({ "type": "buckets", "first": start, "generations": zeroes,
            "priorities": zeroes }));
    }
    let mut lines: Vec<String> = lines.iter().map(|line| line.to_string()).collect();
    lines.extend((0..extents).map(|index| {
        let (sector, at) = (16 + 2 * index, first * BUCKET_SECTORS + index);
        let place = format!(r#""sector":{sector},"sectors":1,"dirty":true,"at":{at}"#);
        format!(r#"{{"type":"extent","volume":0,{place},"generation":0}}"#)
    }));
    lines.push(json!({ "type": "end", "volumes": 1, "extents": extents }).to_string());
    let dumped = read_dump(lines.as_slice()).unwrap_or_else(|error| panic!("a dump: {error}"));
    let target = MemDevice::new(Image::zeroed(sectors as usize * 512), 512);
    run(restore(&dumped, lines.as_slice(), &target, &TargetState::new_file(), &())).expect("a set");
    (target.image(), u64::from(buckets))
}

/// One after the other: they count the memory of the whole program.
#[test]
fn check_and_repair_keep_to_their_bounds() {
    let mut worst = [0; 2];
    for base in &bases() {
        let whole = MemDevice::new(base.cache.clone(), base.block);
        let extents =
            run(check(&whole, &[], None, CheckOptions::default())).report.stats.extents as usize;
        let buckets = base.geometry.buckets as usize * BYTES_A_BUCKET;
        let backing = MemDevice::new(base.backing.clone(), base.block);
        for seed in 0..if base.own { 100 } else { 12 } {
            let mut image = base.cache.clone();
            let done = damage(base, &mut image, seed);
            let cache = MemDevice::new(image, base.block);
            let bounds = [CHECK_BYTES_AN_EXTENT, REPAIR_BYTES_AN_EXTENT]
                .map(|each| CHECK_BYTES + buckets + each * extents);
            let peaks = [peak_of_check(&cache), peak_of_repair(&cache, &[&backing])];
            assert!(
                peaks.iter().zip(bounds).all(|(peak, bound)| *peak <= bound),
                "{}, seed {seed}, {:?}: {peaks:?} bytes of {bounds:?}, {extents} extents",
                base.name,
                done.words
            );
            worst = [worst[0].max(peaks[0]), worst[1].max(peaks[1])];
        }
    }
    println!(
        "most over all damages: {} KiB for a check, {} KiB for a repair",
        worst[0] >> 10,
        worst[1] >> 10
    );

    // Memory by the extent: subtract the part that does not depend on their number. A few extents
    // fill the read-ahead, too.
    let (few, many) = (1_000_000, 2_000_000);
    let [small, large] = [few, many].map(|extents| {
        let (image, buckets) = set_of(extents);
        let sound = peak_of_check(&MemDevice::new(image.clone(), 512));
        // A third of the nodes are damaged: their extents are looked for everywhere.
        let mut damaged = image;
        let nodes = nodes_of(&MemDevice::new(damaged.clone(), 512));
        nodes.iter().step_by(3).for_each(|at| damaged.change(at + 40, |byte| byte ^ 1));
        let cache = MemDevice::new(damaged, 512);
        assert!(!run(check(&cache, &[], None, CheckOptions::default())).report.is_clean());
        let repair = peak_of_repair(&cache, &[]);
        let buckets = buckets as usize * BYTES_A_BUCKET;
        [sound - sound.min(buckets), peak_of_check(&cache) - buckets, repair - repair.min(buckets)]
    });
    let each: Vec<usize> = large
        .iter()
        .zip(small)
        .map(|(large, small)| (large - large.min(&small)) / (many - few) as usize)
        .collect();
    println!(
        "bytes an extent: {} for a check, {} of a damaged set, {} for its repair",
        each[0], each[1], each[2]
    );
    assert!(each[0] <= CHECK_BYTES_A_SOUND_EXTENT && each[1] <= CHECK_BYTES_AN_EXTENT, "{each:?}");
    assert!(each[2] <= REPAIR_BYTES_AN_EXTENT, "{each:?}");
    assert!(each[1] >= 24, "an extent that is kept takes 24 bytes: something is not counted");
}

/// Places of the leaves of a set, in bytes.
fn nodes_of(cache: &MemDevice) -> Vec<usize> {
    struct Leaves(Vec<usize>);
    impl ubcache_offline::Visitor for Leaves {
        fn node(&mut self, visit: &ubcache_offline::NodeVisit<'_>) {
            if visit.level == 0 {
                self.0.extend(visit.key.pointer().map(|pointer| pointer.offset.bytes() as usize));
            }
        }
    }
    let mut leaves = Leaves(Vec::new());
    run(ubcache_offline::walk(cache, &mut leaves, &())).expect("a set");
    leaves.0
}
