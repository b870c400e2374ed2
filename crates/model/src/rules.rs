//! The protocols: the rules of docs/internals/coherence.md as switches, the ladder P0 to P8, and P8
//! with one rule changed.

/// When the cached copies under a backing write are removed.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Removal {
    /// In the decide step, before the write is submitted (W2).
    Before,
    /// At any moment while the write is in flight.
    Parallel,
    /// After its completion, before its reply.
    After,
    /// Before and after.
    Both,
}

/// Treatment of dirty data under a backing write.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum OverDirty {
    /// The request becomes a writeback write (W2).
    Writeback,
    /// The dirty key goes with the clean ones.
    Drop,
    /// The request waits until background writeback has cleaned the range, and decides again.
    Wait,
}

/// Treatment of dirty data under a discard (D1).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Trim {
    /// Zeroes go to the backing device, durably, and then the dirty key goes: a writeback of
    /// nothing.
    Drops,
    /// Dirty data is left alone.
    Skips,
}

/// When a backing write waits for its removals to be durable (W3).
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Durable {
    /// If a crash could bring an old key back: the index and the ghosts are asked.
    IfMayReturn,
    /// If the index has a key; ghosts are not asked.
    IfInIndex,
    /// Waits like `IfMayReturn`, but not for discards.
    NotForDiscards,
    /// If there is anything that is not durable.
    Always,
    /// Never.
    Never,
}

/// A protocol.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    /// W2: when copies are removed.
    pub removal: Removal,
    /// Writethrough writes remove old copies first, like bypass writes.
    pub through_removes: bool,
    /// W2: writes over dirty data.
    pub over_dirty: OverDirty,
    /// A change of the index dooms the fills over it.
    pub placeholders: bool,
    /// T2, T3: client writes doom the fills over them.
    pub doom_fills: bool,
    /// T2: client writes doom the copies of writethrough writes over them.
    pub doom_copies: bool,
    /// Client writes to one range exclude each other.
    pub exclusion: bool,
    /// D1: discards over dirty data.
    pub trim: Trim,
    /// D1: the backing device is asked to discard, and may keep what it has; nothing is zeroed.
    pub trim_may_keep: bool,
    /// D1: the dirty record is durable before its range is discarded (B2).
    pub trim_b2: bool,
    /// D1: a backing flush before the dirty key goes (B4).
    pub trim_b4: bool,
    /// R5: a read that may have seen what is discarded below dirty data looks up again.
    pub r5: bool,
    /// D1: only the dirty key that was there goes, not one that came meanwhile (B5).
    pub trim_b5: bool,
    /// F1: FLUSH waits for the removal of dirty data as well.
    pub flush_removals: bool,
    /// W3.
    pub durable: Durable,
    /// W3: what if the journal fails: submit all the same.
    pub submit_after_failure: bool,
    /// A writethrough write inserts its copy while it writes, not after completion.
    pub early_copy: bool,
    /// C1: fills of un-flushed ranges get no record.
    pub track_fills: bool,
    /// C1: copies of writethrough writes get no record before they are flushed.
    pub track_copies: bool,
    /// W5: ranges become un-flushed when the write is submitted, not when it completes.
    pub unflushed_at_submission: bool,
    /// W5: the range of a successful FUA write becomes un-flushed as well.
    pub fua_is_unflushed: bool,
    /// Un-flushed is one bit for the device.
    pub one_bit: bool,
    /// A failed backing write puts the removed clean key back.
    pub restore: bool,
    /// B1: writeback does not start over a backing write.
    pub b1: bool,
    /// B2: writeback waits for its dirty record.
    pub b2: bool,
    /// B4: a backing flush before keys turn clean.
    pub b4: bool,
    /// J1: the cache device is flushed before a journal block.
    pub j1: bool,
    /// J3: a failed flush of the cache device fails the journal, for good.
    pub j3: bool,
    /// J3: what such a flush may have cost is not read.
    pub j3_reads: bool,
    /// F4: who has written is told once of a failed flush of the backing device.
    pub f4: bool,
    /// F4: each of them is told, not only the first that asks.
    pub f4_each: bool,
    /// F5: what a failed flush of the backing device may have cost is not cached until it is
    /// written again.
    pub f5: bool,
    /// F5: copies of it are dropped.
    pub f5_copies: bool,
    /// J2: a place is reused only when nothing that may return names it.
    pub j2: bool,
    /// A1: the backing device is flushed at attach.
    pub a1: bool,
    /// F1: FLUSH flushes the backing device.
    pub flush_backing: bool,
    /// F1: FLUSH flushes the journal.
    pub flush_journal: bool,
    /// F1: FLUSH waits for every record, not only for dirty inserts.
    pub flush_every_record: bool,
}

