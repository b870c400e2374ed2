//! Whole small sets with patches, under all the tools for a set at rest.
//!
//! ```text
//!  byte 0        which set                    then 8 bytes for each patch:
//!  byte 1        how it is repaired           0–1 which structure, 2–3 where in it, 4 what, 5–6 a number, 7 seal it again
//! ```

use std::cell::OnceCell;

use ubcache_format::{crc64_we, crc64_we_seeded};
use ubcache_offline::{
    CheckOptions, Checked, Dump, DumpPart, OfflineError, RecoverOptions, RepairOptions,
    copy_device, map_backed, open_set, recover, survey, unreadable_data, write_repaired,
};

use crate::device::{Image, MemDevice, run};
use crate::sets::{Base, Seal, Structure, content, small};

/// Reads of one run. The sets have 520 buckets: this is the search for a superblock, several times.
const READS_MAX: u64 = 200_000;

thread_local! {
    static SETS: OnceCell<Vec<(Base, Vec<Structure>)>> = const { OnceCell::new() };
}

/// See the module.
///
/// # Panics
/// Panics if a tool does, or if a repair leaves damage.
pub fn check(data: &[u8]) {
    with_patched(data, one);
}

/// The set that an input means, its cache device with the patches, and byte 1.
pub(super) fn with_patched(data: &[u8], body: impl FnOnce(&Base, Image, u8)) {
    SETS.with(|sets| {
        let sets = sets.get_or_init(|| {
            small()
                .into_iter()
                .map(|base| {
                    let structures = base.structures();
                    (base, structures)
                })
                .collect()
        });
        if let Some((&[set, how], patches)) = data.split_first_chunk::<2>()
            && let Some((base, structures)) = sets.get(usize::from(set) % sets.len())
        {
            let mut image = base.cache.clone();
            for patch in patches.chunks_exact(8) {
                apply(&mut image, structures, patch);
            }
            body(base, image, how);
        }
    });
}

fn one(base: &Base, image: Image, how: u8) {
    let cache = MemDevice::new(image.clone(), base.block);
    let backing = MemDevice::new(base.backing.clone(), base.block);
    let bit = |n: u8| how >> n & 1 == 1;
    let backings: &[&MemDevice] = if bit(0) { &[] } else { &[&backing] };

    let mut lines = 0_u64;
    let what = [None, Some(DumpPart::Extents), Some(DumpPart::Buckets)][usize::from(how >> 5) % 3];
    let mut dump = Dump::new(what, bit(4), |line: &str| lines += line.len() as u64);
    let options = CheckOptions { view: true, ..CheckOptions::default() };
    let Checked { report, view, .. } =
        run(ubcache_offline::check(&cache, backings, Some(&mut dump), options));
    if let Some(view) = &view {
        dump.view(view);
    }
    let in_one_go =
        run(ubcache_offline::check(&cache, backings, None, CheckOptions::default())).report;
    assert_eq!(in_one_go, report, "leaves are read in one go, or key by key");
    drop(report.to_json().to_string());
    for damaged in [false, true] {
        let map = run(async {
            let (view, _) = open_set(&cache, damaged, &()).await?;
            map_backed(&view, &backing, damaged).await
        });
        if let Ok(map) = map {
            drop(content(&map, &cache, &backing));
        }
        let options = RecoverOptions { dry_run: true, damaged, detach: bit(1) };
        drop(run(recover(&cache, &backing, options, &())));
    }
    assert!(cache.log().is_empty() && backing.log().is_empty(), "what only reads has written");

    let options =
        RepairOptions { use_uncertain: bit(2), all_disks: bit(2), ..RepairOptions::default() };
    if let Ok(mut repair) = run(survey(&cache, backings, options, &())) {
        drop(repair.to_json().to_string());
        let target = if bit(3) {
            cache.clone()
        } else {
            MemDevice::new(Image::zeroed(image.len()), base.block)
        };
        let written = run(async {
            let unreadable = match bit(3) {
                true => unreadable_data(&repair, &cache, &()).await?,
                false => copy_device(&cache, &target, &()).await?,
            };
            write_repaired(&mut repair, &target, &unreadable, !bit(3), &()).await
        });
        if let Err(error @ OfflineError::Damaged(_)) = written {
            panic!("a repair leaves damage: {error}");
        }
    }
    assert!(cache.reads() < READS_MAX, "{} reads", cache.reads());
}

fn apply(image: &mut Image, structures: &[Structure], patch: &[u8]) {
    let &[s0, s1, o0, o1, what, n0, n1, seal] = patch else { return };
    let which = usize::from(u16::from_le_bytes([s0, s1])) % structures.len().max(1);
    let Some(structure) = structures.get(which) else { return };
    let length = structure.at.len();
    let offset = usize::from(u16::from_le_bytes([o0, o1])) % length;
    let number = u16::from_le_bytes([n0, n1]);
    let at = structure.at.start + offset;
    let word = structure.at.start + offset / 8 * 8;
    match what % 8 {
        0 => image.change(at, |byte| byte ^ n0),
        1 => image.change(at, |_| n0),
        2 => image.put(word, &number.to_le_bytes()),
        3 => image.put(word, &u64::from(number).to_le_bytes()),
        4 => image.put(word, &(!u64::from(number)).to_le_bytes()),
        5 => {
            let other = structure.at.start + usize::from(number) % length / 8 * 8;
            let bytes = image.get(other..other + 8);
            image.put(word, &bytes);
        }
        6 => image.zero(at / 512 * 512..at / 512 * 512 + 512),
        _ => image.make_bad(at as u64 / 512..at as u64 / 512 + 1 + u64::from(n0 % 8)),
    }
    if seal % 4 != 0 {
        reseal(image, structure);
    }
}

/// Puts a checksum right. Lengths are as they stand there, if they make sense.
fn reseal(image: &mut Image, structure: &Structure) {
    let start = structure.at.start;
    let bytes = image.get(start..(start + (64 << 10)).min(image.len()));
    let words =
        bytes.get(28..32).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
    let (end, init) = match structure.seal {
        Seal::Nothing => return,
        Seal::Superblock => {
            (208 + 8 * usize::from(u16::from_le_bytes([bytes[206], bytes[207]])).min(256), None)
        }
        Seal::Entry => (240_usize.saturating_add(words.saturating_mul(8)), None),
        Seal::Bset(pointer) => (32_usize.saturating_add(words.saturating_mul(8)), Some(pointer)),
        Seal::Prio => (structure.at.len(), None),
    };
    let Some(covered) = bytes.get(8..end) else { return };
    let csum = init.map_or_else(|| crc64_we(covered), |init| crc64_we_seeded(init, covered));
    image.put(start, &csum.to_le_bytes());
}
