//! Writing a dump.

use serde_json::{Value, json};
use ubcache_env::Device;
use ubcache_format::{Superblock, UuidEntry};

use super::lines::VERSION;
use crate::error::{OfflineError, On};
use crate::io::progress::Watcher;
use crate::set::{Bucket, Extent, Owner, Report};
use crate::walk::open_set;

/// Buckets in one line.
const BUCKETS_A_LINE: usize = 1024;

/// Writes a dump of a set that has no damage, line by line. Nothing is written of one that has.
pub async fn dump_for_restore<D: Device>(
    cache: &D,
    mut sink: impl FnMut(&str) -> Result<(), String>,
    watcher: &dyn Watcher,
) -> Result<Report, OfflineError> {
    let (view, report) = open_set(cache, false, watcher).await?;
    if view.journal.newest().is_none() {
        return Err(OfflineError::NeverStarted);
    }
    let mut line = |value: Value| {
        let written = sink(&value.to_string());
        written.map_err(|error| OfflineError::Io {
            on: On::Output,
            doing: "writing the dump",
            error,
        })
    };
    line(json!({
        "type": "restore",
        "version": VERSION,
        "by": concat!("ubcache ", env!("CARGO_PKG_VERSION")),
        "device_sectors": cache.limits().sectors,
        "journal_seq": view.journal.newest().map_or(0, |newest| newest.place.seq),
    }))?;
    line(superblock(&view.superblock))?;
    let mut volumes = 0_u64;
    for (slot, entry) in
        view.uuids.iter().enumerate().filter(|(_, entry)| **entry != UuidEntry::default())
    {
        line(volume(slot, entry))?;
        volumes += 1;
    }
    for (index, buckets) in view.buckets.chunks(BUCKETS_A_LINE).enumerate() {
        line(json!({
            "type": "buckets",
            "first": index * BUCKETS_A_LINE,
            "generations": buckets.iter().map(|bucket| bucket.generation.0).collect::<Vec<_>>(),
            "priorities": buckets.iter().map(priority).collect::<Vec<_>>(),
        }))?;
    }
    for found in &view.extents {
        line(extent(found))?;
    }
    line(json!({ "type": "end", "volumes": volumes, "extents": view.extents.len() }))?;
    Ok(report)
}

fn superblock(superblock: &Superblock) -> Value {
    let bytes = superblock.encode();
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    json!({
        "type": "superblock",
        "uuid": superblock.uuid.to_string(),
        "set_uuid": superblock.set_uuid.to_string(),
        "bucket_sectors": superblock.bucket_sectors,
        "block_sectors": superblock.block_sectors,
        "buckets": superblock.nbuckets,
        "bytes": hex(&bytes[..used]),
    })
}

fn volume(slot: usize, entry: &UuidEntry) -> Value {
    let mut object = json!({
        "type": "volume",
        "slot": slot,
        "uuid": entry.uuid.to_string(),
        "first_reg": entry.first_reg,
        "last_reg": entry.last_reg,
        "invalidated": entry.invalidated,
        "flash_only": entry.flash_only,
        "sectors": entry.sectors,
    });
    let end = entry.label.iter().position(|byte| *byte == 0).unwrap_or(entry.label.len());
    let (name, rest) = entry.label.split_at(end);
    match std::str::from_utf8(name) {
        Ok(name) if rest.iter().all(|byte| *byte == 0) => object["label"] = json!(name),
        _ => object["label_bytes"] = json!(hex(&entry.label)),
    }
    object
}

/// Generation of a bucket with data: all others are free, or get new metadata.
fn priority(bucket: &Bucket) -> u16 {
    if matches!(bucket.owner, Owner::Clean | Owner::Dirty) { bucket.priority } else { 0 }
}

fn extent(extent: &Extent) -> Value {
    let range = extent.range();
    let mut object = json!({
        "type": "extent",
        "volume": extent.inode().0,
        "sector": range.start.0,
        "sectors": range.sectors(),
        "dirty": extent.is_dirty(),
    });
    if let Some(pointer) = extent.pointer() {
        object["at"] = json!(pointer.offset.0);
        object["generation"] = json!(pointer.generation.0);
    }
    if extent.csum() != 0 {
        object["csum"] = json!(extent.csum());
    }
    object
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
