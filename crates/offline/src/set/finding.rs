//! Findings of a check: their kind, their place, what they mean for the data, what to do.
//!
//! A [`FindingKind`] has one severity, one meaning and one advice; a [`Finding`] adds the place and
//! what was seen there. A [`Report`](crate::Report) keeps a bounded number of findings of each
//! kind, and counts all.

use std::fmt;

use serde_json::{Value, json};
use ubcache_format::{BucketNr, Geometry, Inode, SECTOR_BYTES, Sector, SectorRange};

/// Severity of the finding.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Not damage, but not as it should be either.
    Warning,
    /// Damage: data is lost or wrong, or the set does not start.
    Error,
}

impl Severity {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// A device.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Site {
    /// The cache device.
    Cache,
    /// A backing device, by its place in the list that the caller gave.
    Backing(usize),
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Site::Cache => f.write_str("cache"),
            Site::Backing(index) => write!(f, "backing {}", index + 1),
        }
    }
}

/// Place of a finding.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Location {
    /// The device.
    pub site: Site,
    /// The bucket of the cache device.
    pub bucket: Option<BucketNr>,
    /// The byte, counted from the start of the device.
    pub byte: Option<u64>,
    /// The part of a volume that is concerned, in key sectors (docs/reference/format.md §4.3).
    pub volume: Option<(Inode, SectorRange)>,
}

impl Location {
    /// Somewhere on a device.
    pub const fn on(site: Site) -> Location {
        Location { site, bucket: None, byte: None, volume: None }
    }

    /// A sector of the cache device.
    pub const fn cache(geometry: &Geometry, sector: Sector) -> Location {
        Location {
            site: Site::Cache,
            bucket: Some(geometry.bucket_of(sector)),
            byte: Some(sector.bytes()),
            volume: None,
        }
    }

    /// The start of a bucket.
    pub const fn bucket(geometry: &Geometry, bucket: BucketNr) -> Location {
        Location::cache(geometry, geometry.bucket_start(bucket))
    }

    /// The same place, `bytes` further on.
    #[must_use]
    pub fn plus(mut self, bytes: u64) -> Location {
        self.byte = self.byte.map(|byte| byte.saturating_add(bytes));
        self
    }

    /// The same place, and the part of a volume that it is about.
    #[must_use]
    pub const fn of_volume(mut self, inode: Inode, range: SectorRange) -> Location {
        self.volume = Some((inode, range));
        self
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.site.fmt(f)?;
        if let Some(bucket) = self.bucket {
            write!(f, ", bucket {bucket}")?;
        }
        if let Some(byte) = self.byte {
            write!(f, ", sector {}, byte {byte}", byte / SECTOR_BYTES)?;
        }
        if let Some((inode, range)) = self.volume {
            write!(f, ", volume {inode} key sectors {range}")?;
        }
        Ok(())
    }
}

/// Advice for damage that makes data uncertain.
const COPY_THEN_REPAIR: &str = "Copy all devices. `ubcache repair --dry-run` lists certain and \
     uncertain data; `ubcache cat --damaged` reads it.";

macro_rules! kinds {
    ($($name:ident $code:literal $severity:ident $meaning:literal $advice:tt)*) => {
        /// Kind of a finding.
        #[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum FindingKind {
            $(#[doc = $meaning] $name,)*
        }

        impl FindingKind {
            /// The name of the kind for programs: stable.
            pub const fn code(self) -> &'static str {
                match self { $(FindingKind::$name => $code,)* }
            }
            /// Severity of the finding.
            pub const fn severity(self) -> Severity {
                match self { $(FindingKind::$name => Severity::$severity,)* }
            }
            /// Meaning for the data.
            pub const fn meaning(self) -> &'static str {
                match self { $(FindingKind::$name => $meaning,)* }
            }
            /// Advice.
            pub const fn advice(self) -> &'static str {
                match self { $(FindingKind::$name => $advice,)* }
            }
        }
    };
}

