//! Fast path for well-formed leaves: keys with one pointer at most, in order, sound, and inside the
//! interval of the leaf. The walk handles all others, and reports their faults.
//!
//! Reading a leaf changes nothing but the buffers of the thread, so that any thread can do it.

use std::sync::{Mutex, OnceLock};

use ubcache_format::{
    DataArea, Geometry, Key, Layer, PlainKey, SectorRange, Tag, combine_layers, plain_keys,
    pointer_keys, scan_node,
};

use super::overlay::overlay;
use super::totals::TotalsBuilder;
use crate::set::{Extent, GenerationSnapshot, Position, VolumeTotals};

/// Spare lists that are kept: one for each leaf in a batch of large reads.
const SPARE_MAX: usize = 32;

/// A leaf to be read.
pub(crate) struct Leaf<'a> {
    /// Its key.
    pub key: &'a Key,
    /// Its interval begins behind this position.
    pub after: Position,
    /// All of its bytes.
    pub bytes: &'a [u8],
}

/// Contents of a leaf.
#[derive(Debug)]
pub(crate) enum LeafContent {
    /// Extents with those of the journal over them. No pointer of the leaf raises the generation of
    /// a bucket.
    Merged(Vec<Extent>),
    /// Totals of these extents: they have been added up.
    Summed(Vec<VolumeTotals>),
    /// Extents of the leaf alone. Some of their pointers may raise generations.
    Unmerged(Vec<Extent>),
}

/// The extents of the journal.
pub(crate) struct Replay {
    /// Extents in the order in which they were written.
    layers: Vec<Extent>,
    combined: OnceLock<Vec<Extent>>,
}

impl Replay {
    pub fn new(layers: Vec<Extent>) -> Replay {
        Replay { layers, combined: OnceLock::new() }
    }

    /// Returns the combined extents, in order. The first call sorts them: the device can read
    /// meanwhile.
    pub fn extents(&self) -> &[Extent] {
        self.combined.get_or_init(|| {
            let mut combined = Vec::new();
            combine_layers(&self.layers, &mut Vec::new(), &mut combined);
            combined
        })
    }
}

/// Reader of leaves, with lists that are reused.
#[derive(Default)]
pub(crate) struct Leaves {
    extents: Mutex<Vec<Vec<Extent>>>,
    tags: Mutex<Vec<Vec<Tag>>>,
}

impl Leaves {
    /// Reads a leaf; `None` if it is not well-formed. `replay` are the extents of the journal, in
    /// order. With `builder` they are added up, if possible.
    pub fn read(
        &self,
        geometry: &Geometry,
        leaf: &Leaf<'_>,
        replay: &[Extent],
        snapshot: &GenerationSnapshot,
        builder: Option<&TotalsBuilder>,
    ) -> Option<LeafContent> {
        let area = snapshot.area?;
        let mut own = LeafKeys {
            oldest: take(&self.extents),
            later: take(&self.extents),
            ..LeafKeys::default()
        };
        if !own.read(geometry, leaf, &area, snapshot) {
            self.done(own.oldest);
            self.done(own.later);
            return None;
        }
        let LeafKeys { oldest, mut later, mut layers, raises } = own;
        if !raises {
            let before = later.len();
            later.extend(between(replay, leaf.after, leaf.key.position()));
            layers += usize::from(later.len() > before);
        }
        if layers > 1 {
            let (mut tags, mut combined) = (take(&self.tags), take(&self.extents));
            combine_layers(&later, &mut tags, &mut combined);
            give(&self.tags, tags);
            self.done(std::mem::replace(&mut later, combined));
        }
        let content = match builder.filter(|_| !raises) {
            Some(builder) => builder
                .add(|sink| overlay(&oldest, &later, |extent| sink.add(extent)))
                .map(LeafContent::Summed),
            None => {
                let mut all = take(&self.extents);
                all.reserve(oldest.len() + later.len());
                overlay(&oldest, &later, |extent| all.push(*extent));
                Some(if raises { LeafContent::Unmerged(all) } else { LeafContent::Merged(all) })
            }
        };
        self.done(oldest);
        self.done(later);
        content
    }

    /// Reuses the list of a leaf.
    pub fn done(&self, extents: Vec<Extent>) {
        give(&self.extents, extents);
    }
}

fn take<T>(spare: &Mutex<Vec<Vec<T>>>) -> Vec<T> {
    spare.lock().ok().and_then(|mut spare| spare.pop()).unwrap_or_default()
}

fn give<T>(spare: &Mutex<Vec<Vec<T>>>, mut memory: Vec<T>) {
    memory.clear();
    if let Ok(mut spare) = spare.lock()
        && spare.len() < SPARE_MAX
    {
        spare.push(memory);
    }
}

/// The keys of a leaf.
#[derive(Default)]
struct LeafKeys {
    /// Keys of its first bset, which has nearly all of them in most leaves.
    oldest: Vec<Extent>,
    /// Keys of the bsets behind it, …
    later: Vec<Extent>,
    /// … and how many of these there are that have keys.
    layers: usize,
    /// True if a pointer may raise a generation.
    raises: bool,
}

