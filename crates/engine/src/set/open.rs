//! Starting a set.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ubcache_env::local::{Lock, Notify};
use ubcache_env::{Env, Priority};
use ubcache_format::{
    BucketNr, Drops, Geometry, JournalEntry, Key, LastRun, Mark, Padding, ParsedNode, Pointer,
    Reach, ReplayRange, SECTOR_BYTES, SUPERBLOCK_BYTES, SUPERBLOCK_SECTOR, Superblock, UuidEntry,
    combine_interior, parse_uuids,
};

use super::first_run::first_run;
use super::runs::check_run;
use super::take_over::FormerRun;
use super::{CacheSet, Set, SetOptions};
use crate::alloc::allocator::Allocator;
use crate::alloc::buckets::{Buckets, Role};
use crate::alloc::chain::{Chain, read_chain};
use crate::alloc::pins::Pin;
use crate::context::Context;
use crate::errors::EngineError;
use crate::gc::GcState;
use crate::index::extent::{FIRST, LAST, Position};
use crate::index::leaf::LeafState;
use crate::index::tree::{Interior, Tree};
use crate::index::write::NodeWriter;
use crate::journal::Journal;
use crate::journal::header::Header;
use crate::journal::pins::EntryPins;
use crate::journal::read::{Found, read_journal, ring_after};
use crate::meter::Meter;
use crate::mutants::{Mutant, Mutation};
use crate::settings::ReplacementPolicy;
use crate::slices::in_slices;

/// The greatest number of an entry with which a set starts: no set comes near it, and there are
/// enough after it.
const SEQ_MAX: u64 = u64::MAX >> 1;

/// Reads a superblock.
pub(crate) async fn read_superblock<E: Env>(device: &Meter<E>) -> Result<Superblock, EngineError> {
    let sectors = SUPERBLOCK_BYTES as u64 / SECTOR_BYTES;
    let buf = device
        .read(SUPERBLOCK_SECTOR, sectors)
        .await
        .map_err(EngineError::io("reading the superblock"))?;
    let superblock = Superblock::parse(buf.as_slice())
        .map_err(EngineError::format("bcache superblock", SUPERBLOCK_SECTOR))?;
    let geometry = device.geometry();
    superblock
        .check_device(geometry.sectors, geometry.logical_block_bytes)
        .map_err(EngineError::format("bcache superblock", SUPERBLOCK_SECTOR))?;
    Ok(superblock)
}

