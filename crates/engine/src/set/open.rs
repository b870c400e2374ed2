//! Starting a set.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ubcache_env::local::{Lock, Notify};
use ubcache_env::{Env, Priority};
use ubcache_format::{
    Drops, Geometry, JournalEntry, JournalSeq, LastRun, Reach, ReplayRange, Stamp, Superblock,
    UuidEntry, parse_uuids,
};

use super::former_owner::FormerRun;
use super::initialize::first_run;
use super::run_numbers::check_run;
use super::{CacheSet, Replayed, Set, SetOptions};
use crate::alloc::allocator::Allocator;
use crate::alloc::bucket_pins::Pin;
use crate::alloc::buckets::Buckets;
use crate::alloc::prio_chain_io::{Chain, read_chain};
use crate::context::Context;
use crate::counted_device::CountedDevice;
use crate::errors::EngineError;
use crate::events::SetEvent;
use crate::gc::Gc;
use crate::index::Index;
use crate::index::extent::LAST;
use crate::journal::kept::{Kept, KeptOutcome, KeptState, give_up};
use crate::journal::kept_log::Waiting;
use crate::journal::pins::EntryPins;
use crate::journal::read::{Found, read_journal, ring_after};
use crate::journal::ring::Ring;
use crate::journal::{Header, Journal};
use crate::rules::{Rule, Rules};
use crate::settings::ReplacementPolicy;
use crate::superblock::read_superblock;
use crate::time_slices::in_slices;
use crate::volume_table::VolumeTable;

/// The greatest number of an entry with which a set starts: no set comes near it, and there are
/// enough after it.
const SEQ_MAX: u64 = u64::MAX >> 1;

impl<E: Env> CacheSet<E> {
    /// Starts the set on a cache device: makes it if the device is only formatted, else replays
    /// the journal. Returns when I/O can be served; counting buckets may go on afterwards.
    pub async fn open(
        env: E,
        cache: E::Device,
        options: SetOptions,
    ) -> Result<CacheSet<E>, EngineError> {
        let cache = CountedDevice::of_cache(env.clone(), cache, options.rules);
        let mut superblock = read_superblock(&cache).await?;
        if !superblock.is_cache() {
            return Err(EngineError::WrongKind { found: "backing", expected: "cache" });
        }
        // V1: what the last instance wrote may sit in a volatile cache still, and is about to be
        // taken for durable.
        if options.rules.keeps(Rule::V1FlushAtOpen) {
            let flushed = cache.flush().await;
            if let (Err(_), Some(kept)) = (&flushed, &options.kept) {
                give_up(&**kept);
            }
            flushed.map_err(EngineError::io("flushing the cache device"))?;
        }
        if !superblock.sync() {
            env.mark("first_run");
            first_run(&env, &cache, &mut superblock, options.tuning.slice_steps).await?;
        }
        let geometry = superblock.geometry();
        let mut found = read_journal(&env, &cache, &geometry, &superblock).await?;
        if found.torn_tail {
            env.mark("torn_journal_tail");
        }
        let newest = found.range.newest().expect("a replay range has an entry").clone();
        check_entry(&newest)?;
        let mut buckets =
            Buckets::new(geometry, options.tuning.generations, options.rules, env.work());
        let steps = options.tuning.slice_steps;
        let chain = read_chain(&env, &cache, &mut buckets, steps, newest.prio_bucket).await?;
        let uuids = read_uuids(&cache, &geometry, &newest).await?;
        for backing in &options.expected {
            let slot = uuids.iter().position(|entry| entry.uuid == backing.uuid);
            if options.rules.keeps(Rule::A5OneRun) {
                check_run(&superblock, slot, backing)?;
            }
        }
        let former = stamp_of_former_run(&found, options.rules);
        #[cfg(feature = "mutants")]
        let former = crate::mutants::stamp_of_any_entry(&newest, options.rules).unwrap_or(former);
        let lazy = options.tuning.lazy_start && former.own_chain && former.drops.is_none();
        let keep_clean = options.keep_clean || !options.rules.keeps(Rule::H2DropsClean);
        let ring = ring_after(&found, &geometry);
        let memory = options.kept.clone();
        let kept = memory.map(|memory| {
            Kept::open(&env, memory, &found, &geometry, (superblock.seq, options.rules))
        });
        let (kept, kept_state, waiting) = match kept {
            Some((kept, state, waiting)) => (Some(kept), Some(state), waiting),
            None => (None, None, Waiting::new()),
        };
        found.add_entries(&waiting);
        let range = &found.range;
        let set = assemble(
            env,
            cache,
            superblock,
            options,
            (ring, (kept, waiting)),
            (&newest, former),
            (buckets, chain),
            uuids,
        );
        set.kept_state.set(kept_state);
        set.takes_calls();
        set.learn_policy().await;
        set.index.read_tree(&newest).await?;
        set.keep_promised().await;
        let pins = set.index.check_replay(range).await?;
        set.start(range, pins, lazy).await?;
        if let Some(drops) = former.drops {
            let former = match (found.last_run, drops) {
                (LastRun::Unknown(_), _) => FormerRun::Unknown,
                (_, Drops::Driver) => FormerRun::Driver,
                (_, Drops::Tool) => FormerRun::Tool,
            };
            set.take_over(former, keep_clean).await?;
        }
        Ok(CacheSet { set })
    }
}

