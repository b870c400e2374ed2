//! Combining the bsets of a leaf: a newer key hides the parts of older keys that it overlaps
//! (docs/reference/format.md §5.6).
//!
//! Keys are sorted by their starts. Nearly all of them overlap no other key and are taken
//! unchanged; only the others are laid over one another.

use crate::key::Key;
use crate::units::{Inode, Sector, SectorRange};

/// An entry of a leaf's layers: a key, or a caller's summary of one.
pub trait Layer {
    /// The volume.
    fn inode(&self) -> Inode;
    /// The sectors of the extent.
    fn range(&self) -> SectorRange;
    /// The part that covers `range`, which has to lie inside the extent.
    #[must_use]
    fn part(&self, range: SectorRange) -> Self;
    /// Start of the extent.
    fn start(&self) -> (Inode, Sector) {
        (self.inode(), self.range().start)
    }
    /// End of the extent.
    fn end(&self) -> (Inode, Sector) {
        (self.inode(), self.range().end)
    }
}

impl Layer for Key {
    fn inode(&self) -> Inode {
        self.inode
    }
    fn range(&self) -> SectorRange {
        Key::range(self)
    }
    fn part(&self, range: SectorRange) -> Key {
        self.cut_to(range)
    }
}

/// The extents of a leaf in order, from its bsets with the oldest first: what is newer replaces
/// whatever it overlaps, whether it has data or is a hole, a placeholder or stale. All of these are
/// still in the result; only keys of size 0 are not. In a bset that is not in order, what comes
/// later counts as newer.
pub fn combine_leaf<K: Layer>(mut bsets: Vec<Vec<K>>) -> Vec<K> {
    bsets.retain(|bset| !bset.is_empty());
    match bsets.as_slice() {
        [] => return Vec::new(),
        [one] if is_run(one) => return bsets.pop().unwrap_or_default(),
        _ => {}
    }
    let mut keys: Vec<Option<K>> = bsets.into_iter().flatten().map(Some).collect();
    let mut tags: Vec<Tag> =
        keys.iter().flatten().enumerate().filter_map(|(age, key)| tag(key, age)).collect();
    tags.sort();
    let mut combined = Vec::with_capacity(tags.len());
    let end =
        |keys: &Vec<Option<K>>, age: usize| keys.get(age)?.as_ref().map(|key| position(key.end()));
    lay(&tags, &mut keys, end, |keys, age| keys.get_mut(age)?.take(), &mut combined);
    combined
}

/// [`combine_leaf`] for small keys, all bsets in one: appends to `combined`. `tags` is memory to
/// work with, which can be used again.
pub fn combine_layers<K: Layer + Copy>(keys: &[K], tags: &mut Vec<Tag>, combined: &mut Vec<K>) {
    tags.clear();
    tags.extend(keys.iter().enumerate().filter_map(|(age, key)| tag(key, age)));
    tags.sort();
    combined.reserve(tags.len());
    let end = |keys: &&[K], age: usize| keys.get(age).map(|key| position(key.end()));
    lay(tags, &mut { keys }, end, |keys, age| keys.get(age).copied(), combined);
}

/// Start of a key, and its age: 32 bits of volume, 64 of sector, 32 of the number of the key. No
/// memory has room for more keys than that.
pub type Tag = u128;

const AGE_BITS: u32 = 32;

fn tag<K: Layer>(key: &K, age: usize) -> Option<Tag> {
    (!key.range().is_empty()).then(|| position(key.start()) << AGE_BITS | age as u32 as u128)
}

fn age(tag: Tag) -> usize {
    tag as u32 as usize
}

fn position((inode, sector): (Inode, Sector)) -> u128 {
    u128::from(inode.0) << 64 | u128::from(sector.0)
}

/// Appends keys in the order of their sorted tags, those that overlap one over the other.
fn lay<K: Layer, S>(
    tags: &[Tag],
    keys: &mut S,
    end: impl Fn(&S, usize) -> Option<u128>,
    mut take: impl FnMut(&mut S, usize) -> Option<K>,
    combined: &mut Vec<K>,
) {
    let end = |keys: &S, tag: Tag| end(keys, age(tag)).unwrap_or(0);
    let mut rest = tags;
    while let Some((&first, behind)) = rest.split_first() {
        let mut upto = end(keys, first);
        // Keys that overlap it, directly or through others.
        let mut count = 1;
        for &tag in behind {
            if tag >> AGE_BITS >= upto {
                break;
            }
            upto = upto.max(end(keys, tag));
            count += 1;
        }
        let (some, later) = rest.split_at(count);
        rest = later;
        let newest = some.iter().copied().max_by_key(|tag| age(*tag)).unwrap_or(first);
        if newest >> AGE_BITS == first >> AGE_BITS && end(keys, newest) == upto {
            combined.extend(take(keys, age(newest)));
        } else {
            let mut ages: Vec<usize> = some.iter().map(|tag| age(*tag)).collect();
            ages.sort_unstable();
            combined.extend(overlaid(ages.into_iter().filter_map(|age| take(keys, age))));
        }
    }
}

/// Keys laid over one another, oldest first.
fn overlaid<K: Layer>(keys: impl Iterator<Item = K>) -> Vec<K> {
    // Keys in order do not overlap, so they are one layer.
    let mut runs: Vec<Vec<K>> = Vec::new();
    for key in keys {
        match runs.last_mut() {
            Some(run) if run.last().is_some_and(|last| last.end() <= key.start()) => run.push(key),
            _ => runs.push(vec![key]),
        }
    }
    // Laying one over the other is associative, so neighbours are joined in rounds, however many
    // runs there are.
    while runs.len() > 1 {
        let mut pairs = runs.into_iter();
        let mut joined = Vec::with_capacity(pairs.len().div_ceil(2));
        while let Some(older) = pairs.next() {
            joined.push(match pairs.next() {
                Some(newer) => overlay(older, newer),
                None => older,
            });
        }
        runs = joined;
    }
    runs.pop().unwrap_or_default()
}

/// Returns true if extents are in order and do not overlap, with none of size 0 among them.
fn is_run<K: Layer>(keys: &[K]) -> bool {
    keys.windows(2).all(|pair| pair[0].end() <= pair[1].start())
        && !keys.iter().any(|key| key.range().is_empty())
}

/// Lays extents over older ones; both are in order and do not overlap among themselves.
fn overlay<K: Layer>(older: Vec<K>, newer: Vec<K>) -> Vec<K> {
    let mut result = Vec::with_capacity(older.len() + newer.len());
    let mut newer = newer.into_iter().peekable();
    let mut covered = (Inode(0), Sector(0));
    for old in older {
        // Rest of the old extent, behind all newer ones that were taken so far.
        let mut rest = old.range();
        if covered.0 == old.inode() {
            rest.start = rest.start.max(covered.1);
        }
        while let Some(new) = newer.next_if(|new| new.start() < old.end()) {
            if new.inode() == old.inode() {
                let front = SectorRange::from_bounds(rest.start, new.range().start);
                if !front.is_empty() {
                    result.push(old.part(front));
                }
                rest.start = rest.start.max(new.range().end);
            }
            covered = new.end();
            result.push(new);
        }
        if rest == old.range() {
            result.push(old);
        } else if !rest.is_empty() {
            result.push(old.part(rest));
        }
    }
    result.extend(newer);
    result
}
