//! Damage to sets of the engine and of the Linux driver: nothing panics, a check reports it or it does not matter, a
//! repair leaves a set without damage, and whatever then reads otherwise than before is in the list of the repair.
//!
//! What no tool can see (docs/operations.md): the newest journal entry, or the last append to a node, with its beginning
//! overwritten. They are as if they had never been written, so nothing is asked of the content then.

#[path = "../../offline/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use support::{MemDevice, frozen, run};
use ubcache_env::{Buf, Env, IoVec, Nanos, Sector, SectorRange, StreamId, Volume};
use ubcache_format::{Geometry, Inode, Key, SUPERBLOCK_BYTES, bset_bytes, crc64_we};
use ubcache_offline::{
    NodeVisit, Piece, PrioElement, RepairOptions, View, Visitor, VolumeMap, check_set, copy_device,
    map_backed, open_set, read_volume, survey, walk, write_repaired,
};
use ubcache_sim::cache_system::CacheSystem;
use ubcache_sim::plan::Plan;
use ubcache_sim::system::{Setup, System};
use ubcache_sim::{DiskConfig, Rng, SimDisk, SimWorld, WorldConfig};

/// Damages of a set of the engine, which is small, and of one of the driver.
const OF_THE_ENGINE: u64 = 300;
const OF_THE_DRIVER: u64 = 60;

/// A set before the damage, and where its structures are.
struct Base {
    name: &'static str,
    image: Vec<u8>,
    backing: Vec<u8>,
    whole: Vec<u8>,
    inode: Inode,
    geometry: Geometry,
    parts: Parts,
    newest: Range<usize>,
    ring: Vec<Range<usize>>,
    own: bool,
}

#[derive(Default)]
struct Parts {
    nodes: Vec<Range<usize>>,
    /// Where the last append of each node begins and ends.
    appends: Vec<Range<usize>>,
    prios: Vec<Range<usize>>,
    table: Vec<Range<usize>>,
    bucket: usize,
}

impl Visitor for Parts {
    fn node(&mut self, visit: &NodeVisit<'_>) {
        let at = visit.key.pointer().expect("a node has a place").offset.bytes() as usize;
        let before = visit.node.bsets.split_last().map_or(&[][..], |(_, before)| before);
        let last: u64 = before.iter().map(|keys| bset_bytes(visit.geometry, keys)).sum();
        self.appends.push(at + last as usize..at + visit.node.used_bytes as usize);
        self.nodes.push(at..at + visit.node.used_bytes as usize);
    }
    fn prio(&mut self, element: &PrioElement<'_>) {
        self.prios.push(element.bucket.0 as usize..0);
    }
    fn uuids(&mut self, key: &Key, _: &[ubcache_format::UuidEntry]) {
        let at = key.pointer().expect("a table has a place").offset.bytes() as usize;
        self.table.push(at..at + 256);
    }
}

fn view(cache: &MemDevice) -> View {
    run(open_set(cache, false, &())).expect("a set without damage").0
}

fn content(map: &VolumeMap, cache: &MemDevice, backing: &MemDevice) -> Vec<u8> {
    let mut bytes = vec![0; map.sectors as usize * 512];
    let read = run(read_volume(map, cache, Some(backing), false, &(), |at, piece| {
        if let Piece::Bytes(piece) = piece {
            bytes[at as usize..at as usize + piece.len()].copy_from_slice(piece);
        }
        Ok(())
    }));
    read.expect("devices in memory are readable");
    bytes
}

