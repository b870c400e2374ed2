//! Leaves as they nearly always are, in one go: keys with one pointer at most, in order, sound, and inside the interval of
//! the leaf. Everything else is left to the walk, which says what is wrong.
//!
//! Reading a leaf this way depends on nothing but the leaf, so the leaves of a large window are shared among threads.
//! What comes out, and in which order, does not depend on that.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ubcache_format::{Geometry, Inode, Key, Sector, combine_leaf, plain_keys, scan_node};

use crate::view::Extent;

/// Less than this is not worth a thread.
const BYTES_A_THREAD: usize = 1 << 20;
/// More threads than this would wait for the device.
const THREADS_MAX: usize = 4;
/// As many as there are leaves in a window of large ones.
const SPARE_MAX: usize = 32;

/// A leaf to be read.
pub(crate) struct Leaf<'a> {
    /// Its key.
    pub key: &'a Key,
    /// Its interval begins behind this position.
    pub after: (Inode, Sector),
    /// All of its bytes.
    pub bytes: &'a [u8],
}

/// Reads leaves, with memory that is used again.
pub(crate) struct Leaves {
    threads: usize,
    spare: Mutex<Vec<Vec<Extent>>>,
}

impl Leaves {
    /// A reader with as many threads as the machine has processors for.
    pub fn new() -> Leaves {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Leaves { threads: processors.min(THREADS_MAX), spare: Mutex::default() }
    }

    /// The extents of each leaf; nothing of one that has something in it that is not as above.
    pub fn read(&self, geometry: &Geometry, leaves: &[Option<Leaf<'_>>]) -> Vec<Option<Vec<Extent>>> {
        let read = |index: usize| {
            let leaf = leaves.get(index).and_then(Option::as_ref)?;
            self.extents(geometry, leaf)
        };
        let bytes: usize = leaves.iter().flatten().map(|leaf| leaf.bytes.len()).sum();
        let threads = self.threads.min(bytes / BYTES_A_THREAD);
        if threads < 2 {
            return (0..leaves.len()).map(read).collect();
        }
        let next = AtomicUsize::new(0);
        let some = || {
            let mine = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
            let mine = mine.take_while(|index| *index < leaves.len());
            mine.map(|index| (index, read(index))).collect::<Vec<_>>()
        };
        let mut all: Vec<Option<Vec<Extent>>> = vec![None; leaves.len()];
        std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(some)).collect();
            let mine = some();
            // What a helper does not bring back, the walk reads itself.
            let theirs = helpers.into_iter().filter_map(|helper| helper.join().ok());
            for (index, extents) in std::iter::once(mine).chain(theirs).flatten() {
                if let Some(slot) = all.get_mut(index) {
                    *slot = extents;
                }
            }
        });
        all
    }

    /// Takes back the memory of a leaf.
    pub fn done(&self, mut extents: Vec<Extent>) {
        extents.clear();
        if let Ok(mut spare) = self.spare.lock()
            && spare.len() < SPARE_MAX
        {
            spare.push(extents);
        }
    }

    fn extents(&self, geometry: &Geometry, leaf: &Leaf<'_>) -> Option<Vec<Extent>> {
        extents(geometry, leaf, || {
            self.spare.lock().ok().and_then(|mut spare| spare.pop()).unwrap_or_default()
        })
    }
}