kinds! {
    Unreadable "unreadable" Error
        "The device did not return these bytes; their content is unknown."
        "`ubcache repair --out NEW` copies the readable parts, and lists the others. Look at the \
         device's own error log."
    SuperblockDamaged "superblock-damaged" Error
        "The set does not start. The superblock holds no data; everything else may be intact."
        "Do not format the device. `ubcache repair --out NEW` finds the superblock again, with all \
         disks named after -B."
    SuperblockMissing "superblock-missing" Error
        "Nothing of a superblock is there: it is another device than meant, or its beginning was \
         overwritten."
        "Name the device or file that `ubcache make` was given (`ubcache show` prints what it is). \
         If it is the right one, do not format it: `ubcache repair --out NEW` finds the superblock \
         of a cache again, with all disks named after -B."
    LargerPages "larger-pages" Error
        "The set was made on a machine with larger pages: ubcache and the driver of a machine with \
         pages of 4 KiB can't read it."
        "Use it on a machine with pages of that size. `ubcache show -f` prints the superblock."
    DeviceShort "device-short" Error
        "The device ends before the set does: the rest can not be read."
        "Was the copy truncated? Copy all of it. Else `ubcache repair --out NEW` keeps the rest, \
         and lists the missing parts."
    WrongKind "wrong-kind" Error
        "The device is of another kind than given on the command line."
        "Name the cache device as CACHE and backing devices after -B."
    NeverStarted "never-started" Note
        "The cache is formatted and has never been started: it holds no data."
        "Nothing."
    JournalUndecodable "journal-undecodable" Error
        "An entry with a correct checksum is invalid. Its content and later entries are lost."
        COPY_THEN_REPAIR
    JournalEmpty "journal-empty" Error
        "Only the journal has the place of the tree: without an entry the set does not start."
        "Is it the right device? `ubcache repair --dry-run` looks for nodes everywhere, and lists \
         their dirty data."
    JournalGap "journal-gap" Error
        "Entries that replay needs are missing: their writes are lost, and the driver crashes or \
         refuses."
        COPY_THEN_REPAIR
    JournalOrder "journal-order" Error
        "Entries are not in order in the ring: the driver may take an older one for the newest."
        "Start the set with ubcache, which reads the whole ring, and stop it: that writes the \
         journal anew."
    JournalDriver "journal-driver" Error
        "The Linux driver does not find the same entries and would go back in time: writes would \
         be lost."
        "Do not give the set to the Linux driver. `ubcache recover` brings the data to the backing \
         device."
    JournalLastSeq "journal-last-seq" Warning
        "The oldest entry needed goes down from one entry to the next. Replay is not affected."
        "Report it, with the output of `ubcache dump --what journal`."
    JournalFull "journal-full" Warning
        "There is little room for the entries that replay makes: the driver may hang at the start."
        "Start and stop the set with ubcache, which makes room."
    JournalKey "journal-key" Error
        "A journaled key is invalid: the Linux driver crashes at it."
        COPY_THEN_REPAIR
    PrioDamaged "prio-damaged" Error
        "Bucket generations are unknown: stale data can not be recognised. The set does not start."
        "`ubcache repair --out NEW`: all data of a set that ubcache ran is certain; for a set of \
         the driver it lists uncertain data."
    VolumeTable "volume-table" Error
        "The volumes of the cached data are unknown. The set does not start."
        "`ubcache repair --out NEW` with all disks named after -B (and --all-disks) looks for \
         their former slots."
    VolumeTwice "volume-twice" Warning
        "Two slots have the same device: only the first counts."
        "Report it, with the output of `ubcache dump --what uuids`."
    NodeKey "node-key" Error
        "A part of the tree is unreachable: cached data of this part of the volumes is unknown."
        COPY_THEN_REPAIR
    NodeDamaged "node-damaged" Error
        "A node of the tree is damaged: cached data of this part of the volumes is unknown."
        COPY_THEN_REPAIR
    NodeTwice "node-twice" Error
        "Two places of the tree share a node, or a bucket has a node and something else."
        COPY_THEN_REPAIR
    NodeGap "node-gap" Error
        "The children of a node do not cover its interval; the driver stops there."
        COPY_THEN_REPAIR
    NodeEqual "node-equal" Warning
        "Two children are alive for the same interval; the newer one counts."
        "Report it, with the output of `ubcache dump --what btree`."
    NodeSize "node-size" Error
        "The node does not have the size of the driver's buffers, or is not at the start of a \
         bucket."
        "Do not give the set to the Linux driver; start and stop it with ubcache, or `ubcache \
         recover` the data."
    NodeStale "node-stale" Error
        "The bucket of a node in use counts as free by its generation: it may be overwritten at \
         any time."
        COPY_THEN_REPAIR
    BsetOrder "bset-order" Error
        "Keys in a node are out of order or overlap: the driver misbehaves without noticing."
        COPY_THEN_REPAIR
    ExtentInvalid "extent-invalid" Error
        "A key in a leaf is invalid: the driver stops the set. The data of the key is lost."
        COPY_THEN_REPAIR
    ExtentOutside "extent-outside" Error
        "An extent is in the wrong leaf: look-ups miss it, and older data is read."
        COPY_THEN_REPAIR
    TooStale "too-stale" Error
        "A pointer is more than 96 generations old: the driver stops the set when it meets it."
        "`ubcache recover`, or start the set with ubcache and let garbage collection run (`ubcache \
         gc`)."
    NearlyStale "nearly-stale" Note
        "A pointer is more than 80 generations old; garbage collection is due."
        "`ubcache gc` when the set runs."
    NodeOutrun "node-outrun" Error
        "A pointer is so old that it looks newer than its bucket: early versions of ubcache and \
         the Linux driver follow it, and lose data."
        "Start the set with this version, which ignores the pointer, and let garbage collection \
         run (`ubcache gc`) before any other version starts it."
    NodeNearlyOutrun "node-nearly-outrun" Warning
        "A pointer to a freed node is more than 80 generations old; at 129 it looks newer than its \
         bucket."
        "Start the set with ubcache and let garbage collection run (`ubcache gc`)."
    FarAhead "far-ahead" Warning
        "A pointer is far ahead of the stored generation; one of the two is corrupt."
        "Report it, with the output of `ubcache dump --what buckets`."
    BucketTwice "bucket-twice" Error
        "Two owners have the same bucket: one has overwritten the other, or will."
        COPY_THEN_REPAIR
    PromiseBroken "promise-broken" Error
        "The prio chain of ubcache lists the bucket as free, and it has data: a start may \
         overwrite it."
        "Do not start the set with ubcache. `ubcache recover` brings its data to the disk; report \
         it, with `ubcache pack`."
    SectorsTwice "sectors-twice" Error
        "Two extents have their data in the same place: at least one of them reads what belongs to \
         the other."
        COPY_THEN_REPAIR
    DirtyLost "dirty-lost" Error
        "Dirty data is gone: its bucket was reused. Older data is read in its place."
        "Restore the range from a backup. `ubcache repair --out NEW` makes a set without the \
         damage, and lists the range."
    DirtyStale "dirty-stale" Warning
        "A key is dirty, and its bucket was reused: the driver had written the data back."
        "Nothing, if the set was last run by the Linux driver: it leaves such keys when it is \
         killed."
    VolumeUnknown "volume-unknown" Warning
        "The cache has data of a volume that has no slot in the table; no volume shows it."
        "Nothing, if the volume was removed. Its space is used again in time."
    SlotLost "slot-lost" Error
        "The only copy of data belongs to a volume of which the slot in the table is empty: the \
         table, or a part of it, is lost."
        "Copy the cache. `ubcache repair --dry-run` with -B and every disk of the set finds its \
         volume, if that is possible."
    DirtyOrphan "dirty-orphan" Warning
        "The only copy of data belongs to a volume that was detached or removed; no volume shows \
         it."
        "If it is needed: `ubcache repair` with -B assigns the slot to a disk again; `ubcache \
         dump --what extents` prints its place."
    BlockTooSmall "block-too-small" Error
        "The backing device has smaller blocks than the cache, and can not be attached."
        "Give it another cache, made with smaller blocks."
    BackingElsewhere "backing-elsewhere" Note
        "The backing device is not attached to this set: nothing in this cache belongs to it."
        "Nothing, if this is intended. Else find the cache with the UUID that the device names."
    BackingNoSlot "backing-no-slot" Error
        "The backing device has data in this set, but the set has no record of the device: its \
         cached data is lost."
        "Is it the right cache, or an older copy of it? `ubcache repair --dry-run` with -B \
         reports if the slot can be found again."
    BackingAbsent "backing-absent" Note
        "The only copy of data is in the cache, and the backing device was not given to this check."
        "Name all backing devices with -B for a full check."
    OlderCopy "older-copy" Error
        "The cache and the disk are not of one run: one of them is a copy of an earlier state. \
         Used together they read old data, and write it over newer data."
        "Find the right one. `ubcache serve` refuses the two, and prints how to go on without it; \
         keep copies of both."
    DirtyUnderClean "dirty-under-clean" Warning
        "The device says clean, and the cache has other data for it: newer, if the driver ran the \
         set and was interrupted, or older, if the cache is a copy of an earlier state."
        "Was this cache the last one used with the disk? Then start the set. If not, do not: it \
         would write older data over newer."
    DirtyVoid "dirty-void" Warning
        "The backing device was used without its cache: dirty data in the cache is older, and void."
        "To read the dirty data: copy the devices, and use `ubcache cat --dirty-anyway` on the \
         copies."
    BeyondEndDirty "beyond-end-dirty" Error
        "Dirty data lies beyond the end of the backing device: it can not be written back."
        "Was the backing device made smaller? Restore its full size."
    BeyondEndClean "beyond-end-clean" Warning
        "Cached data lies beyond the end of the backing device, or before its data."
        "Was the backing device made smaller, or is it another one?"
    CleanDiffers "clean-differs" Error
        "The cache and the backing device differ, and neither is marked as newer."
        "`ubcache cat` reads the former content of the volume; `ubcache repair --out NEW` leaves \
         clean data out: the disk's copy counts."
    FlashClean "flash-clean" Warning
        "The only copy of data of a volume without a backing device is marked clean, and may be \
         dropped."
        "Copy it with `ubcache cat` before the set is started."
    ReserveSmall "reserve-small" Warning
        "Few buckets are free. The set may be slow to start."
        "Start it with ubcache, which frees buckets; write dirty data back."
    ReserveTight "reserve-tight" Note
        "The cache is full, which is normal after long use: less than 5 % of its buckets are free."
        "Nothing."
    ReserveGone "reserve-gone" Error
        "So few buckets are free that the Linux driver hangs at the start."
        "Start the set with ubcache, let it write back, and stop it, before the driver uses it."
}

