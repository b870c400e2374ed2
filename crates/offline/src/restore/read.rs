//! Reading a dump: lines that differ from those of a written dump are refused.

use serde_json::{Map, Value};
use ubcache_format::{
    Generation, Inode, Key, LABEL_BYTES, Pointer, SUPERBLOCK_BYTES, Sector, SectorRange,
    Superblock, Uuid, UuidEntry,
};

use super::lines::{Lines, VERSION, wrong};
use crate::error::{OfflineError, On};
use crate::set::{Bucket, Owner, SEQ_MAX, STALE_FATAL, View};

/// A dump that was read to its end and makes sense.
#[derive(Clone, Debug)]
pub struct Dumped {
    /// Sectors of the device that was dumped.
    pub device_sectors: u64,
    /// The newest journal entry of the set at that time.
    pub journal_seq: u64,
    /// Extents, holes and stale ones among them.
    pub extents: u64,
    /// Sectors that are in the cache.
    pub cached_sectors: u64,
    /// Sectors of which the cache has the only copy.
    pub dirty_sectors: u64,
    /// All but the extents. Buckets are free, or have the journal or data.
    pub(super) view: View,
    /// By how much the most stale pointer to each bucket is.
    pub(super) stale: Vec<u8>,
}

impl Dumped {
    /// The superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.view.superblock
    }
}

/// Reads a dump and checks all of it.
pub fn read_dump<L: Lines + ?Sized>(source: &L) -> Result<Dumped, OfflineError> {
    let mut reader = Reader::begin(source)?;
    let (device_sectors, journal_seq) = reader.header()?;
    let mut dumped = Dumped {
        device_sectors,
        journal_seq,
        extents: 0,
        cached_sectors: 0,
        dirty_sectors: 0,
        view: View::new(reader.superblock(device_sectors)?),
        stale: Vec::new(),
    };
    let geometry = dumped.view.geometry;
    dumped.view.uuids = vec![UuidEntry::default(); geometry.uuid_slots() as usize];
    let mut volumes = 0;
    let mut free_slot = 0;
    while let Some(fields) = reader.next_if("volume")? {
        let slot = fields.number("slot")? as usize;
        if slot < free_slot {
            return Err(fields.wrong("slots are not in order"));
        }
        let entry =
            dumped.view.uuids.get_mut(slot).ok_or_else(|| fields.wrong("there is no such slot"))?;
        *entry = fields.volume()?;
        free_slot = slot + 1;
        volumes += 1;
    }
    while let Some(fields) = reader.next_if("buckets")? {
        fields.buckets(&mut dumped.view)?;
    }
    if dumped.view.buckets.len() as u64 != u64::from(geometry.buckets) {
        return Err(reader.wrong(format_args!(
            "{} of {} buckets are in the dump",
            dumped.view.buckets.len(),
            geometry.buckets
        )));
    }
    for index in 0..geometry.journal_buckets {
        let _ = dumped.view.assign_bucket(geometry.journal_bucket(index), Owner::Journal);
    }
    dumped.stale = vec![0; dumped.view.buckets.len()];
    let mut places: Vec<(u64, u16)> = Vec::new();
    let mut end = (Inode(0), Sector(0));
    while let Some(fields) = reader.next_if("extent")? {
        let key = fields.extent()?;
        if (key.inode, key.start()) < end {
            return Err(fields.wrong("extents overlap, or are not in order"));
        }
        end = key.position();
        key.check_journaled(&geometry).map_err(|error| fields.wrong(error))?;
        dumped.take(&key, &mut places).map_err(|what| fields.wrong(what))?;
    }
    let fields = reader
        .next_if("end")?
        .ok_or_else(|| reader.wrong("the dump is not whole: its last line is missing"))?;
    if (fields.number("volumes")?, fields.number("extents")?) != (volumes, dumped.extents) {
        return Err(fields.wrong("the counts of volumes and extents do not match"));
    }
    if let Some(fields) = reader.peek()? {
        return Err(fields.wrong("data follows the end"));
    }
    places.sort_unstable();
    if let Some(pair) = places.windows(2).find(|pair| pair[0].0 + u64::from(pair[0].1) > pair[1].0)
    {
        return Err(
            reader.wrong(format_args!("two extents have sector {} of the device", pair[1].0))
        );
    }
    Ok(dumped)
}

/// The keys of a dump that was read before. If it is another one now, they end early, and `failed`
/// says why.
pub(super) fn keys<'a, L: Lines + ?Sized>(
    source: &'a L,
    failed: &'a std::cell::RefCell<Option<OfflineError>>,
) -> Result<impl Iterator<Item = Key> + 'a, OfflineError> {
    let mut reader = Reader::begin(source)?;
    Ok(std::iter::from_fn(move || {
        loop {
            let next = reader.peek().and_then(|fields| match fields {
                Some(fields) if fields.kind() == "extent" => fields.extent().map(Some),
                Some(_) => Ok(None),
                None => Err(wrong(0, "the dump has lost its end")),
            });
            match next {
                Ok(Some(key)) => {
                    reader.peeked = None;
                    return Some(key);
                }
                Ok(None) if reader.peeked.as_ref().is_some_and(|fields| fields.kind() == "end") => {
                    return None;
                }
                Ok(None) => reader.peeked = None,
                Err(error) => {
                    failed.replace(Some(error));
                    return None;
                }
            }
        }
    }))
}

