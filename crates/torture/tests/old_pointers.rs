//! Version 0.1 let pointers to freed nodes stay in interior nodes while their buckets were used
//! again. After 129 reuses they look newer than the bucket: a start raised the generation to
//! theirs, so that all data in the bucket was void, and took a node for one that is not there. Such
//! a pointer can only be behind in a set whose prio chain is ubcache's own; a start leaves it out
//! and has its node written anew.

use ubcache_format::{Generation, Key, ParsedNode, Pointer, bset_bytes, crc64_we, encode_bset};
use ubcache_offline::{CheckOptions, FindingKind, NodeVisit, Visitor, check, walk};
use ubcache_torture::device::{Image, MemDevice, run};
use ubcache_torture::judge::{Verdict, judge};
use ubcache_torture::serve::{How, serve};
use ubcache_torture::sets::{Base, content, map, small};

/// The interior node without a parent, and its content.
#[derive(Default)]
struct Root(Option<(Pointer, u64, u64, Vec<Key>)>);

impl Visitor for Root {
    fn node(&mut self, visit: &NodeVisit<'_>) {
        let ParsedNode { seq, used_bytes, bsets } = visit.node;
        if visit.level > 0 && self.0.is_none() {
            let pointer = visit.key.pointer().expect("a node is somewhere");
            self.0 = Some((pointer, *seq, *used_bytes, bsets.concat()));
        }
    }
}

/// The set as early ubcache leaves it after `reuses` of the bucket that has dirty data now and had
/// a node long ago. `chains`: how many prio chains it wrote.
fn aged(base: &Base, reuses: u8, chains: u64) -> Image {
    let mut image = base.cache.clone();
    let cache = MemDevice::new(image.clone(), base.block);
    let mut root = Root::default();
    let view = run(walk(&cache, &mut root, &())).expect("a set");
    let (pointer, seq, used, keys) = root.0.expect("a tree with two levels");
    let (_, at) = base.dirty.first().expect("dirty data");
    let bucket = base.geometry.bucket_of(*at);
    let now = view.buckets[bucket.0 as usize].generation;
    let child = keys.iter().find(|key| !key.is_zero()).expect("a child");
    let former = Pointer {
        device: 0,
        offset: base.geometry.bucket_start(bucket),
        generation: Generation(now.0.wrapping_sub(reuses)),
    };
    let old = Key::node(child.inode, child.end, child.sectors, former);
    let mut bset = vec![old.freeing(), old];
    bset.sort_by_key(Key::position);
    let bytes = encode_bset(&base.geometry, pointer, seq, &bset);
    assert!(
        used + bset_bytes(&base.geometry, &bset) <= base.geometry.node_bytes(),
        "the root has room"
    );
    image.put(pointer.offset.bytes() as usize + used as usize, &bytes);
    for prio in &base.parts.prios {
        image.put(prio.start + 16, &chains.to_le_bytes());
        let csum = crc64_we(&image.get(prio.start + 8..prio.end));
        image.put(prio.start, &csum.to_le_bytes());
    }
    image
}

/// The sets with interior nodes of which it is certain that early ubcache ran them last.
fn deep() -> Vec<Base> {
    let is_own = |base: &Base| {
        let cache = MemDevice::new(base.cache.clone(), base.block);
        run(walk(&cache, &mut (), &())).is_some_and(|view| view.journal.last_run.stamp().is_some())
    };
    small().into_iter().filter(|base| !base.parts.inner.is_empty() && is_own(base)).collect()
}

#[test]
fn pointer_from_before_half_a_circle_is_ignored() {
    let bases = deep();
    assert!(!bases.is_empty());
    for base in &bases {
        for reuses in [129, 150, 200, 239] {
            let image = aged(base, reuses, 500);
            let cache = MemDevice::new(image.clone(), base.block);
            let backing = MemDevice::new(base.backing.clone(), base.block);
            let report = run(check(&cache, &[&backing], None, CheckOptions::default())).report;
            let kinds: Vec<FindingKind> =
                report.errors().iter().map(|finding| finding.kind).collect();
            assert_eq!(kinds, [FindingKind::NodeOutrun], "{}, {reuses} reuses", base.name);
            assert_eq!(report.stats.oldest_node_pointer, reuses);
            assert_eq!(
                content(&map(&cache, &backing).expect("a set"), &cache, &backing).0,
                base.whole
            );

            for lazy in [false, true] {
                let served = serve(base, &image, How { lazy, collect: true, ..How::default() });
                assert_eq!(
                    (served.refused, served.unread),
                    (None, Vec::new()),
                    "{}, {reuses}",
                    base.name
                );
                assert!(served.marks.contains(&"pointers_outrun"));
                assert!(
                    served.content == base.whole,
                    "{}, {reuses} reuses: other content",
                    base.name
                );
                // The node was written anew: the driver can have the set.
                let cache = MemDevice::new(served.cache, base.block);
                let backing = MemDevice::new(served.backing, base.block);
                let report = run(check(&cache, &[&backing], None, CheckOptions::default())).report;
                assert!(report.is_clean(), "{:?}", report.errors());
                assert!(report.stats.oldest_node_pointer < 10, "{:?}", report.stats);
            }
            // The tools that repair do the same.
            assert_eq!(
                judge(base, &image, true, false),
                Ok(Verdict::Repaired),
                "{}, {reuses}",
                base.name
            );
        }
    }
}

#[test]
fn nearly_outrun_pointers_are_reported() {
    for base in &deep() {
        let image = aged(base, 128, 500);
        let cache = MemDevice::new(image.clone(), base.block);
        let report = run(check(
            &cache,
            &[&MemDevice::new(base.backing.clone(), base.block)],
            None,
            CheckOptions::default(),
        ))
        .report;
        assert!(report.is_clean(), "{:?}", report.errors());
        assert_eq!(
            report.counts.get(&FindingKind::NodeNearlyOutrun),
            Some(&1),
            "{:?}",
            report.counts
        );
        assert_eq!(report.to_json()["stats"]["oldest_node_pointer"], 128);
        let served = serve(base, &image, How { collect: true, ..How::default() });
        assert!(served.refused.is_none() && served.content == base.whole);
    }
}

/// The chain of a set that the driver ran last may lag by any number, and so may one that hardly
/// wrote any: there the format's rule holds, and this is how early ubcache lost data.
#[test]
fn pointer_ahead_is_believed_without_a_prio_chain_of_ubcache() {
    for base in &deep() {
        let image = aged(base, 150, 20);
        let served = serve(base, &image, How::default());
        assert!(served.refused.is_some() || served.content != base.whole, "{}", base.name);
        let cache = MemDevice::new(image, base.block);
        let report = run(check(
            &cache,
            &[&MemDevice::new(base.backing.clone(), base.block)],
            None,
            CheckOptions::default(),
        ))
        .report;
        assert!(!report.is_clean());
        assert!(!report.counts.contains_key(&FindingKind::NodeOutrun), "{:?}", report.counts);
    }
}
