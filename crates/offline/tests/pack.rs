//! Packs: the tools see in one what they see on the device, damaged or not; no user data is in it;
//! and a pack that was changed is never taken for another one.

mod support;

use std::cell::RefCell;
use std::rc::Rc;

use support::damage::{BUCKET, Random, Structures, damage};
use support::{Case, MemDevice, cases, frozen, run};
use ubcache_env::{Buf, Device, IoError, SectorRange};
use ubcache_format::{BucketNr, Sector};
use ubcache_offline::{
    Cache, CheckOptions, Checked, Dump, DumpPart, NodeVisit, OfflineError, Owner, Packing,
    RecoverOptions, RepairOptions, Report, Visitor, check, map_backed, open_set, pack, recover,
    survey, walk,
};

fn packed(device: &MemDevice) -> (Vec<u8>, Packing) {
    packed_with(device, &[])
}

fn packed_with(device: &MemDevice, backing: &[&MemDevice]) -> (Vec<u8>, Packing) {
    let mut file = Vec::new();
    let packing = run(pack(
        device,
        backing,
        |bytes| {
            file.extend_from_slice(bytes);
            Ok(())
        },
        &(),
    ));
    let packing = packing.expect("a pack");
    assert_eq!(packing.file_bytes, file.len() as u64);
    assert_eq!(device.writes(), 0);
    (file, packing)
}

fn opened(file: Vec<u8>) -> Cache<MemDevice> {
    let cache = run(Cache::open(MemDevice::new(file))).expect("a pack");
    assert!(cache.is_pack());
    cache
}

fn device(image: Vec<u8>) -> Cache<MemDevice> {
    let cache = run(Cache::open(MemDevice::new(image))).expect("a device");
    assert!(!cache.is_pack());
    cache
}

/// Everything that `dump` prints.
fn dumped(cache: &Cache<MemDevice>, what: Option<DumpPart>) -> Vec<String> {
    let lines = Rc::new(RefCell::new(Vec::new()));
    let sink = lines.clone();
    let mut dump = Dump::new(what, true, move |line: &str| sink.borrow_mut().push(line.to_owned()));
    if let Some(view) = run(walk(cache, &mut dump, &())) {
        dump.view(&view);
    }
    lines.take()
}

fn backings(case: &Case) -> Vec<Vec<u8>> {
    case.volumes().iter().filter_map(|volume| volume.backing.clone()).collect()
}

/// The frozen cases, and those that UBCACHE_KERNEL_IMAGES names.
#[test]
fn pack_gives_the_same_report_as_the_device() {
    for case in cases() {
        let image = MemDevice::new(case.cache.clone());
        let (file, packing) = packed(&image);
        assert!(packing.is_clean(), "{}: {:?}", case.name, packing.report.errors());
        assert_eq!(
            (packing.tables[0], packing.unreadable.len()),
            (u64::from(case.name != "fresh"), 0)
        );
        println!(
            "{}: {} bytes of metadata in {} of a device of {}",
            case.name, packing.raw_bytes, packing.file_bytes, packing.device_bytes
        );
        let (pack, device) = (opened(file), device(case.cache.clone()));
        assert_eq!(pack.limits().sectors, device.limits().sectors);
        for what in [None, Some(DumpPart::Extents), Some(DumpPart::Buckets)] {
            assert_eq!(dumped(&pack, what), dumped(&device, what), "{}", case.name);
        }
        let backings: Vec<_> = backings(&case).into_iter().map(self::device).collect();
        let backings: Vec<&Cache<MemDevice>> = backings.iter().collect();
        let options = CheckOptions { data: false, view: true, watcher: &() };
        let Checked { report, view, .. } = run(check(&pack, &backings, None, options));
        let whole = run(check(&device, &backings, None, CheckOptions::default())).report;
        assert_eq!(report.counts, whole.counts, "{}", case.name);
        assert_eq!(report.stats.compared_sectors, 0);
        assert_eq!(report.stats.dirty_sectors, whole.stats.dirty_sectors);
        let view = view.expect("a set");
        for backing in backings {
            let options = RecoverOptions { dry_run: true, ..RecoverOptions::default() };
            let told = run(recover(&pack, backing, options, &())).expect("a dry run").0;
            let map = run(map_backed(&view, backing, false)).expect("a volume");
            assert_eq!(told.map, map, "{}", case.name);
        }
    }
}

struct Used(Vec<(usize, usize)>);

impl Visitor for Used {
    fn node(&mut self, visit: &NodeVisit<'_>) {
        let at = visit.key.pointer().expect("a place").offset.bytes() as usize;
        self.0.push((at / visit.geometry.bucket_bytes() as usize, visit.node.used_bytes as usize));
    }
}

