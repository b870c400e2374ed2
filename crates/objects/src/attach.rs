//! Creation and attachment of volumes.

use std::rc::Rc;

use ubcache_env::local::join_all;
use ubcache_env::{Env, Nanos};

use crate::conditional::{Outcome, put_if};
use crate::disk::{Committed, ObjectDisk};
use crate::lease::{self, IsGone, LeaseFailure};
use crate::manifest::{FORMAT, ManifestError, Page, Root, Shape, VERSION};
use crate::map::ObjectMap;
use crate::names::{ROOT, page_key};
use crate::probe::{ProbeFailure, probe};
use crate::retry::{Events, Patient};
use crate::store::{Condition, Object, Store, StoreError};

/// Pages that are read at the same time.
const PAGES_AT_ONCE: usize = 32;

/// Properties of an attachment.
#[derive(Clone)]
pub struct OpenOptions {
    /// Host, process and the like: the next one reads it if this one is running.
    pub holder: String,
    /// Answers whether a holder can't be running any more.
    pub is_gone: IsGone,
    /// No lease, no epoch, no writes.
    pub read_only: bool,
    /// Written data in memory at most.
    pub write_memory_bytes: u64,
    /// Read-ahead in memory at most.
    pub read_memory_bytes: u64,
    /// A request is repeated for this time.
    pub patience: Nanos,
    /// Receives changes of state.
    pub events: Events,
    /// The broken rule: none, by default.
    pub rules: StoreRules,
}

/// Rules that a test has switched off, to see that the simulator finds out.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct StoreRules {
    /// L4: names lack the epoch of their writer.
    pub names_without_epoch: bool,
    /// L4: the root is replaced whoever wrote it last.
    pub unconditional_root: bool,
    /// L5: a flush ends before the root names what it wrote.
    pub flush_without_root: bool,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            holder: "unknown".to_owned(),
            is_gone: Rc::new(|_| false),
            read_only: false,
            write_memory_bytes: 256 << 20,
            read_memory_bytes: 32 << 20,
            patience: Nanos::from_secs(60),
            events: Rc::new(|_| {}),
            rules: StoreRules::default(),
        }
    }
}

/// Reasons why a volume can't be created or attached.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenFailure {
    /// A request failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no volume.
    #[error("there is no volume: no object \"{ROOT}\"")]
    NoVolume,
    /// There is one already.
    #[error("there is a volume already, of {0} bytes")]
    Exists(u64),
    /// The root or a page is not what it should be.
    #[error("object \"{key}\": {error}")]
    Manifest {
        /// Its key.
        key: String,
        /// The difference.
        error: ManifestError,
    },
    /// The store ignores conditions, so that two writers would destroy the volume.
    #[error("the store is not fit for writing: {0}")]
    Unfit(ProbeFailure),
    /// Another daemon has the volume.
    #[error("the volume is in use by {0}")]
    InUse(String),
}

impl From<ProbeFailure> for OpenFailure {
    fn from(failure: ProbeFailure) -> OpenFailure {
        match failure {
            ProbeFailure::Store(error) => OpenFailure::Store(error),
            ignored => OpenFailure::Unfit(ignored),
        }
    }
}

impl From<LeaseFailure> for OpenFailure {
    fn from(failure: LeaseFailure) -> OpenFailure {
        match failure {
            LeaseFailure::Store(error) => OpenFailure::Store(error),
            LeaseFailure::InUse(holder) => OpenFailure::InUse(holder),
        }
    }
}

fn random_name<E: Env>(env: &E) -> String {
    format!("{:016x}{:016x}", env.random(), env.random())
}

/// Creates a volume of holes. Fails if there is one.
pub async fn create<E: Env, S: Store>(
    env: &E,
    store: S,
    shape: Shape,
    options: &OpenOptions,
) -> Result<(), OpenFailure> {
    let manifest = |error| OpenFailure::Manifest { key: ROOT.to_owned(), error };
    shape.check().map_err(manifest)?;
    let store = Patient::new(env.clone(), store, options.patience, options.events.clone());
    probe(&store, 0, &random_name(env)).await?;
    let root = Root {
        format: FORMAT.to_owned(),
        version: VERSION,
        volume: random_name(env),
        size_bytes: shape.size_bytes,
        object_bytes: shape.object_bytes,
        epoch: 0,
        writer: random_name(env),
        turn: 0,
        pages: vec![None; shape.pages() as usize],
    };
    match put_if(&store, ROOT, root.to_bytes(), Condition::Absent).await? {
        Outcome::Done(_) => Ok(()),
        Outcome::Beaten(Some(object)) => {
            let found = Root::parse(&object.bytes).map_err(manifest)?;
            Err(OpenFailure::Exists(found.size_bytes))
        }
        Outcome::Beaten(None) => {
            Err(StoreError::Other("a PUT of an absent object was refused".to_owned()).into())
        }
    }
}

