//! Rules of the engine: what docs/internals/coherence.md asks for, as names that the code keeps.
//!
//! Code that follows a rule says so: `if self.context.keeps(Rule::J1FlushBeforeEntry)`. In the
//! product that is true by definition, costs nothing, and the other branch is not compiled. In a
//! build with the cargo feature `mutants` a `Mutant` switches rules off, and the simulator has to
//! notice.
//!
//! A rule stands here if a mutant switches it off. The others of coherence.md have nothing that
//! could be left out, or nothing that would be wrong without it; tests/rules.rs of the simulator
//! names them.

macro_rules! rules {
    ($($rule:ident, [$($number:literal),+], $statement:literal;)*) => {
        /// A rule; the name begins with its number.
        #[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Rule {
            $(#[doc = $statement] $rule,)*
        }

        impl Rule {
            /// All of them, in the order of docs/internals/coherence.md.
            pub const ALL: &[Rule] = &[$(Rule::$rule,)*];

            /// Its number in docs/internals/coherence.md, and those of other rules that it is part
            /// of.
            pub const fn numbers(self) -> &'static [&'static str] {
                match self { $(Rule::$rule => &[$($number),+],)* }
            }

            /// Invariant that it keeps.
            pub const fn statement(self) -> &'static str {
                match self { $(Rule::$rule => $statement,)* }
            }
        }
    };
}

