//! Mutants: the engine with one of its rules dropped or changed.
//!
//! The simulator has to find each of them; what it does not find, it does not prove. They exist in
//! builds with the cargo feature `mutants` only. In all others [`Mutation`] is empty,
//! [`Mutation::is`] is constantly false, and the compiler removes what stands behind it.
//!
//! | module | holds |
//! |---|---|
//! | here | the names, and the question |
//! | `historic` | protocols P0 to P2, which need code of their own |

#[cfg(feature = "mutants")]
mod historic;

/// True in a build that can break rules.
pub const MUTANTS_COMPILED: bool = cfg!(feature = "mutants");

macro_rules! mutants {
    ($($variant:ident, $name:literal, $rule:literal, $what:literal;)*) => {
        /// One rule dropped or changed.
        #[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Mutant {
            $(#[doc = $what] $variant,)*
        }

        #[cfg(feature = "mutants")]
        impl Mutant {
            /// All of them, by the part of the engine that they concern.
            pub const ALL: &[Mutant] = &[$(Mutant::$variant,)*];

            /// The name on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Mutant::$variant => $name,)* }
            }

            /// The rule of `docs/internals/coherence.md` that is broken.
            pub const fn rule(self) -> &'static str {
                match self { $(Mutant::$variant => $rule,)* }
            }

            /// Behaviour of the engine with this mutant.
            pub const fn what(self) -> &'static str {
                match self { $(Mutant::$variant => $what,)* }
            }
        }
    };
}