/// Stamp of the run before this one. Only the stamp of ubcache's own entry says anything of the
/// set; of a run that may have been the driver's the policy stays, on which no data depends.
fn stamp_of_former_run(found: &Found, rules: Rules) -> Stamp {
    match found.last_run {
        LastRun::Ubcache(stamp) => stamp,
        LastRun::Unknown(stamp) if !rules.keeps(Rule::H1TwoStamps) => stamp,
        other => {
            Stamp { own_chain: false, drops: Some(Drops::Driver), own_policy: other.own_policy() }
        }
    }
}

/// Checks that the statements of the newest entry are possible, whatever its checksum.
fn check_entry(newest: &JournalEntry) -> Result<(), EngineError> {
    let damaged = |detail| Err(EngineError::Damaged { what: "journal entry", detail });
    if newest.root.position() != LAST {
        let (inode, end) = newest.root.position();
        return damaged(format!("its root ends at {inode}:{end}, expected the end of all keys"));
    }
    if newest.seq.0 > SEQ_MAX {
        return damaged(format!("its number is {}, expected at most {SEQ_MAX}", newest.seq));
    }
    Ok(())
}

async fn read_uuids<E: Env>(
    device: &CountedDevice<E>,
    geometry: &Geometry,
    newest: &JournalEntry,
) -> Result<Vec<UuidEntry>, EngineError> {
    const WHAT: &str = "volume table";
    let key = &newest.uuid_bucket;
    key.check_node(geometry).map_err(EngineError::format(WHAT, ubcache_env::Sector(0)))?;
    let pointer = key.pointer().expect("checked: it has a pointer");
    let buf = device
        .read(pointer.offset, u64::from(key.sectors))
        .await
        .map_err(EngineError::io("reading the volume table"))?;
    Ok(parse_uuids(buf.as_slice()))
}

#[expect(clippy::too_many_arguments, reason = "the parts of a set, each read on its own")]
fn assemble<E: Env>(
    env: E,
    cache: CountedDevice<E>,
    superblock: Superblock,
    options: SetOptions,
    ((ring, next), kept): ((Ring, JournalSeq), (Option<Kept>, Waiting)),
    (newest, stamp): (&JournalEntry, Stamp),
    (mut buckets, chain): (Buckets, Chain),
    uuids: Vec<UuidEntry>,
) -> Rc<Set<E>> {
    let geometry = superblock.geometry();
    let mut settings = options.settings;
    let policy = ReplacementPolicy::from_stored(superblock.replacement(), stamp.own_policy);
    settings.cache_replacement_policy = policy;
    settings.discard = superblock.discard();
    buckets.set_policy(policy);
    // A generation of the tuning is several of the format's.
    let chains = chain.seq.saturating_mul(options.tuning.generations.step.into());
    buckets.set_reach(Reach::of_set(stamp.own_chain, chains));
    buckets.set_discard(superblock.discard());
    chain.buckets.iter().for_each(|&bucket| buckets.set_metadata(bucket));
    let header = Header {
        uuid_bucket: newest.uuid_bucket.clone(),
        root: newest.root.clone(),
        root_level: newest.root_level,
        prio_bucket: newest.prio_bucket,
        stamp,
    };
    let context = Context::new(env, cache, geometry, settings, options.tuning, options.rules);
    context.switch_policy_duel();
    let pins = Rc::new(EntryPins::default());
    let journal = Rc::new(Journal::new(context.clone(), pins.clone(), header, ring, next, kept));
    let allocator = Allocator::new(context.clone(), journal.clone(), buckets, chain);
    let allocator = Rc::new(allocator);
    let index = Index::new(context.clone(), journal.clone(), allocator.clone(), pins);
    let index = Rc::new(index);
    let table = VolumeTable::new(context.clone(), journal.clone(), allocator.clone(), uuids);
    let table = Rc::new(table);
    let gc =
        Gc::new(context.clone(), journal.clone(), allocator.clone(), index.clone(), table.clone());
    Rc::new(Set {
        context,
        superblock: RefCell::new(superblock),
        superblock_lock: Lock::default(),
        journal,
        allocator,
        index,
        table,
        attach_lock: Lock::default(),
        volumes: RefCell::default(),
        flash: RefCell::default(),
        detached: RefCell::default(),
        congestion: Rc::default(),
        gc: Rc::new(gc),
        saved_superblock: RefCell::default(),
        saving: Cell::new(false),
        mark_at: Cell::default(),
        taken_over: Cell::new(None),
        replayed: Cell::default(),
        kept_state: Cell::default(),
        stopping_at: Cell::default(),
        grows_to: Cell::default(),
        shrinks: Cell::default(),
        state_changed: Notify::default(),
        tasks: RefCell::default(),
    })
}

