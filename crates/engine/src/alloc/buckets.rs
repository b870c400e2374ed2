//! The state of every bucket, in memory only: prio chain and index are durable.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use ubcache_env::{SectorRange, Work};
use ubcache_format::{BucketNr, Generation, Geometry, Inode, Pointer, PrioEntry, Reach};

use super::block_reuse::Reuse;
use super::bucket_pins::Pins;
use super::change_signal::ChangeSignal;
use super::pace::Evacuation;
use super::recency::Recency;
use super::space_below::Space;
use crate::replacement::data_class::{CLASSES, Class};
use crate::replacement::policy::Policy;
use crate::replacement::recent_fills::RecentFills;
use crate::rules::{Rule, Rules};
use crate::settings::ReplacementPolicy;
use crate::tuning::Generations;

/// Priority of metadata, and of a bucket that stays free until the next prio chain.
pub(crate) const PRIORITY_METADATA: u16 = 65535;
pub(super) const PRIORITY_RESTART: u16 = 0;

/// Use of a bucket.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Not known yet: the index has not been counted in full.
    Unknown,
    /// Free, and its generation is durable: can be written at once.
    Free,
    /// Free, and kept free until the next prio chain, so that a restart has room at once.
    Restart,
    /// Superblock, journal, prio chain, volume table or index node.
    Metadata,
    /// Data is being put into it.
    Open,
    /// Data, no room left.
    Data,
    /// Data of which nothing is live any more.
    Dead,
    /// Given up: its generation was raised and is not durable yet (J2).
    Pending,
    /// Given up durably; the device is told before it is free.
    Discarding,
    /// Would be free, but the device has no room for what is written there.
    Aside,
    /// Beyond the end of a cache that becomes smaller: nothing is in it, and nothing will be (A12).
    Evacuated,
}

/// Purpose of an allocation; later ones may use more of the reserve.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Purpose {
    /// Data of clients.
    Data,
    /// Data moved by garbage collection, which frees more than it takes.
    Move,
    /// Index nodes, when nothing is urgent.
    Restructure,
    /// Index nodes whose writing gives the journal room, and the volume table.
    Metadata,
    /// The prio chain, without which nothing becomes free.
    Prio,
}

#[derive(Debug)]
pub(crate) struct Buckets {
    pub(super) geometry: Geometry,
    /// Buckets from here on are not given out any more: the cache becomes smaller (A12).
    pub(super) end: u32,
    pub(super) evacuated: u32,
    pub(super) evacuation: Evacuation,
    pub(super) tuning: Generations,
    /// Distance that a pointer found on the device may be ahead of its bucket.
    pub(super) reach: Reach,
    pub(super) generations: Vec<Generation>,
    pub(super) durable: Vec<Generation>,
    /// Generations of the first buckets in the prio chain that is being written.
    pub(super) written: Vec<Generation>,
    /// A lower bound for the generations of all pointers to the bucket in the index.
    pub(super) oldest: Vec<Generation>,
    /// `oldest` before the last pass of garbage collection, kept to reuse its memory.
    pub(super) former_oldest: Vec<Generation>,
    pub(super) live: Vec<u32>,
    pub(super) dirty: Vec<u32>,
    pub(super) role: Vec<Role>,
    pub(super) recency: Recency,
    /// Free, and not known to have room below the device.
    pub(super) free: VecDeque<BucketNr>,
    pub(super) free_with_space: VecDeque<BucketNr>,
    pub(super) space: Space,
    pub(super) dead: VecDeque<BucketNr>,
    pub(super) pending: VecDeque<BucketNr>,
    /// Given up durably, to be discarded.
    pub(super) discarding: Vec<BucketNr>,
    /// Buckets are discarded before they are used again.
    pub(super) discard: bool,
    /// Given up, generation durable, but a pointer in the index is so old that one more generation
    /// could make it look live: they wait for garbage collection. Before all leaves are counted:
    /// given up, and nothing is known of the pointers into them.
    pub(super) held: Vec<BucketNr>,
    /// Times in a row that a bucket has been held: shows when passes do not help (G2).
    pub(super) holds: BTreeMap<BucketNr, u32>,
    pub(super) restart: Vec<BucketNr>,
    /// Buckets that the chain on the device promises to the next start, while it is not known
    /// whether to believe it.
    pub(super) promised: Vec<BucketNr>,
    pub(super) victims: Policy,
    pub(super) reuse: Reuse,
    fills: RecentFills,
    /// Logarithm of the sectors in a bucket, which are mostly a power of two.
    bucket_shift: Option<u32>,
    /// See [`Buckets::watermarks`].
    pub(super) watermarks: (usize, usize),
    pub(super) unknown: u32,
    /// A test aid: see [`CacheSet::take_last_first`](crate::CacheSet::take_last_first).
    pub(super) last_first: bool,
    /// Every extent of the index is in the counts.
    pub(super) seen: bool,
    /// And every bucket has its place.
    pub(super) counted: bool,
    pub(super) pins: Rc<Pins>,
    /// The allocator waits for this.
    pub(super) signal: Rc<ChangeSignal>,
    /// A newer pointer into a bucket was found after it was counted, so the counts are void.
    pub(super) recount: bool,
    /// Pointers on the device that seem to be ahead, and are behind by more than half of the circle
    /// (G6).
    pub(super) outrun: u64,
    /// Buckets that nodes are waiting for: data leaves them as well (N4).
    pub(super) for_nodes: usize,
    /// Buckets that have become free since the start.
    pub(super) freed: u64,
    /// A bucket could not be taken because of old pointers into it: garbage collection is due.
    pub(super) aged: bool,
    pub(crate) rules: Rules,
    pub(super) work: Work,
}