/// The rules of docs/internals/coherence.md that the model has, each with the switches that change
/// it. One without a switch is the order of steps itself.
pub const RULES: &[(&str, &[&str])] = &[
    ("T1", &["placeholders"]),
    ("T2", &["doom_fills", "doom_copies"]),
    ("T3", &["doom_fills"]),
    ("T4", &["exclusion", "b1"]),
    ("R1", &[]),
    ("R2", &[]),
    ("R3", &["track_fills"]),
    ("R4", &[]),
    ("R5", &["r5"]),
    ("C1", &["track_fills", "track_copies"]),
    ("C2", &["one_bit"]),
    ("W1", &[]),
    ("W2", &["removal", "through_removes", "over_dirty"]),
    ("W3", &["durable", "submit_after_failure"]),
    ("W4", &[]),
    ("W5", &["early_copy", "unflushed_at_submission", "fua_is_unflushed", "restore"]),
    ("W6", &[]),
    ("K1", &[]),
    ("K2", &[]),
    ("K3", &[]),
    ("D1", &["trim", "trim_may_keep", "trim_b2", "trim_b4", "trim_b5"]),
    ("F1", &["flush_backing", "flush_journal", "flush_every_record", "flush_removals"]),
    ("F2", &[]),
    ("F3", &[]),
    ("F4", &["f4", "f4_each"]),
    ("F5", &["f5", "f5_copies"]),
    ("J1", &["j1"]),
    ("J2", &["j2"]),
    ("J3", &["j3", "j3_reads"]),
    ("E1", &[]),
    ("B1", &["b1"]),
    ("B2", &["b2"]),
    ("B3", &[]),
    ("B4", &["b4"]),
    ("B5", &[]),
    ("B6", &["over_dirty"]),
    ("A1", &["a1"]),
    ("V1", &[]),
];

/// P8, the protocol of ubcache.
pub const P8: Rules = Rules {
    removal: Removal::Before,
    through_removes: true,
    over_dirty: OverDirty::Writeback,
    placeholders: false,
    doom_fills: true,
    doom_copies: true,
    exclusion: false,
    trim: Trim::Drops,
    trim_may_keep: false,
    trim_b2: true,
    trim_b4: true,
    r5: true,
    trim_b5: true,
    flush_removals: true,
    durable: Durable::IfMayReturn,
    submit_after_failure: false,
    early_copy: false,
    track_fills: true,
    track_copies: true,
    unflushed_at_submission: false,
    fua_is_unflushed: false,
    one_bit: false,
    restore: false,
    b1: true,
    b2: true,
    b4: true,
    j1: true,
    j3: true,
    j3_reads: true,
    f4: true,
    f4_each: true,
    f5: true,
    f5_copies: true,
    j2: true,
    a1: true,
    flush_backing: true,
    flush_journal: true,
    flush_every_record: false,
};

/// P7: client writes exclude each other, so that copies need not be doomed and B1 need not look.
pub const P7: Rules = Rules { exclusion: true, doom_copies: false, b1: false, ..P8 };
/// P6: a dirty key need not be durable before its data goes to the backing device.
pub const P6: Rules = Rules { b2: false, ..P7 };
/// P5: nothing knows what the backing device may lose; writethrough inserts early.
pub const P5: Rules =
    Rules { track_fills: false, track_copies: false, b4: false, a1: false, early_copy: true, ..P6 };
/// P4: no exclusion.
pub const P4: Rules = Rules { exclusion: false, ..P5 };
/// P3: the removal is not durable.
pub const P3: Rules = Rules { durable: Durable::Never, ..P4 };
/// P0: removal while the write runs, dirty keys go too, placeholders instead of a table.
pub const P0: Rules = Rules {
    removal: Removal::Parallel,
    through_removes: false,
    over_dirty: OverDirty::Drop,
    placeholders: true,
    doom_fills: false,
    ..P3
};
/// P1: removal after completion.
pub const P1: Rules = Rules { removal: Removal::After, ..P0 };
/// P2: removal before and after.
pub const P2: Rules = Rules { removal: Removal::Both, ..P0 };

