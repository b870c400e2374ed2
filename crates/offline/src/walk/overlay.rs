//! Newer extents over older ones, one by one, without a list of the result.

use ubcache_format::{Layer, SectorRange};

use crate::set::Extent;

/// Passes the result to `take`, in order. Both lists are in order, and nothing in them overlaps or
/// has size 0. Most older extents are expected to lie between newer ones, unchanged.
#[inline]
pub(crate) fn overlay(older: &[Extent], newer: &[Extent], mut take: impl FnMut(&Extent)) {
    let mut older = older.iter();
    let mut next = older.next();
    // The rest of an older extent behind the newer ones so far.
    let mut left: Option<Extent> = None;
    for new in newer {
        let (start, end) = (new.start(), new.end());
        loop {
            let old = match (&left, next) {
                (None, Some(old)) if old.end() <= start => {
                    take(old);
                    next = older.next();
                    continue;
                }
                (Some(left), _) => *left,
                (None, Some(old)) => *old,
                (None, None) => break,
            };
            if old.start() >= end {
                break;
            }
            if left.take().is_none() {
                next = older.next();
            }
            if old.end() <= start {
                take(&old);
                continue;
            }
            let range = old.range();
            if old.start() < start {
                take(&old.part(SectorRange::from_bounds(range.start, start.1)));
            }
            if old.end() > end {
                left = Some(old.part(SectorRange::from_bounds(end.1, range.end)));
                break;
            }
        }
        take(new);
    }
    left.iter().for_each(&mut take);
    next.into_iter().chain(older).for_each(take);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ubcache_format::{Generation, Inode, Key, Pointer, Sector, combine_leaf};

    use super::*;

    fn any_layer(most: usize) -> impl Strategy<Value = Vec<Extent>> {
        let key = (1_u32..3, 0_u64..100, 1_u64..12, 0_u64..1000, any::<bool>()).prop_map(
            |(inode, start, sectors, at, hole)| {
                let range = SectorRange::new(Sector(start), sectors);
                let pointer = Pointer { device: 0, offset: Sector(at), generation: Generation(1) };
                match hole {
                    true => Key::hole(Inode(inode), range),
                    false => Key::extent(Inode(inode), range, at % 2 == 0, pointer),
                }
            },
        );
        proptest::collection::vec(key, 0..most).prop_map(|mut keys| {
            keys.sort_by_key(|key| (key.inode, key.start()));
            keys.dedup_by(|next, last| (next.inode, next.start()) < last.position());
            keys.iter().map(|key| Extent::new(key, false)).collect()
        })
    }

    proptest! {
        #[test]
        fn overlay_agrees_with_combine_leaf(older in any_layer(20), newer in any_layer(20)) {
            let mut found = Vec::new();
            overlay(&older, &newer, |extent| found.push(*extent));
            prop_assert_eq!(found, combine_leaf(vec![older, newer]));
        }
    }
}
