//! A set's metadata as text or JSON, one line a thing, written while it is read.
//!
//! In JSON every line is an object with a member `type`.

use serde_json::{Value, json};
use ubcache_format::{BucketNr, Geometry, Key, Pointer, Superblock, Uuid, UuidEntry};

use crate::set::{Finding, Journal, Owner, View};
use crate::walk::{NodeVisit, PrioElement, Visitor};

/// Part of a set to dump.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum DumpPart {
    /// The superblock of the cache device.
    Super,
    /// The journal: every entry on the device, and the keys of those that replay needs.
    Journal,
    /// Every node with all its keys.
    Btree,
    /// The prio chain.
    Prio,
    /// The volume table.
    Uuids,
    /// All extents after replay.
    Extents,
    /// The use of each bucket.
    Buckets,
}

/// A visitor that turns what it is shown into lines.
pub struct Dump<S: FnMut(&str)> {
    what: Option<DumpPart>,
    json: bool,
    sink: S,
}

impl<S: FnMut(&str)> Dump<S> {
    /// Dumps one part, or all but the extents and buckets, which follow from the rest.
    pub fn new(what: Option<DumpPart>, json: bool, sink: S) -> Dump<S> {
        Dump { what, json, sink }
    }

    fn wants(&self, what: DumpPart) -> bool {
        self.what.is_none_or(|wanted| wanted == what)
    }

    fn line(&mut self, text: impl FnOnce() -> String, object: impl FnOnce() -> Value) {
        let line = if self.json { object().to_string() } else { text() };
        (self.sink)(&line);
    }

    /// Dumps extents and buckets, which are known only after the walk.
    pub fn view(&mut self, view: &View) {
        if self.what == Some(DumpPart::Extents) {
            self.extents(view);
        }
        if self.what == Some(DumpPart::Buckets) {
            self.buckets(view);
        }
    }

    fn extents(&mut self, view: &View) {
        for extent in &view.extents {
            let (inode, range) = (extent.inode(), extent.range());
            let state = match (extent.pointer(), view.live(extent), extent.is_dirty()) {
                (None, ..) => "hole",
                (Some(_), None, _) => "stale",
                (Some(_), Some(_), true) => "dirty",
                (Some(_), Some(_), false) => "clean",
            };
            let source = if extent.is_replayed() { "journal" } else { "tree" };
            self.line(
                || {
                    let at = extent.pointer().map(|p| format!(" at {p}")).unwrap_or_default();
                    format!("extent {inode}:{range} {state}{at} ({source})")
                },
                || {
                    json!({
                        "type": "extent", "volume": inode.0, "sector": range.start.0,
                        "sectors": range.sectors(),
                        "state": state, "source": source, "pointer": extent.pointer()
                        .map(pointer_json),
                    })
                },
            );
        }
    }

    fn buckets(&mut self, view: &View) {
        for (index, bucket) in view.buckets.iter().enumerate() {
            let number = BucketNr(index as u32);
            let owner = if number.0 < view.geometry.first_bucket && bucket.owner == Owner::Free {
                "superblock"
            } else {
                bucket.owner.word()
            };
            self.line(
                || {
                    format!(
                        "bucket {number} {owner} generation {} (stored {}) priority {}",
                        bucket.generation, bucket.stored, bucket.priority
                    )
                },
                || {
                    json!({
                        "type": "bucket", "bucket": number.0, "owner": owner,
                        "generation": bucket.generation.0,
                        "stored_generation": bucket.stored.0, "priority": bucket.priority,
                    })
                },
            );
        }
    }
}

fn pointer_json(pointer: Pointer) -> Value {
    json!({ "device": pointer.device, "sector": pointer.offset.0,
        "generation": pointer.generation.0 })
}

fn key_json(key: &Key) -> Value {
    json!({
        "inode": key.inode.0, "end": key.end.0, "sectors": key.sectors, "dirty": key.dirty,
        "csum": key.csum,
        "pointers": key.pointers.iter().map(|pointer| pointer_json(*pointer)).collect::<Vec<_>>(),
    })
}

impl<S: FnMut(&str)> Visitor for Dump<S> {
    fn superblock(&mut self, superblock: &Superblock) {
        if !self.wants(DumpPart::Super) {
            return;
        }
        let fields = json!({
            "type": "superblock",
            "version": superblock.version,
            "uuid": superblock.uuid.to_string(),
            "set_uuid": superblock.set_uuid.to_string(),
            "flags": superblock.flags,
            "sync": superblock.sync(),
            "discard": superblock.discard(),
            "seq": superblock.seq,
            "block_sectors": superblock.block_sectors,
            "bucket_sectors": superblock.bucket_sectors,
            "buckets": superblock.nbuckets,
            "first_bucket": superblock.first_bucket,
            "journal_buckets": superblock.journal_buckets,
            "last_mount": superblock.last_mount,
        });
        self.line(
            || {
                let fields = fields.as_object().into_iter().flatten();
                fields.filter(|(name, _)| *name != "type").fold(
                    "superblock".to_owned(),
                    |text, (name, value)| {
                        format!(
                            "{text} {name}={}",
                            value.as_str().map_or_else(|| value.to_string(), str::to_owned)
                        )
                    },
                )
            },
            || fields.clone(),
        );
    }