impl<E: Env> Set<E> {
    /// Counts what every leaf has; then every bucket is known.
    async fn count_leaves(&self, in_background: bool) -> Result<(), EngineError> {
        if self.index.count_leaves(in_background).await? {
            self.collect_dead_dirty();
            self.context.events.push(SetEvent::Counted);
            // Garbage collection and detaches waited for the counts, and writeback knows of all
            // dirty data now.
            self.gc.wake();
            self.state_changed.notify_all();
            self.attached().iter().for_each(|volume| volume.wake_background());
        }
        Ok(())
    }

    /// Keeps the buckets that the last chain promised to this start, if the chain was our own.
    async fn keep_promised(&self) {
        let promised = self.allocator.buckets_mut().take_promised();
        let own_chain = self.journal.has_own_chain();
        if own_chain {
            in_slices(
                &self.context.env,
                self.context.tuning.slice_steps,
                promised.len(),
                1,
                |part| {
                    let mut buckets = self.allocator.buckets_mut();
                    promised[part].iter().for_each(|&bucket| buckets.set_promised(bucket));
                },
            )
            .await;
        }
    }

    /// Tells the replacement policy of every bucket, if it wants to know.
    pub(crate) async fn learn_policy(&self) {
        while !self.allocator.buckets_mut().learn_policy(self.context.tuning.slice_steps) {
            self.context.env.yield_now().await;
        }
    }

    /// Starts the tasks, replays, counts. `pins`: of the buckets that the range names.
    async fn start(
        self: &Rc<Self>,
        range: &Rc<ReplayRange>,
        pins: Vec<Pin>,
        mut lazy: bool,
    ) -> Result<(), EngineError> {
        // Serving before everything is counted takes promised buckets, and a place for the entry
        // that takes the promise back.
        let wanted = lazy;
        let enough = 2 * (self.context.geometry.prio_buckets() as usize + 6);
        lazy &= self.allocator.buckets().promised_len() >= enough;
        lazy &= self.journal.takes_chain();
        if wanted && !lazy {
            self.context.env.mark("lazy_start_refused");
        }
        if self.context.keeps(Rule::N2SpaceForMetadata) {
            self.allocator.allocate_metadata().await;
        }
        if !lazy {
            self.count_leaves(false).await?;
            let wanted = self.allocator.buckets().space_wanted();
            self.allocator.keep_space(wanted).await;
        }
        self.journal.keep_from(range.entries.first().map(|entry| entry.seq));
        let set = self.clone();
        self.spawn(Priority::Journal, async move { set.journal.write_entries().await });
        if lazy {
            self.allocator.buckets_mut().use_promised();
            if self.context.keeps(Rule::V2PromiseTakenBack) {
                self.allocator.write_prios().await?;
            }
        }
        let replayed = self.index.replay(range, lazy).await?;
        self.replayed.set(Replayed { entries: range.entries.len() as u64, records: replayed });
        let set = self.clone();
        self.spawn(Priority::Journal, async move { set.allocator.run().await });
        let index = self.index.clone();
        self.spawn(Priority::Journal, async move { index.reclaim_task().await });
        let index = self.index.clone();
        self.spawn(Priority::Background, async move { index.node_writer_task().await });
        if replayed > 0 {
            self.context.env.mark("journal_replayed");
        }
        if lazy {
            self.context.env.mark("lazy_start");
            let set = self.clone();
            self.spawn(Priority::Background, async move {
                if let Err(error) = set.count_leaves(true).await {
                    set.context.fail(format!("the index could not be read: {error}"));
                }
                drop(pins);
            });
        } else {
            drop(pins);
        }
        if self.allocator.buckets().outrun() > 0 {
            // Their buckets wait, and the driver would believe them.
            self.context.env.mark("pointers_outrun");
            self.gc.request();
        }
        let gc = self.gc.clone();
        self.spawn(Priority::Background, async move { gc.run().await });
        if let Some(KeptState { outcome: KeptOutcome::Continued { records: 1.. }, .. }) =
            self.kept_state.get()
        {
            // V1: as durable as what the device had, before anything is served.
            self.journal.flush().await?;
        }
        if self.context.keeps(Rule::V1FlushAtOpen) {
            self.note_start().await?;
        }
        Ok(())
    }

    /// The superblock says that the set was started, and everything before that is durable.
    async fn note_start(self: &Rc<Self>) -> Result<(), EngineError> {
        let now = self.context.env.unix_seconds() as u32;
        {
            let mut superblock = self.superblock.borrow_mut();
            superblock.note_driver();
            superblock.mark_started(now);
        }
        self.write_cache_superblock().await
    }
}