impl LeafKeys {
    /// Reads the keys. Returns true if the leaf is well-formed.
    fn read(
        &mut self,
        geometry: &Geometry,
        leaf: &Leaf<'_>,
        area: &DataArea,
        snapshot: &GenerationSnapshot,
    ) -> bool {
        let (mut plain, mut first) = (true, true);
        let scanned = scan_node(geometry, leaf.key, leaf.bytes, |bytes| {
            let keys = if first { &mut self.oldest } else { &mut self.later };
            // All but holes take 24 bytes.
            keys.reserve(bytes.len() / 24 + 1);
            let before = keys.len();
            let mut seen = KeyChecks::new(leaf.after);
            match pointer_keys(bytes) {
                Some(all) => keys.extend(all.map(|key| seen.extent(&key, area, snapshot))),
                None => {
                    let all = |key: PlainKey| keys.push(seen.extent(&key, area, snapshot));
                    plain &= plain_keys(bytes, all);
                }
            }
            if seen.without_size {
                keys.retain(|extent| !extent.range().is_empty());
            }
            plain &= seen.plain && seen.last <= wide(leaf.key.position());
            self.raises |= seen.raises;
            self.layers += usize::from(!first && keys.len() > before);
            first = false;
            Ok(())
        });
        plain && scanned.is_ok()
    }
}

fn wide((inode, sector): Position) -> u128 {
    u128::from(inode.0) << 64 | u128::from(sector.0)
}

/// Checks of the keys of a bset.
struct KeyChecks {
    last: u128,
    plain: bool,
    raises: bool,
    without_size: bool,
}

impl KeyChecks {
    fn new(after: Position) -> KeyChecks {
        KeyChecks { last: wide(after), plain: true, raises: false, without_size: false }
    }

    #[inline]
    fn extent(&mut self, key: &PlainKey, area: &DataArea, snapshot: &GenerationSnapshot) -> Extent {
        let extent = Extent::of(key);
        if key.sectors == 0 {
            self.without_size = true;
            return extent;
        }
        let start = wide((key.inode, key.end - u64::from(key.sectors)));
        self.plain &= start >= self.last && key.is_sound_in(area);
        self.last = wide((key.inode, key.end));
        if let Some(pointer) = extent.pointer() {
            let known = snapshot.generation(area.bucket(pointer.offset));
            self.raises |=
                known.is_none_or(|known| snapshot.reach.is_ahead(known, pointer.generation));
        }
        extent
    }
}

/// The parts of extents, which are in order, that are in an interval.
pub(crate) fn between(
    extents: &[Extent],
    after: Position,
    upto: Position,
) -> impl Iterator<Item = Extent> + '_ {
    let from = extents.partition_point(|extent| extent.end() <= after);
    let some = extents.iter().skip(from).take_while(move |extent| extent.start() < upto);
    some.filter_map(move |extent| cut(extent, after, upto))
}