impl FindingKind {
    /// Returns true if it makes the content of volumes uncertain.
    pub const fn spoils_content(self) -> bool {
        matches!(
            self,
            FindingKind::Unreadable
                | FindingKind::SuperblockDamaged
                | FindingKind::SuperblockMissing
                | FindingKind::LargerPages
                | FindingKind::DeviceShort
                | FindingKind::WrongKind
                | FindingKind::JournalUndecodable
                | FindingKind::JournalEmpty
                | FindingKind::JournalGap
                | FindingKind::JournalKey
                | FindingKind::PrioDamaged
                | FindingKind::VolumeTable
                | FindingKind::NodeKey
                | FindingKind::NodeDamaged
                | FindingKind::NodeTwice
                | FindingKind::NodeGap
                | FindingKind::NodeStale
                | FindingKind::BsetOrder
                | FindingKind::ExtentInvalid
                | FindingKind::ExtentOutside
                | FindingKind::BucketTwice
                | FindingKind::SectorsTwice
                | FindingKind::DirtyLost
        )
    }
}

/// One thing that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Its kind.
    pub kind: FindingKind,
    /// Its place.
    pub place: Location,
    /// Description of the fault at that place.
    pub detail: String,
}

impl Finding {
    /// A finding.
    pub fn new(kind: FindingKind, place: Location, detail: impl fmt::Display) -> Finding {
        Finding { kind, place, detail: detail.to_string() }
    }

    /// Severity of the finding.
    pub const fn severity(&self) -> Severity {
        self.kind.severity()
    }

    /// The finding for programs.
    pub fn to_json(&self) -> Value {
        json!({
            "severity": self.severity().word(),
            "kind": self.kind.code(),
            "device": self.place.site.to_string(),
            "bucket": self.place.bucket.map(|bucket| bucket.0),
            "sector": self.place.byte.map(|byte| byte / SECTOR_BYTES),
            "byte": self.place.byte,
            "volume": self.place.volume.map(|(inode, range)| {
                json!({ "inode": inode.0, "first_sector": range.start.0,
                    "sectors": range.sectors() })
            }),
            "found": self.detail,
            "meaning": self.kind.meaning(),
            "to_do": self.kind.advice(),
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} [{}]", self.severity().word(), self.detail, self.kind.code())?;
        write!(f, "\n  where:    {}", self.place)?;
        write!(f, "\n  means:    {}", self.kind.meaning())?;
        write!(f, "\n  to do:    {}", self.kind.advice())
    }
}