rules! {
    // Data of writes.
    T0CopiedOnce, ["T0"],
        "memory that belongs to somebody else is copied once, before its write enters the table";
    // The in-flight table.
    T2WriteDoomsFills, ["T2"],
        "a write that enters the table dooms the fills that it overlaps";
    T2WriteDoomsCopies, ["T2"],
        "overlapping writes doom each other's copies";
    T3FillBornDoomed, ["T3"],
        "a fill registered while a write is in the table is doomed from birth where they overlap";
    T4OneWriteback, ["T4", "B1"],
        "no two writebacks work on one sector at the same time";
    T5PartExcludesWrites, ["T5"],
        "from the read to the reply of a write of a part of a block, no other write is over it";
    // Reads.
    R3FewFillTasks, ["R3"],
        "a bounded number of tasks writes what misses leave in the cache";
    R4DirtyReadFails, ["R4"],
        "a read of dirty data that the cache can't return fails";
    R5LooksUpAgain, ["R5"],
        "a read that was at the backing device when a discard put zeroes there looks up again";
    R6DoomedUnread, ["R6", "T2", "T3"],
        "what was read ahead is not used where a write came over it";
    R7MappedStays, ["R7", "J2"],
        "the bucket of a read that a lane carries out is not reused before the read is ended";
    // Publishing clean copies.
    C1UnflushedUnpublished, ["C1"],
        "a copy of a range that is un-flushed gets no record";
    // Bypass writes.
    W2KeepsDirty, ["W2"],
        "a bypass write over dirty data becomes a writeback write";
    W2RemovesFirst, ["W2"],
        "the keys of a range are removed before the backing write is submitted";
    W2DropsCopies, ["W2", "K2"],
        "unpublished copies of a range go when it is written";
    W2AsksGhosts, ["W2"],
        "the return check asks the ghosts, not only what this request removed";
    W2LateReplayLeavesGhosts, ["W2", "V1"],
        "a record that is replayed when its leaf is read leaves the ghosts of newer ones alone";
    W2CountsEvictions, ["W2", "E1"],
        "the return check counts keys that an eviction made stale";
    W2NotesWrite, ["W2"],
        "the table knows of the backing write from the decide step on";
    W3WaitsForRemoval, ["W3"],
        "a backing write waits until the removal is durable, if an old key may return";
    W3FailureNotSubmitted, ["W3", "A4"],
        "a backing write is not submitted if its removal can't be made durable";
    W4PassesFua, ["W4", "F3"],
        "a FUA bypass write goes to the backing device with FUA";
    W5CopyAfterCompletion, ["W5"],
        "a writethrough copy is kept when the backing write has completed";
    W5RemovalStands, ["W5"],
        "a failed backing write leaves its keys removed";
    W5UnflushedAtCompletion, ["W5"],
        "a range becomes un-flushed when its backing write completes";
    W5FailureIsUnflushed, ["W5"],
        "a range becomes un-flushed also if its backing write failed";
    // Writeback writes.
    K1DataBeforeKey, ["K1", "K2"],
        "data is written before its dirty key is inserted";
    K3FuaWaitsForJournal, ["K3", "F3"],
        "a FUA writeback write waits for the journal";
    // Discards and writes of zeroes.
    D1KeepsDirty, ["D1"],
        "dirty keys under a discard stay until the backing device has discarded their range";
    D1ZeroesFirst, ["D1"],
        "the range of dirty data is zeroed on the backing device before it is discarded";
    D1FlushBeforeDrop, ["D1", "B4"],
        "dirty keys under a discard go when it is durable on the backing device";
    D1WaitsForRemoval, ["D1", "W3"],
        "a discard waits until the removal is durable, if an old key may return";
    D1FlushWaitsForRemoval, ["D1", "F1"],
        "a FLUSH waits for the record that discarded dirty data is gone";
    D2DeterminedOnly, ["D2"],
        "only a device whose discarded sectors read the same every time is asked to discard";
    D3HolesReadAsZeroes, ["D3"],
        "a write of zeroes that gives room back asks the backing device for zeroes, not for a \
         discard";
    D4DirtyIsNoHole, ["D4"],
        "dirty data is not reported as a hole of the backing device";
    // Flush and FUA.
    F1FlushesBacking, ["F1"],
        "a FLUSH flushes the backing device if anything is un-flushed";
    F1FlushesJournal, ["F1"],
        "a FLUSH flushes the journal if a dirty insert waits for it";
    F1FlushIsLater, ["F1"],
        "a FLUSH is content with a flush of the backing device that began after it only";
    F1CoversCompletedOnly, ["F1", "C2"],
        "a flush of the backing device covers what had completed when it began";
    F2FailureKeepsUnflushed, ["F2"],
        "a failed flush of the backing device leaves the un-flushed set as it is";
    F2FailureIsAnswered, ["F2"],
        "a FLUSH whose flush of the backing device failed is answered with an error";
    F3ZeroesFlushed, ["F3"],
        "a FUA write of zeroes flushes the backing device";
    F4StreamsTold, ["F4"],
        "each stream that has written is told of a failed flush, whoever asked for it";
    F4StopTells, ["F4"],
        "a stop that finds a stream still owed an error reports it";
    F5SuspectNotKept, ["F5"],
        "no copy is kept of what a failed flush may have cost";
    // Journal and places.
    J1FlushBeforeEntry, ["J1"],
        "the cache device is flushed before a journal entry is written";
    J1FlushBeforeNode, ["J1"],
        "the cache device is flushed before the head of an index node is written";
    J2GenerationDurableFirst, ["J2"],
        "a bucket is reused when its new generation is durable";
    J2ChainNamedFirst, ["J2"],
        "a generation is durable when a journal entry names the prio chain that has it";
    J2LaterWaitsForNextChain, ["J2"],
        "what is given up behind its entry in a chain waits for the next chain";
    J2PinnedStays, ["J2", "R1"],
        "a bucket that is pinned is not reused";
    J3FailsTheSet, ["J3"],
        "a flush of the cache device that fails fails the set";
    J3LostPlacesUnread, ["J3"],
        "what a failed flush of the cache device may have cost is not read";
    J5EntryKept, ["J5"],
        "no journal entry is let go while a node lacks one of its records";
    J5ReplacedLeafPins, ["J5"],
        "what changes in a leaf while it is replaced keeps its journal entry";
    // Index.
    X1SplitKeepsAll, ["X1"],
        "a split writes every key of the node to one of the new ones";
    X1InsertKeepsTail, ["X1"],
        "an insert into the middle of an extent leaves what lies behind it";
    X2ChangedNodesStay, ["X2"],
        "the node cache keeps a leaf that has something to write";
    // Eviction.
    E1CleanOnly, ["E1"],
        "only buckets without dirty data are evicted";
    E1CountedFirst, ["E1"],
        "buckets are evicted when all leaves have been counted";
    E1StaleNotServed, ["E1"],
        "a key whose bucket was given up is not served";
    // Background writeback.
    B1NoWriteInFlight, ["B1"],
        "background writeback does not start over a backing write in flight";
    B2DirtyRecordDurable, ["B2"],
        "writeback waits until its dirty records are durable";
    B3FailureStaysDirty, ["B3"],
        "a key whose write to the backing device failed stays dirty";
    B4FlushBeforeClean, ["B4"],
        "the backing device is flushed before keys turn clean";
    B4FailedFlushStaysDirty, ["B4"],
        "keys stay dirty if that flush failed";
    B5SameKeyOnly, ["B5"],
        "only the dirty key that was read turns clean";
    B6WritesWait, ["B6"],
        "a write over dirty data waits for its writeback while the volume leaves writeback";
    // Scrub.
    Q1SameKeyOnly, ["Q1"],
        "a difference counts only if the key is the one that both reads began with";
    // Attach and detach.
    A1FlushAtAttach, ["A1"],
        "the backing device is flushed when it is attached";
    A2DropsClean, ["A2"],
        "a backing device that may have been written without the cache gets a slot without keys";
    A3DrainsFirst, ["A3"],
        "everything dirty is written back before a volume is detached";
    A4StampedFirst, ["A4"],
        "the backing device disowns a failed cache before writes go past it";
    A5OneRun, ["A5"],
        "a cache and a backing device are attached if they are of one run";
    A5AnnouncedFirst, ["A5"],
        "the cache says which run number comes before the backing device gets it";
    A6KeysBeyondEndGo, ["A6"],
        "clean keys beyond the end of a backing device that has become shorter go";
    A8LossesTaken, ["A8"],
        "a volume that moves to another cache still owes its clients errors, and still suspects \
         what a failed flush may have cost";
    A9Compared, ["A9"],
        "a disk without a superblock is compared with what the last run left of it";
    A9UnknownDropsClean, ["A9"],
        "clean data of such a disk goes if it was being written when the last run ended";
    A10ChainFirst, ["A10"],
        "a prio chain describes the buckets that a cache gets before its superblock counts them";
    A11BothWritten, ["A11"],
        "a write to a backing device that is being copied goes to the new device as well";
    A11FlushedFirst, ["A11"],
        "the new device is flushed before its superblock is written";
    A11CacheDecides, ["A11"],
        "the cache says that the new device counts before the volume goes on with it";
    A12EvacuatedFirst, ["A12"],
        "nothing is beyond the end of a smaller cache, durably, before its superblock is written";
    A12NodesWrittenAnew, ["A12"],
        "no node and no record that a start reads has a pointer beyond the end of a smaller cache";
    A13LoggedFirst, ["A13"],
        "the log of a move says that a region may differ before it is written";
    A13BothFlushed, ["A13"],
        "both devices are flushed before the log of a move says that a region is the same";
    A13ChangesCounted, ["A13"],
        "what was written to the old device alone since an attempt to move is copied by the next";
    // Room below the devices.
    N1NoSpaceIsNoError, ["N1"],
        "a write of data that finds no space is no error of the device";
    N2SpaceForMetadata, ["N2"],
        "metadata is written where the device has allocated the room before";
    N4LeafFitsNode, ["N4"],
        "a leaf that can't be split gets no more keys than one node takes";
    N4ReserveForSameNumber, ["N4"],
        "the reserve of nodes is for those that take the place of as many";
    N5PassesHaveRoom, ["N5"],
        "making room takes several passes only if the ring has room for their entries";
    // Recovery.
    V1FlushAtOpen, ["V1"],
        "the cache device is flushed before its journal is read, and with its superblock";
    V1ReplaysNewest, ["V1"],
        "the newest entry of the journal is replayed";
    V1ReplaysRemovals, ["V1"],
        "removals are replayed";
    V2PromiseTakenBack, ["V2"],
        "an early start uses promised buckets last, when the promise is durably taken back";
    V3KeptWithRecord, ["V3"],
        "a record is in the kept memory before its request is answered";
    V3DroppedWhenDurable, ["V3"],
        "the kept memory gives up records that are durably in the journal";
    V3CopiedAtStart, ["V3"],
        "a start keeps the records that it has found until they are in the journal";
    // Handing over.
    H1StampBound, ["H1"],
        "a mark counts in the journal entry that it was made for only";
    H1TwoStamps, ["H1"],
        "a mark of early ubcache counts if the entry before has one as well";
    H2DropsClean, ["H2"],
        "clean keys of a set that somebody else ran go before anything is served";
    // Moves.
    M1MoveIfUnchanged, ["M1"],
        "a move points a key to the copy only if the key has not changed";
    // Time and memory.
    S1ChainInSlices, ["S1"],
        "a bucket of the prio chain is filled in slices";
    S1VictimsInSlices, ["S1"],
        "the next victims are chosen in slices";
    S1CountingInSlices, ["S1"],
        "what is free when all leaves are counted is found in slices";
    S2FillsBounded, ["S2"],
        "fills take a bounded amount of memory";
    S2CopiesBounded, ["S2"],
        "a bounded number of copies waits for keys";
    // Generations that go round.
    G1InteriorPointersCount, ["G1"],
        "pointers of interior nodes have an age";
    G2InteriorWrittenAnew, ["G2"],
        "an interior node with old pointers is written anew";
    G4AgedBucketWaits, ["G4"],
        "a bucket with an old pointer into it waits for garbage collection, whatever it held";
    G4AgedAtStartWaits, ["G4"],
        "a bucket that a start finds empty has no old pointer into it, or waits";
    G4GivenUpWaitsForCount, ["G4", "V2"],
        "a bucket that is given up before all leaves are counted is not used again before";
    // Invariants.
    I10EmptyNow, ["I10"],
        "garbage collection gives up what is empty at that moment only";
}

/// True in a build that can switch rules off.
pub const MUTANTS_COMPILED: bool = cfg!(feature = "mutants");

/// The rules that are kept: all of them, unless a mutant switches some off.
#[derive(Copy, Clone, Debug, Default)]
pub struct Rules {
    /// Name of the mutant that breaks some; empty: none is broken.
    #[cfg(feature = "mutants")]
    pub(crate) mutant: &'static str,
    #[cfg(feature = "mutants")]
    pub(crate) switched_off: &'static [Rule],
}

// A switch that can't be thrown has no state, and code behind it is not compiled.
#[cfg(not(feature = "mutants"))]
const _: () = assert!(size_of::<Rules>() == 0 && Rules {}.keeps(Rule::J1FlushBeforeEntry));

impl Rules {
    /// Returns true if this rule is kept.
    #[cfg(not(feature = "mutants"))]
    #[inline(always)]
    pub(crate) const fn keeps(self, _: Rule) -> bool {
        true
    }

    /// Returns true if this rule is kept.
    #[cfg(feature = "mutants")]
    #[inline]
    pub(crate) fn keeps(self, rule: Rule) -> bool {
        !self.switched_off.contains(&rule)
    }
}
