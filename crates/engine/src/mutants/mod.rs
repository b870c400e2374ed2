//! Mutants: the engine with one or more of its rules switched off.
//!
//! The simulator has to find each of them; what it does not find, it does not prove. They exist in
//! builds with the cargo feature `mutants` only. In all others this module is not compiled, and
//! [`Rules::keeps`] is constantly true.
//!
//! | module | holds |
//! |---|---|
//! | here | the table: the name, the rules that are switched off, the engine's behaviour |
//! | `historic` | protocols P0 to P2, which need code of their own |
//! | `kept` | mutants of the kept memory |
//! | `bodies` | other mutants that need code of their own |

mod bodies;
mod historic;
mod kept;

pub(crate) use bodies::{stamp_of_any_entry, write_superblock_unflushed};

use std::str::FromStr;

use crate::rules::Rule::{self, *};
use crate::rules::Rules;

macro_rules! mutants {
    ($($variant:ident, $name:literal, [$($rule:ident),+], $what:literal;)*) => {
        /// Rules switched off together, for one behaviour that is wrong.
        #[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Mutant {
            $(#[doc = $what] $variant,)*
        }

        impl Mutant {
            /// All of them, by the part of the engine that they concern.
            pub const ALL: &[Mutant] = &[$(Mutant::$variant,)*];

            /// The name on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Mutant::$variant => $name,)* }
            }

            /// The rules that it switches off.
            pub const fn switches_off(self) -> &'static [Rule] {
                match self { $(Mutant::$variant => &[$($rule),+],)* }
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
    InvalidateParallel, "invalidate-parallel",
        [T2WriteDoomsFills, T3FillBornDoomed, W2RemovesFirst, W2NotesWrite, W3WaitsForRemoval],
        "keys are removed while the backing write runs; a fill is disturbed by that removal only";
    InvalidateAfter, "invalidate-after",
        [T2WriteDoomsFills, T3FillBornDoomed, W2RemovesFirst, W2NotesWrite, W3WaitsForRemoval],
        "keys are removed after the backing write has completed; a fill is disturbed by that \
         removal only";
    InvalidateBoth, "invalidate-both",
        [T2WriteDoomsFills, T3FillBornDoomed, W2NotesWrite, W3WaitsForRemoval],
        "keys are removed before and after the backing write; a fill is disturbed by these \
         removals only";
    InvalidateNotDurable, "invalidate-not-durable", [W3WaitsForRemoval],
        "a backing write does not wait until the removal is durable";
    DiscardNotDurable, "discard-not-durable", [D1WaitsForRemoval],
        "a discard does not wait until the removal is durable";
    InvalidationFailedSubmits, "invalidation-failed-submits", [W3FailureNotSubmitted],
        "a backing write is submitted although the removal could not be made durable";
    IgnoreGhosts, "ignore-ghosts", [W2AsksGhosts],
        "the return check asks for what this request removed, not for what was removed before";
    LateReplayForgetsGhosts, "late-replay-forgets-ghosts", [W2LateReplayLeavesGhosts],
        "records that are replayed when their leaf is read hide that a newer one is not durable";
    IgnoreEvictions, "ignore-evictions", [W2CountsEvictions],
        "the return check does not count keys that an eviction made stale";
    ScrubDropsChanged, "scrub-drops-changed", [Q1SameKeyOnly],
        "a scrub takes what a client wrote meanwhile for a difference";
    BypassDropsDirty, "bypass-drops-dirty", [W2KeepsDirty],
        "a bypass write over dirty data removes the dirty key and goes on";
    DiscardDropsDirty, "discard-drops-dirty", [D1KeepsDirty],
        "a discard removes dirty keys like clean ones, before the backing device has discarded \
         their range";
    DiscardDropsBeforeFlush, "discard-drops-before-flush", [D1FlushBeforeDrop],
        "dirty keys under a discard go although it is not durable on the backing device";
    EarlyZeroesSeen, "early-zeroes-seen", [R5LooksUpAgain],
        "a read that was at the backing device when a discard zeroed it below dirty data returns \
         what it saw";
    DoomedReadAheadUsed, "doomed-read-ahead-used", [R6DoomedUnread],
        "what was read ahead is used although a write came over it";
    MappedReadUnpinned, "mapped-read-unpinned", [R7MappedStays],
        "the bucket of a read that a lane carries out may be reused meanwhile";
    DiscardShowsOlderData, "discard-shows-older-data", [D1ZeroesFirst],
        "dirty data is dropped after a discard alone, which the device may ignore: what lies below \
         shows";
    DiscardNotDetermined, "discard-not-determined", [D2DeterminedOnly],
        "a device whose discarded sectors read differently every time is asked to discard";
    ZeroesDiscarded, "zeroes-discarded", [D3HolesReadAsZeroes],
        "a write of zeroes whose room may be given back is a discard, which the device may ignore";
    HolesOfTheDisk, "holes-of-the-disk", [D4DirtyIsNoHole],
        "holes of the backing device are reported below data that only the cache has";
    PartNotExcluded, "part-not-excluded", [T5PartExcludesWrites],
        "a write of a part of a block reads the rest and writes all of it, beside other writes";
    ForeignMemoryTwice, "foreign-memory-twice", [T0CopiedOnce],
        "the memory of a write that belongs to somebody else is looked at each time that it is \
         written";
    FlushSkipsDirtyRemovals, "flush-skips-dirty-removals", [D1FlushWaitsForRemoval],
        "a FLUSH does not wait for the record that discarded dirty data is gone";
    CopiesSurviveWrites, "copies-survive-writes", [W2DropsCopies],
        "unpublished copies of the range stay when it is written";
    FailedWriteRestoresKey, "failed-write-restores-key", [W5RemovalStands],
        "a failed backing write puts the keys back that it had removed";
    // The in-flight table.
    NoDoomedFills, "no-doomed-fills", [T2WriteDoomsFills, T3FillBornDoomed],
        "no write dooms a fill";
    NoDoomAtEntry, "no-doom-at-entry", [T2WriteDoomsFills],
        "a write that enters the table does not doom the fills that are in it";
    NoDoomFromBirth, "no-doom-from-birth", [T3FillBornDoomed],
        "a fill registered while a write is in the table is not doomed";
    WritethroughCopyNotDoomed, "writethrough-copy-not-doomed", [T2WriteDoomsCopies],
        "overlapping writes do not doom each other's copies";
    WritebackOverInflightWrite, "writeback-over-inflight-write", [B1NoWriteInFlight],
        "background writeback starts over backing writes in flight";
    TwoWritebacksAtOnce, "two-writebacks-at-once", [T4OneWriteback],
        "two writeback tasks run, and may work on one sector at the same time";
    FillsInTheBackgroundLane, "fills-in-the-background-lane", [R3FewFillTasks],
        "every read that missed starts a task for its fills, in the queue of the background";
    // Data that the backing device may lose.
    NoUnflushedTracking, "no-unflushed-tracking", [C1UnflushedUnpublished],
        "copies of un-flushed ranges are recorded like others";
    UnflushedAtSubmission, "unflushed-at-submission", [W5UnflushedAtCompletion],
        "a range becomes un-flushed when its backing write is submitted, not when it completes";
    FailedWriteNotUnflushed, "failed-write-not-unflushed", [W5FailureIsUnflushed],
        "a range whose backing write failed is not un-flushed";
    FlushClearsLaterWrites, "flush-clears-later-writes", [F1CoversCompletedOnly],
        "a flush of the backing device covers what completes while it runs";
    FlushJoinsOlder, "flush-joins-older", [F1FlushIsLater],
        "a FLUSH is content with a flush of the backing device that began before it";
    FailedFlushForgets, "failed-flush-forgets", [F2FailureKeepsUnflushed],
        "a failed flush of the backing device empties the un-flushed set";
    FailedFlushAnsweredOk, "failed-flush-answered-ok", [F2FailureIsAnswered, F4StreamsTold],
        "a FLUSH is answered with success although the backing device's flush failed";
    FailedOwnFlushToldToNobody, "failed-own-flush-told-to-nobody", [F4StreamsTold, F4StopTells],
        "only a FLUSH that waits for a flush of the backing device is told that it failed";
    SuspectRangesPublished, "suspect-ranges-published", [F5SuspectNotKept],
        "copies of what a failed flush may have cost are kept";
    FailedCacheFlushGoesOn, "failed-cache-flush-goes-on", [J3FailsTheSet],
        "a flush of the cache device that fails is one error of many";
    LostPlacesServed, "lost-places-served", [J3LostPlacesUnread],
        "what a failed flush of the cache device may have cost is read like anything else";
    FlushSkipsBacking, "flush-skips-backing", [F1FlushesBacking],
        "a FLUSH does not flush the backing device";
    FlushSkipsJournal, "flush-skips-journal", [F1FlushesJournal],
        "a FLUSH does not flush the journal";
    FuaSkipsJournal, "fua-skips-journal", [K3FuaWaitsForJournal],
        "a FUA writeback write does not wait for the journal";
    FuaNotPassedOn, "fua-not-passed-on", [W4PassesFua],
        "a FUA bypass write goes to the backing device without FUA";
    FuaZeroesNotFlushed, "fua-zeroes-not-flushed", [F3ZeroesFlushed],
        "a FUA write of zeroes does not flush the backing device";
    NoFlushAtAttach, "no-flush-at-attach", [A1FlushAtAttach],
        "the backing device is not flushed when it is attached";
    NoFlushAtOpen, "no-flush-at-open", [V1FlushAtOpen],
        "the cache device is not flushed at start, neither before its journal is read nor with its \
         superblock";
    // Copies and dirty data.
    WritethroughInParallel, "writethrough-in-parallel", [W5CopyAfterCompletion],
        "a writethrough copy is kept when it is written, before the backing write has completed";
    DirtyKeyBeforeData, "dirty-key-before-data", [K1DataBeforeKey],
        "a dirty key is inserted before its data is written";
    CleanWithoutBackingFlush, "clean-without-backing-flush", [B4FlushBeforeClean],
        "keys turn clean without a flush of the backing device";
    FailedFlushCleans, "failed-flush-cleans", [B4FailedFlushStaysDirty],
        "keys turn clean although the flush of the backing device failed";
    FailedWritebackCleans, "failed-writeback-cleans", [B3FailureStaysDirty],
        "keys turn clean although the write to the backing device failed";
    WritebackBeforeDurableDirty, "writeback-before-durable-dirty", [B2DirtyRecordDurable],
        "writeback does not wait until its dirty records are durable";
    CleansWhateverIsThere, "cleans-whatever-is-there", [B5SameKeyOnly],
        "after a writeback whatever is dirty in the range is marked clean";
    UnreadableDirtyFromBacking, "unreadable-dirty-from-backing", [R4DirtyReadFails],
        "dirty data that can't be read from the cache comes from the backing device";
    DrainNeverHoldsWrites, "drain-never-holds-writes", [B6WritesWait],
        "a write over dirty data becomes a writeback write also while the volume leaves writeback";
    // Journal, generations, places.
    JournalWithoutPreflush, "journal-without-preflush", [J1FlushBeforeEntry],
        "a journal entry is written without a flush of the cache device before it";
    NodeWithoutPreflush, "node-without-preflush", [J1FlushBeforeNode],
        "index nodes are written without a flush of the cache device before their heads";
    JournalLetsGoEarly, "journal-lets-go-early", [J5EntryKept],
        "an entry is let go although a leaf lacks its records";
    ReplaySkipsLastEntry, "replay-skips-last-entry", [V1ReplaysNewest],
        "the newest entry of the journal is not replayed";
    ReplaySkipsRemovals, "replay-skips-removals", [V1ReplaysRemovals],
        "removals are not replayed";
    ReuseBeforeDurable, "reuse-before-durable", [J2GenerationDurableFirst],
        "a bucket is reused before its new generation is durable";
    ChainNotNamed, "chain-not-named", [J2ChainNamedFirst],
        "generations count as durable before a journal entry names the prio chain that has them";
    ChainCoversLater, "chain-covers-later", [J2LaterWaitsForNextChain],
        "what is given up while a chain is written counts as durable with it, and is used first";
    NoBucketPin, "no-bucket-pin", [J2PinnedStays],
        "pins do not keep a bucket from being reused";
    StaleGenerationServed, "stale-generation-served", [E1StaleNotServed],
        "reads do not ask whether a key's bucket was given up";
    EvictsDirty, "evicts-dirty", [E1CleanOnly],
        "buckets with dirty data are evicted like others";
    EvictsUncounted, "evicts-uncounted", [E1CountedFirst],
        "buckets are evicted before all leaves are counted";
    NextStartUsesPromisedBuckets, "next-start-uses-promised-buckets", [V2PromiseTakenBack],
        "an early start takes promised buckets without taking the promise back, for data before \
         others";
    GcFreesLiveBucket, "gc-frees-live-bucket", [I10EmptyNow],
        "garbage collection gives up what was empty when its pass began, without looking again";
    MoveOvertakesWrites, "move-overtakes-writes", [M1MoveIfUnchanged],
        "a move points the key to the copy although it was overwritten meanwhile";
    // The kept memory.
    KeptLate, "kept-late", [V3KeptWithRecord],
        "records come to the kept memory when their entry is written, after their requests were \
         answered";
    KeptDroppedEarly, "kept-dropped-early", [V3DroppedWhenDurable],
        "records leave the kept memory when their entry is submitted";
    KeptErasedAtStart, "kept-erased-at-start", [V3CopiedAtStart],
        "a start that has read the kept memory erases it";
    // Generations that go round.
    InteriorPointersDoNotAge, "interior-pointers-do-not-age", [G1InteriorPointersCount],
        "garbage collection looks for old pointers in leaves only";
    OldInteriorStays, "old-interior-stays", [G2InteriorWrittenAnew],
        "an interior node with old pointers is not written anew";
    RetiredMetadataWraps, "retired-metadata-wraps", [G4AgedBucketWaits],
        "a bucket that was given up, a node's as well, is used again however old a pointer into it \
         is";
    AgedFreeAtStart, "aged-free-at-start", [G4AgedAtStartWaits],
        "a start uses an empty bucket that the run before kept for its old pointers";
    // The index.
    SplitLosesKey, "split-loses-key", [X1SplitKeepsAll],
        "a split leaves a key out of the node that it writes";
    TrimLosesTail, "trim-loses-tail", [X1InsertKeepsTail],
        "an insert into the middle of an extent loses what lies behind it";
    ReplacedLeafNotPinned, "replaced-leaf-not-pinned", [J5ReplacedLeafPins],
        "what changes in a leaf while it is replaced does not keep its journal entry";
    NodeCacheDropsChanges, "node-cache-drops-changes", [X2ChangedNodesStay],
        "the node cache lets go of leaves that have something to write";
    // Room below the device.
    NoSpaceCounts, "no-space-counts", [N1NoSpaceIsNoError],
        "a write of data that finds no space counts as an error of the device";
    NoRoomForMetadata, "no-room-for-metadata", [N2SpaceForMetadata],
        "nobody sees to it that metadata will find room";
    FullLeafGrows, "full-leaf-grows", [N4LeafFitsNode],
        "a leaf for whose split there are no buckets grows in memory";
    ReserveForSplits, "reserve-for-splits", [N4ReserveForSameNumber],
        "whoever makes room in the journal splits nodes with the last buckets";
    PassesWithoutRoom, "passes-without-room", [N5PassesHaveRoom, G4GivenUpWaitsForCount],
        "a start that has not counted makes room in the journal leaf by leaf, with buckets that \
         it gives up";
    // Time.
    ChainInOnePoll, "chain-in-one-poll", [S1ChainInSlices],
        "a bucket of the prio chain is filled in one poll";
    ChoosesAllVictimsAtOnce, "chooses-all-victims-at-once", [S1VictimsInSlices],
        "the next victims are chosen in one poll";
    CountingEndsInOnePoll, "counting-ends-in-one-poll", [S1CountingInSlices],
        "what is free is found in one poll when all leaves are counted";
    // Memory.
    FillsWithoutLimit, "fills-without-limit", [S2FillsBounded],
        "fills take as much memory as they like";
    CopiesWithoutLimit, "copies-without-limit", [S2CopiesBounded],
        "any number of copies wait for their keys";
    // Superblocks, and who ran the set last.
    MarkNotBound, "mark-not-bound", [H1StampBound],
        "ubcache's mark is believed in whatever journal entry it is found";
    TakeOverKeepsClean, "take-over-keeps-clean", [H2DropsClean],
        "clean keys of a set that the driver ran last are kept";
    LoneMarkBelieved, "lone-mark-believed", [H1TwoStamps],
        "a mark of early ubcache is believed although the entry before it has none";
    KeepsOldSlot, "keeps-old-slot", [A2DropsClean],
        "a backing device that may have been written without the cache keeps its cached data";
    BucketsWithoutChain, "buckets-without-chain", [A10ChainFirst],
        "the superblock of a cache that grows counts buckets that no prio chain has";
    ShrinksUnevacuated, "shrinks-unevacuated", [A12EvacuatedFirst],
        "the superblock of a smaller cache is written while data and nodes are beyond its end";
    ShrinksOverStaleKeys, "shrinks-over-stale-keys", [A12NodesWrittenAnew],
        "nodes and the journal keep stale pointers beyond the end of a smaller cache";
    MoveWritesOne, "move-writes-one", [A11BothWritten],
        "writes to a disk that is being copied do not go to the new one";
    MoveUnflushed, "move-unflushed", [A11FlushedFirst],
        "a volume moves to a disk that was not flushed";
    MoveUndecided, "move-undecided", [A11CacheDecides],
        "the cache does not say which disk a volume has moved to";
    MoveLogLate, "move-log-late", [A13LoggedFirst],
        "writes to a disk that is being copied are not in the log of the move";
    MoveLogUnflushed, "move-log-unflushed", [A13BothFlushed],
        "the log of a move says that a region is the same before both disks are flushed";
    MoveChangesForgotten, "move-changes-forgotten", [A13ChangesCounted],
        "a move goes on without what was written since it was interrupted";
    OlderCopyBelieved, "older-copy-believed", [A5OneRun],
        "a cache or a backing device that is a copy of an earlier state is attached as if it was \
         not";
    RunUnannounced, "run-unannounced", [A5AnnouncedFirst],
        "a backing device gets its new run number before the cache says that it comes";
    DetachDoesNotDrain, "detach-does-not-drain", [A3DrainsFirst],
        "a volume is detached without its dirty data being written back";
    KeysBeyondEndKept, "keys-beyond-end-kept", [A6KeysBeyondEndGo],
        "clean keys beyond the end of a backing device that has become shorter stay";
    PassthroughNotStamped, "passthrough-not-stamped", [A4StampedFirst],
        "the backing device's superblock does not disown a failed cache before writes go past it";
    LossesLeftBehind, "losses-left-behind", [A8LossesTaken],
        "a volume that moves to another cache forgets which of its flushes failed";
    WitnessIgnored, "witness-ignored", [A9Compared],
        "a disk without a superblock that somebody else wrote to is taken for the one that was \
         left";
    UnknownDiskBelieved, "unknown-disk-believed", [A9UnknownDropsClean],
        "clean data of a disk without a superblock is kept over a crash";
}

impl Mutant {
    /// Numbers of its rules in `docs/internals/coherence.md`.
    pub fn rule(self) -> String {
        let mut numbers: Vec<&str> = Vec::new();
        for number in self.switches_off().iter().flat_map(|rule| rule.numbers()) {
            if !numbers.contains(number) {
                numbers.push(number);
            }
        }
        let numbers = numbers.join(", ");
        match self.protocol() {
            Some(protocol) => format!("{numbers} ({protocol})"),
            None => numbers,
        }
    }
}

impl From<Mutant> for Rules {
    fn from(mutant: Mutant) -> Rules {
        Rules { mutant: mutant.name(), switched_off: mutant.switches_off() }
    }
}

/// A name that no mutant has.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no mutant \"{0}\"")]
pub struct UnknownMutant(String);

impl FromStr for Mutant {
    type Err = UnknownMutant;
    fn from_str(name: &str) -> Result<Mutant, UnknownMutant> {
        let found = Mutant::ALL.iter().find(|mutant| mutant.name() == name);
        found.copied().ok_or_else(|| UnknownMutant(name.to_owned()))
    }
}
