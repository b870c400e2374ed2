//! Writing a tree and the journal entry that names it: into free buckets, and the entry only when
//! all nodes are durable. Nothing that the old tree says is touched, so until then the set is what
//! it was.

use ubcache_env::local::join_all;
use ubcache_env::{Buf, Device, Durability};
use ubcache_format::{
    BucketNr, Geometry, Inode, JournalEntry, Key, Pointer, SECTOR_BYTES, Uuid, crc64_we,
    encode_bset, encode_entry,
};

use super::device::flush;
use crate::error::{OfflineError, On};
use crate::io::progress::{Phase, Watcher};
use crate::set::{Owner, View};

const NODES_AT_ONCE: usize = 8;
const DOING: &str = "writing a new tree to the cache";

/// Makes all extents of a volume clean. What they say has to be on the backing device, durably.
pub(crate) async fn mark_volume_clean<D: Device>(
    view: &View,
    cache: &D,
    inode: Inode,
    watcher: &dyn Watcher,
) -> Result<(), OfflineError> {
    let Some(newest) = view.journal.newest() else { return Ok(()) };
    let index = (newest.place.index + 1) % view.geometry.journal_buckets.max(1);
    if in_use(view, index) {
        return Err(OfflineError::NoRoom(format!(
            "all journal buckets are in use, {index} among them"
        )));
    }
    let keys = view.extents.iter().filter_map(|extent| {
        let pointer = view.live(extent)?;
        let dirty = extent.is_dirty() && extent.inode() != inode;
        Some(Key::extent(extent.inode(), extent.range(), dirty, pointer))
    });
    let mut places = free_buckets(view, |owner, _| owner == Owner::Free);
    let name = (newest.place.seq, view.superblock.uuid);
    let (root, root_level) =
        write_tree(&view.geometry, cache, name, keys, &mut places, watcher).await?;
    flush(cache, On::Cache, DOING).await?;
    let seq = newest.entry.seq.next();
    let entry = JournalEntry {
        seq,
        last_seq: seq,
        root,
        root_level,
        keys: Vec::new(),
        // Promises about the prio chain do not hold for a tree in these buckets.
        padding: view.journal.last_run.without_promise(),
        ..newest.entry.clone()
    };
    write_entry(&view.geometry, cache, index, &entry).await
}

/// Returns true if a bucket of the ring has entries that replay needs.
pub(crate) fn in_use(view: &View, index: u32) -> bool {
    let needed = view.journal.newest().map_or(0, |newest| newest.place.last_seq);
    let entries = view.journal.places.get(index as usize);
    entries.is_none_or(|entries| entries.iter().any(|entry| entry.seq >= needed))
}

/// Places for metadata: buckets that `may` be used, of a generation that nothing has pointed to
/// them with.
pub(crate) fn free_buckets(
    view: &View,
    may: impl Fn(Owner, BucketNr) -> bool,
) -> impl Iterator<Item = Pointer> {
    (view.geometry.first_bucket..)
        .zip(view.buckets.iter().skip(view.geometry.first_bucket as usize))
        .filter_map(move |(number, bucket)| {
            let offset = view.geometry.bucket_start(BucketNr(number));
            may(bucket.owner, BucketNr(number)).then(|| Pointer {
                device: 0,
                offset,
                generation: bucket.generation.next(),
            })
        })
}

/// Writes a journal entry to the start of a bucket of the ring.
pub(crate) async fn write_entry<D: Device>(
    geometry: &Geometry,
    cache: &D,
    index: u32,
    entry: &JournalEntry,
) -> Result<(), OfflineError> {
    let at = geometry.bucket_start(geometry.journal_bucket(index));
    let bytes = Buf::from_bytes(&encode_entry(geometry, entry));
    let written = cache.write(at, bytes.into(), Durability::Fua).await;
    written.map_err(|error| OfflineError::Io {
        on: On::Cache,
        doing: "writing the journal",
        error: error.to_string(),
    })?;
    flush(cache, On::Cache, "writing the journal").await
}

