//! A run of the Linux driver, as far as ubcache can tell from what is on the disks afterwards
//! (docs/internals/interop.md).
//!
//! It takes the set, writes for clients of its own, and gives the set back. None of it takes time.
//! It leaves what the real one was seen to:
//!
//! * Its journal entries begin a new bucket of the ring, and alternate between two buffers, of
//!   which one holds the padding of an entry that it has read.
//! * A write past the cache may leave the old block in it as clean.
//! * Its prio chain may lag: what it writes to a bucket has the next generation, and nothing says
//!   so but the key.
//! * If it is killed, dirty keys stay that were written back and whose bucket was given away.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use ubcache_env::{Buf, Sector, SectorRange};
use ubcache_format::{
    BackingState, BucketNr, Generation, Geometry, JOURNAL_HEADER_BYTES, JournalEntry, Key, Padding,
    Pointer, PrioEntry, SUPERBLOCK_SECTOR, Superblock, crc64_we, encode_entry, encode_prio,
    parse_prio, scan_bucket,
};
use ubcache_offline::{EntryPlace, Owner, Source, View, VolumeMap, map_backed, walk};

use crate::disk::SimDisk;
use crate::plan::{CacheShape, DriverRun};
use crate::rng::Rng;
use crate::system::Setup;

/// Bytes of an entry in which the driver leaves older content: behind the keys of the volume table
/// and of the root.
const PADDING: [std::ops::Range<usize>; 2] = [64..104, 128..168];
/// Keys in an entry at most.
const KEYS_MAX: u64 = 3;

/// Runs the driver on the disks of a run. `write` is asked for what a client of the driver writes
/// to a range of a volume, and takes the write for done. Says what happened; nothing if the driver
/// can't have the set.
pub fn run(
    setup: &Setup,
    how: &DriverRun,
    rng: &mut Rng,
    write: &mut dyn FnMut(u32, SectorRange) -> Buf,
) -> Option<String> {
    std::iter::once(setup.cache()).chain(setup.backing.iter()).for_each(SimDisk::settle);
    if how.after_0_1 {
        unbind_marks(setup.cache())?;
    }
    let view = sound_set(setup.cache())?;
    let volumes = (0..).zip(setup.backing.iter()).filter_map(|(index, disk)| {
        let map = finish(map_backed(&view, &disk.snapshot(), false))
            .ok()
            .filter(|map| map.inode.is_some())?;
        Some(Attached { index, disk, map })
    });
    let volumes: Vec<Attached<'_>> = volumes.collect();
    let mut driver =
        Driver { setup, view: &view, volumes, rng, write, taken: Vec::new(), done: [0; 4] };
    driver.starts()?;
    let written = driver.journal(how)?;
    if how.killed {
        driver.give_dirty_bucket_away();
    }
    let [past, removed, dirty, stale] = driver.done;
    Some(format!(
        "{written} entries; {past} writes left a stale copy, {removed} none, {dirty} are dirty; \
         {stale} stale dirty keys"
    ))
}

/// A disk that stands still answers at once.
fn finish<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("nothing here waits"),
    }
}

/// The set, if the driver would take it.
fn sound_set(cache: &SimDisk) -> Option<View> {
    let view = finish(walk(&cache.snapshot(), &mut (), &()))?;
    let sound = view.superblock.sync() && view.complete && !view.journal.incomplete;
    (sound && view.journal.newest().is_some()).then_some(view)
}

fn bucket_of_ring(geometry: &Geometry, index: u32) -> SectorRange {
    SectorRange::new(
        geometry.bucket_start(geometry.journal_bucket(index)),
        u64::from(geometry.bucket_sectors),
    )
}

/// Rewrites all entries with the marks of early ubcache.
fn unbind_marks(cache: &SimDisk) -> Option<()> {
    let geometry = sound_set(cache)?.geometry;
    for index in 0..geometry.journal_buckets {
        let place = bucket_of_ring(&geometry, index);
        for (offset, entry) in scan_bucket(&geometry, &cache.peek(place)) {
            if let Padding::Bound(mark) = entry.padding {
                let entry = JournalEntry { padding: Padding::Unbound(mark), ..entry };
                cache.poke(place.start + u64::from(offset) / 512, &encode_entry(&geometry, &entry));
            }
        }
    }
    Some(())
}

/// Seconds from the last start to the run of the driver.
const LATER: u32 = 3600;

struct Attached<'a> {
    index: u32,
    disk: &'a SimDisk,
    map: VolumeMap,
}

struct Driver<'a> {
    setup: &'a Setup,
    view: &'a View,
    volumes: Vec<Attached<'a>>,
    rng: &'a mut Rng,
    write: &'a mut dyn FnMut(u32, SectorRange) -> Buf,
    /// Ranges of volumes that this run has changed, and buckets that it has used.
    taken: Vec<Taken>,
    /// Number of actions, by kind.
    done: [u32; 4],
}

#[derive(PartialEq)]
enum Taken {
    Range(u32, SectorRange),
    Bucket(BucketNr),
}