/// Puts user data everywhere it can be: in buckets of data, in free ones, and behind the used part
/// of metadata.
#[test]
fn pack_contains_no_user_data() {
    const SECRET: &[u8] = b"the diary of a user. ";
    for case in cases() {
        let device = MemDevice::new(case.cache.clone());
        let mut used = Used(Vec::new());
        let view = run(walk(&device, &mut used, &())).expect("a set");
        let (geometry, bucket) = (view.geometry, view.geometry.bucket_bytes() as usize);
        let secret: Vec<u8> = SECRET.iter().copied().cycle().take(bucket).collect();
        let mut secrets = 0;
        device.change(|image| {
            let mut hide = |from: usize, upto: usize| {
                image[from..upto].copy_from_slice(&secret[..upto - from]);
                secrets += 1;
            };
            for (number, known) in
                view.buckets.iter().enumerate().skip(geometry.first_bucket as usize)
            {
                let (start, end) = (number * bucket, (number + 1) * bucket);
                match known.owner {
                    Owner::Free | Owner::Clean | Owner::Dirty => hide(start, end),
                    Owner::Node => {
                        let used = used.0.iter().find(|used| used.0 == number).expect("a node").1;
                        hide(start + used, end);
                    }
                    Owner::Journal => {
                        let entries =
                            view.journal.places.get(number - geometry.first_bucket as usize);
                        let last = entries.and_then(|entries| entries.last());
                        let used = last.map_or(0, |last| (last.offset + last.bytes) as usize);
                        hide(start + used, end);
                    }
                    Owner::Prio | Owner::Uuids => {}
                }
            }
        });
        assert!(secrets > 500);
        let (file, packing) = packed(&device);
        assert!(packing.is_clean(), "{}: {:?}", case.name, packing.report.errors());
        let pack = opened(file);
        let mut sectors = 0;
        for sector in 0..pack.limits().sectors {
            match run(pack.read(Sector(sector), Buf::zeroed(512))) {
                (bytes, Ok(())) => {
                    sectors += 1;
                    let hit = bytes.as_slice().windows(SECRET.len()).any(|window| window == SECRET);
                    assert!(!hit, "{}: sector {sector}", case.name);
                }
                (_, Err(error)) => assert_eq!(error, IoError::Absent),
            }
        }
        assert_eq!(sectors * 512, packing.raw_bytes);
        assert_eq!(
            run(check(&pack, &[], None, CheckOptions::default())).report.counts,
            run(check(&device, &[], None, CheckOptions::default())).report.counts
        );
    }
}

fn kinds(report: &Report) -> Vec<(&'static str, u64)> {
    report.counts.iter().map(|(kind, count)| (kind.code(), *count)).collect()
}