impl Buckets {
    /// Nothing is known: [`Buckets::learn`] has to tell what the prio chain says of every bucket.
    pub fn new(geometry: Geometry, tuning: Generations, rules: Rules, work: Work) -> Buckets {
        let n = geometry.buckets as usize;
        let signal = Rc::new(ChangeSignal::default());
        let mut buckets = Buckets {
            geometry,
            end: geometry.buckets,
            evacuated: 0,
            evacuation: Evacuation::default(),
            tuning,
            reach: Reach::FORMAT,
            generations: Vec::with_capacity(n),
            durable: Vec::with_capacity(n),
            written: Vec::new(),
            oldest: Vec::with_capacity(n),
            former_oldest: Vec::new(),
            live: Vec::with_capacity(n),
            dirty: Vec::with_capacity(n),
            role: Vec::with_capacity(n),
            recency: Recency::new(&geometry),
            // At first it takes all of them, and to grow would be to move them.
            free: VecDeque::with_capacity(n),
            free_with_space: VecDeque::new(),
            space: Space::new(geometry.buckets),
            dead: VecDeque::new(),
            pending: VecDeque::new(),
            discarding: Vec::new(),
            discard: false,
            held: Vec::new(),
            holds: BTreeMap::new(),
            restart: Vec::new(),
            promised: Vec::new(),
            victims: Policy::new(geometry.buckets, ReplacementPolicy::Fifo),
            reuse: Reuse::default(),
            fills: RecentFills::default(),
            bucket_shift: geometry
                .bucket_sectors
                .is_power_of_two()
                .then(|| geometry.bucket_sectors.ilog2()),
            watermarks: (0, 0),
            unknown: 0,
            last_first: false,
            seen: false,
            counted: false,
            pins: Pins::new(geometry.buckets, signal.clone(), rules),
            signal,
            recount: false,
            outrun: 0,
            for_nodes: 0,
            freed: 0,
            aged: false,
            rules,
            work,
        };
        buckets.watermarks = buckets.watermarks_of(geometry.buckets);
        buckets
    }

    /// Buckets that are given up are to be discarded, or not any more.
    pub fn set_discard(&mut self, is_on: bool) {
        self.discard = is_on;
    }

    /// Takes over the next buckets of a prio chain: unknown, except superblock and journal.
    pub fn learn(&mut self, entries: &[PrioEntry]) {
        let metadata = self.geometry.first_bucket + self.geometry.journal_buckets;
        for entry in entries {
            let bucket = BucketNr(self.role.len() as u32);
            for generations in [&mut self.generations, &mut self.durable, &mut self.oldest] {
                generations.push(entry.generation);
            }
            // Counting a leaf goes all over these: the system's work for memory that is used for
            // the first time, a microsecond for each bucket then, is done here, in slices.
            self.live.push(0);
            self.dirty.push(0);
            self.recency.learn(entry.priority);
            self.role.push(if bucket.0 < metadata { Role::Metadata } else { Role::Unknown });
            self.unknown += u32::from(bucket.0 >= metadata);
            if entry.priority == PRIORITY_RESTART {
                self.promised.push(bucket);
            }
        }
        self.victims.grow(self.role.len() as u32);
    }

    /// Tells a replacement policy that wants to know of the next buckets, in so many steps; says
    /// whether it knows all.
    pub fn learn_policy(&mut self, steps: usize) -> bool {
        let (recency, buckets) = (&self.recency, u64::from(self.geometry.buckets));
        self.work.add(steps.min(buckets as usize));
        // A tick is a 1024th of the cache.
        self.victims.learn(steps, |bucket| (u64::from(recency.age(bucket)) * buckets / 1024) as u32)
    }

    /// Most times in a row that a bucket has been held because each pass left an old pointer into
    /// it.
    pub fn longest_hold(&self) -> u32 {
        self.holds.values().copied().max().unwrap_or(0)
    }