mutants! {
    // Removal of keys by writes, and its moment.
    InvalidateParallel, "invalidate-parallel", "T2, W2 (P0)",
        "keys are removed while the backing write runs; a fill is disturbed by that removal only";
    InvalidateAfter, "invalidate-after", "T2, W2 (P1)",
        "keys are removed after the backing write has completed; a fill is disturbed by that \
         removal only";
    InvalidateBoth, "invalidate-both", "T2, W2 (P2)",
        "keys are removed before and after the backing write; a fill is disturbed by these \
         removals only";
    InvalidateNotDurable, "invalidate-not-durable", "W3",
        "a backing write does not wait until the removal is durable";
    DiscardNotDurable, "discard-not-durable", "D1, W3",
        "a discard does not wait until the removal is durable";
    InvalidationFailedSubmits, "invalidation-failed-submits", "W3, A4",
        "a backing write is submitted although the removal could not be made durable";
    IgnoreGhosts, "ignore-ghosts", "W2",
        "the return check asks for what this request removed, not for what was removed before";
    LateReplayForgetsGhosts, "late-replay-forgets-ghosts", "W2, V1",
        "records that are replayed when their leaf is read hide that a newer one is not durable";
    IgnoreEvictions, "ignore-evictions", "W2, E1",
        "the return check does not count keys that an eviction made stale";
    BypassDropsDirty, "bypass-drops-dirty", "W2",
        "a bypass write over dirty data removes the dirty key and goes on";
    DiscardDropsDirty, "discard-drops-dirty", "D1",
        "a discard removes dirty keys like clean ones, before the backing device has discarded \
         their range";
    DiscardDropsBeforeFlush, "discard-drops-before-flush", "D1, B4",
        "dirty keys under a discard go although it is not durable on the backing device";
    EarlyZeroesSeen, "early-zeroes-seen", "R5",
        "a read that was at the backing device when a discard zeroed it below dirty data returns \
         what it saw";
    DiscardShowsOlderData, "discard-shows-older-data", "D1",
        "dirty data is dropped after a discard alone, which the device may ignore: what lies below \
         shows";
    DiscardNotDetermined, "discard-not-determined", "D2",
        "a device whose discarded sectors read differently every time is asked to discard";
    ForeignMemoryTwice, "foreign-memory-twice", "T0",
        "the memory of a write that belongs to somebody else is looked at each time that it is \
         written";
    FlushSkipsDirtyRemovals, "flush-skips-dirty-removals", "D1, F1",
        "a FLUSH does not wait for the record that discarded dirty data is gone";
    CopiesSurviveWrites, "copies-survive-writes", "W2, K2",
        "unpublished copies of the range stay when it is written";
    FailedWriteRestoresKey, "failed-write-restores-key", "W5",
        "a failed backing write puts the keys back that it had removed";
    // The in-flight table.
    NoDoomedFills, "no-doomed-fills", "T2, T3",
        "no write dooms a fill";
    NoDoomAtEntry, "no-doom-at-entry", "T2",
        "a write that enters the table does not doom the fills that are in it";
    NoDoomFromBirth, "no-doom-from-birth", "T3",
        "a fill registered while a write is in the table is not doomed";
    WritethroughCopyNotDoomed, "writethrough-copy-not-doomed", "T2",
        "overlapping writes do not doom each other's copies";
    WritebackOverInflightWrite, "writeback-over-inflight-write", "B1",
        "background writeback starts over backing writes in flight";
    TwoWritebacksAtOnce, "two-writebacks-at-once", "T4, B1",
        "two writeback tasks run, and may work on one sector at the same time";
    FillsInTheBackgroundLane, "fills-in-the-background-lane", "R3",
        "every read that missed starts a task for its fills, in the queue of the background";
    // Data that the backing device may lose.
    NoUnflushedTracking, "no-unflushed-tracking", "C1",
        "copies of un-flushed ranges are recorded like others";
    UnflushedAtSubmission, "unflushed-at-submission", "W5",
        "a range becomes un-flushed when its backing write is submitted, not when it completes";
    FailedWriteNotUnflushed, "failed-write-not-unflushed", "W5",
        "a range whose backing write failed is not un-flushed";
    FlushClearsLaterWrites, "flush-clears-later-writes", "F1, C2",
        "a flush of the backing device covers what completes while it runs";
    FlushJoinsOlder, "flush-joins-older", "F1",
        "a FLUSH is content with a flush of the backing device that began before it";
    FailedFlushForgets, "failed-flush-forgets", "F2",
        "a failed flush of the backing device empties the un-flushed set";
    FailedFlushAnsweredOk, "failed-flush-answered-ok", "F2",
        "a FLUSH is answered with success although the backing device's flush failed";
    FailedOwnFlushToldToNobody, "failed-own-flush-told-to-nobody", "F4",
        "only a FLUSH that waits for a flush of the backing device is told that it failed";
    SuspectRangesPublished, "suspect-ranges-published", "F5",
        "copies of what a failed flush may have cost are kept";
    FailedCacheFlushGoesOn, "failed-cache-flush-goes-on", "J3",
        "a flush of the cache device that fails is one error of many";
    LostPlacesServed, "lost-places-served", "J3",
        "what a failed flush of the cache device may have cost is read like anything else";
    FlushSkipsBacking, "flush-skips-backing", "F1",
        "a FLUSH does not flush the backing device";
    FlushSkipsJournal, "flush-skips-journal", "F1",
        "a FLUSH does not flush the journal";
    FuaSkipsJournal, "fua-skips-journal", "K3, F3",
        "a FUA writeback write does not wait for the journal";
    FuaNotPassedOn, "fua-not-passed-on", "W4, F3",
        "a FUA bypass write goes to the backing device without FUA";
    FuaZeroesNotFlushed, "fua-zeroes-not-flushed", "F3",
        "a FUA write of zeroes does not flush the backing device";
    NoFlushAtAttach, "no-flush-at-attach", "A1",
        "the backing device is not flushed when it is attached";
    NoFlushAtOpen, "no-flush-at-open", "V1",
        "the cache device is not flushed at start, neither before its journal is read nor with its \
         superblock";
    // Copies and dirty data.
    WritethroughInParallel, "writethrough-in-parallel", "W5",
        "a writethrough copy is kept when it is written, before the backing write has completed";
    DirtyKeyBeforeData, "dirty-key-before-data", "K1, K2",
        "a dirty key is inserted before its data is written";
    CleanWithoutBackingFlush, "clean-without-backing-flush", "B4",
        "keys turn clean without a flush of the backing device";
    FailedFlushCleans, "failed-flush-cleans", "B4",
        "keys turn clean although the flush of the backing device failed";
    FailedWritebackCleans, "failed-writeback-cleans", "B3",
        "keys turn clean although the write to the backing device failed";
    WritebackBeforeDurableDirty, "writeback-before-durable-dirty", "B2",
        "writeback does not wait until its dirty records are durable";
    CleansWhateverIsThere, "cleans-whatever-is-there", "B5",
        "after a writeback whatever is dirty in the range is marked clean";
    UnreadableDirtyFromBacking, "unreadable-dirty-from-backing", "R4",
        "dirty data that can't be read from the cache comes from the backing device";
    DrainNeverHoldsWrites, "drain-never-holds-writes", "B6",
        "a write over dirty data becomes a writeback write also while the volume leaves writeback";
    // Journal, generations, places.
    JournalWithoutPreflush, "journal-without-preflush", "J1",
        "a journal entry is written without a flush of the cache device before it";
    NodeWithoutPreflush, "node-without-preflush", "J1",
        "index nodes are written without a flush of the cache device before their heads";
    JournalLetsGoEarly, "journal-lets-go-early", "I8 of the journal",
        "an entry is let go although a leaf lacks its records";
    ReplaySkipsLastEntry, "replay-skips-last-entry", "V1",
        "the newest entry of the journal is not replayed";
    ReplaySkipsRemovals, "replay-skips-removals", "V1",
        "removals are not replayed";
    ReuseBeforeDurable, "reuse-before-durable", "J2",
        "a bucket is reused before its new generation is durable";
    ChainNotNamed, "chain-not-named", "J2",
        "generations count as durable before a journal entry names the prio chain that has them";
    ChainCoversLater, "chain-covers-later", "J2",
        "what is given up while a chain is written counts as durable with it, and is used first";
    NoBucketPin, "no-bucket-pin", "J2, R1",
        "pins do not keep a bucket from being reused";
    StaleGenerationServed, "stale-generation-served", "E1",
        "reads do not ask whether a key's bucket was given up";
    EvictsDirty, "evicts-dirty", "E1",
        "buckets with dirty data are evicted like others";
    EvictsUncounted, "evicts-uncounted", "E1",
        "buckets are evicted before all leaves are counted";
    NextStartUsesPromisedBuckets, "next-start-uses-promised-buckets", "format §9.5",
        "an early start takes promised buckets without taking the promise back, for data before \
         others";
    GcFreesLiveBucket, "gc-frees-live-bucket", "I10",
        "garbage collection gives up what was empty when its pass began, without looking again";
    MoveOvertakesWrites, "move-overtakes-writes", "§7 moves",
        "a move points the key to the copy although it was overwritten meanwhile";
    // Generations that go round.
    InteriorPointersDoNotAge, "interior-pointers-do-not-age", "G1",
        "garbage collection looks for old pointers in leaves only";
    OldInteriorStays, "old-interior-stays", "G2",
        "an interior node with old pointers is not written anew";
    RetiredMetadataWraps, "retired-metadata-wraps", "G4",
        "a bucket that was given up, a node's as well, is used again however old a pointer into it \
         is";
    // The index.
    SplitLosesKey, "split-loses-key", "index",
        "a split leaves a key out of the node that it writes";
    TrimLosesTail, "trim-loses-tail", "index",
        "an insert into the middle of an extent loses what lies behind it";
    ReplacedLeafNotPinned, "replaced-leaf-not-pinned", "I8 of the journal",
        "what changes in a leaf while it is replaced does not keep its journal entry";
    NodeCacheDropsChanges, "node-cache-drops-changes", "index",
        "the node cache lets go of leaves that have something to write";
    // Room below the device.
    NoSpaceCounts, "no-space-counts", "N1",
        "a write of data that finds no space counts as an error of the device";
    NoRoomForMetadata, "no-room-for-metadata", "N2",
        "nobody sees to it that metadata will find room";
    // Time.
    ChainInOnePoll, "chain-in-one-poll", "S1",
        "a bucket of the prio chain is filled in one poll";
    ChoosesAllVictimsAtOnce, "chooses-all-victims-at-once", "S1",
        "the next victims are chosen in one poll";
    CountingEndsInOnePoll, "counting-ends-in-one-poll", "S1",
        "what is free is found in one poll when all leaves are counted";
    // Memory.
    FillsWithoutLimit, "fills-without-limit", "S2",
        "fills take as much memory as they like";
    // Superblocks, and who ran the set last.
    MarkNotBound, "mark-not-bound", "H1",
        "ubcache's mark is believed in whatever journal entry it is found";
    LoneMarkBelieved, "lone-mark-believed", "H1",
        "a mark of 0.1 is believed although the entry before it has none";
    KeepsOldSlot, "keeps-old-slot", "A2",
        "a backing device that may have been written without the cache keeps its cached data";
    OlderCopyBelieved, "older-copy-believed", "A5",
        "a cache or a backing device that is a copy of an earlier state is attached as if it was \
         not";
    RunUnannounced, "run-unannounced", "A5",
        "a backing device gets its new run number before the cache says that it comes";
    KeysBeyondEndKept, "keys-beyond-end-kept", "A6",
        "clean keys beyond the end of a backing device that has become shorter stay";
    PassthroughNotStamped, "passthrough-not-stamped", "A4",
        "the backing device's superblock does not disown a failed cache before writes go past it";
}