    fn journal(&mut self, geometry: &Geometry, journal: &Journal) {
        if !self.wants(DumpPart::Journal) {
            return;
        }
        let oldest = journal.newest().map_or(u64::MAX, |newest| newest.place.last_seq);
        for place in journal.places.iter().flatten() {
            let bucket = geometry.journal_bucket(place.index);
            let state = if place.seq >= oldest { "needed" } else { "expired" };
            self.line(
                || {
                    format!(
                        "journal entry {} needs from {} on: bucket {bucket} (ring {}) byte {} \
                         length {}, {state}",
                        place.seq, place.last_seq, place.index, place.offset, place.bytes
                    )
                },
                || {
                    json!({
                        "type": "journal_entry", "seq": place.seq, "last_seq": place.last_seq,
                        "bucket": bucket.0,
                        "ring": place.index, "offset": place.offset, "bytes": place.bytes,
                        "state": state,
                    })
                },
            );
        }
        for found in &journal.entries {
            let (seq, entry) = (found.place.seq, &found.entry);
            self.line(
                || {
                    format!(
                        "journal header {seq}: root {} level {}, volume table {}, prio chain {}, \
                         mark {}",
                        entry.root,
                        entry.root_level,
                        entry.uuid_bucket,
                        entry.prio_bucket,
                        entry.padding
                    )
                },
                || {
                    json!({
                        "type": "journal_header", "seq": seq, "version": found.version,
                        "root": key_json(&entry.root),
                        "root_level": entry.root_level, "uuids": key_json(&entry.uuid_bucket),
                        "prio_bucket": entry.prio_bucket.0, "mark": entry.padding.to_string(),
                    })
                },
            );
            for key in &entry.keys {
                self.line(
                    || format!("journal key {seq}: {key}"),
                    || json!({ "type": "journal_key", "seq": seq, "key": key_json(key) }),
                );
            }
        }
    }

    fn prio(&mut self, element: &PrioElement<'_>) {
        if !self.wants(DumpPart::Prio) {
            return;
        }
        let (bucket, seq, next) = (element.bucket, element.seq, element.next);
        self.line(
            || {
                let count = element.entries.len();
                format!(
                    "prio set in bucket {bucket}: seq {seq}, next {next}, {count} buckets from \
                    {} on",
                    element.first
                )
            },
            || {
                json!({ "type": "prio_set", "bucket": bucket.0, "seq": seq, "next": next.0,
                "first": element.first.0 })
            },
        );
        for (index, entry) in element.entries.iter().enumerate() {
            let about = u64::from(element.first.0) + index as u64;
            self.line(
                || {
                    format!(
                        "prio {about}: generation {} priority \
                    {}",
                        entry.generation, entry.priority
                    )
                },
                || {
                    json!({
                        "type": "prio", "bucket": about, "generation": entry.generation.0,
                        "priority": entry.priority,
                    })
                },
            );
        }
    }

    fn uuids(&mut self, key: &Key, slots: &[UuidEntry]) {
        if !self.wants(DumpPart::Uuids) {
            return;
        }
        self.line(
            || format!("volume table {key}"),
            || json!({ "type": "volume_table", "key": key_json(key) }),
        );
        for (slot, entry) in slots.iter().enumerate().filter(|(_, entry)| !entry.is_free()) {
            let label = String::from_utf8_lossy(&entry.label).trim_end_matches('\0').to_owned();
            let state = match entry {
                entry if entry.uuid == Uuid::INVALIDATED => "detached",
                entry if entry.flash_only => "flash-only",
                _ => "backed",
            };
            self.line(
                || {
                    format!(
                        "volume {slot}: {} {state} {label:?} first {} last {} invalidated {} \
                         sectors {}",
                        entry.uuid,
                        entry.first_reg,
                        entry.last_reg,
                        entry.invalidated,
                        entry.sectors
                    )
                },
                || {
                    json!({
                        "type": "volume", "slot": slot, "uuid": entry.uuid.to_string(),
                        "state": state, "label": label,
                        "first_reg": entry.first_reg, "last_reg": entry.last_reg,
                        "invalidated": entry.invalidated,
                        "sectors": entry.sectors,
                    })
                },
            );
        }
    }

    fn node(&mut self, visit: &NodeVisit<'_>) {
        if !self.wants(DumpPart::Btree) {
            return;
        }
        let (key, level, node) = (visit.key, visit.level, visit.node);
        self.line(
            || {
                let (bsets, used) = (node.bsets.len(), node.used_bytes);
                format!(
                    "node {key} level {level} seq {:#018x}: {bsets} bsets, {used} bytes",
                    node.seq
                )
            },
            || {
                json!({
                    "type": "node", "key": key_json(key), "level": level, "seq": node.seq,
                    "bsets": node.bsets.len(), "used_bytes": node.used_bytes,
                })
            },
        );
        for (index, keys) in node.bsets.iter().enumerate() {
            for key in keys {
                self.line(
                    || format!("  bset {index}: {key}"),
                    || json!({ "type": "key", "bset": index, "key": key_json(key) }),
                );
            }
        }
    }

    fn sees_leaves(&self) -> bool {
        self.wants(DumpPart::Btree)
    }

    fn finding(&mut self, finding: Finding) {
        self.line(
            || format!("! {finding}"),
            || {
                let mut object = finding.to_json();
                object["type"] = json!("finding");
                object
            },
        );
    }
}
