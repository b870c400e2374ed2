//! One damage for every seed.

use std::ops::Range;

use ubcache_format::{SUPERBLOCK_BYTES, crc64_we};
use ubcache_sim::Rng;

use crate::device::Image;
use crate::sets::Base;

/// Damage that was done to a set.
#[derive(Clone, Debug, Default)]
pub struct Damage {
    /// Names of the kinds of damage.
    pub words: Vec<&'static str>,
    /// True if lost state can't be distinguished from state that never existed
    /// (docs/reference/offline-tools.md), or if a structure with a right checksum has other content
    /// than before. The content is not judged then.
    pub unnoticeable: bool,
}

/// Everything that can be done to a set.
pub const KINDS: [&str; 20] = [
    "a flipped bit",
    "eight wrong bytes",
    "a sector of zeroes",
    "a block of zeroes",
    "two sectors changed places",
    "two nodes changed places",
    "a torn append",
    "a raised generation",
    "a lowered generation",
    "an entry cut out of the journal",
    "a cut journal",
    "a lost prio chain",
    "a lost superblock",
    "a lost volume table",
    "a lost node",
    "a lost inner node",
    "unreadable metadata",
    "an unreadable part of the journal",
    "an unreadable superblock",
    "unreadable dirty data",
];

fn pick<'a, T>(list: &'a [T], rng: &mut Rng) -> Option<&'a T> {
    (!list.is_empty()).then(|| &list[rng.below(list.len() as u64) as usize])
}

/// Damages an image as the seed has it.
pub fn damage(base: &Base, image: &mut Image, seed: u64) -> Damage {
    let mut rng = Rng::fork(seed, &base.name);
    let mut done = Damage::default();
    let times = if rng.below(4) == 0 { 2 } else { 1 };
    for _ in 0..times {
        let kind = rng.pick(&KINDS);
        apply(base, image, kind, &mut rng);
        done.words.push(kind);
        // A prio set with a right checksum is accepted: pointers that it makes live again are live,
        // and data that it makes stale in a set of the driver may have been written back.
        done.unnoticeable |=
            kind == "a lowered generation" || kind == "a raised generation" && !base.own;
    }
    done.unnoticeable |= is_undone(base, image);
    done
}

/// Returns true if the newest entry of the journal, or the last append of a node, was overwritten,
/// as if it had never been written; or if whole appends of a node have changed places.
fn is_undone(base: &Base, image: &Image) -> bool {
    let changed = |range: Range<usize>| image.get(range.clone()) != base.cache.get(range);
    let bset = |range: &Range<usize>| base.cache.get(range.clone());
    // Checksums have the node's place, and nothing of the place in the node.
    let exchanged =
        base.parts.bsets.iter().filter(|(at, _)| changed(at.clone())).any(|(at, node)| {
            let others = base.parts.bsets.iter().filter(|(_, other)| other == node);
            others.map(|(other, _)| bset(other)).any(|other| other == image.get(at.clone()))
        });
    exchanged
        || base.parts.ring.last().is_some_and(|newest| changed(newest.clone()))
        || base.parts.appends.iter().any(|append| changed(append.start + 16..append.start + 24))
}

