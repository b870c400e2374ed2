//! The ring of journal buckets (docs/reference/format.md §6.2–6.4).

use ubcache_format::{Geometry, JOURNAL_HEADER_BYTES, JournalSeq};

/// A step appends no more records than this, however large the ring is: a poll has an end.
const STEP_RECORDS_MAX: usize = 64;
/// Bytes of the largest record.
pub(super) const RECORD_BYTES: u64 = 24;

#[derive(Debug)]
pub(crate) struct Ring {
    bucket_bytes: u64,
    block_bytes: u64,
    entry_blocks_max: u64,
    /// By ring index: the greatest seq in the bucket, if there is an entry in it.
    newest: Vec<Option<JournalSeq>>,
    /// Bucket of the next entry, if the entry fits.
    index: usize,
    /// Free buckets behind that one: every change asks for room.
    free_ahead: usize,
    used_bytes: u64,
    /// There is room for fewer bytes of records than this: every change asks for some.
    room: u64,
    step_records: usize,
    entry_record_bytes: u64,
    /// Number of leaves that may lack records.
    pinned_leaves_max: usize,
    /// last_seq of the newest durable entry: what is older is not needed by any start.
    needed_from: JournalSeq,
}

/// The largest entry that is written, in bytes: no more than half of a bucket, so that where an
/// entry does not fit any more, more than half of the bucket is in use.
pub(crate) fn entry_bytes_max(geometry: &Geometry) -> u64 {
    let half = (geometry.bucket_bytes() / 2).max(geometry.block_bytes());
    half.min(geometry.max_journal_entry_bytes())
}

fn pinned_leaves_max(geometry: &Geometry) -> usize {
    let blocks = u64::from(geometry.bucket_sectors / geometry.block_sectors);
    (u64::from(geometry.journal_buckets) * blocks / 2).max(4) as usize
}

impl Ring {
    /// A ring to go on with, behind its newest entry. The driver goes on at the next bucket; a
    /// small ring would be full after a few crashes in a row that way.
    pub fn after(
        index: usize,
        used_bytes: u64,
        newest: Vec<Option<JournalSeq>>,
        needed_from: JournalSeq,
        geometry: &Geometry,
    ) -> Ring {
        assert!(index < newest.len(), "the index is within the ring");
        let mut ring = Ring {
            bucket_bytes: geometry.bucket_bytes(),
            block_bytes: geometry.block_bytes(),
            entry_blocks_max: entry_bytes_max(geometry).div_ceil(geometry.block_bytes()),
            newest,
            index,
            free_ahead: 0,
            used_bytes,
            room: 0,
            step_records: 0,
            entry_record_bytes: entry_bytes_max(geometry) - JOURNAL_HEADER_BYTES,
            pinned_leaves_max: pinned_leaves_max(geometry),
            needed_from,
        };
        ring.step_records = ring.count_step_records();
        ring.count_free();
        ring
    }

    /// Bytes of records that one entry takes.
    pub fn entry_record_bytes(&self) -> u64 {
        self.entry_record_bytes
    }

    /// Number of leaves that may lack records: writing them takes buckets and with them entries,
    /// which a small ring must have room for.
    pub fn pinned_leaves_max(&self) -> usize {
        self.pinned_leaves_max
    }

    fn is_free(&self, index: usize) -> bool {
        self.newest[index].is_none_or(|newest| newest < self.needed_from)
    }

    /// Free buckets ahead of the present one.
    pub fn free_ahead(&self) -> usize {
        self.free_ahead
    }

    fn count_free(&mut self) {
        let ahead = (1..self.newest.len()).map(|step| (self.index + step) % self.newest.len());
        self.free_ahead = ahead.take_while(|&index| self.is_free(index)).count();
        self.room = self.count_room();
    }

    /// The least number of bytes of records that [`Ring::has_space`] denies.
    fn count_room(&self) -> u64 {
        let left = self.blocks_left();
        if left >= self.blocks_at_best() {
            return u64::MAX;
        }
        let spare = left.saturating_sub(self.reserve());
        let (full, rest) = (spare / self.entry_blocks_max, spare % self.entry_blocks_max);
        let most = self.entry_blocks_max * self.block_bytes - JOURNAL_HEADER_BYTES;
        full * most + (rest * self.block_bytes + 1).saturating_sub(JOURNAL_HEADER_BYTES)
    }