impl Dumped {
    /// Notes where an extent has its data.
    fn take(&mut self, key: &Key, places: &mut Vec<(u64, u16)>) -> Result<(), String> {
        self.extents += 1;
        let Some(pointer) = key.pointer() else { return Ok(()) };
        let number = pointer.bucket(self.view.geometry.bucket_sectors);
        let Some(bucket) = self.view.buckets.get(number.0 as usize) else {
            return Err(format!("there is no bucket {number}"));
        };
        if bucket.generation.is_ahead(pointer.generation) {
            return Err(format!("generation {} is newer than bucket {number}", pointer.generation));
        }
        let stale = bucket.generation.staleness_of(pointer.generation);
        if stale > STALE_FATAL {
            return Err(format!(
                "the pointer is stale by {stale}, {STALE_FATAL} is the most that there can be"
            ));
        }
        if stale > 0 {
            if let Some(most) = self.stale.get_mut(number.0 as usize) {
                *most = stale.max(*most);
            }
            return Ok(());
        }
        let slot = self.view.uuids.get(key.inode.0 as usize);
        if key.dirty && slot.is_none_or(|slot| slot.is_free()) {
            return Err(format!(
                "dirty data of volume {}, which is not in the volume table",
                key.inode
            ));
        }
        let owner = if key.dirty { Owner::Dirty } else { Owner::Clean };
        if let Some(former) = self.view.assign_bucket(number, owner) {
            return Err(format!("bucket {number} has the {}", former.word()));
        }
        self.cached_sectors += u64::from(key.sectors);
        self.dirty_sectors += if key.dirty { u64::from(key.sectors) } else { 0 };
        places.push((pointer.offset.0, key.sectors));
        Ok(())
    }
}

struct Reader<'a> {
    lines: Box<dyn Iterator<Item = Result<String, String>> + 'a>,
    line: u64,
    peeked: Option<Fields>,
}

impl<'a> Reader<'a> {
    fn begin<L: Lines + ?Sized>(source: &'a L) -> Result<Reader<'a>, OfflineError> {
        let lines = source.lines().map_err(|error| OfflineError::Io {
            on: On::Dump,
            doing: "reading the dump",
            error,
        })?;
        Ok(Reader { lines, line: 0, peeked: None })
    }

    fn wrong(&self, what: impl std::fmt::Display) -> OfflineError {
        wrong(self.line, what)
    }

    fn peek(&mut self) -> Result<Option<&Fields>, OfflineError> {
        if self.peeked.is_none()
            && let Some(text) = self.lines.next()
        {
            self.line += 1;
            let text = text.map_err(|error| OfflineError::Io {
                on: On::Dump,
                doing: "reading the dump",
                error,
            })?;
            match serde_json::from_str(&text) {
                Ok(Value::Object(map)) => self.peeked = Some(Fields { line: self.line, map }),
                _ => return Err(self.wrong("this is not a JSON object")),
            }
        }
        Ok(self.peeked.as_ref())
    }

    fn next_if(&mut self, kind: &str) -> Result<Option<Fields>, OfflineError> {
        Ok(self
            .peek()?
            .is_some_and(|fields| fields.kind() == kind)
            .then(|| self.peeked.take())
            .flatten())
    }

    fn header(&mut self) -> Result<(u64, u64), OfflineError> {
        let fields = self.next_if("restore");
        let Ok(Some(fields)) = fields else {
            return Err(wrong(1, "this is not a dump that was made with --format restore"));
        };
        match fields.number("version")? {
            VERSION => {
                let journal_seq = fields.number("journal_seq")?;
                // A set whose newest entry has a greater one is taken for damaged, and has no
                // number for the next.
                if journal_seq >= SEQ_MAX {
                    return Err(fields.wrong(format_args!(
                        "\"journal_seq\" is {journal_seq}, which is out of range"
                    )));
                }
                Ok((fields.number("device_sectors")?, journal_seq))
            }
            other => {
                Err(fields.wrong(format_args!("version {other}, this ubcache reads {VERSION}")))
            }
        }
    }

    fn superblock(&mut self, device_sectors: u64) -> Result<Superblock, OfflineError> {
        let missing = self.wrong("the superblock is missing");
        let fields = self.next_if("superblock")?.ok_or(missing)?;
        let mut bytes =
            unhex(fields.text("bytes")?).ok_or_else(|| fields.wrong("\"bytes\" is not hex"))?;
        bytes.resize(SUPERBLOCK_BYTES, 0);
        let superblock =
            Superblock::read(&bytes, device_sectors, 512).map_err(|error| fields.wrong(error))?;
        if !superblock.is_cache() || !superblock.sync() {
            return Err(fields.wrong("this is not the superblock of a cache that was started"));
        }
        let numbers = [
            ("bucket_sectors", superblock.bucket_sectors),
            ("block_sectors", superblock.block_sectors),
            ("buckets", superblock.nbuckets),
        ];
        for (name, expected) in numbers {
            if fields.number(name)? != u64::from(expected) {
                return Err(fields.wrong(format_args!("{name:?} is {expected} in \"bytes\"")));
            }
        }
        if fields.uuid("uuid")? != superblock.uuid
            || fields.uuid("set_uuid")? != superblock.set_uuid
        {
            return Err(fields.wrong("\"bytes\" has other UUIDs"));
        }
        Ok(superblock)
    }
}

/// One line.
struct Fields {
    line: u64,
    map: Map<String, Value>,
}

impl Fields {
    fn wrong(&self, what: impl std::fmt::Display) -> OfflineError {
        wrong(self.line, what)
    }

