//! The status of a range: what the cache has of it, and holes of the backing device.

use ubcache_env::{BlockStatus, Env, Sector, SectorRange};

use crate::rules::Rule;
use crate::volume::CachedVolume;

/// Most extents, copies and parts of the backing device that one answer is made of.
const PARTS_MAX: usize = 1024;
/// Longest range of one answer, so that few leaves of the index have to be read for it.
const STATUS_MAX: u64 = 64 << 11;

impl<E: Env> CachedVolume<E> {
    /// The status of a range from its start, or of the first part of it.
    pub(crate) async fn status_of(&self, range: SectorRange) -> Vec<(SectorRange, BlockStatus)> {
        let mut range = SectorRange::new(range.start, range.sectors().min(STATUS_MAX));
        let began = self.coherence.zeroes.now();
        let (mut cached, mut dirty) = (Vec::new(), Vec::new());
        let mut copies = Vec::new();
        if self.lifecycle.uses_cache() {
            if self.index.load_for_read(self.inode(), range).await.is_err() {
                return vec![(range, BlockStatus::default())];
            }
            // D4, the cache first: what leaves it meanwhile is on the backing device before.
            let live;
            (live, range) = self.index.first_live_extents(self.inode(), range, PARTS_MAX);
            for extent in live {
                cached.push(extent.range);
                if extent.dirty {
                    dirty.push(extent.range);
                }
            }
            let unpublished = self.coherence.copies_over(range);
            copies.extend(unpublished.into_iter().map(|(part, _)| part).take(PARTS_MAX));
            if copies.len() == PARTS_MAX {
                let end = copies.last().map_or(range.end, |part| part.end);
                range = SectorRange::from_bounds(range.start, end.min(range.end));
            }
        }
        let parts = self.backing.holes(range, PARTS_MAX).await.unwrap_or_default();
        let end = parts.last().map_or(range.end, |(part, _)| part.end.min(range.end));
        let range = SectorRange::from_bounds(range.start, end);
        let holes: Vec<SectorRange> =
            parts.into_iter().filter(|(_, hole)| *hole).map(|(part, _)| part).collect();
        // D4, R5: zeroes of a discard that has not taken effect are no hole of the volume.
        let hidden = |part| self.coherence.zeroes.since(began, part);
        let covers = self.context.keeps(Rule::D4DirtyIsNoHole);
        let parts = join(range, [&cached, &copies, &dirty, &holes]).into_iter();
        let parts = parts.map(|(part, [cached, copy, dirty, hole])| {
            let cached = cached || copy;
            (
                part,
                BlockStatus { hole: hole && !(covers && (dirty || hidden(part))), cached, dirty },
            )
        });
        let parts: Vec<_> = parts.collect();
        if parts.iter().any(|(_, status)| status.hole) {
            self.context.env.mark("hole_reported");
        }
        parts
    }
}

/// The range in parts, each with the lists that cover it. The lists are in order.
fn join<const N: usize>(
    range: SectorRange,
    lists: [&[SectorRange]; N],
) -> Vec<(SectorRange, [bool; N])> {
    let mut cuts: Vec<Sector> = lists
        .iter()
        .flat_map(|list| list.iter())
        .flat_map(|part| [part.start, part.end])
        .filter(|at| *at > range.start && *at < range.end)
        .chain([range.end])
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut places = [0; N];
    let mut at = range.start;
    let mut parts: Vec<(SectorRange, [bool; N])> = Vec::new();
    for end in cuts {
        let mut covered = [false; N];
        for ((list, place), covered) in lists.iter().zip(&mut places).zip(&mut covered) {
            while list.get(*place).is_some_and(|part| part.end <= at) {
                *place += 1;
            }
            *covered = list.get(*place).is_some_and(|part| part.start <= at);
        }
        match parts.last_mut() {
            Some((part, same)) if *same == covered => part.end = end,
            _ => parts.push((SectorRange::from_bounds(at, end), covered)),
        }
        at = end;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> SectorRange {
        SectorRange::from_bounds(Sector(start), Sector(end))
    }

    #[test]
    fn lists_are_joined_part_by_part() {
        let found =
            join(range(10, 50), [&[range(0, 12), range(12, 14), range(40, 60)], &[range(13, 45)]]);
        assert_eq!(
            found,
            [
                (range(10, 13), [true, false]),
                (range(13, 14), [true, true]),
                (range(14, 40), [false, true]),
                (range(40, 45), [true, true]),
                (range(45, 50), [true, false]),
            ]
        );
        assert_eq!(join(range(3, 9), [&[]]), [(range(3, 9), [false])]);
    }
}