    /// Blocks that can be written before anything older has to be let go.
    fn blocks_left(&self) -> u64 {
        let rest = (self.bucket_bytes - self.used_bytes) / self.block_bytes;
        rest + self.free_ahead() as u64 * (self.bucket_bytes / self.block_bytes)
    }

    /// Blocks that are left at least once everything older was let go.
    fn blocks_at_best(&self) -> u64 {
        (self.newest.len() as u64 - 1) * (self.bucket_bytes / self.block_bytes)
    }

    /// Blocks that records leave free: for what makes room (a prio chain, a new root, a later
    /// last_seq), and for the next start, which needs some as well (docs/reference/format.md §6.4).
    fn reserve(&self) -> u64 {
        let three = 3 * (self.bucket_bytes / self.block_bytes);
        let best = self.blocks_at_best();
        three.max(6).min(best - (best / 4).max(1))
    }

    /// An entry of this size with nothing but records may be written.
    pub fn takes_records(&self, bytes: u64) -> bool {
        let wanted = self.reserve() + bytes / self.block_bytes;
        self.blocks_left() >= wanted.min(self.blocks_at_best())
    }

    /// This much of records may wait to be written, in as many entries as it takes.
    pub fn has_space(&self, record_bytes: u64) -> bool {
        record_bytes < self.room
    }

    /// Number of records that one step may reserve: they fit beside the reserve.
    pub fn step_records(&self) -> usize {
        self.step_records
    }

    fn count_step_records(&self) -> usize {
        let spare = (self.blocks_at_best() - self.reserve()).min(self.entry_blocks_max);
        let records =
            (spare * self.block_bytes).saturating_sub(JOURNAL_HEADER_BYTES) / RECORD_BYTES;
        (records as usize).clamp(2, STEP_RECORDS_MAX)
    }

    /// An entry for a new prio chain, volume table or root may be written beside those that were
    /// granted already; the last blocks are for what makes room.
    pub fn takes_chains(&self, granted: u64) -> bool {
        self.blocks_left() >= self.reserve().min(5) + granted
    }

    /// It is time to make room.
    pub fn is_short(&self) -> bool {
        let spare = self.blocks_at_best() - self.reserve();
        // Never less than the largest entry waits for.
        let wanted = self.reserve() + (spare / 2).max(self.entry_blocks_max);
        self.blocks_left() < wanted.min(self.blocks_at_best())
    }

    /// There is so little room that it has to be made with few entries.
    pub fn is_tight(&self) -> bool {
        self.blocks_left() < 16
    }

    /// The oldest entry that a start would read.
    pub fn needed_from(&self) -> JournalSeq {
        self.needed_from
    }

    /// The greatest seq of the oldest bucket that is needed: what to write leaves for.
    pub fn oldest_needed(&self) -> Option<JournalSeq> {
        self.newest.iter().flatten().filter(|&&newest| newest >= self.needed_from).min().copied()
    }

    /// Returns true if an entry that needs nothing older than `last_seq` makes a bucket free.
    pub fn lets_go(&self, last_seq: JournalSeq) -> bool {
        let needed = self.needed_from..last_seq;
        let mut others = self.newest.iter().enumerate().filter(|&(index, _)| index != self.index);
        others.any(|(_, newest)| newest.is_some_and(|newest| needed.contains(&newest)))
    }

    /// An entry of this size leaves a block for the next one, or lets a bucket go (N5).
    pub fn leaves_a_block(&self, bytes: u64, last_seq: JournalSeq) -> bool {
        if self.blocks_left() * self.block_bytes > bytes {
            return true;
        }
        // Its own bucket stays, whatever was in it.
        let moves_on = self.used_bytes + bytes > self.bucket_bytes;
        let needed = self.needed_from..last_seq;
        self.newest.iter().enumerate().any(|(index, newest)| {
            let is_its_own = index == self.index && !moves_on;
            !is_its_own && newest.is_some_and(|newest| needed.contains(&newest))
        })
    }

    /// Place for an entry of this size: ring index and byte offset. `None`: no bucket is free.
    ///
    /// A bucket that the newest durable entry needs is never taken (J4), not even where the entry
    /// that is to be written would let it go: the power may fail while it is written, and then the
    /// older one counts.
    pub fn place(&mut self, bytes: u64) -> Option<(u32, u64)> {
        if self.used_bytes + bytes > self.bucket_bytes {
            let next = (self.index + 1) % self.newest.len();
            if !self.is_free(next) {
                return None;
            }
            self.index = next;
            self.used_bytes = 0;
            self.count_free();
        }
        Some((self.index as u32, self.used_bytes))
    }