/// Promise that a protocol violates, or is expected to.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Promise {
    /// A stale, lost or resurrected value while running.
    Lin,
    /// A flushed value is gone after a crash.
    Dur,
    /// A clean copy differs from the backing device.
    Ceb,
    /// An invariant of §10 does not hold in some state on the way.
    Strict,
}

impl Promise {
    /// Name in the documents.
    pub fn name(self) -> &'static str {
        match self {
            Promise::Lin => "LIN",
            Promise::Dur => "DUR",
            Promise::Ceb => "CEB",
            Promise::Strict => "I1-I8",
        }
    }
}

/// A protocol with a name and what is expected of it.
#[derive(Clone, Debug)]
pub struct Variant {
    /// For the command line.
    pub name: &'static str,
    /// Description for the table.
    pub what: &'static str,
    /// The protocol.
    pub rules: Rules,
    /// Violations with two operations on one sector, within `Bounds::usual`.
    pub violates: &'static [Promise],
}

const ALL: &[Promise] = &[Promise::Lin, Promise::Dur, Promise::Ceb];
const NONE: &[Promise] = &[];

const fn variant(
    name: &'static str,
    what: &'static str,
    rules: Rules,
    violates: &'static [Promise],
) -> Variant {
    Variant { name, what, rules, violates }
}

