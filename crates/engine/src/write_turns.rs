//! Turns of writes over blocks of which a write has a part only (T5), and of all that writes to a
//! backing device while its volume moves (A11).
//!
//! Writes over different blocks, and writes of whole blocks among themselves, do not wait. All
//! others come first, first served. As long as nobody writes a part of a block there is nothing
//! here, and a write of whole blocks does not ask for its turn.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use smallvec::SmallVec;
use ubcache_env::SectorRange;

/// Blocks that a write has a part of: its first, its last, both or none.
pub(crate) type Edges = SmallVec<[SectorRange; 2]>;

#[derive(Debug)]
struct Claim {
    /// All that is written.
    range: SectorRange,
    /// The blocks in it that nobody else writes meanwhile.
    edges: Edges,
    /// Earlier claims that it waits for.
    waits_for: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

impl Claim {
    fn excludes(&self, other: &Claim) -> bool {
        let holds = |claim: &Claim, range| claim.edges.iter().any(|edge| edge.overlaps(range));
        holds(self, &other.range) || holds(other, &self.range)
    }
}

/// The claims, in their order.
#[derive(Default, Debug)]
struct Claims {
    /// Their number: each write asks.
    taken: Cell<usize>,
    list: RefCell<VecDeque<Rc<Claim>>>,
}

/// Turns of the writes of a volume.
#[derive(Default, Debug)]
pub(crate) struct Turns(Rc<Claims>);

impl Turns {
    /// Returns true if somebody writes a part of a block, or waits to do it.
    #[inline]
    pub fn are_taken(&self) -> bool {
        self.0.taken.get() > 0
    }

    /// Calls `visit` with the range of each write that has a turn, or waits for one.
    pub fn for_each(&self, visit: impl FnMut(SectorRange)) {
        self.0.list.borrow().iter().map(|claim| claim.range).for_each(visit);
    }

    /// Takes a turn for a write. Later ones over its edges, or whose edges it is over, wait from
    /// now on.
    pub fn take(&self, range: SectorRange, edges: Edges) -> Turn {
        let claim = Claim { range, edges, waits_for: Cell::new(0), waker: RefCell::default() };
        let mut claims = self.0.list.borrow_mut();
        claim.waits_for.set(claims.iter().filter(|earlier| earlier.excludes(&claim)).count());
        let claim = Rc::new(claim);
        claims.push_back(claim.clone());
        self.0.taken.set(claims.len());
        Turn { claims: self.0.clone(), claim }
    }
}

/// A turn of a write. It is over when this is dropped.
#[must_use = "the turn is over when this is dropped"]
#[derive(Debug)]
pub(crate) struct Turn {
    claims: Rc<Claims>,
    claim: Rc<Claim>,
}

impl Turn {
    /// Waits until it has come. Says whether that took any time.
    pub async fn comes(&self) -> bool {
        let waits = self.claim.waits_for.get() > 0;
        poll_fn(|cx| {
            if self.claim.waits_for.get() == 0 {
                return Poll::Ready(());
            }
            *self.claim.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        waits
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut claims = self.claims.list.borrow_mut();
        let at = claims.iter().position(|claim| Rc::ptr_eq(claim, &self.claim));
        let at = at.expect("a claim stays until its turn is over");
        claims.remove(at);
        self.claims.taken.set(claims.len());
        for later in claims.range(at..).filter(|later| later.excludes(&self.claim)) {
            later.waits_for.set(later.waits_for.get() - 1);
            if later.waits_for.get() == 0
                && let Some(waker) = later.waker.take()
            {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use smallvec::smallvec;
    use ubcache_env::Sector;

    use super::*;

    fn range(start: u64, end: u64) -> SectorRange {
        SectorRange::from_bounds(Sector(start), Sector(end))
    }

    fn whole(turns: &Turns, start: u64, end: u64) -> Turn {
        turns.take(range(start, end), Edges::new())
    }

    fn part(turns: &Turns, start: u64, end: u64) -> Turn {
        turns.take(range(start, end), smallvec![range(start, end)])
    }

    fn has_come(turn: &Turn) -> bool {
        pin!(turn.comes()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn parts_come_in_order_and_whole_blocks_beside_each_other() {
        let turns = Turns::default();
        assert!(!turns.are_taken());
        let first = part(&turns, 0, 8);
        assert!(has_come(&first) && turns.are_taken());
        let beside = part(&turns, 8, 16);
        assert!(has_come(&beside), "another block");
        let both = [whole(&turns, 0, 16), whole(&turns, 4, 8)];
        let last = part(&turns, 0, 8);
        assert!(!both.iter().any(has_come) && !has_come(&last));
        drop(first);
        assert!(!has_come(&both[0]), "it is over both");
        assert!(has_come(&both[1]) && !has_come(&last));
        drop(beside);
        assert!(both.iter().all(has_come));
        drop(both);
        assert!(has_come(&last));
        drop(last);
        assert!(!turns.are_taken());
    }

    /// Found by the simulator: a write between whose edges another one has an edge.
    #[test]
    fn what_lies_between_the_edges_of_a_write_counts() {
        let turns = Turns::default();
        let long = turns.take(range(0, 80), smallvec![range(0, 8), range(72, 80)]);
        let within = part(&turns, 40, 48);
        assert!(!has_come(&within));
        drop(long);
        let again = turns.take(range(0, 80), smallvec![range(0, 8), range(72, 80)]);
        assert!(has_come(&within) && !has_come(&again));
        drop(within);
        assert!(has_come(&again));
    }

    #[test]
    fn a_turn_that_is_given_up_lets_the_next_one_come() {
        let turns = Turns::default();
        let (first, second) = (part(&turns, 0, 8), part(&turns, 0, 8));
        let third = whole(&turns, 0, 8);
        drop(second);
        assert!(!has_come(&third));
        drop(first);
        assert!(has_come(&third));
    }
}