impl Driver<'_> {
    /// Writes the entries into the next bucket of the ring. Says how many.
    fn journal(&mut self, how: &DriverRun) -> Option<u32> {
        let (geometry, newest) = (self.view.geometry, self.view.journal.newest()?);
        let index = (newest.place.index + 1) % geometry.journal_buckets;
        let ring = &self.view.journal.places;
        if ring.get(index as usize)?.iter().any(|entry| entry.seq >= newest.place.last_seq) {
            return None;
        }
        // An entry that it has read.
        let all: Vec<EntryPlace> = ring.iter().flatten().copied().collect();
        let read = if self.rng.chance(1, 2) { newest.place } else { self.rng.pick(&all) };
        let at = bucket_of_ring(&geometry, read.index).start + u64::from(read.offset) / 512;
        let read = self.setup.cache().peek(SectorRange::new(at, 1));
        let bucket = bucket_of_ring(&geometry, index);
        let (mut seq, mut at, mut written) = (newest.entry.seq, bucket.start, 0);
        // With so few keys an entry takes one block.
        while written < how.entries && at + u64::from(geometry.block_sectors) <= bucket.end {
            seq = seq.next();
            let keys =
                (0..self.rng.below(KEYS_MAX + 1)).filter_map(|_| self.client_writes()).collect();
            let entry = JournalEntry { seq, keys, padding: Padding::NONE, ..newest.entry.clone() };
            let mut bytes = encode_entry(&geometry, &entry);
            if (written % 2 == 0) == how.read_buffer_first {
                for range in PADDING {
                    bytes[range.clone()].copy_from_slice(&read[range]);
                }
                let words: usize = entry.keys.iter().map(Key::words).sum();
                let csum = crc64_we(&bytes[8..JOURNAL_HEADER_BYTES as usize + 8 * words]);
                bytes[..8].copy_from_slice(&csum.to_le_bytes());
            }
            self.setup.cache().poke(at, &bytes);
            at += bytes.len() as u64 / 512;
            written += 1;
        }
        Some(written)
    }

    /// A client writes; the key that is journaled, if any.
    fn client_writes(&mut self) -> Option<Key> {
        if self.volumes.is_empty() {
            return None;
        }
        let volume = self.rng.below(self.volumes.len() as u64) as usize;
        match self.rng.below(4) {
            0 | 1 => self.past_a_copy_that_stays(volume),
            2 => self.past_the_cache(volume),
            _ => self.writeback(volume),
        }
    }

    /// The range has not been written by this run.
    fn takes(&mut self, volume: usize, range: SectorRange) -> bool {
        let index = self.volumes[volume].index;
        let is_new = self.taken.iter().all(|taken| match taken {
            Taken::Range(other, former) => *other != index || !former.overlaps(&range),
            Taken::Bucket(_) => true,
        });
        if is_new {
            self.taken.push(Taken::Range(index, range));
        }
        is_new
    }

    fn write_backing(&mut self, volume: usize, range: SectorRange) {
        let Attached { index, disk, map } = &self.volumes[volume];
        let data = (self.write)(*index, range);
        disk.poke(map.data_offset + range.start.0, data.as_slice());
    }

    /// A write past the cache that a read has crossed.
    fn past_a_copy_that_stays(&mut self, volume: usize) -> Option<Key> {
        let segments = self.volumes[volume].map.segments.iter();
        let clean: Vec<SectorRange> = segments
            .filter(|it| matches!(it.source, Source::Clean(_)))
            .map(|it| it.range)
            .collect();
        if clean.is_empty() {
            return None;
        }
        let range = self.rng.pick(&clean);
        if self.takes(volume, range) {
            self.write_backing(volume, range);
            self.done[0] += 1;
        }
        None
    }

    /// A write past the cache that takes the keys of its range away.
    fn past_the_cache(&mut self, volume: usize) -> Option<Key> {
        let range = self.any_range(volume);
        let map = &self.volumes[volume].map;
        let dirty = map.dirty().any(|(dirty, _)| dirty.overlaps(&range));
        if dirty || !self.takes(volume, range) {
            return None;
        }
        self.write_backing(volume, range);
        self.done[1] += 1;
        Some(Key::hole(self.inode(volume), self.key_range(volume, range)))
    }

    /// A write in mode writeback.
    fn writeback(&mut self, volume: usize) -> Option<Key> {
        let geometry = self.view.geometry;
        let range = self.any_range(volume);
        let free = self.bucket(|owner| owner == Owner::Free)?;
        if !self.takes(volume, range) {
            return None;
        }
        self.taken.push(Taken::Bucket(free));
        let pointer = Pointer {
            device: 0,
            offset: geometry.bucket_start(free),
            generation: self.next_generation(free),
        };
        let Attached { index, disk, .. } = &self.volumes[volume];
        let data = (self.write)(*index, range);
        self.setup.cache().poke(pointer.offset, data.as_slice());
        let mut superblock =
            Superblock::parse(&disk.peek(SectorRange::new(SUPERBLOCK_SECTOR, 8))).ok()?;
        superblock.set_state(BackingState::Dirty);
        // Whenever it writes one, it has the time of this registration.
        superblock.last_mount = self.view.superblock.last_mount.wrapping_add(LATER);
        disk.poke(SUPERBLOCK_SECTOR, &superblock.encode());
        self.done[2] += 1;
        Some(Key::extent(self.inode(volume), self.key_range(volume, range), true, pointer))
    }

    /// Every start of the driver counts in the superblock of the cache, and keeps what it does not
    /// know.
    fn starts(&self) -> Option<()> {
        let cache = self.setup.cache();
        let mut superblock =
            Superblock::parse(&cache.peek(SectorRange::new(SUPERBLOCK_SECTOR, 8))).ok()?;
        superblock.seq += 1;
        superblock.last_mount = superblock.last_mount.wrapping_add(LATER);
        cache.poke(SUPERBLOCK_SECTOR, &superblock.encode());
        Some(())
    }

    /// Writes dirty data back, and gives its bucket away in the prio chain; the keys stay.
    fn give_dirty_bucket_away(&mut self) {
        let geometry = self.view.geometry;
        let Some(bucket) = self.bucket(|owner| owner == Owner::Dirty) else { return };
        let mut stale = Vec::new();
        for extent in &self.view.extents {
            let Some(pointer) = self.view.live(extent) else { continue };
            if pointer.bucket(geometry.bucket_sectors) != bucket {
                continue;
            }
            let inode = extent.inode();
            let volume = self.volumes.iter().position(|volume| volume.map.inode == Some(inode));
            let Some(volume) = volume.filter(|_| extent.is_dirty()) else { return };
            stale.push((volume, extent.range(), pointer.offset));
        }
        if !self.raise_generation(bucket) {
            return;
        }
        for (volume, keys, at) in stale {
            let Attached { disk, map, .. } = &self.volumes[volume];
            disk.poke(keys.start, &self.setup.cache().peek(SectorRange::new(at, keys.sectors())));
            let all = SectorRange::new(map.data_offset, map.sectors);
            let range = SectorRange::from_bounds(
                Sector(keys.start.0 - all.start.0),
                Sector(keys.end.0.min(all.end.0) - all.start.0),
            );
            self.done[3] += 1;
            if self.rng.chance(1, 2) && self.takes(volume, range) {
                self.write_backing(volume, range);
            }
        }
    }

    /// Gives the bucket the next generation, in the chain as it stands.
    fn raise_generation(&self, bucket: BucketNr) -> bool {
        let (geometry, cache) = (self.view.geometry, self.setup.cache());
        let each = geometry.prio_entries_per_bucket();
        let Some(newest) = self.view.journal.newest() else { return false };
        let mut at = newest.entry.prio_bucket;
        for _ in 0..bucket.0 / each {
            let place =
                SectorRange::new(geometry.bucket_start(at), u64::from(geometry.bucket_sectors));
            let Ok((_, next, _)) = parse_prio(&geometry, &cache.peek(place)) else { return false };
            at = next;
        }
        let place = SectorRange::new(geometry.bucket_start(at), u64::from(geometry.bucket_sectors));
        let Ok((seq, next, mut entries)) = parse_prio(&geometry, &cache.peek(place)) else {
            return false;
        };
        let entry: &mut PrioEntry = &mut entries[(bucket.0 % each) as usize];
        entry.generation = self.next_generation(bucket);
        cache.poke(place.start, &encode_prio(&geometry, seq, next, &entries));
        true
    }

    /// In a world with fewer generations than the format has, they rise by more than one.
    fn next_generation(&self, bucket: BucketNr) -> Generation {
        let step = CacheShape::ALL_GENERATIONS / self.setup.plan.cache.generations;
        self.view.buckets[bucket.0 as usize].generation.raised(step as u8)
    }

    /// A bucket that nothing of this run is in.
    fn bucket(&mut self, wanted: impl Fn(Owner) -> bool) -> Option<BucketNr> {
        let buckets = (0..).zip(&self.view.buckets).skip(self.view.geometry.first_bucket as usize);
        let found: Vec<BucketNr> = buckets
            .filter(|(_, bucket)| wanted(bucket.owner))
            .map(|(number, _)| BucketNr(number))
            .filter(|number| !self.taken.contains(&Taken::Bucket(*number)))
            .collect();
        (!found.is_empty()).then(|| self.rng.pick(&found))
    }

    /// Whole blocks of the volume, no more than a bucket has.
    fn any_range(&mut self, volume: usize) -> SectorRange {
        let Attached { index, map, .. } = &self.volumes[volume];
        let block = self.setup.plan.block_sectors(*index as usize);
        let most = u64::from(self.view.geometry.bucket_sectors) / block;
        let start = self.rng.below(map.sectors / block) * block;
        let sectors = self.rng.between(1, most) * block;
        SectorRange::from_bounds(Sector(start), Sector((start + sectors).min(map.sectors)))
    }

    fn inode(&self, volume: usize) -> ubcache_format::Inode {
        self.volumes[volume].map.inode.expect("only volumes that have a slot")
    }

    fn key_range(&self, volume: usize, range: SectorRange) -> SectorRange {
        SectorRange::new(self.volumes[volume].map.data_offset + range.start.0, range.sectors())
    }
}