    fn kind(&self) -> &str {
        self.map.get("type").and_then(Value::as_str).unwrap_or_default()
    }

    fn need<'a, T>(
        &'a self,
        name: &str,
        take: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<T, OfflineError> {
        let value = self.map.get(name).and_then(take);
        value.ok_or_else(|| self.wrong(format_args!("{name:?} is missing, or of the wrong type")))
    }

    fn number(&self, name: &str) -> Result<u64, OfflineError> {
        self.need(name, Value::as_u64)
    }

    fn narrow<T: TryFrom<u64>>(&self, name: &str) -> Result<T, OfflineError> {
        self.need(name, |value| T::try_from(value.as_u64()?).ok())
    }

    fn text(&self, name: &str) -> Result<&str, OfflineError> {
        self.need(name, Value::as_str)
    }

    fn uuid(&self, name: &str) -> Result<Uuid, OfflineError> {
        self.need(name, |value| value.as_str()?.parse().ok())
    }

    fn volume(&self) -> Result<UuidEntry, OfflineError> {
        let label = match self.map.get("label_bytes") {
            Some(_) => unhex(self.text("label_bytes")?),
            None => Some(self.text("label")?.as_bytes().to_vec()),
        };
        let label = label.filter(|label| label.len() <= LABEL_BYTES);
        let mut label = label.ok_or_else(|| self.wrong("the label is invalid"))?;
        label.resize(LABEL_BYTES, 0);
        Ok(UuidEntry {
            uuid: self.uuid("uuid")?,
            label: label.try_into().unwrap_or_default(),
            first_reg: self.narrow("first_reg")?,
            last_reg: self.narrow("last_reg")?,
            invalidated: self.narrow("invalidated")?,
            flash_only: self.need("flash_only", Value::as_bool)?,
            sectors: self.number("sectors")?,
        })
    }

    fn buckets(&self, view: &mut View) -> Result<(), OfflineError> {
        if self.number("first")? != view.buckets.len() as u64 {
            return Err(self.wrong(format_args!("bucket {} is expected first", view.buckets.len())));
        }
        let generations = self.need("generations", Value::as_array)?;
        let priorities = self.need("priorities", Value::as_array)?;
        let room = (view.geometry.buckets as usize).saturating_sub(view.buckets.len());
        if generations.len() != priorities.len() || generations.len() > room {
            return Err(self.wrong("the set has fewer buckets"));
        }
        for (generation, priority) in generations.iter().zip(priorities) {
            let generation = generation.as_u64().and_then(|value| u8::try_from(value).ok());
            let priority = priority.as_u64().and_then(|value| u16::try_from(value).ok());
            let (Some(generation), Some(priority)) = (generation, priority) else {
                return Err(self.wrong("a generation or priority is too large"));
            };
            let generation = Generation(generation);
            view.buckets.push(Bucket {
                stored: generation,
                generation,
                priority,
                owner: Owner::Free,
                known: true,
                named: false,
            });
        }
        Ok(())
    }

    fn extent(&self) -> Result<Key, OfflineError> {
        let inode = Inode(self.narrow("volume")?);
        let sectors: u16 = self.narrow("sectors")?;
        let range = SectorRange::new(Sector(self.number("sector")?), sectors.into());
        if inode.0 > Key::MAX_INODE {
            return Err(self.wrong("there is no such volume"));
        }
        let mut key = Key::hole(inode, range);
        key.dirty = self.need("dirty", Value::as_bool)?;
        if self.map.contains_key("csum") {
            key.csum = self.narrow("csum")?;
        }
        if self.map.contains_key("at") {
            let generation = Generation(self.narrow("generation")?);
            key.pointers.push(Pointer {
                device: 0,
                offset: Sector(self.number("at")?),
                generation,
            });
        }
        if key.csum > 3 {
            return Err(self.wrong("\"csum\" is at most 3"));
        }
        Ok(key)
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}
