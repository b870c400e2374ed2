//! Comparison of one piece of clean cached data with the backing device (Q1).
//!
//! A clean key is removed before the backing device is written below it (W2), and is inserted when
//! the write is durable. So if a key is the same before and after both reads, nothing was written
//! meanwhile: a difference is then no race, but a fault of one of the devices, or a write to the
//! backing device by somebody else.

use ubcache_env::local::join;
use ubcache_env::{Env, IoError, SectorRange};
use ubcache_format::SECTOR_BYTES;

use crate::alloc::bucket_pins::Pin;
use crate::index::extent::{Extent, removal_records};
use crate::rules::Rule;
use crate::volume::CachedVolume;

impl<E: Env> CachedVolume<E> {
    /// Compares a piece. False: it had changed before anything was read.
    pub(super) async fn scrub_piece(&self, piece: Extent) -> bool {
        let bytes = piece.range.bytes();
        if self.index.load_over(piece.inode, piece.range).await.is_err() {
            self.scrub.note(|pass| pass.unreadable_bytes += bytes);
            return true;
        }
        if !self.index.is_current(&piece) {
            self.scrub.note(|pass| pass.skipped_bytes += bytes);
            return false;
        }
        // The place is not reused, so a key that names it is the same key.
        let pin = {
            let buckets = self.allocator.buckets();
            buckets.pins().pin(buckets.bucket_of(piece.pointer))
        };
        let (cached, stored) = join(
            self.context.cache.read(piece.pointer.offset, piece.range.sectors()),
            self.backing.read(piece.range.start, piece.range.sectors()),
        )
        .await;
        let (Ok(cached), Ok(stored)) = (&cached, &stored) else {
            self.note_unread(cached.as_ref().err(), stored.as_ref().err());
            self.scrub.note(|pass| pass.unreadable_bytes += bytes);
            return true;
        };
        match differing_sectors(piece.range, cached.as_slice(), stored.as_slice()) {
            None => {
                self.scrub.note(|pass| pass.compared_bytes += bytes);
                self.count(|counters| counters.scrubbed_bytes += bytes);
            }
            Some((hull, sectors)) => self.drop_differing(piece, hull, sectors, pin).await,
        }
        true
    }

    fn note_unread(&self, cache: Option<&IoError>, backing: Option<&IoError>) {
        if let Some(error) = cache.filter(|error| !matches!(error, IoError::NoMemory)) {
            self.context.note_cache_error("reading cached data", error);
        }
        if let Some(error) = backing {
            self.note_backing_error(error);
        }
    }

    /// Q1: drops the range from the cache, durably, if the key is the one that was read.
    async fn drop_differing(&self, piece: Extent, hull: SectorRange, sectors: u64, pin: Pin) {
        let bytes = piece.range.bytes();
        let records = removal_records(hull);
        let Ok(mut room) = self.index.prepare_removal(piece.inode, hull, records).await else {
            self.scrub.note(|pass| pass.skipped_bytes += bytes);
            return;
        };
        if self.context.keeps(Rule::Q1SameKeyOnly) && !self.index.is_current(&piece) {
            self.context.env.mark("scrub_overtaken");
            self.scrub.note(|pass| pass.skipped_bytes += bytes);
            return;
        }
        let durable = self.index.invalidate(&mut room, piece.inode, hull);
        drop(room);
        drop(pin);
        self.context.env.mark("scrub_dropped");
        let differing = sectors * SECTOR_BYTES;
        self.scrub.note(|pass| {
            pass.compared_bytes += bytes;
            pass.differing_bytes += differing;
        });
        self.count(|counters| {
            counters.scrubbed_bytes += bytes;
            counters.scrub_differing_bytes += differing;
        });
        self.context.events.differs(self.uuid(), hull, piece.cut(hull).pointer.offset, sectors);
        if let Some(seq) = durable {
            // A failure of the journal fails the set, which says so.
            let _ = self.journal.wait(seq).await;
        }
    }
}

/// Range from the first to the last sector that differs, and the number of those that do.
fn differing_sectors(range: SectorRange, a: &[u8], b: &[u8]) -> Option<(SectorRange, u64)> {
    if a == b {
        return None;
    }
    let sector = SECTOR_BYTES as usize;
    let pairs = a.chunks(sector).zip(b.chunks(sector)).zip(0..);
    let differing: Vec<u64> = pairs.filter(|((a, b), _)| a != b).map(|(_, at)| at).collect();
    let (first, last) = (*differing.first()?, *differing.last()?);
    let hull = SectorRange::new(range.start + first, last + 1 - first);
    Some((hull, differing.len() as u64))
}

#[cfg(test)]
mod tests {
    use ubcache_env::Sector;

    use super::*;

    #[test]
    fn sectors_that_differ_are_counted_one_by_one() {
        let range = SectorRange::new(Sector(100), 8);
        let a = vec![7; range.bytes() as usize];
        let mut b = a.clone();
        assert_eq!(differing_sectors(range, &a, &b), None);
        b[2 * 512] = 1;
        b[5 * 512 + 511] = 1;
        let hull = SectorRange::new(Sector(102), 4);
        assert_eq!(differing_sectors(range, &a, &b), Some((hull, 2)));
    }
}