impl<E: Env> CacheSet<E> {
    /// Starts the set on a cache device: makes it if the device is only formatted, else replays
    /// the journal. Returns when I/O can be served; counting buckets may go on afterwards.
    pub async fn open(
        env: E,
        cache: E::Device,
        options: SetOptions,
    ) -> Result<CacheSet<E>, EngineError> {
        let cache = Meter::of_cache(env.clone(), cache, options.mutation);
        let mut superblock = read_superblock(&cache).await?;
        if !superblock.is_cache() {
            return Err(EngineError::WrongKind { found: "backing", expected: "cache" });
        }
        // V1: what the last instance wrote may sit in a volatile cache still, and is about to be
        // taken for durable.
        if !options.mutation.is(Mutant::NoFlushAtOpen) {
            cache.flush().await.map_err(EngineError::io("flushing the cache device"))?;
        }
        if !superblock.sync() {
            env.mark("first_run");
            first_run(&env, &cache, &mut superblock, options.tuning.slice_steps).await?;
        }
        let geometry = superblock.geometry();
        let found = read_journal(&env, &cache, &geometry, &superblock).await?;
        if found.torn_tail {
            env.mark("torn_journal_tail");
        }
        let range = &found.range;
        let newest = range.newest().expect("a replay range has an entry").clone();
        check_entry(&newest)?;
        let mut buckets =
            Buckets::new(geometry, options.tuning.generations, options.mutation, env.work());
        let steps = options.tuning.slice_steps;
        let chain = read_chain(&env, &cache, &mut buckets, steps, newest.prio_bucket).await?;
        let uuids = read_uuids(&cache, &geometry, &newest).await?;
        for backing in &options.expected {
            let slot = uuids.iter().position(|entry| entry.uuid == backing.uuid);
            if !options.mutation.is(Mutant::OlderCopyBelieved) {
                check_run(&superblock, slot, backing)?;
            }
        }
        let former = mark_of_former_run(&found, &newest, options.mutation);
        let lazy = options.tuning.lazy_start && former.own_chain && former.drops.is_none();
        let keep_clean = options.keep_clean;
        let set = assemble(
            env,
            cache,
            superblock,
            options,
            &found,
            (&newest, former),
            (buckets, chain),
            uuids,
        );
        set.stops_when_failed();
        set.helps_the_allocator();
        set.fails_with_its_flushes();
        set.learn_policy().await;
        set.read_tree(&newest).await?;
        let pins = set.check_replay(range).await?;
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
fn mark_of_former_run(found: &Found, newest: &JournalEntry, mutation: Mutation) -> Mark {
    if let (Padding::Other(bytes), true) = (newest.padding, mutation.is(Mutant::MarkNotBound))
        && let Some(mark) = Mark::claimed(&bytes)
    {
        return mark;
    }
    match found.last_run {
        LastRun::Ubcache(mark) => mark,
        LastRun::Unknown(mark) if mutation.is(Mutant::LoneMarkBelieved) => mark,
        other => Mark {
            own_chain: false,
            drops: Some(Drops::Driver),
            scan_resistant: other.scan_resistant(),
        },
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
    device: &Meter<E>,
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
    cache: Meter<E>,
    superblock: Superblock,
    options: SetOptions,
    found: &Found,
    (newest, mark): (&JournalEntry, Mark),
    (mut buckets, chain): (Buckets, Chain),
    uuids: Vec<UuidEntry>,
) -> Rc<Set<E>> {
    let geometry = superblock.geometry();
    let mut settings = options.settings;
    let policy = ReplacementPolicy::from_stored(superblock.replacement(), mark.scan_resistant);
    settings.cache_replacement_policy = policy;
    settings.discard = superblock.discard();
    buckets.set_policy(policy);
    // A generation of the tuning is several of the format's.
    let chains = chain.seq.saturating_mul(options.tuning.generations.step.into());
    buckets.set_reach(Reach::of_set(mark.own_chain, chains));
    buckets.discard = superblock.discard();
    chain.buckets.iter().for_each(|&bucket| buckets.set_metadata(bucket));
    let header = Header {
        uuid_bucket: newest.uuid_bucket.clone(),
        root: newest.root.clone(),
        root_level: newest.root_level,
        prio_bucket: newest.prio_bucket,
        mark,
    };
    let (ring, next) = ring_after(found, &geometry);
    let context = Context::new(env, cache, geometry, settings, options.tuning, options.mutation);
    let pins = Rc::new(EntryPins::default());
    let journal = Rc::new(Journal::new(context.clone(), pins.clone(), header, ring, next));
    let allocator = Allocator::new(context.clone(), journal.clone(), buckets, chain);
    Rc::new(Set {
        context,
        superblock: RefCell::new(superblock),
        superblock_lock: Lock::default(),
        tree: RefCell::new(Tree::new(pins)),
        structure: Lock::default(),
        node_writer: NodeWriter::default(),
        journal,
        allocator: Rc::new(allocator),
        inodes: RefCell::default(),
        uuids: RefCell::new(uuids),
        attach_lock: Lock::default(),
        volumes: RefCell::default(),
        detached: RefCell::default(),
        congestion: RefCell::default(),
        gc: GcState::default(),
        saved_superblock: RefCell::default(),
        saving: Cell::new(false),
        mark_at: Cell::default(),
        taken_over: Cell::new(None),
        to_replay: RefCell::default(),
        ending: Notify::default(),
        tasks: RefCell::default(),
    })
}

impl<E: Env> Set<E> {
    /// Reads every interior node and lays out the leaves, which stay on the device until used.
    async fn read_tree(&self, newest: &JournalEntry) -> Result<(), EngineError> {
        let uuid_bucket = self.bucket_of_node(&newest.uuid_bucket)?;
        self.claim_metadata(uuid_bucket, "the volume table")?;
        let mut level = vec![self.checked_node(&newest.root)?];
        let mut interior = Vec::new();
        for _ in 0..newest.root_level {
            let mut nodes = std::collections::BTreeMap::new();
            let mut children = Vec::new();
            let mut low = FIRST;
            for key in &level {
                let mut node = self.read_node(key).await?;
                let found = combine_interior(std::mem::take(&mut node.bsets));
                let pointer = key.pointer().expect("checked: a node key has a pointer");
                let (live, former) = self.live_children(key, low, found)?;
                children.extend(live);
                low = key.position();
                let ParsedNode { seq, used_bytes, .. } = node;
                let node = Interior { pointer, sectors: key.sectors, seq, used_bytes, former };
                nodes.insert(key.position(), node);
            }
            interior.insert(0, nodes);
            level = children;
        }
        self.tree.borrow_mut().interior = interior;
        let mut low = FIRST;
        in_slices(&self.context.env, self.context.tuning.slice_steps, level.len(), 16, |part| {
            let mut tree = self.tree.borrow_mut();
            for key in &level[part] {
                let pointer = key.pointer().expect("checked: a node key has a pointer");
                let leaf =
                    tree.make_leaf(low, key.position(), pointer, key.sectors, LeafState::default());
                tree.insert_leaf(leaf);
                low = key.position();
            }
        })
        .await;
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
        Ok(())
    }

    /// Tells the replacement policy of every bucket, if it wants to know.
    pub(crate) async fn learn_policy(&self) {
        while !self.allocator.buckets_mut().learn_policy(self.context.tuning.slice_steps) {
            self.context.env.yield_now().await;
        }
    }

    fn bucket_of_node(&self, key: &Key) -> Result<BucketNr, EngineError> {
        let pointer = key.pointer().ok_or_else(|| EngineError::Damaged {
            what: "journal entry",
            detail: "a node key has no pointer".to_owned(),
        })?;
        Ok(pointer.bucket(self.context.geometry.bucket_sectors))
    }

    /// Checks a node key, raises its bucket's generation and marks it.
    fn checked_node(&self, key: &Key) -> Result<Key, EngineError> {
        key.check_node(&self.context.geometry)
            .map_err(EngineError::format("index node key", ubcache_env::Sector(0)))?;
        let bucket = self.bucket_of_node(key)?;
        self.allocator.buckets_mut().note_pointer(key.pointer().expect("checked"));
        self.claim_metadata(bucket, "the root")?;
        Ok(key.clone())
    }

    /// Nobody else has the bucket: who is to be found out after it would be overwritten.
    fn claim_metadata(&self, bucket: BucketNr, what: &str) -> Result<(), EngineError> {
        let mut buckets = self.allocator.buckets_mut();
        if buckets.role(bucket) != Role::Unknown {
            let detail = format!("{what} is in bucket {bucket}, which has something else already");
            return Err(EngineError::Damaged { what: "set", detail });
        }
        buckets.set_metadata(bucket);
        Ok(())
    }

    /// The children that an interior node names, in order, and the pointers that lead to none.
    /// Every pointer, freeing keys included, raises its bucket's generation first; then what is
    /// stale goes (docs/reference/format.md §5.6, §9.2).
    fn live_children(
        &self,
        node: &Key,
        low: Position,
        found: Vec<Key>,
    ) -> Result<(Vec<Key>, Vec<Pointer>), EngineError> {
        let damaged = |detail: String| EngineError::Damaged { what: "interior index node", detail };
        for key in &found {
            key.check_node(&self.context.geometry).map_err(EngineError::format(
                "interior index node",
                node.pointer().expect("checked").offset,
            ))?;
            self.allocator.buckets_mut().note_pointer(key.pointer().expect("checked"));
        }
        let (mut children, mut former): (Vec<Key>, Vec<Pointer>) = Default::default();
        for key in found {
            let pointer = key.pointer().expect("checked");
            if key.is_zero() || !self.allocator.buckets().is_live(pointer) {
                former.push(pointer);
                continue;
            }
            if key.position() <= low || key.position() > node.position() {
                return Err(damaged(format!(
                    "child {:?} is outside of its parent's interval",
                    key.position()
                )));
            }
            if children.last().is_some_and(|last: &Key| last.position() == key.position()) {
                continue;
            }
            self.claim_metadata(
                pointer.bucket(self.context.geometry.bucket_sectors),
                "an index node",
            )?;
            children.push(key);
        }
        if children.last().map(Key::position) != Some(node.position()) {
            return Err(damaged(format!(
                "its last child ends at {:?}, expected {:?}",
                children.last().map(Key::position),
                node.position()
            )));
        }
        Ok((children, former))
    }

    /// Starts the tasks, replays, counts. `pins`: of the buckets that the range names.
    async fn start(
        self: &Rc<Self>,
        range: &Rc<ReplayRange>,
        pins: Vec<Pin>,
        mut lazy: bool,
    ) -> Result<(), EngineError> {
        assert_eq!(
            self.tree.borrow().leaves().last().map(|leaf| leaf.end),
            Some(LAST),
            "the tree is whole"
        );
        // Serving before everything is counted takes promised buckets, and a place for the entry
        // that takes the promise back.
        let wanted = lazy;
        let enough = 2 * (self.context.geometry.prio_buckets() as usize + 6);
        lazy &= self.allocator.buckets().promised_len() >= enough;
        lazy &= self.journal.takes_chain();
        if wanted && !lazy {
            self.context.env.mark("lazy_start_refused");
        }
        self.allocator.allocate_metadata().await;
        if !lazy {
            self.count_leaves(false).await?;
            let wanted = self.allocator.buckets().room_wanted();
            self.allocator.keep_room(wanted).await;
        }
        self.journal.keep_from(range.entries.first().map(|entry| entry.seq));
        let set = self.clone();
        self.spawn(Priority::Journal, async move { set.journal.write_entries().await });
        if lazy {
            self.allocator.buckets_mut().use_promised();
            if !self.context.mutant(Mutant::NextStartUsesPromisedBuckets) {
                self.allocator.write_prios().await?;
            }
        }
        let replayed = self.replay(range, lazy).await?;
        let set = self.clone();
        self.spawn(Priority::Journal, async move { set.allocator.run().await });
        self.spawn(Priority::Journal, self.clone().reclaim_task());
        self.spawn(Priority::Background, self.clone().node_writer_task());
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
        if self.allocator.buckets().outrun > 0 {
            // Their buckets wait, and the driver would believe them.
            self.context.env.mark("pointers_outrun");
            self.gc.request();
        }
        self.spawn(Priority::Background, self.clone().gc_task());
        if self.context.mutant(Mutant::NoFlushAtOpen) {
            return Ok(());
        }
        let now = self.context.env.unix_seconds() as u32;
        {
            let mut superblock = self.superblock.borrow_mut();
            superblock.note_driver();
            superblock.mark_started(now);
        }
        self.write_cache_superblock().await
    }
}
