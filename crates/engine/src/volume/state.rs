//! The states of a volume and all transitions between them.
//!
//! ```text
//!        attached ⇄ draining                               open ⇄ paused
//!   ┌─────────────────────────────┐                          │      │
//!   │ clean, dirty, unsure        │  the superblock is       └──┬───┘
//!   │     ⇅ one at a time         │  written                    ▼
//!   │ marking                     │                         stopping
//!   └──┬──────────────────────┬───┘
//!      │ detach (A3)          │ the cache has failed (A4)
//!      ▼                      ▼
//!   detached               disowned
//!      └─▶ attached: clean (A1)
//! ```
//!
//! The two are independent, but for attaching and detaching, which happen behind a closed gate.

use std::cell::Cell;

use ubcache_env::Env;
use ubcache_env::local::{Lock, Permit};

/// Relation of the volume to the cache.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Attachment {
    /// Requests use the cache.
    Attached(DirtyFlag),
    /// The same, and a detach was asked for: no new dirty data, writeback at full speed.
    Draining(DirtyFlag),
    /// The superblock says, durably, that there is no cache; it can be attached again (A3).
    Detached,
    /// The superblock says, durably, that the cache, which has failed, is not believed (A4).
    Disowned,
}

/// Dirty flag of the backing superblock, as far as it is known to be durable.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum DirtyFlag {
    /// It says clean.
    Clean,
    /// It says dirty.
    Dirty,
    /// It is being written, and says either.
    Marking,
    /// Writing it failed, and it says either.
    Unsure,
}

/// Admission of requests.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Gate {
    /// Requests begin.
    Open,
    /// Requests wait until it opens.
    Paused,
    /// Requests are refused, for good.
    Stopping,
}

/// Event that changes the state.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Transition {
    /// The state of the backing superblock is being written.
    MarkingStarts,
    /// It is durable: dirty (FI12).
    MarkedDirty,
    /// It is durable: clean.
    MarkedClean,
    /// The write failed.
    MarkingFailed,
    /// A detach begins.
    DrainStarts,
    /// It ends, and the volume stays attached.
    DrainEnds,
    /// The write is durable, and says that there is no cache (A3).
    Detached,
    /// A cache was attached again, and the superblock says so (A1).
    AttachedAgain,
    /// The write is durable, and disowns the cache (A4).
    Disowned,
    /// New requests have to wait.
    Paused,
    /// They go on.
    Resumed,
    /// The volume ends.
    Stopping,
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct State {
    attachment: Attachment,
    gate: Gate,
}

impl State {
    /// The state after a transition. `None`: it is not legal here.
    fn after(self, transition: Transition) -> Option<State> {
        use Attachment::{Attached, Detached, Disowned, Draining};
        use DirtyFlag::{Clean, Dirty, Marking, Unsure};
        let closed = self.gate != Gate::Open;
        let flag = |flag| match self.attachment {
            Attached(_) => Attached(flag),
            _ => Draining(flag),
        };
        let attachment = match (transition, self.attachment) {
            (Transition::MarkingStarts, Attached(old) | Draining(old)) if old != Marking => {
                flag(Marking)
            }
            (Transition::MarkedDirty, Attached(Marking) | Draining(Marking)) => flag(Dirty),
            (Transition::MarkedClean, Attached(Marking) | Draining(Marking)) => flag(Clean),
            (Transition::MarkingFailed, Attached(Marking) | Draining(Marking)) => flag(Unsure),
            (Transition::DrainStarts, Attached(flag)) => Draining(flag),
            (Transition::DrainEnds, Draining(flag)) => Attached(flag),
            (Transition::Detached, Draining(Marking)) if closed => Detached,
            (Transition::AttachedAgain, Detached) if closed => Attached(Clean),
            (Transition::Disowned, Attached(Marking) | Draining(Marking)) => Disowned,
            (Transition::Paused | Transition::Resumed | Transition::Stopping, same) => same,
            _ => return None,
        };
        let gate = match (transition, self.gate) {
            (Transition::Paused, Gate::Open) => Gate::Paused,
            (Transition::Resumed, Gate::Paused) => Gate::Open,
            (Transition::Stopping, Gate::Open | Gate::Paused) => Gate::Stopping,
            (Transition::Paused | Transition::Resumed | Transition::Stopping, _) => return None,
            (_, same) => same,
        };
        Some(State { attachment, gate })
    }
}