/// Whatever is damaged: what a check, a salvage and a dry repair say of the pack is what they say
/// of the device.
#[test]
fn pack_keeps_damage() {
    let rounds: u64 =
        std::env::var("UBCACHE_DAMAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let case = frozen("writeback-crash");
    let image = MemDevice::new(case.cache.clone());
    let mut structures = Structures::default();
    let view = run(walk(&image, &mut structures, &())).expect("a set");
    structures
        .list
        .push(("superblock", 4096..4096 + 208 + 8 * view.geometry.journal_buckets as usize));
    for index in 0..view.geometry.journal_buckets {
        let at = view.geometry.journal_bucket(index).0 as usize * BUCKET;
        structures.list.push(("journal", at..at + BUCKET));
    }
    let disk = MemDevice::new(backings(&case).remove(0));
    let backing = device(disk.bytes());
    let mut damaged = 0;
    for seed in 0..rounds {
        let mut random = Random(seed);
        let mut kinds_of: Vec<&str> = structures.list.iter().map(|(kind, _)| *kind).collect();
        kinds_of.dedup();
        let kind = kinds_of[random.below(kinds_of.len())];
        let ranges: Vec<_> = structures.list.iter().filter(|(k, _)| *k == kind).collect();
        let range = ranges[random.below(ranges.len())].1.clone();
        let mut bytes = case.cache.clone();
        let what = damage(&mut bytes, &range, &mut random);
        let name = format!("seed {seed}: {what} in a {kind} at {range:?}");
        let (file, packing) = packed_with(&MemDevice::new(bytes.clone()), &[&disk]);
        let (pack, whole) = (opened(file), device(bytes));
        let report = run(check(&whole, &[], None, CheckOptions::default())).report;
        assert_eq!(
            kinds(&run(check(&pack, &[], None, CheckOptions::default())).report),
            kinds(&report),
            "{name}"
        );
        assert_eq!(packing.is_clean(), report.is_clean(), "{name}");
        damaged += u64::from(!report.is_clean());
        let view =
            |cache| run(open_set(cache, true, &())).ok().map(|(view, _)| (view.extents, view.lost));
        assert_eq!(view(&pack), view(&whole), "{name}");
        let options = RepairOptions::default();
        let from_pack =
            run(survey(&pack, &[&backing], options, &())).map_err(|error| error.to_string());
        let from_device =
            run(survey(&whole, &[&backing], options, &())).map_err(|error| error.to_string());
        match (from_pack, from_device) {
            (Ok(pack), Ok(device)) => {
                assert_eq!(pack.uncertain, device.uncertain, "{name}");
                assert_eq!(pack.kept_sectors, device.kept_sectors, "{name}");
                assert_eq!(
                    (pack.superblock, pack.slots),
                    (device.superblock, device.slots),
                    "{name}"
                );
            }
            (pack, device) => assert!(pack.is_err() && device.is_err(), "{name}"),
        }
    }
    println!("{damaged} of {rounds} are damage");
    assert!(damaged > rounds / 4);
}

/// A part with an unreadable sector is packed without that sector, and gives the same result.
#[test]
fn pack_keeps_unreadable_sectors() {
    let case = frozen("writeback-crash");
    let mut structures = Structures::default();
    let set = run(walk(&MemDevice::new(case.cache.clone()), &mut structures, &())).expect("a set");
    let disk = MemDevice::new(backings(&case).remove(0));
    let backing = device(disk.bytes());
    let node = structures.list.iter().find(|(kind, _)| *kind == "node").expect("a node").1.start;
    let ring = set.geometry.journal_bucket(0).0 as usize * BUCKET;
    for bad in [node, node + 1024, ring, ring + 4096].map(|byte| Sector(byte as u64 / 512)) {
        let damaged = MemDevice::new(case.cache.clone());
        damaged.fail_reads_of(bad);
        let (file, packing) = packed(&damaged);
        assert_eq!(packing.unreadable, [SectorRange::new(bad, 1)]);
        assert!(!packing.is_clean());
        let (pack, whole) = (opened(file), run(Cache::open(damaged)).expect("a device"));
        assert_eq!(
            kinds(&run(check(&pack, &[], None, CheckOptions::default())).report),
            kinds(&run(check(&whole, &[], None, CheckOptions::default())).report),
            "sector {bad}"
        );
        let options = RepairOptions::default();
        let [pack, whole] = [&pack, &whole]
            .map(|cache| run(survey(cache, &[&backing], options, &())).expect("a survey"));
        assert_eq!(pack.uncertain, whole.uncertain, "sector {bad}");
        assert_eq!(pack.kept_sectors, whole.kept_sectors, "sector {bad}");
    }
}

#[test]
fn reads_of_data_from_a_pack_are_refused() {
    let case = frozen("writeback-crash");
    let pack = opened(packed(&MemDevice::new(case.cache.clone())).0);
    let view = run(open_set(&pack, false, &())).expect("a set").0;
    let data =
        view.buckets.iter().position(|bucket| bucket.owner == Owner::Dirty).expect("dirty data");
    let at = view.geometry.bucket_start(BucketNr(data as u32));
    assert_eq!(run(pack.read(at, Buf::zeroed(512))).1, Err(IoError::Absent));
    assert!(run(pack.write_zeroes(SectorRange::new(at, 1))).is_err());
    let backing = MemDevice::new(backings(&case).remove(0));
    let mut file = Vec::new();
    let sink = |bytes: &[u8]| {
        file.extend_from_slice(bytes);
        Ok(())
    };
    assert_eq!(
        run(ubcache_offline::pack(&backing, &[], sink, &())).map(|_| ()),
        Err(OfflineError::NotACache)
    );
}

/// Whatever happens to a pack: it is refused, or what is read of it is what was packed.
#[test]
fn changed_pack_is_refused() {
    let case = frozen("writeback-crash");
    let (file, _) = packed(&MemDevice::new(case.cache.clone()));
    let mut random = Random(7);
    let (mut refused, mut unreadable) = (0, 0);
    for round in 0..120_usize {
        let mut changed = file.clone();
        match round % 4 {
            0 => changed.truncate(random.below(file.len() / 512) * 512),
            1 => changed.extend_from_slice(&[0; 4096]),
            2 => changed[random.below(file.len())] ^= 1 << random.below(8),
            _ => {
                let at = [0, file.len() - 4096][round / 4 % 2] + random.below(4096);
                changed[at] ^= 1 << random.below(8);
            }
        }
        let changed = MemDevice::new(changed);
        match run(Cache::open(changed)) {
            Err(_) | Ok(Cache::Device(_)) => refused += 1,
            Ok(pack) => {
                for sector in (0..pack.limits().sectors).step_by(8) {
                    let (bytes, result) = run(pack.read(Sector(sector), Buf::zeroed(512)));
                    let at = sector as usize * 512;
                    match result {
                        Ok(()) if bytes.as_slice() == &case.cache[at..at + 512] => {}
                        // Bytes behind the end of a structure are not kept.
                        Ok(()) => {
                            assert!(bytes.as_slice().iter().rev().take(8).all(|byte| *byte == 0))
                        }
                        Err(IoError::Absent) => {}
                        Err(_) => unreadable += 1,
                    }
                }
            }
        }
    }
    assert!(refused > 60 && unreadable > 0, "{refused} refused, {unreadable} reads failed");
}