/// The rule that is broken; by default none. Empty unless the feature `mutants` is on.
#[derive(Copy, Clone, Debug, Default)]
pub struct Mutation {
    #[cfg(feature = "mutants")]
    mutant: Option<Mutant>,
}

impl Mutation {
    #[cfg(feature = "mutants")]
    #[inline]
    pub(crate) fn is(self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    #[cfg(not(feature = "mutants"))]
    #[inline(always)]
    pub(crate) const fn is(self, _: Mutant) -> bool {
        false
    }

    /// P0 to P2: no table; the placeholder of a fill breaks when keys of its range change.
    pub(crate) fn is_historic(self) -> bool {
        self.is(Mutant::InvalidateParallel)
            || self.is(Mutant::InvalidateAfter)
            || self.is(Mutant::InvalidateBoth)
    }
}

#[cfg(feature = "mutants")]
impl From<Mutant> for Mutation {
    fn from(mutant: Mutant) -> Mutation {
        Mutation { mutant: Some(mutant) }
    }
}

/// A name that no mutant has.
#[cfg(feature = "mutants")]
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no mutant \"{0}\"")]
pub struct UnknownMutant(String);

#[cfg(feature = "mutants")]
impl std::str::FromStr for Mutant {
    type Err = UnknownMutant;
    fn from_str(name: &str) -> Result<Mutant, UnknownMutant> {
        let found = Mutant::ALL.iter().find(|mutant| mutant.name() == name);
        found.copied().ok_or_else(|| UnknownMutant(name.to_owned()))
    }
}