impl Base {
    fn new(name: &'static str, image: Vec<u8>, backing: Vec<u8>) -> Base {
        let (cache, disk) = (MemDevice::new(image), MemDevice::new(backing));
        let report = run(check_set(&cache, &[&disk]));
        assert!(report.is_clean(), "{name}: {:?}", report.errors());
        let mut parts = Parts::default();
        let view = run(walk(&cache, &mut parts, &())).expect("a set");
        let geometry = view.geometry;
        parts.bucket = geometry.bucket_bytes() as usize;
        for range in &mut parts.prios {
            *range = range.start * parts.bucket..(range.start + 1) * parts.bucket;
        }
        let map = run(map_backed(&view, &disk, false)).expect("a volume");
        let at = |index: u32, offset: u32| {
            geometry.bucket_start(geometry.journal_bucket(index)).bytes() as usize + offset as usize
        };
        let newest = view.journal.newest().expect("an entry").place;
        let ring: Vec<Range<usize>> = view
            .journal
            .entries
            .iter()
            .map(|found| {
                at(found.place.index, found.place.offset)
                    ..at(found.place.index, found.place.offset) + found.place.bytes as usize
            })
            .collect();
        println!(
            "{name}: {} nodes, {} journal entries, {} dirty sectors",
            parts.nodes.len(),
            ring.len(),
            map.dirty_sectors()
        );
        Base {
            name,
            whole: content(&map, &cache, &disk),
            inode: map.inode.expect("a slot"),
            newest: at(newest.index, newest.offset)..at(newest.index, newest.offset) + newest.bytes as usize,
            ring,
            own: view.journal.newest().is_some_and(|newest| newest.entry.mark.starts_with(b"ubcache1")),
            geometry,
            parts,
            image: cache.bytes(),
            backing: disk.bytes(),
        }
    }

