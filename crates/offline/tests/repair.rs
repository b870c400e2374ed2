//! Repair: what was not damaged reads as before, what is not certain is listed, and the result is
//! without damage.

mod support;

use support::{Case, MemDevice, cases, content, digest, frozen, run, view};
use ubcache_format::{Inode, Superblock};
use ubcache_offline::{
    CheckOptions, NodeVisit, Repair, RepairOptions, Visitor, check, copy_device, map_backed,
    survey, walk, write_repaired,
};

struct Set {
    case: Case,
    cache: MemDevice,
    backing: MemDevice,
    whole: Vec<u8>,
    inode: Inode,
}

impl Set {
    fn new(name: &str) -> Set {
        let case = frozen(name);
        let backing = MemDevice::new(case.volumes()[0].backing.clone().expect("a backing device"));
        let cache = MemDevice::new(case.cache.clone());
        let map = run(map_backed(&view(&cache), &backing, false)).expect("a volume");
        let whole = content(&map, &cache, Some(&backing));
        assert_eq!(digest(&whole), case.volumes()[0].sha256);
        Set { inode: map.inode.unwrap_or(Inode(0)), case, cache, backing, whole }
    }

    /// Repairs a copy; everything that is not listed reads as before the damage.
    fn repaired(&self, options: RepairOptions) -> (Repair, Vec<u8>) {
        let mut repair =
            run(survey(&self.cache, &[&self.backing], options, &())).expect("a survey");
        let copy = MemDevice::new(vec![0; self.case.cache.len()]);
        let unreadable = run(copy_device(&self.cache, &copy, &())).expect("a copy");
        assert_eq!(unreadable, Vec::new());
        run(write_repaired(&mut repair, &copy, &unreadable, true, &())).expect("a repair");
        let report = run(check(&copy, &[&self.backing], None, CheckOptions::default())).report;
        assert!(report.is_clean(), "{:?}", report.errors());
        let map = run(map_backed(&view(&copy), &self.backing, false)).expect("a volume");
        let now = content(&map, &copy, Some(&self.backing));
        let mut wrong = 0;
        for (sector, (now, whole)) in now.chunks(512).zip(self.whole.chunks(512)).enumerate() {
            if now != whole {
                wrong += 1;
                let key = ubcache_format::Sector(sector as u64) + map.data_offset.0;
                let range = ubcache_env::SectorRange::new(key, 1);
                assert!(
                    repair.is_uncertain(self.inode, range),
                    "sector {sector} differs and is not listed"
                );
            }
        }
        println!(
            "kept {}, uncertain {} of them claimed {}, different {wrong}",
            repair.kept_sectors,
            repair.uncertain.len(),
            repair.claimed_sectors()
        );
        (repair, now)
    }
}

#[derive(Default)]
struct Nodes {
    leaves: Vec<usize>,
    inner: Vec<usize>,
    bucket: usize,
    prio: usize,
}

impl Visitor for Nodes {
    fn node(&mut self, visit: &NodeVisit<'_>) {
        let at = visit.key.pointer().expect("a place").offset.bytes() as usize;
        if visit.level == 0 {
            self.leaves.push(at)
        } else {
            self.inner.push(at)
        }
        self.bucket = visit.geometry.bucket_bytes() as usize;
    }
    fn prio(&mut self, element: &ubcache_offline::PrioElement<'_>) {
        self.prio = element.bucket.0 as usize;
    }
}

fn nodes(cache: &MemDevice) -> Nodes {
    let mut nodes = Nodes::default();
    run(walk(cache, &mut nodes, &())).expect("a set");
    nodes
}

/// The frozen cases, and those that UBCACHE_KERNEL_IMAGES names.
#[test]
fn repair_leaves_images_of_the_driver_alone() {
    for case in cases() {
        let cache = MemDevice::new(case.cache.clone());
        let backings: Vec<MemDevice> = case
            .volumes()
            .iter()
            .filter_map(|volume| volume.backing.clone())
            .map(MemDevice::new)
            .collect();
        let backings: Vec<&MemDevice> = backings.iter().collect();
        let repair =
            run(survey(&cache, &backings, RepairOptions::default(), &())).expect("a survey");
        assert!(repair.is_clean(), "{}: {:?}", case.name, repair.report.errors());
        assert_eq!(repair.uncertain, Vec::new(), "{}", case.name);
        let dirty: u64 = case.volumes().iter().map(|volume| volume.dirty_sectors).sum();
        assert_eq!(repair.kept_sectors, dirty, "{}", case.name);
    }
}