/// The volume's root, if there is a volume.
pub async fn look<E: Env, S: Store>(
    env: &E,
    store: S,
    options: &OpenOptions,
) -> Result<Option<Root>, OpenFailure> {
    let store = Patient::new(env.clone(), store, options.patience, options.events.clone());
    match read_root(&store).await {
        Ok((root, _)) => Ok(Some(root)),
        Err(OpenFailure::NoVolume) => Ok(None),
        Err(failure) => Err(failure),
    }
}

async fn read_root<S: Store>(store: &S) -> Result<(Root, String), OpenFailure> {
    match store.get(ROOT, None).await {
        Ok(object) => parse_root(object),
        Err(StoreError::NotFound(_)) => Err(OpenFailure::NoVolume),
        Err(error) => Err(error.into()),
    }
}

fn parse_root(object: Object) -> Result<(Root, String), OpenFailure> {
    let manifest = |error| OpenFailure::Manifest { key: ROOT.to_owned(), error };
    Ok((Root::parse(&object.bytes).map_err(manifest)?, object.etag))
}

impl<E: Env, S: Store> ObjectDisk<E, S> {
    /// Attaches the volume.
    pub async fn open(
        env: &E,
        store: S,
        options: &OpenOptions,
    ) -> Result<ObjectDisk<E, S>, OpenFailure> {
        let store = Patient::new(env.clone(), store, options.patience, options.events.clone());
        let (root, etag) = read_root(&store).await?;
        if options.read_only {
            let map = read_pages(&store, &root).await?;
            return Ok(ObjectDisk::new(env, store, options, Committed { root, etag }, map, None));
        }
        let writer = random_name(env);
        let mut held =
            lease::acquire(env, &store, &options.holder, &writer, &options.is_gone).await?;
        let (committed, map) = match take(&store, root, etag, &writer).await {
            Ok(taken) => taken,
            Err(failure) => {
                // Without it, the next one has to wait.
                let _ = held.release(&store).await;
                return Err(failure);
            }
        };
        let disk = ObjectDisk::new(env, store, options, committed, map, Some(held));
        disk.start();
        Ok(disk)
    }
}

/// Takes the volume from all other writers, and reads its pages.
async fn take<S: Store>(
    store: &S,
    root: Root,
    etag: String,
    writer: &str,
) -> Result<(Committed, ObjectMap), OpenFailure> {
    match probe(store, root.epoch + 1, writer).await {
        // Only a writer that has this epoch already deletes it.
        Err(ProbeFailure::Store(StoreError::NotFound(_))) => {
            return Err(OpenFailure::InUse("a daemon that has just started".to_owned()));
        }
        probed => probed?,
    }
    let committed = fence(store, root, etag, writer).await?;
    // No root but that of this writer follows, so nothing that it names is deleted.
    let map = read_pages(store, &committed.root).await?;
    Ok((committed, map))
}

/// Raises the epoch in the root: from then on, no other writer can replace it.
async fn fence<S: Store>(
    store: &S,
    mut root: Root,
    mut etag: String,
    writer: &str,
) -> Result<Committed, OpenFailure> {
    let begin = root.epoch;
    loop {
        // A writer that attached at the same time has won.
        if root.epoch != begin {
            let reason = format!("writer {} of epoch {}", root.writer, root.epoch);
            return Err(OpenFailure::InUse(reason));
        }
        let raised = Root { epoch: begin + 1, writer: writer.to_owned(), turn: 0, ..root.clone() };
        match put_if(store, ROOT, raised.to_bytes(), Condition::Matches(etag)).await? {
            Outcome::Done(etag) => return Ok(Committed { root: raised, etag }),
            // The old writer has flushed in between.
            Outcome::Beaten(Some(object)) => (root, etag) = parse_root(object)?,
            Outcome::Beaten(None) => return Err(OpenFailure::NoVolume),
        }
    }
}

async fn read_pages<S: Store>(store: &S, root: &Root) -> Result<ObjectMap, OpenFailure> {
    let mut map = ObjectMap::new(root.shape());
    let named = root.pages.iter().zip(0_u64..).filter_map(|(name, page)| Some((page, (*name)?)));
    let named: Vec<_> = named.collect();
    for some in named.chunks(PAGES_AT_ONCE) {
        let pages = some.iter().map(async |(page, version)| -> Result<Page, OpenFailure> {
            let key = page_key(*page, *version);
            let object = store.get(&key, None).await?;
            Page::parse(&object.bytes, *page).map_err(|error| OpenFailure::Manifest { key, error })
        });
        for page in join_all(pages).await {
            map.load(page?);
        }
    }
    Ok(map)
}
