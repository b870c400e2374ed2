//! Extents that a set can't have, with right checksums: the driver may leave them, or damage. A
//! start refuses them by name, or makes of them what they are, and counts right.

use std::rc::Rc;

use ubcache_engine::{AttachOptions, CacheSet, SetOptions, Tuning, VolumeState};
use ubcache_env::{Env, Nanos};
use ubcache_format::{Key, ParsedNode, Pointer, Sector, bset_bytes, encode_bset};
use ubcache_offline::{NodeVisit, View, Visitor, walk};
use ubcache_sim::{DiskConfig, SimDisk, SimWorld, WorldConfig};
use ubcache_torture::device::{Image, MemDevice, run};
use ubcache_torture::serve::{How, serve};
use ubcache_torture::sets::{Base, small};

/// A leaf: its key, and where its next bset goes.
struct Leaf {
    key: Key,
    pointer: Pointer,
    seq: u64,
    used: u64,
    keys: Vec<Key>,
}

#[derive(Default)]
struct Leaves(Vec<Leaf>);

impl Visitor for Leaves {
    fn node(&mut self, visit: &NodeVisit<'_>) {
        if visit.level == 0 {
            let ParsedNode { seq, used_bytes, bsets } = visit.node;
            let pointer = visit.key.pointer().expect("a node is somewhere");
            let (key, keys) = (visit.key.clone(), bsets.concat());
            self.0.push(Leaf { key, pointer, seq: *seq, used: *used_bytes, keys });
        }
    }
}

/// The leaves in order.
fn leaves(base: &Base) -> (View, Vec<Leaf>) {
    let mut leaves = Leaves::default();
    let view = run(walk(&MemDevice::new(base.cache.clone(), base.block), &mut leaves, &()))
        .expect("a set");
    leaves.0.sort_by_key(|leaf| leaf.key.position());
    (view, leaves.0)
}

/// Appends a key to a leaf; none: the leaf is full.
fn append(base: &Base, leaf: &Leaf, key: Key) -> Option<Image> {
    let keys = [key];
    let room = u64::from(leaf.key.sectors) * 512;
    if leaf.used + bset_bytes(&base.geometry, &keys) > room {
        return None;
    }
    let mut image = base.cache.clone();
    let bytes = encode_bset(&base.geometry, leaf.pointer, leaf.seq, &keys);
    image.put(leaf.pointer.offset.bytes() as usize + leaf.used as usize, &bytes);
    Some(image)
}

/// The set with an extent in a late leaf that is newer than the bucket in which early leaves have
/// dirty data: all of that is void.
fn two_generations(base: &Base) -> Option<Image> {
    let (view, leaves) = leaves(base);
    let bucket = |sector: Sector| base.geometry.bucket_of(sector).0;
    let in_bucket = |at: Sector| {
        let same = move |pointer: Pointer| bucket(pointer.offset) == bucket(at);
        view.extents.iter().filter(move |extent| extent.pointer().is_some_and(same))
    };
    leaves.iter().rev().find_map(|late| {
        let there =
            late.keys.iter().find(|key| key.inode == base.inode && key.pointer().is_some())?;
        let (_, at) = base.dirty.iter().find(|(_, at)| {
            let early = |end: Sector| end.0 + 64 < there.start().0;
            in_bucket(*at).all(|e| e.is_dirty() && !e.is_replayed() && early(e.range().end))
        })?;
        let live = in_bucket(*at).next()?.pointer()?;
        let newer = Pointer { generation: live.generation.next(), ..live };
        append(base, late, Key::extent(there.inode, there.range(), false, newer))
    })
}

/// Bug: a start counted the early leaves, met the newer extent, and counted all again without
/// beginning at zero: what was void was dirty for ever, so that the volume never got clean and
/// could not be detached. Fix: what is known of volumes is forgotten with the counts.
#[test]
fn dirty_data_voided_by_a_newer_extent_is_not_counted() {
    let mut found = 0;
    for base in &small() {
        let Some(image) = two_generations(base) else { continue };
        found += 1;
        let world = SimWorld::new(WorldConfig::new(1));
        let disk = |name: &str, image: &Image| {
            let sectors = image.len() as u64 / 512;
            let config = DiskConfig { block_bytes: base.block, ..DiskConfig::new(name, sectors) };
            let disk = SimDisk::new(&world, config);
            disk.poke(Sector(0), &image.get(0..image.len()));
            disk
        };
        let (cache, backing) = (disk("cache", &image), disk("backing", &base.backing));
        let env = world.new_instance();
        let ended = world.run(async move {
            let tuning = Tuning { lazy_start: false, ..Tuning::default() };
            let options = SetOptions { tuning, ..SetOptions::default() };
            let set = CacheSet::open(env.clone(), cache, options).await.expect("the set starts");
            let volume =
                set.attach(backing, AttachOptions::default()).await.expect("it is attached");
            volume.set_attribute("writeback_percent", "0").expect("an attribute");
            let began = env.now();
            while volume.state() != VolumeState::Clean {
                assert!(
                    env.now().since(began) < Nanos::from_secs(300),
                    "{} bytes are dirty for ever",
                    volume.status().dirty_bytes
                );
                env.sleep(Nanos::from_millis(100)).await;
            }
            set.detach(&Rc::clone(&volume)).await.expect("detaches");
            set.stop().await.expect("stops");
        });
        ended.unwrap_or_else(|stuck| panic!("{}: {stuck:?}", base.name));
        assert!(world.marks().contains_key("counted_again"), "{}", base.name);
    }
    assert!(found > 0, "no set has leaves enough");
}

/// Bug: a start believed an extent in a bucket that has a node of the index, and a count of the
/// bucket went wrong later, in a panic. Fix: it is refused.
#[test]
fn an_extent_in_a_bucket_with_metadata_is_refused_by_name() {
    let mut found = 0;
    for base in &small() {
        let (_, leaves) = leaves(base);
        let node = leaves.first().expect("a leaf").pointer;
        let wrong = leaves.iter().find_map(|leaf| {
            let there =
                leaf.keys.iter().find(|key| key.inode == base.inode && key.pointer().is_some())?;
            append(base, leaf, Key::extent(there.inode, there.range(), true, node))
        });
        let Some(image) = wrong else { continue };
        found += 1;
        let served = serve(base, &image, How::default());
        let refused = served.refused.expect("it is not served");
        assert!(refused.contains("which has metadata"), "{refused}");
    }
    assert!(found > 0, "no leaf has room");
}