    pub fn pins(&self) -> &Rc<Pins> {
        &self.pins
    }
    pub fn role(&self, bucket: BucketNr) -> Role {
        self.role[bucket.0 as usize]
    }
    /// Number of buckets, those of superblock and journal included.
    pub fn len(&self) -> usize {
        self.role.len()
    }
    pub fn bucket_sectors(&self) -> u32 {
        self.geometry.bucket_sectors
    }
    /// Ticks since the bucket was last used: see [`Recency`].
    pub fn age(&self, bucket: BucketNr) -> u32 {
        self.recency.age(bucket)
    }
    pub fn generation(&self, bucket: BucketNr) -> Generation {
        self.generations[bucket.0 as usize]
    }
    pub fn live(&self, bucket: BucketNr) -> u32 {
        self.live[bucket.0 as usize]
    }
    pub fn dirty(&self, bucket: BucketNr) -> u32 {
        self.dirty[bucket.0 as usize]
    }
    /// Changes the replacement policy; [`Buckets::learn_policy`] has to be called until it knows
    /// all.
    pub fn set_policy(&mut self, policy: ReplacementPolicy) {
        let (on, geometry) = (policy.learns(), &self.geometry);
        if on != self.reuse.is_on() {
            self.reuse = if on { Reuse::new(geometry) } else { Reuse::default() };
        }
        let on = policy.has_two_queues();
        if on != self.fills.is_on() {
            self.fills = if on { RecentFills::new(geometry) } else { RecentFills::default() };
        }
        self.victims.set_policy(policy);
    }
    /// The policy that chooses now: with adaptive one of the others.
    pub fn leading_policy(&self) -> ReplacementPolicy {
        self.victims.leader()
    }
    /// Returns true if data that is used again has buckets of its own.
    pub fn protects(&self) -> bool {
        self.victims.protects()
    }
    /// Class of the range that a client reads into the cache: of its own, if the policy protects
    /// it.
    pub fn class_of_fill(&mut self, inode: Inode, range: SectorRange) -> Class {
        match self.protects() {
            false => Class::Clean,
            true if self.fills.note(inode, range) => Class::FilledAgain,
            true => Class::Filled,
        }
    }
    pub fn free_len(&self) -> usize {
        self.free.len() + self.free_with_space.len()
    }
    pub fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// The bucket that it points into. Asked several times for each request, and a division takes
    /// its time.
    #[inline]
    pub fn bucket_of(&self, pointer: Pointer) -> BucketNr {
        match self.bucket_shift {
            Some(shift) => BucketNr(u32::try_from(pointer.offset.0 >> shift).unwrap_or(u32::MAX)),
            None => pointer.bucket(self.geometry.bucket_sectors),
        }
    }

    pub(super) fn set_role(&mut self, bucket: BucketNr, role: Role) {
        let old = std::mem::replace(&mut self.role[bucket.0 as usize], role);
        self.unknown -= u32::from(old == Role::Unknown);
        self.evacuated += u32::from(role == Role::Evacuated);
        self.evacuated -= u32::from(old == Role::Evacuated);
        if old == Role::Data && role != Role::Data {
            self.victims.remove(bucket);
        }
    }

    /// Puts a data bucket where it belongs: among the victims, among the dead, or nowhere.
    pub(super) fn settle(&mut self, bucket: BucketNr) {
        let index = bucket.0 as usize;
        if self.role[index] == Role::Dead && self.live[index] > 0 {
            // The count was not complete yet when it seemed dead.
            self.dead.retain(|&other| other != bucket);
            self.set_role(bucket, Role::Data);
        }
        if self.role[index] != Role::Data {
            return;
        }
        let all_seen = self.seen || !self.rules.keeps(Rule::E1CountedFirst);
        let may_go = self.dirty[index] == 0 || !self.rules.keeps(Rule::E1CleanOnly);
        if self.live[index] == 0 && all_seen {
            if !self.pins.is_pinned(bucket) {
                self.set_role(bucket, Role::Dead);
                self.dead.push_back(bucket);
                self.signal.found_bucket();
            }
        } else if may_go {
            self.victims.insert(bucket);
            self.signal.found_bucket();
        } else {
            self.victims.remove(bucket);
        }
    }

    /// Looks again at up to so many buckets that lost their last pin; says at how many.
    pub fn settle_released(&mut self, most: usize) -> usize {
        let mut settled = 0;
        while settled < most
            && let Some(bucket) = self.pins.take_released()
        {
            self.settle(bucket);
            settled += 1;
        }
        self.work.add(settled);
        settled
    }