    fn pick<'a, T>(list: &'a [T], rng: &mut Rng) -> &'a T {
        &list[rng.below(list.len() as u64) as usize]
    }

    /// One damage; in words, which.
    fn damage(&self, image: &mut [u8], rng: &mut Rng) -> &'static str {
        let parts = &self.parts;
        let mut all: Vec<&Range<usize>> = vec![Base::pick(&parts.nodes, rng), Base::pick(&parts.prios, rng)];
        all.extend(parts.table.first());
        all.push(Base::pick(&self.ring, rng));
        let superblock = 4096..4096 + 208;
        all.push(&superblock);
        let any = (*Base::pick(&all, rng)).clone();
        let at = any.start + rng.below(any.len() as u64) as usize;
        let bucket = parts.bucket;
        match rng.below(12) {
            0 | 1 => {
                image[at] ^= 1 << rng.below(8);
                "a flipped bit"
            }
            2 => {
                let block = at / 512 * 512;
                image[block..block + 512].fill(0);
                "a sector of zeroes"
            }
            3 => {
                let block = at / 4096 * 4096;
                image[block..block + 4096].fill(0);
                "a block of zeroes"
            }
            4 => {
                let (a, b) = (Base::pick(&parts.nodes, rng).start, Base::pick(&parts.nodes, rng).start);
                let (first, second) = (image[a..a + bucket].to_vec(), image[b..b + bucket].to_vec());
                image[a..a + bucket].copy_from_slice(&second);
                image[b..b + bucket].copy_from_slice(&first);
                "two nodes changed places"
            }
            5 => {
                let append = Base::pick(&parts.appends, rng);
                let cut = append.start + rng.below(append.len() as u64) as usize;
                image[cut..append.end].fill(0);
                "a torn append"
            }
            6 => {
                let prio = Base::pick(&parts.prios, rng).clone();
                let which = rng.below(u64::from(self.geometry.buckets).min(1000)) as usize;
                let entry = prio.start + 40 + 3 * which + 2;
                let by: u8 = rng.pick(&[1, 2, 255, 128]);
                if entry < prio.end {
                    image[entry] = image[entry].wrapping_add(by);
                    let csum = crc64_we(&image[prio.start + 8..prio.end]);
                    image[prio.start..prio.start + 8].copy_from_slice(&csum.to_le_bytes());
                }
                if by < 128 { "a raised generation" } else { "a lowered generation" }
            }
            7 => {
                let entry = Base::pick(&self.ring, rng).clone();
                image[entry].fill(0);
                "an entry cut out of the journal"
            }
            8 => {
                let prio = Base::pick(&parts.prios, rng).clone();
                image[prio].fill(0);
                "a lost prio set"
            }
            9 => {
                image[4096..4096 + SUPERBLOCK_BYTES].fill(0);
                "a lost superblock"
            }
            10 => {
                let node = Base::pick(&parts.nodes, rng).start;
                image[node..node + bucket].fill(0);
                "a lost node"
            }
            _ => {
                let first = self.geometry.bucket_start(self.geometry.journal_bucket(0)).bytes() as usize;
                let bytes = self.geometry.journal_buckets as usize * bucket;
                let from = first + rng.below(bytes as u64) as usize;
                image[from..first + bytes].fill(0);
                "a cut journal"
            }
        }
    }

    /// Whether what is gone can't be told from what never was.
    fn is_undone(&self, image: &[u8]) -> bool {
        let changed = |range: &Range<usize>| image[range.clone()] != self.image[range.clone()];
        changed(&self.newest)
            || self.parts.appends.iter().any(|append| changed(&(append.start + 16..append.start + 24)))
    }

    fn sweep(&self, damages: u64, counts: &mut BTreeMap<&'static str, [u64; 3]>) {
        let cache = MemDevice::new(self.image.clone());
        let backing = MemDevice::new(self.backing.clone());
        for seed in 0..damages {
            let mut rng = Rng::fork(seed, self.name);
            let mut what = "";
            cache.change(|image| what = self.damage(image, &mut rng));
            let outcome = self.judge(&cache, &backing, &format!("{}, seed {seed}, {what}", self.name));
            counts.entry(what).or_default()[outcome as usize] += 1;
            cache.change(|image| image.copy_from_slice(&self.image));
        }
    }

    fn judge(&self, cache: &MemDevice, backing: &MemDevice, at: &str) -> Told {
        let mut undone = false;
        cache.change(|image| undone = self.is_undone(image));
        // A prio set with a right checksum is believed: what it makes live again is live, and what it makes stale in a
        // set of the driver may have been written back.
        undone |= at.ends_with("a lowered generation") || !self.own && at.ends_with("a raised generation");
        let report = run(check_set(cache, &[backing]));
        let repair = run(survey(cache, &[backing], RepairOptions::default(), &()));
        let mut repair = match repair {
            Ok(repair) => repair,
            Err(error) => {
                assert!(!report.is_clean(), "{at}: {error}, and the check says nothing");
                return Told::Unrepairable;
            }
        };
        if repair.is_clean() {
            assert!(report.is_clean(), "{at}: {:?}", report.errors());
            if !undone {
                self.compare(cache, backing, at, |_| false);
            }
            return Told::Harmless;
        }
        let copy = MemDevice::new(vec![0; self.image.len()]);
        let unreadable = run(copy_device(cache, &copy, &())).expect("a copy");
        run(write_repaired(&mut repair, &copy, &unreadable, true, &()))
            .unwrap_or_else(|error| panic!("{at}: {error}"));
        if repair.slots.iter().any(|line| !line.ends_with("again")) {
            // Which of the cached data is the volume's is not known, and that was said.
            assert!(run(check_set(&copy, &[])).is_clean(), "{at}");
            return Told::Repaired;
        }
        let after = run(check_set(&copy, &[backing]));
        assert!(after.is_clean(), "{at}: {:?}", after.errors());
        if !undone {
            self.compare(&copy, backing, at, |key| repair.is_uncertain(self.inode, SectorRange::new(key, 1)));
        }
        Told::Repaired
    }

    fn compare(&self, cache: &MemDevice, backing: &MemDevice, at: &str, listed: impl Fn(Sector) -> bool) {
        let map =
            run(map_backed(&view(cache), backing, false)).unwrap_or_else(|error| panic!("{at}: {error}"));
        let now = content(&map, cache, backing);
        let pairs = now.chunks(512).zip(self.whole.chunks(512));
        for (sector, _) in pairs.enumerate().filter(|(_, (now, whole))| now != whole) {
            let key = map.data_offset + sector as u64;
            assert!(listed(key), "{at}: key sector {key} reads otherwise and is not listed");
        }
    }
}

/// What became of a damage.
#[derive(Copy, Clone, Debug)]
enum Told {
    Harmless,
    Repaired,
    Unrepairable,
}