#[test]
fn repair_leaves_a_sound_set_alone() {
    let set = Set::new("writeback-crash");
    let repair =
        run(survey(&set.cache, &[&set.backing], RepairOptions::default(), &())).expect("a survey");
    assert!(repair.is_clean());
    assert_eq!(repair.uncertain, Vec::new());
    assert_eq!(repair.kept_sectors, 60_473);
}

#[test]
fn damaged_leaf_leaves_other_leaves() {
    let set = Set::new("writeback-crash");
    let nodes = nodes(&set.cache);
    assert!(nodes.leaves.len() > 1, "the case has several leaves");
    for leaf in &nodes.leaves {
        set.cache.change(|image| image[leaf + 40] ^= 1);
        let (repair, _) = set.repaired(RepairOptions::default());
        assert!(!repair.is_clean());
        assert!(!repair.uncertain.is_empty());
        assert!(repair.kept_sectors > 0, "the other leaves are certain");
        let (best, _) =
            set.repaired(RepairOptions { use_uncertain: true, ..RepairOptions::default() });
        assert_eq!(best.uncertain.len(), repair.uncertain.len());
        set.cache.change(|image| image[leaf + 40] ^= 1);
    }
}

#[test]
fn lost_root_makes_leaves_uncertain_and_finds_them() {
    let set = Set::new("writeback-crash");
    let nodes = nodes(&set.cache);
    let root = nodes.inner.first().copied().unwrap_or(nodes.leaves[0]);
    set.cache.change(|image| image[root..root + nodes.bucket].fill(0));
    let (repair, _) = set.repaired(RepairOptions::default());
    assert!(repair.claimed_sectors() > 0, "the leaves are found");
    let (best, _) = set.repaired(RepairOptions { use_uncertain: true, ..RepairOptions::default() });
    assert!(best.kept_sectors > repair.kept_sectors);
}

#[test]
fn lost_prio_chain_makes_data_of_the_driver_uncertain() {
    let set = Set::new("writeback-crash");
    let nodes = nodes(&set.cache);
    let at = nodes.prio * nodes.bucket;
    set.cache.change(|image| image[at + 100] ^= 1);
    let (repair, _) = set.repaired(RepairOptions::default());
    assert_eq!(repair.kept_sectors, 0);
    let (_, now) = set.repaired(RepairOptions { use_uncertain: true, ..RepairOptions::default() });
    assert_eq!(digest(&now), digest(&set.whole), "nothing was lost after all");
}

#[test]
fn a_lost_journal_makes_everything_uncertain() {
    let set = Set::new("writeback-crash");
    let geometry = view(&set.cache).geometry;
    let start = geometry.bucket_start(geometry.journal_bucket(0)).bytes() as usize;
    let bytes = geometry.bucket_bytes() as usize * geometry.journal_buckets as usize;
    set.cache.change(|image| image[start..start + bytes].fill(0));
    let (repair, _) = set.repaired(RepairOptions::default());
    assert_eq!(repair.kept_sectors, 0);
    assert!(repair.claimed_sectors() > 0);
    assert_eq!(repair.slots.len(), 1, "the volume has its slot again");
}

#[test]
fn a_lost_superblock_is_found_again() {
    for name in ["writeback-clean", "writeback-crash", "writethrough-mixed"] {
        let set = Set::new(name);
        let before = Superblock::parse(&set.case.cache[4096..8192]).expect("a superblock");
        for zeroes in [false, true] {
            set.cache.change(|image| match zeroes {
                true => image[4096..8192].fill(0),
                false => image[4096 + 120] ^= 8,
            });
            let (repair, now) = set.repaired(RepairOptions::default());
            assert!(repair.superblock.is_some());
            assert_eq!(repair.uncertain, Vec::new());
            assert_eq!(digest(&now), digest(&set.whole));
            assert_eq!(repair.view().geometry, before.geometry(), "{name}");
            set.cache
                .change(|image| image[4096..8192].copy_from_slice(&set.case.cache[4096..8192]));
        }
    }
}