    /// So many sectors were read there for a client.
    pub fn touch(&mut self, pointer: Pointer, sectors: u64) {
        let bucket = self.bucket_of(pointer);
        self.recency.note(bucket, sectors);
        self.victims.touch(bucket, sectors);
        self.reuse.note(pointer.offset, sectors);
    }

    pub fn set_metadata(&mut self, bucket: BucketNr) {
        self.set_role(bucket, Role::Metadata);
    }

    pub(super) fn set_free(&mut self, bucket: BucketNr) {
        if self.evacuates(bucket) || self.puts_aside(bucket) {
            return;
        }
        self.freed += 1;
        self.set_role(bucket, Role::Free);
        if self.has_space(bucket) { &mut self.free_with_space } else { &mut self.free }
            .push_back(bucket);
        if self.room_missing() > 0 {
            self.signal.give();
        }
    }

    /// Nothing live is in the bucket. Returns true if it waits because of a pointer of which the
    /// last run knew as well (G4).
    pub(super) fn give_up_unknown(&mut self, bucket: BucketNr) -> bool {
        let index = bucket.0 as usize;
        let aged = self.is_aged(bucket) && self.rules.keeps(Rule::G4AgedAtStartWaits);
        if self.generations[index] == self.durable[index] && !aged {
            self.set_free(bucket);
        } else {
            // G5: as when it was given up.
            self.set_role(bucket, Role::Pending);
            self.pending.push_back(bucket);
            self.signal.found_bucket();
        }
        aged
    }

    /// Returns true if `count` buckets could be had for the purpose now.
    pub fn can_take(&self, purpose: Purpose, count: usize) -> bool {
        // N4: data leaves the buckets that nodes wait for.
        let nodes = if purpose <= Purpose::Move { self.for_nodes } else { 0 };
        self.free_len() >= self.reserve(purpose) + nodes + count
    }

    /// Number of buckets that have become free since the start: what is known to be in vain stays
    /// in vain while it is the same.
    pub fn freed(&self) -> u64 {
        self.freed
    }

    /// Takes a free bucket for data of a class.
    pub fn take_for_data(&mut self, purpose: Purpose, class: usize) -> Option<BucketNr> {
        let bucket = self.take(purpose)?;
        self.victims.fill(bucket, class);
        self.reuse.forget_bucket(bucket);
        Some(bucket)
    }

    /// Takes a free bucket.
    pub fn take(&mut self, purpose: Purpose) -> Option<BucketNr> {
        if !self.can_take(purpose, 1) {
            return None;
        }
        // The reserve that data leaves is what has room.
        let (first, second) = match purpose {
            // Promised buckets have room, and are at the front of it.
            #[cfg(feature = "mutants")]
            Purpose::Data if !self.rules.keeps(Rule::V2PromiseTakenBack) => {
                (&mut self.free_with_space, &mut self.free)
            }
            Purpose::Data | Purpose::Move => (&mut self.free, &mut self.free_with_space),
            _ => (&mut self.free_with_space, &mut self.free),
        };
        let bucket = match self.last_first {
            false => first.pop_front().or_else(|| second.pop_front())?,
            true => first.pop_back().or_else(|| second.pop_back())?,
        };
        assert_eq!(self.role(bucket), Role::Free, "a free bucket is free");
        assert_eq!(self.live(bucket), 0, "nothing live is in a free bucket");
        assert!(!self.pins.is_pinned(bucket), "nobody reads a free bucket");
        if self.free_len() < self.watermarks.0 || self.room_missing() > 0 {
            self.signal.give();
        }
        if purpose <= Purpose::Move {
            self.set_role(bucket, Role::Open);
            // It will be written in full.
            self.recency.note(bucket, u64::from(self.geometry.bucket_sectors));
        } else {
            self.set_role(bucket, Role::Metadata);
        }
        Some(bucket)
    }

    /// No more data goes into an open bucket.
    pub fn close(&mut self, bucket: BucketNr) {
        assert_eq!(self.role(bucket), Role::Open, "only an open bucket is closed");
        self.set_role(bucket, Role::Data);
        self.settle(bucket);
    }

    /// See [`CacheSet::pretend_full`](crate::CacheSet::pretend_full): fills up to so many buckets,
    /// each third of which is used again.
    pub fn pretend_full(&mut self, count: usize) {
        for _ in 0..count {
            let Some(bucket) = self.take_for_data(Purpose::Data, self.free_len() % CLASSES) else {
                return;
            };
            let (offset, generation) =
                (self.geometry.bucket_start(bucket), self.generation(bucket));
            let pointer = Pointer { device: 0, offset, generation };
            self.add_live(pointer, u64::from(self.geometry.bucket_sectors), false);
            self.close(bucket);
            if bucket.0.is_multiple_of(3) {
                self.touch(pointer, 8);
            }
        }
    }
}