fn extents(
    geometry: &Geometry,
    leaf: &Leaf<'_>,
    mut memory: impl FnMut() -> Vec<Extent>,
) -> Option<Vec<Extent>> {
    let limit = leaf.key.position();
    let mut bsets: Vec<Vec<Extent>> = Vec::new();
    let mut plain = true;
    scan_node(geometry, leaf.key, leaf.bytes, |keys| {
        let mut bset = memory();
        // All but holes take 24 bytes.
        bset.reserve(keys.len() / 24 + 1);
        let mut last = leaf.after;
        plain &= plain_keys(keys, |key| {
            if key.sectors == 0 {
                return;
            }
            let start = (key.inode, key.end - u64::from(key.sectors));
            plain &= start >= last && key.is_sound(geometry);
            last = (key.inode, key.end);
            bset.push(Extent::of(&key));
        });
        plain &= last <= limit;
        bsets.push(bset);
        Ok(())
    })
    .ok()?;
    plain.then(|| combine_leaf(bsets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ubcache_format::{Bset, Generation, Pointer, SectorRange, parse_node};

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
                let mut key = Key::hole(Inode(inode), SectorRange::new(Sector(start), sectors.into()));
                let pointer = |at| Pointer { device: 0, offset: Sector(at), generation: Generation(1) };
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

    proptest! {
        /// What is read in one go is what the long way gives; and the long way has nothing to say of it.
        #[test]
        fn as_the_long_way(
            bsets in proptest::collection::vec(any_bset(), 1..5),
            after in (0_u32..2, 0_u64..40),
            upto in (2_u32..4, 300_u64..500),
        ) {
            let key = Key::node(Inode(upto.0), Sector(upto.1), 128, seed());
            let after = (Inode(after.0), Sector(after.1));
            let bytes = node(&bsets);
            let leaf = Leaf { key: &key, after, bytes: &bytes };
            if let Some(plain) = extents(&GEOMETRY, &leaf, Vec::new) {
                let parsed = parse_node(&GEOMETRY, &key, &bytes);
                let long = combine_leaf(parsed.expect("it was read in one go").bsets);
                prop_assert!(long.iter().all(|key| key.check_extent(&GEOMETRY).is_ok()));
                prop_assert!(long.iter().all(|key| (key.inode, key.start()) >= after));
                let long: Vec<Extent> = long.iter().map(|key| Extent::new(key, false)).collect();
                prop_assert_eq!(plain, long);
            } else {
                let ordered = bsets.iter().all(|keys| {
                    keys.windows(2).all(|pair| pair[0].position() <= (pair[1].inode, pair[1].start()))
                });
                let inside = bsets.iter().flatten().all(|extent| {
                    (extent.inode, extent.start()) >= after && extent.position() <= key.position()
                });
                let sound = bsets.iter().flatten().all(|key| key.check_extent(&GEOMETRY).is_ok());
                prop_assert!(!(ordered && inside && sound), "a plain leaf was taken for another kind");
            }
        }
    }

    #[test]
    fn threads_give_what_one_gives() {
        let keys = |count: u64| -> Vec<Key> {
            (0..count).map(|n| Key::hole(Inode(1), SectorRange::new(Sector(n * 8), 8))).collect()
        };
        let key = Key::max_node(128, seed());
        let after = (Inode(0), Sector(0));
        let nodes: Vec<Vec<u8>> = (0..64).map(|n| node(&[keys(n)])).collect();
        let leaves: Vec<Option<Leaf<'_>>> = nodes
            .iter()
            .enumerate()
            .map(|(n, bytes)| (n % 7 != 3).then_some(Leaf { key: &key, after, bytes }))
            .collect();
        let lengths = |found: &[Option<Vec<Extent>>]| -> Vec<Option<usize>> {
            found.iter().map(|extents| extents.as_ref().map(Vec::len)).collect()
        };
        let expected: Vec<Option<usize>> = (0..64).map(|n| (n % 7 != 3).then_some(n)).collect();
        assert!(nodes.iter().map(Vec::len).sum::<usize>() > 2 * BYTES_A_THREAD);
        for threads in 1..=THREADS_MAX {
            let reader = Leaves { threads, spare: Mutex::default() };
            let found = reader.read(&GEOMETRY, &leaves);
            assert_eq!(lengths(&found), expected);
            found.into_iter().flatten().for_each(|extents| reader.done(extents));
            assert_eq!(lengths(&reader.read(&GEOMETRY, &leaves)), expected, "in memory that was used before");
            assert_eq!(lengths(&reader.read(&GEOMETRY, &leaves[..8])), expected[..8]);
        }
    }
}
