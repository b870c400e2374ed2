//! A formatted cache device becomes a set (docs/reference/format.md §3.3): prio chain, volume
//! table, an empty root, the first journal entry, and only then SYNC in the superblock.

use std::ops::Range;

use ubcache_env::{Buf, Durability, Env, IoVec, SectorRange};
use ubcache_format::{
    BucketNr, Generation, Geometry, INITIAL_PRIORITY, Inode, JournalEntry, JournalSeq, Key,
    OwnPolicy, Padding, Pointer, PrioEntry, PrioSet, SECTOR_BYTES, Sector, Stamp, Superblock,
    encode_bset, encode_entry, encode_uuids,
};

use crate::alloc::buckets::PRIORITY_METADATA;
use crate::alloc::prio_chain_io::write_chain;
use crate::counted_device::CountedDevice;
use crate::errors::EngineError;
use crate::superblock::write_superblock;

/// A set may have been on the device that had the same UUID: its entries would be valid, and newer
/// than what the set begins with. The tools that make superblocks do not all erase them.
async fn forget_older_journal<E: Env>(
    env: &E,
    device: &CountedDevice<E>,
    geometry: &Geometry,
) -> Result<(), EngineError> {
    const WHAT: &str = "erasing an older journal";
    let magic = geometry.journal_magic().to_le_bytes();
    let block = geometry.block_bytes() as usize;
    for index in 0..geometry.journal_buckets {
        let at = geometry.bucket_start(geometry.journal_bucket(index));
        let bytes = device.read(at, u64::from(geometry.bucket_sectors)).await;
        let bytes = bytes.map_err(EngineError::io(WHAT))?;
        env.yield_now().await;
        if bytes.as_slice().chunks(block).any(|block| block.get(8..16) == Some(magic.as_slice())) {
            let zeroes = IoVec::zeroes(geometry.bucket_bytes() as usize);
            device.write(at, zeroes, Durability::Volatile).await.map_err(EngineError::io(WHAT))?;
        }
    }
    Ok(())
}

/// Makes the set. A crash before the end leaves SYNC clear, and the next start begins again.
pub(crate) async fn first_run<E: Env>(
    env: &E,
    device: &CountedDevice<E>,
    superblock: &mut Superblock,
    slice_steps: usize,
) -> Result<(), EngineError> {
    const WHAT: &str = "making the set";
    superblock.journal_buckets = Geometry::default_journal_buckets(superblock.nbuckets);
    let own_policy = superblock.begins_with();
    let geometry = superblock.geometry();
    forget_older_journal(env, device, &geometry).await?;
    let first = geometry.first_bucket + geometry.journal_buckets;
    let chain: Vec<BucketNr> =
        (0..geometry.prio_buckets()).map(|index| BucketNr(first + index)).collect();
    let uuid_bucket = BucketNr(first + geometry.prio_buckets());
    let root = BucketNr(uuid_bucket.0 + 1);

    // The first metadata of a set gets its room before anything is written (N2).
    let begin =
        SectorRange::new(Sector(0), u64::from(root.0 + 1) * u64::from(geometry.bucket_sectors));
    device.allocate(begin).await.map_err(EngineError::io(WHAT))?;
    let put = |part: Range<usize>, set: &mut PrioSet| {
        for bucket in part {
            let priority =
                if bucket <= root.0 as usize { PRIORITY_METADATA } else { INITIAL_PRIORITY };
            set.push(PrioEntry { priority, generation: Generation(0) });
        }
    };
    write_chain(env, device, &geometry, slice_steps, (1, &chain), put).await?;

    let write = |at: Sector, bytes: Vec<u8>, durability| {
        device.write(at, Buf::from_bytes(&bytes).into(), durability)
    };
    let place = |bucket| Pointer {
        device: 0,
        offset: geometry.bucket_start(bucket),
        generation: Generation(0),
    };
    let table = encode_uuids(&geometry, &[]);
    let table_sectors = (table.len() as u64 / SECTOR_BYTES) as u16;
    let io = || EngineError::io(WHAT);
    write(geometry.bucket_start(uuid_bucket), table, Durability::Volatile).await.map_err(io())?;
    let node_sectors = (geometry.node_bytes() / SECTOR_BYTES) as u16;
    let mut node = encode_bset(&geometry, place(root), env.random().max(1), &[]);
    // Nothing of what the bucket may have held as a node of an older set can follow.
    node.resize(geometry.node_bytes() as usize, 0);
    write(geometry.bucket_start(root), node, Durability::Volatile).await.map_err(io())?;

    let entry = JournalEntry {
        seq: JournalSeq(1),
        last_seq: JournalSeq(1),
        uuid_bucket: Key::node(Inode(0), Sector(0), table_sectors, place(uuid_bucket)),
        root: Key::max_node(node_sectors, place(root)),
        root_level: 0,
        prio_bucket: chain[0],
        keys: Vec::new(),
        padding: Padding::Bound(Stamp { own_chain: true, drops: None, own_policy }),
    };
    device.flush().await.map_err(io())?;
    let at = geometry.bucket_start(geometry.journal_bucket(0));
    write(at, encode_entry(&geometry, &entry), Durability::Fua).await.map_err(io())?;
    superblock.set_sync(true);
    if own_policy != OwnPolicy::None {
        // The journal's stamp says it from now on, and changes with the policy.
        superblock.set_begins_with(OwnPolicy::None);
    }
    superblock.mark_started(env.unix_seconds() as u32);
    write_superblock(device, superblock, "writing the cache superblock").await
}
