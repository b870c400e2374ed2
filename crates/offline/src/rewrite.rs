//! The tree once more, with the dirty extents of a volume made clean: into free buckets, and then one journal entry that
//! names the new root. Nothing that the old tree says is touched, so until that entry is durable the set is what it was.

use ubcache_env::local::join_all;
use ubcache_env::{Buf, Device, Durability};
use ubcache_format::{
    BucketNr, Inode, JournalEntry, Key, Pointer, SECTOR_BYTES, crc64_we, encode_bset, encode_entry,
};

use crate::disk::{Phase, Watcher};
use crate::error::OfflineError;
use crate::recover::flush;
use crate::view::{Owner, View};

const NODES_AT_ONCE: usize = 8;
const DOING: &str = "writing a new tree to the cache";

/// Makes all extents of a volume clean. What they say has to be on the backing device, durably.
pub(crate) async fn rewrite_clean<D: Device>(
    view: &View,
    cache: &D,
    inode: Inode,
    watcher: &dyn Watcher,
) -> Result<(), OfflineError> {
    let Some(newest) = view.journal.newest() else { return Ok(()) };
    let index = (newest.place.index + 1) % view.geometry.journal_buckets.max(1);
    let needed = newest.place.last_seq;
    let in_use = |entries: &Vec<_>| entries.iter().any(|entry: &crate::EntryPlace| entry.seq >= needed);
    if view.journal.places.get(index as usize).is_none_or(in_use) {
        return Err(OfflineError::NoRoom(format!("all journal buckets are in use, {index} among them")));
    }
    let mut tree = NewTree::new(view, cache, newest.place.seq);
    let keys = view.extents.iter().filter_map(|extent| {
        let pointer = view.live(extent)?;
        let dirty = extent.is_dirty() && extent.inode() != inode;
        Some(Key::extent(extent.inode(), extent.range(), dirty, pointer))
    });
    let phase = Phase::new(watcher, "writing a new tree to the cache", 0);
    let mut level = 0;
    let mut nodes = tree.level(keys, &phase).await?;
    while nodes.len() > 1 {
        level += 1;
        nodes = tree.level(nodes.into_iter(), &phase).await?;
    }
    let Some(root) = nodes.pop() else { return Ok(()) };
    flush(cache, DOING).await?;
    let seq = newest.entry.seq.next();
    let entry = JournalEntry {
        seq,
        last_seq: seq,
        root,
        root_level: level,
        keys: Vec::new(),
        // What ubcache promises by its mark about the prio chain does not hold for a tree in these buckets.
        mark: [0; 16],
        ..newest.entry.clone()
    };
    let at = view.geometry.bucket_start(view.geometry.journal_bucket(index));
    let bytes = Buf::from_bytes(&encode_entry(&view.geometry, &entry));
    let written = cache.write(at, bytes.into(), Durability::Fua).await;
    written.map_err(|error| OfflineError::Io { doing: "writing the journal", error: error.to_string() })?;
    flush(cache, "writing the journal").await
}

struct NewTree<'a, D: Device> {
    view: &'a View,
    cache: &'a D,
    seed: u64,
    /// The next bucket to look at.
    next: u32,
}

impl<'a, D: Device> NewTree<'a, D> {
    fn new(view: &'a View, cache: &'a D, seed: u64) -> Self {
        NewTree { view, cache, seed, next: view.geometry.first_bucket }
    }

    /// A place for a node: a bucket that nothing points to, of a generation that nothing has pointed to it with.
    fn place(&mut self) -> Result<Pointer, OfflineError> {
        while let Some(bucket) = self.view.buckets.get(self.next as usize) {
            let number = BucketNr(self.next);
            self.next += 1;
            if bucket.owner == Owner::Free {
                let offset = self.view.geometry.bucket_start(number);
                return Ok(Pointer { device: 0, offset, generation: bucket.generation.next() });
            }
        }
        Err(OfflineError::NoRoom("no bucket is free for a node of the new tree".to_owned()))
    }

    /// Writes one level; at least one node, the last of which has the greatest key.
    async fn level(
        &mut self,
        keys: impl Iterator<Item = Key>,
        phase: &Phase<'_>,
    ) -> Result<Vec<Key>, OfflineError> {
        let geometry = &self.view.geometry;
        let node_sectors = u16::try_from(geometry.node_bytes() / SECTOR_BYTES).unwrap_or(u16::MAX);
        // Three quarters full: whoever goes on with the tree has room in every node.
        let words = (geometry.node_bytes() / 8 * 3 / 4) as usize;
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
                let pointer = self.place()?;
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
            let writes = batch.iter().map(|(pointer, content)| self.write(*pointer, content, phase));
            join_all(writes.collect::<Vec<_>>()).await.into_iter().collect::<Result<(), _>>()?;
        }
    }

    /// Writes a whole node, zeroes to its end: nothing of the bucket's earlier lives stays.
    async fn write(&self, pointer: Pointer, keys: &[Key], phase: &Phase<'_>) -> Result<(), OfflineError> {
        let geometry = &self.view.geometry;
        let mut words = pointer.word().to_le_bytes().to_vec();
        words.extend(self.seed.to_le_bytes());
        words.extend(self.view.superblock.uuid.0);
        let seq = crc64_we(&words).max(1);
        let mut bytes = encode_bset(geometry, pointer, seq, keys);
        bytes.resize(geometry.node_bytes() as usize, 0);
        let written =
            self.cache.write(pointer.offset, Buf::from_bytes(&bytes).into(), Durability::Volatile).await;
        phase.add(geometry.node_bytes());
        written.map_err(|error| OfflineError::Io { doing: DOING, error: error.to_string() })
    }
}