    /// The entry that was placed last is durable.
    pub fn written(&mut self, bytes: u64, seq: JournalSeq, last_seq: JournalSeq) {
        self.used_bytes += bytes;
        self.newest[self.index] = Some(seq);
        self.needed_from = last_seq;
        self.count_free();
    }

    /// Entries that a start would replay.
    pub fn active(&self) -> u64 {
        let newest = self.newest.iter().flatten().max();
        newest.map_or(0, |newest| newest.0 + 1 - self.needed_from.0.min(newest.0 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry {
        set_magic: 1,
        bucket_sectors: 8,
        block_sectors: 1,
        buckets: 1024,
        first_bucket: 1,
        journal_buckets: 3,
    };

    /// The bucket that comes next used to be taken although the newest durable entry needed it,
    /// where the entry to be written did not: a power failure that tore this entry left a journal
    /// with a gap, and a set that did not start.
    #[test]
    fn bucket_of_the_newest_durable_entry_is_not_overwritten() {
        let newest = vec![Some(JournalSeq(16)), Some(JournalSeq(8)), Some(JournalSeq(12))];
        let full = GEOMETRY.bucket_bytes();
        let mut ring = Ring::after(0, full, newest, JournalSeq(5), &GEOMETRY);
        assert_eq!(ring.place(512), None);
        // An older start needs nothing of the next bucket.
        ring.needed_from = JournalSeq(9);
        assert_eq!(ring.place(512), Some((1, 0)));
    }

    /// The last block of the ring used to be taken by an entry that let nothing go: then no entry
    /// had a place any more, of this run or of any later one, and the set did not start again. Such
    /// an entry is refused, which fails the run and leaves a start the block that it needs.
    #[test]
    fn last_block_is_for_an_entry_that_lets_a_bucket_go() {
        let newest = vec![Some(JournalSeq(16)), Some(JournalSeq(8)), Some(JournalSeq(12))];
        let (last, before) = (GEOMETRY.bucket_bytes() - 512, GEOMETRY.bucket_bytes() - 1024);
        let ring = |used| Ring::after(0, used, newest.clone(), JournalSeq(5), &GEOMETRY);
        assert!(ring(before).leaves_a_block(512, JournalSeq(5)));
        assert!(!ring(before).leaves_a_block(1024, JournalSeq(5)));
        assert!(!ring(last).leaves_a_block(512, JournalSeq(8)));
        assert!(ring(last).leaves_a_block(512, JournalSeq(9)));
        // An entry that lets go what is in its own bucket lets no bucket go.
        let only = vec![Some(JournalSeq(16)), Some(JournalSeq(20)), Some(JournalSeq(20))];
        let ring = Ring::after(0, last, only, JournalSeq(10), &GEOMETRY);
        assert!(!ring.leaves_a_block(512, JournalSeq(17)));
    }

    #[test]
    fn reserved_records_have_room_for_their_entries() {
        for bucket_sectors in [8, 16, 128] {
            for block_sectors in [1, 8] {
                for (journal_buckets, used) in [(3, 0), (3, 1), (4, 1), (8, 1), (8, 5), (8, 7)] {
                    let geometry =
                        Geometry { bucket_sectors, block_sectors, journal_buckets, ..GEOMETRY };
                    let newest: Vec<_> = (0..journal_buckets)
                        .map(|at| (at < used).then_some(JournalSeq(1)))
                        .collect();
                    for bytes in
                        (0..=geometry.bucket_bytes()).step_by(geometry.block_bytes() as usize)
                    {
                        let ring = Ring::after(0, bytes, newest.clone(), JournalSeq(1), &geometry);
                        has_room_for_entries(&ring);
                    }
                }
            }
        }
    }

    fn has_room_for_entries(ring: &Ring) {
        let most = ring.entry_blocks_max * ring.block_bytes - JOURNAL_HEADER_BYTES;
        for records in (0..6 * most).step_by(8) {
            let (full, rest) = (records / most, records % most);
            let rest = (JOURNAL_HEADER_BYTES + rest).next_multiple_of(ring.block_bytes);
            let entries = full * ring.entry_blocks_max * ring.block_bytes + rest;
            assert_eq!(
                ring.has_space(records),
                ring.takes_records(entries),
                "{records} bytes, {ring:?}"
            );
        }
    }
}