/// The ladder of §4, then the rows of §6.
pub fn variants() -> Vec<Variant> {
    use Promise::{Ceb, Dur};
    vec![
        variant("P0", "removal while the write runs", P0, ALL),
        variant("P1", "removal after completion", P1, ALL),
        variant("P2", "removal before and after", P2, ALL),
        variant("P3", "table; writes over dirty become writeback", P3, ALL),
        variant("P4", "P3, durable removal", P4, ALL),
        variant("P5", "P4, writes exclude each other", P5, ALL),
        variant("P6", "P5, un-flushed ranges tracked", P6, &[Ceb]),
        variant("P7", "P6, dirty records durable before writeback", P7, NONE),
        variant("P8", "P7 without exclusion", P8, NONE),
        variant(
            "no-t2-fills",
            "the table does not doom fills",
            Rules { doom_fills: false, ..P8 },
            ALL,
        ),
        variant(
            "placeholders",
            "placeholders beside the table",
            Rules { placeholders: true, ..P8 },
            NONE,
        ),
        variant(
            "no-t2-copies",
            "the table does not doom copies",
            Rules { doom_copies: false, ..P8 },
            ALL,
        ),
        variant(
            "through-keeps",
            "writethrough does not remove old keys first",
            Rules { through_removes: false, ..P8 },
            ALL,
        ),
        variant(
            "early-copy",
            "writethrough inserts before the completion",
            Rules { early_copy: true, track_copies: false, ..P8 },
            ALL,
        ),
        variant(
            "remove-after",
            "removal after the write",
            Rules { removal: Removal::After, ..P8 },
            ALL,
        ),
        variant(
            "no-w3",
            "no durable removal",
            Rules { durable: Durable::Never, ..P8 },
            &[Dur, Ceb],
        ),
        variant(
            "no-w3-discards",
            "no durable removal for discards",
            Rules { durable: Durable::NotForDiscards, ..P8 },
            &[Dur, Ceb],
        ),
        variant(
            "no-ghosts",
            "the return check asks the index only",
            Rules { durable: Durable::IfInIndex, ..P8 },
            &[Dur, Ceb],
        ),
        variant("always-w3", "W3 always waits", Rules { durable: Durable::Always, ..P8 }, NONE),
        variant(
            "w3-ignores-errors",
            "W3: the flush failed, submit all the same",
            Rules { submit_after_failure: true, ..P8 },
            &[Dur, Ceb],
        ),
        variant(
            "drop-dirty",
            "a write over dirty data drops it",
            Rules { over_dirty: OverDirty::Drop, ..P8 },
            ALL,
        ),
        variant(
            "wait-dirty",
            "a write over dirty data waits for its writeback",
            Rules { over_dirty: OverDirty::Wait, ..P8 },
            NONE,
        ),
        variant(
            "discard-skips-dirty",
            "a discard leaves dirty data alone",
            Rules { trim: Trim::Skips, ..P8 },
            NONE,
        ),
        variant(
            "discard-may-keep",
            "a discard over dirty data does not zero the range",
            Rules { trim_may_keep: true, ..P8 },
            ALL,
        ),
        variant(
            "discard-no-b2",
            "a discard does not wait for the dirty record",
            Rules { trim_b2: false, ..P8 },
            &[Dur, Ceb],
        ),
        variant(
            "discard-no-b4",
            "a discard drops dirty keys without a flush",
            Rules { trim_b4: false, ..P8 },
            &[Promise::Lin, Dur],
        ),
        variant(
            "no-r5",
            "reads that have seen a discard below dirty data do not look again",
            Rules { r5: false, ..P8 },
            NONE,
        ),
        variant(
            "discard-no-b5",
            "a discard drops whatever is dirty by then",
            Rules { trim_b5: false, ..P8 },
            NONE,
        ),
        variant(
            "flush-no-removals",
            "FLUSH does not wait for removals of dirty data",
            Rules { flush_removals: false, ..P8 },
            &[Dur],
        ),
        variant(
            "restore",
            "a failed write puts the old key back",
            Rules { restore: true, ..P8 },
            ALL,
        ),
        variant(
            "no-c1-fills",
            "fills of un-flushed ranges are recorded",
            Rules { track_fills: false, ..P8 },
            &[Ceb],
        ),
        variant(
            "no-c1-copies",
            "copies of un-flushed ranges are recorded",
            Rules { track_copies: false, ..P8 },
            &[Dur, Ceb],
        ),
        variant(
            "w5-early",
            "un-flushed at submission, not at completion",
            Rules { unflushed_at_submission: true, ..P8 },
            &[Ceb],
        ),
        variant(
            "w5-fua",
            "a successful FUA write is un-flushed too",
            Rules { fua_is_unflushed: true, ..P8 },
            NONE,
        ),
        variant(
            "one-bit",
            "un-flushed is one bit for the device",
            Rules { one_bit: true, ..P8 },
            NONE,
        ),
        variant("no-b1", "writeback over backing writes in flight", Rules { b1: false, ..P8 }, ALL),
        variant(
            "no-b2",
            "writeback does not wait for its record",
            Rules { b2: false, ..P8 },
            &[Ceb],
        ),
        variant("no-b4", "keys turn clean without a flush", Rules { b4: false, ..P8 }, ALL),
        variant("no-j1", "no flush before a journal block", Rules { j1: false, ..P8 }, &[Dur, Ceb]),
        variant(
            "no-j3",
            "a set goes on after a failed flush of the cache device",
            Rules { j3: false, ..P8 },
            ALL,
        ),
        variant(
            "no-j3-reads",
            "what such a flush may have cost is read",
            Rules { j3_reads: false, ..P8 },
            &[Promise::Lin, Ceb],
        ),
        variant(
            "no-f4",
            "clients are not flush_reports of flushes of others that fail",
            Rules { f4: false, ..P8 },
            &[Promise::Lin, Dur],
        ),
        variant(
            "f4-once",
            "only the first who asks is flush_reports of a failed flush",
            Rules { f4_each: false, ..P8 },
            NONE,
        ),
        variant(
            "no-f5",
            "what a failed flush may have cost is cached",
            Rules { f5: false, ..P8 },
            ALL,
        ),
        variant("no-f5-copies", "copies of it are kept", Rules { f5_copies: false, ..P8 }, ALL),
        variant("no-j2", "places are reused at once", Rules { j2: false, ..P8 }, &[Dur, Ceb]),
        variant(
            "flush-no-backing",
            "FLUSH leaves out the backing device",
            Rules { flush_backing: false, ..P8 },
            &[Promise::Lin, Dur],
        ),
        variant(
            "flush-no-journal",
            "FLUSH leaves out the journal",
            Rules { flush_journal: false, ..P8 },
            &[Dur],
        ),
        variant(
            "flush-all-records",
            "FLUSH waits for every record",
            Rules { flush_every_record: true, ..P8 },
            NONE,
        ),
        variant("no-a1", "no backing flush at attach", Rules { a1: false, ..P8 }, &[Dur, Ceb]),
    ]
}

/// The variant of this name.
pub fn find(name: &str) -> Option<Variant> {
    variants().into_iter().find(|variant| variant.name == name)
}