/// Writes a tree with these keys, which have to be in order; gives the key of its root, and its
/// level. `name` is what the numbers of the nodes are drawn from: the newest entry of the journal,
/// and the UUID of the device.
pub(crate) async fn write_tree<D: Device>(
    geometry: &Geometry,
    cache: &D,
    name: (u64, Uuid),
    keys: impl Iterator<Item = Key>,
    places: &mut dyn Iterator<Item = Pointer>,
    watcher: &dyn Watcher,
) -> Result<(Key, u16), OfflineError> {
    let mut tree = NewTree { geometry, cache, name, places };
    let phase = Phase::new(watcher, DOING, 0);
    let mut level = 0;
    let mut nodes = tree.level(keys, &phase).await?;
    while nodes.len() > 1 {
        level += 1;
        nodes = tree.level(nodes.into_iter(), &phase).await?;
    }
    match nodes.pop() {
        Some(root) => Ok((root, level)),
        None => Err(no_room()),
    }
}

pub(crate) fn no_room() -> OfflineError {
    OfflineError::NoRoom("no bucket is free for a node of the new tree".to_owned())
}

struct NewTree<'a, D: Device> {
    geometry: &'a Geometry,
    cache: &'a D,
    name: (u64, Uuid),
    places: &'a mut dyn Iterator<Item = Pointer>,
}

impl<D: Device> NewTree<'_, D> {
    /// Writes one level; at least one node, the last of which has the greatest key.
    async fn level(
        &mut self,
        keys: impl Iterator<Item = Key>,
        phase: &Phase<'_>,
    ) -> Result<Vec<Key>, OfflineError> {
        let node_sectors =
            u16::try_from(self.geometry.node_bytes() / SECTOR_BYTES).unwrap_or(u16::MAX);
        // Three quarters full: nodes have room when the tree is used next.
        let words = (self.geometry.node_bytes() / 8 * 3 / 4) as usize;
        let mut keys = keys.peekable();
        let mut nodes = Vec::new();
        loop {
            let mut batch = Vec::new();
            while batch.len() < NODES_AT_ONCE && (keys.peek().is_some() || nodes.is_empty()) {
                let mut content: Vec<Key> = Vec::new();
                let mut used = 0;
                while let Some(key) = keys.next_if(|key| used + key.words() <= words) {
                    used += key.words();
                    content.push(key);
                }
                let pointer = self.places.next().ok_or_else(no_room)?;
                let key = match (keys.peek(), content.last()) {
                    (Some(_), Some(last)) => Key::node(last.inode, last.end, node_sectors, pointer),
                    _ => Key::max_node(node_sectors, pointer),
                };
                nodes.push(key);
                batch.push((pointer, content));
            }
            if batch.is_empty() {
                return Ok(nodes);
            }
            let writes =
                batch.iter().map(|(pointer, content)| self.write(*pointer, content, phase));
            join_all(writes.collect::<Vec<_>>()).await.into_iter().collect::<Result<(), _>>()?;
        }
    }

    /// Writes a whole node, zeroes to its end: nothing of the bucket's earlier lives stays.
    async fn write(
        &self,
        pointer: Pointer,
        keys: &[Key],
        phase: &Phase<'_>,
    ) -> Result<(), OfflineError> {
        let mut words = pointer.word().to_le_bytes().to_vec();
        words.extend(self.name.0.to_le_bytes());
        words.extend(self.name.1.0);
        let seq = crc64_we(&words).max(1);
        let mut bytes = encode_bset(self.geometry, pointer, seq, keys);
        bytes.resize(self.geometry.node_bytes() as usize, 0);
        let written = self
            .cache
            .write(pointer.offset, Buf::from_bytes(&bytes).into(), Durability::Volatile)
            .await;
        phase.add(self.geometry.node_bytes());
        written.map_err(|error| OfflineError::Io {
            on: On::Cache,
            doing: DOING,
            error: error.to_string(),
        })
    }
}