/// State of a volume, and the right to change it.
pub(crate) struct Lifecycle {
    now: Cell<State>,
    marking: Lock,
    attaching: Lock,
}

/// The right to write the state of the backing superblock; one has it at a time.
pub(crate) struct MarkingTurn(#[expect(dead_code, reason = "held, not used")] Permit);

impl Lifecycle {
    /// An attached volume; its superblock says `dirty` or clean.
    pub fn new(dirty: bool) -> Lifecycle {
        let flag = if dirty { DirtyFlag::Dirty } else { DirtyFlag::Clean };
        Lifecycle {
            now: Cell::new(State { attachment: Attachment::Attached(flag), gate: Gate::Open }),
            marking: Lock::default(),
            attaching: Lock::default(),
        }
    }

    /// A volume without a cache: its superblock says so.
    pub fn detached() -> Lifecycle {
        let now = State { attachment: Attachment::Detached, gate: Gate::Open };
        Lifecycle { now: Cell::new(now), marking: Lock::default(), attaching: Lock::default() }
    }

    #[inline]
    pub fn attachment(&self) -> Attachment {
        self.now.get().attachment
    }

    #[inline]
    pub fn gate(&self) -> Gate {
        self.now.get().gate
    }

    /// Requests use the cache: it was neither detached nor disowned.
    #[inline]
    pub fn uses_cache(&self) -> bool {
        matches!(self.attachment(), Attachment::Attached(_) | Attachment::Draining(_))
    }

    /// The volume is to be detached: no new dirty data, writeback at full speed.
    #[inline]
    pub fn is_draining(&self) -> bool {
        matches!(self.attachment(), Attachment::Draining(_))
    }

    /// The dirty flag. `None`: the volume has no cache.
    #[inline]
    pub fn dirty_flag(&self) -> Option<DirtyFlag> {
        match self.attachment() {
            Attachment::Attached(flag) | Attachment::Draining(flag) => Some(flag),
            Attachment::Detached | Attachment::Disowned => None,
        }
    }

    /// The backing superblock says dirty, durably.
    #[inline]
    pub fn is_marked_dirty(&self) -> bool {
        self.dirty_flag() == Some(DirtyFlag::Dirty)
    }

    /// Waits for the right to write the state of the superblock.
    pub async fn marking_turn(&self) -> MarkingTurn {
        MarkingTurn(self.marking.lock().await)
    }

    /// Waits until no other attach or detach is under way, and keeps others from beginning.
    pub async fn attachment_turn(&self) -> Permit {
        self.attaching.lock().await
    }

    /// Makes a transition. One that is not legal in this state is a bug.
    pub fn enter<E: Env>(&self, env: &E, transition: Transition) {
        self.change(transition);
        match transition {
            Transition::MarkedDirty => env.mark("marked_dirty"),
            Transition::MarkedClean => env.mark("marked_clean"),
            Transition::Detached => env.mark("detached"),
            Transition::AttachedAgain => env.mark("attached_again"),
            Transition::Disowned => env.mark("passthrough"),
            _ => {}
        }
    }

    fn change(&self, transition: Transition) {
        let now = self.now.get();
        let after = now.after(transition);
        assert!(after.is_some(), "{transition:?} is no transition of a volume that is {now:?}");
        self.now.set(after.unwrap_or(now));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Transition; 12] = [
        Transition::MarkingStarts,
        Transition::MarkedDirty,
        Transition::MarkedClean,
        Transition::MarkingFailed,
        Transition::DrainStarts,
        Transition::DrainEnds,
        Transition::Detached,
        Transition::AttachedAgain,
        Transition::Disowned,
        Transition::Paused,
        Transition::Resumed,
        Transition::Stopping,
    ];

    fn refuses(lifecycle: &Lifecycle, transition: Transition) -> bool {
        lifecycle.now.get().after(transition).is_none()
    }

    #[test]
    fn a_superblock_is_written_by_one_at_a_time() {
        let volume = Lifecycle::new(false);
        for written in [
            Transition::MarkedDirty,
            Transition::MarkedClean,
            Transition::MarkingFailed,
            Transition::Disowned,
            Transition::Detached,
        ] {
            assert!(refuses(&volume, written), "{written:?} without a write");
        }
        volume.change(Transition::MarkingStarts);
        assert!(refuses(&volume, Transition::MarkingStarts), "a second write");
        assert!(!volume.is_marked_dirty(), "not before it is durable");
        volume.change(Transition::MarkedDirty);
        assert!(volume.is_marked_dirty());
    }

    #[test]
    fn a_volume_is_detached_and_attached_behind_a_closed_gate() {
        let volume = Lifecycle::new(true);
        volume.change(Transition::MarkingStarts);
        assert!(refuses(&volume, Transition::Detached), "it is not drained");
        volume.change(Transition::DrainStarts);
        assert!(refuses(&volume, Transition::Detached), "requests begin");
        volume.change(Transition::Paused);
        volume.change(Transition::Detached);
        assert!(!volume.uses_cache() && refuses(&volume, Transition::MarkingStarts));
        volume.change(Transition::Resumed);
        assert!(refuses(&volume, Transition::AttachedAgain), "requests begin");
        volume.change(Transition::Paused);
        volume.change(Transition::AttachedAgain);
        assert_eq!(volume.attachment(), Attachment::Attached(DirtyFlag::Clean));
    }

    #[test]
    fn a_marked_volume_that_is_drained_in_vain_stays_dirty() {
        let volume = Lifecycle::new(true);
        volume.change(Transition::DrainStarts);
        assert!(volume.is_draining() && volume.is_marked_dirty() && volume.uses_cache());
        volume.change(Transition::DrainEnds);
        assert_eq!(volume.attachment(), Attachment::Attached(DirtyFlag::Dirty));
    }

    #[test]
    #[should_panic(expected = "Resumed is no transition")]
    fn a_transition_that_is_not_legal_is_refused() {
        Lifecycle::new(false).change(Transition::Resumed);
    }

    proptest! {
        /// Any transitions in any order: those that are refused change nothing, and the others
        /// keep the promises of the states.
        #[test]
        fn transitions_keep_what_states_promise(dirty: bool,
            steps in prop::collection::vec(0usize..ALL.len(), 0..200)) {
            let volume = Lifecycle::new(dirty);
            // The last word of the superblock, kept by hand.
            let (mut writing, mut durable) = (false, dirty.then_some(true).or(Some(false)));
            for step in steps {
                let (before, transition) = (volume.now.get(), ALL[step]);
                let Some(after) = before.after(transition) else { continue };
                volume.change(transition);
                prop_assert_eq!(volume.now.get(), after);
                match transition {
                    Transition::MarkingStarts => (writing, durable) = (true, None),
                    Transition::MarkedDirty => (writing, durable) = (false, Some(true)),
                    Transition::MarkedClean | Transition::AttachedAgain => {
                        (writing, durable) = (false, Some(false));
                    }
                    Transition::MarkingFailed
                    | Transition::Detached
                    | Transition::Disowned => (writing, durable) = (false, None),
                    _ => {}
                }
                prop_assert_eq!(volume.is_marked_dirty(), durable == Some(true));
                prop_assert_eq!(volume.dirty_flag() == Some(DirtyFlag::Marking), writing);
                if before.gate == Gate::Stopping {
                    prop_assert_eq!(after.gate, Gate::Stopping, "a stop is for good");
                }
                let uses = |state: State| matches!(state.attachment,
                    Attachment::Attached(_) | Attachment::Draining(_));
                if uses(before) && !uses(after) {
                    prop_assert_eq!(before.attachment == Attachment::Disowned, false);
                    prop_assert!(transition == Transition::Detached
                        || transition == Transition::Disowned);
                }
                if !uses(before) && uses(after) {
                    prop_assert_eq!(before.attachment, Attachment::Detached, "for good");
                }
                let moved = matches!(transition, Transition::Detached | Transition::AttachedAgain);
                prop_assert!(!moved || before.gate != Gate::Open);
            }
        }
    }
}