/// The part of an extent or a key that is in the interval of a leaf.
pub(crate) fn cut<K: Layer + Clone>(key: &K, after: Position, upto: Position) -> Option<K> {
    let (inode, mut range) = (key.inode(), key.range());
    if inode < after.0 || inode > upto.0 {
        return None;
    }
    if inode == after.0 {
        range.start = range.start.max(after.1);
    }
    if inode == upto.0 {
        range.end = range.end.min(upto.1);
    }
    if range.is_empty() {
        return None;
    }
    let whole = range == key.range();
    Some(if whole {
        key.clone()
    } else {
        key.part(SectorRange::from_bounds(range.start, range.end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ubcache_format::{
        Bset, BucketNr, Generation, Inode, Pointer, Reach, Sector, combine_leaf, parse_node,
    };

    use crate::set::{Bucket, Owner};

    const GEOMETRY: Geometry = Geometry {
        set_magic: 7,
        bucket_sectors: 128,
        block_sectors: 1,
        buckets: 1024,
        first_bucket: 1,
        journal_buckets: 8,
    };

    fn seed() -> Pointer {
        Pointer { device: 0, offset: Sector(128), generation: Generation(3) }
    }

    /// Mostly in order, mostly sound.
    fn any_bset() -> impl Strategy<Value = Vec<Key>> {
        let pointer = prop_oneof![
            4 => (1_u64..1024, 0_u64..120).prop_map(|(bucket, at)| Some(bucket * 128 + at)),
            1 => Just(None),
        ];
        let key = (1_u32..3, 0_u64..400, 0_u16..12, any::<bool>(), pointer).prop_map(
            |(inode, start, sectors, dirty, at)| {
                let mut key =
                    Key::hole(Inode(inode), SectorRange::new(Sector(start), sectors.into()));
                let pointer =
                    |at| Pointer { device: 0, offset: Sector(at), generation: Generation(1) };
                key.pointers.extend(at.map(pointer));
                key.dirty = dirty && at.is_some();
                key
            },
        );
        (proptest::collection::vec(key, 1..12), 0_u8..8).prop_map(|(mut keys, order)| {
            if order > 0 {
                keys.sort_by_key(|key| (key.inode, key.start()));
                keys.dedup_by(|next, last| (next.inode, next.start()) < last.position());
            }
            keys
        })
    }

    fn node(bsets: &[Vec<Key>]) -> Vec<u8> {
        let mut bytes: Vec<u8> = bsets
            .iter()
            .flat_map(|keys| Bset { seq: 5, keys: keys.clone() }.encode(&GEOMETRY, seed()))
            .collect();
        bytes.resize(128 * 512, 0);
        bytes
    }

    /// Buckets that all have this generation; the last is not known.
    fn snapshot(generation: u8) -> GenerationSnapshot {
        let bucket = |number| Bucket {
            stored: Generation(generation),
            generation: Generation(generation),
            priority: 0,
            owner: Owner::Free,
            known: number != 1023,
            named: false,
        };
        GenerationSnapshot::new(
            &GEOMETRY,
            Reach::FORMAT,
            &(0..1024).map(bucket).collect::<Vec<_>>(),
        )
    }

    fn extents_of(keys: &[Key], replayed: bool) -> Vec<Extent> {
        keys.iter().map(|key| Extent::new(key, replayed)).collect()
    }

    proptest! {
        /// The fast path returns the same as the slow path, which has no finding.
        #[test]
        fn fast_leaf_path_agrees_with_the_slow_path(
            bsets in proptest::collection::vec(any_bset(), 1..5),
            journal in any_bset(),
            generation in prop_oneof![4 => 1_u8..3, 1 => any::<u8>()],
            after in (0_u32..2, 0_u64..40),
            upto in (2_u32..4, 300_u64..500),
        ) {
            let key = Key::node(Inode(upto.0), Sector(upto.1), 128, seed());
            let after = (Inode(after.0), Sector(after.1));
            let bytes = node(&bsets);
            let leaf = Leaf { key: &key, after, bytes: &bytes };
            let replay = extents_of(&combine_leaf(vec![journal]), true);
            let leaves = Leaves::default();
            let found = leaves.read(&GEOMETRY, &leaf, &replay, &snapshot(generation), None);
            let ahead = Generation(generation).is_ahead(Generation(1));
            let raises = bsets.iter().flatten().any(|key| {
                key.sectors > 0
                    && key.pointer().is_some_and(|p| ahead
                        || p.bucket(GEOMETRY.bucket_sectors) == BucketNr(1023))
            });
            if let Some(found) = found {
                let parsed = parse_node(&GEOMETRY, &key, &bytes);
                let long = combine_leaf(parsed.expect("it was read in one go").bsets);
                prop_assert!(long.iter().all(|key| key.check_extent(&GEOMETRY).is_ok()));
                prop_assert!(long.iter().all(|key| (key.inode, key.start()) >= after));
                let long = extents_of(&long, false);
                match found {
                    LeafContent::Summed(_) => panic!("nobody asked for totals"),
                    LeafContent::Unmerged(extents) => {
                        prop_assert!(raises);
                        prop_assert_eq!(extents, long);
                    }
                    LeafContent::Merged(extents) => {
                        prop_assert!(!raises);
                        let over = replay.iter().filter_map(|extent| cut(extent, after,
                            key.position()));
                        prop_assert_eq!(extents, combine_leaf(vec![long, over.collect()]));
                    }
                }
            } else {
                let ordered = bsets.iter().all(|keys| {
                    keys.windows(2).all(|pair| pair[0].position() <= (pair[1].inode,
                        pair[1].start()))
                });
                let inside = bsets.iter().flatten().all(|extent| {
                    (extent.inode, extent.start()) >= after && extent.position() <= key.position()
                });
                let sound = bsets.iter().flatten().all(|key| key.check_extent(&GEOMETRY).is_ok());
                prop_assert!(!(ordered && inside && sound), "a plain leaf was taken for another \
                    kind");
            }
        }
    }

    #[test]
    fn leaf_buffers_are_reused() {
        let keys = |count: u64| -> Vec<Key> {
            (0..count).map(|n| Key::hole(Inode(1), SectorRange::new(Sector(n * 8), 8))).collect()
        };
        let key = Key::max_node(128, seed());
        let leaves = Leaves::default();
        for count in [60, 3, 40, 2, 60] {
            let bytes = node(&[keys(count), keys(count / 2)]);
            let leaf = Leaf { key: &key, after: (Inode(0), Sector(0)), bytes: &bytes };
            match leaves.read(&GEOMETRY, &leaf, &[], &snapshot(1), None) {
                Some(LeafContent::Merged(extents)) => {
                    assert_eq!(extents, extents_of(&keys(count), false));
                    leaves.done(extents);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