/// A set as the engine leaves it in the middle of its work, and its backing device.
fn of_the_engine(name: &'static str, seed: u64, block: u32, node_keys: u32, stop: bool) -> Base {
    let plan = format!(
        "ubcache-plan 1\nworld seed={seed} policy=uniform poll-cost-ns=500 timer-slop-ns=0 last-crash=0\n\
         cache bucket=16 block={block} buckets=600 node-keys={node_keys} extents=5000 lazy=0 volatile=1 discard=0 profile=fast\n\
         volume sectors=4096 mode=writeback initial=500 volatile=1 discard=0 block={block} profile=fast\n"
    );
    let plan: Plan = plan.parse().unwrap_or_else(|error| panic!("{error}"));
    let world = SimWorld::new(WorldConfig::new(seed));
    let disk = |name: &str, sectors| {
        SimDisk::new(&world, DiskConfig { block_bytes: block * 512, ..DiskConfig::new(name, sectors) })
    };
    let cache = disk("cache", 16 * 600);
    let backing = disk("backing", CacheSystem::DATA_AT.0 + 4096);
    let setup =
        Setup { mutation: Default::default(), plan, cache: cache.clone(), backing: vec![backing.clone()] };
    let setup = Rc::new(setup);
    CacheSystem::prepare(&setup);
    let env = world.new_instance();
    let (cache_inside, backing_inside) = (cache.clone(), backing.clone());
    let images = world.run(async move {
        let time = env.clone();
        let system = CacheSystem::start(env, setup).await.expect("nothing is wrong");
        let volume = system.volumes()[0].clone();
        let mut rng = Rng::new(seed);
        for round in 0..500_u64 {
            let range = SectorRange::new(Sector(rng.below(4096 / 8) * 8), 8);
            let mut bytes = vec![round as u8; 4096];
            bytes[..8].copy_from_slice(&(round + 1).to_le_bytes());
            match rng.below(8) {
                0 => drop(volume.read(StreamId(1), range).await.expect("no faults")),
                _ => {
                    let data = IoVec::from(Buf::from_bytes(&bytes));
                    volume.write(StreamId(1), range, data, false).await.expect("no faults");
                }
            }
            if round % 40 == 0 {
                volume.flush().await.expect("no faults");
            }
            if round % 100 == 50 {
                time.sleep(Nanos::from_secs(2)).await;
            }
        }
        volume.flush().await.expect("no faults");
        if stop {
            system.stop().await.expect("no faults");
        }
        let image = |disk: &SimDisk| disk.peek(SectorRange::new(Sector(0), disk.config().sectors));
        (image(&cache_inside), image(&backing_inside))
    });
    let (image, backing) = images.expect("it ends");
    Base::new(name, image, backing)
}

fn of_the_driver(name: &'static str) -> Base {
    let case = frozen(name);
    Base::new(name, case.cache.clone(), case.volumes()[0].backing.clone().expect("a backing device"))
}

fn sweep(bases: &[Base], damages: u64) {
    let mut counts = BTreeMap::new();
    for base in bases {
        base.sweep(damages, &mut counts);
    }
    let total: u64 = counts.values().flatten().sum();
    println!("{total} damages of {} sets: harmless, repaired, can't be repaired", bases.len());
    for (what, [harmless, repaired, unrepairable]) in &counts {
        println!("{what}: {harmless}, {repaired}, {unrepairable}");
        assert!(*repaired > 0 || what.ends_with("generation"), "{what} is never noticed");
    }
    assert_eq!(total, damages * bases.len() as u64);
}

#[test]
fn damage_to_sets_of_the_engine() {
    let bases = [
        of_the_engine("running, blocks of 512 bytes, small nodes", 1, 1, 8, false),
        of_the_engine("stopped, blocks of 4 KiB, small nodes", 2, 8, 8, true),
        of_the_engine("running, blocks of 4 KiB", 3, 8, 0, false),
    ];
    sweep(&bases, OF_THE_ENGINE);
}

#[test]
fn damage_to_sets_of_the_driver() {
    let bases = ["writeback-crash", "writeback-clean", "writethrough-mixed"].map(of_the_driver);
    sweep(&bases, OF_THE_DRIVER);
}