/// Applies one damage.
pub fn apply(base: &Base, image: &mut Image, kind: &str, rng: &mut Rng) {
    let (parts, bucket) = (&base.parts, base.bucket());
    let superblock = 4096..4096 + 208;
    let kinds: Vec<Range<usize>> = [&parts.nodes, &parts.prios, &parts.table, &parts.ring]
        .iter()
        .filter_map(|list| pick(list, rng).cloned())
        .chain([superblock])
        .collect();
    let any = pick(&kinds, rng).cloned().unwrap_or(4096..4096 + 208);
    let within = |range: &Range<usize>, rng: &mut Rng| {
        range.start + rng.below(range.len().max(1) as u64) as usize
    };
    let at = within(&any, rng);
    let (sector, page) = (at / 512 * 512, at / 4096 * 4096);
    match kind {
        "a flipped bit" => image.change(at, |byte| byte ^ 1 << rng.below(8)),
        "eight wrong bytes" => {
            for _ in 0..8 {
                image.change(within(&any, rng), |_| rng.bits() as u8);
            }
        }
        "a sector of zeroes" => image.zero(sector..sector + 512),
        "a block of zeroes" => image.zero(page..page + 4096),
        "two sectors changed places" => swap(image, sector, within(&any, rng) / 512 * 512, 512),
        "two nodes changed places" => {
            if let (Some(a), Some(b)) = (pick(&parts.nodes, rng), pick(&parts.nodes, rng)) {
                swap(image, a.start, b.start, bucket);
            }
        }
        "a torn append" => {
            if let Some(append) = pick(&parts.appends, rng) {
                image.zero(within(append, rng)..append.end);
            }
        }
        "a raised generation" => generation(base, image, rng, &[1, 2]),
        "a lowered generation" => generation(base, image, rng, &[255, 128]),
        "an entry cut out of the journal" => {
            if let Some(entry) = pick(&parts.ring, rng) {
                image.zero(entry.clone());
            }
        }
        "a cut journal" => image.zero(within(&parts.journal, rng)..parts.journal.end),
        "a lost prio chain" => {
            if let Some(prio) = pick(&parts.prios, rng) {
                image.zero(prio.clone());
            }
        }
        "a lost superblock" => image.zero(4096..4096 + SUPERBLOCK_BYTES),
        "a lost volume table" => forget_the_volume(base, image),
        "a lost node" => {
            if let Some(node) = pick(&parts.nodes, rng) {
                image.zero(node.start..node.start + bucket);
            }
        }
        "a lost inner node" => {
            if let Some(node) = pick(&parts.inner, rng) {
                image.zero(node.start..node.start + bucket);
            }
        }
        "unreadable metadata" => bad(base, image, at, 1 + rng.below(16) as usize),
        "an unreadable part of the journal" => {
            bad(base, image, within(&parts.journal, rng), 1 + rng.below(48) as usize);
        }
        "an unreadable superblock" => bad(base, image, 4096, 1),
        _ => {
            if let Some(dirty) = pick(&parts.dirty, rng) {
                bad(base, image, within(dirty, rng), 1 + rng.below(24) as usize);
            }
        }
    }
}

/// Erases the volume table and all older ones: nothing on the device connects the data with its
/// volume any more.
fn forget_the_volume(base: &Base, image: &mut Image) {
    const SLOT: usize = 128;
    let uuid = base.backing.get(4096 + 40..4096 + 56);
    let bytes = base.cache.get(0..base.cache.len());
    for (index, slot) in bytes.chunks(SLOT).enumerate() {
        if slot.starts_with(&uuid) {
            image.zero(index * SLOT..(index + 1) * SLOT);
        }
    }
}

fn swap(image: &mut Image, a: usize, b: usize, bytes: usize) {
    let (first, second) = (image.get(a..a + bytes), image.get(b..b + bytes));
    image.put(a, &second);
    image.put(b, &first);
}

/// Makes some blocks unreadable from the one on that has this byte.
fn bad(base: &Base, image: &mut Image, at: usize, blocks: usize) {
    let block = base.block as usize;
    let start = at / block * block;
    let end = (start + blocks * block).min(image.len());
    image.make_bad(start as u64 / 512..end as u64 / 512);
}

/// Changes a generation in the prio chain, and puts the checksum right.
fn generation(base: &Base, image: &mut Image, rng: &mut Rng, by: &[u8]) {
    let Some(prio) = pick(&base.parts.prios, rng).cloned() else { return };
    let which = rng.below(u64::from(base.geometry.buckets).min(1000)) as usize;
    let (entry, by) = (prio.start + 40 + 3 * which + 2, rng.pick(by));
    if entry < prio.end {
        image.change(entry, |generation| generation.wrapping_add(by));
        let csum = crc64_we(&image.get(prio.start + 8..prio.end));
        image.put(prio.start, &csum.to_le_bytes());
    }
}
