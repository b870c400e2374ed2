//! Shares of what connections have in common: memory, and the service of a volume.
//!
//! A connection may take more while what it holds stays within half of what is free. So each gets
//! as much as any other, and a newcomer finds room, however much one asks for. Those that have to
//! wait go on in turn by bytes (start-time fair queueing): a request is numbered with the bytes
//! that its connection has had, and a connection that was idle is not behind.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Bytes that a connection which holds nothing gets at once, whatever the others hold.
const SMALL_BYTES: u64 = 128 << 10;

/// A claim's place in the line: bytes served before it, then order of arrival.
type Place = (u64, u64);

/// Bytes that connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    limit: Cell<u64>,
    held: Cell<u64>,
    /// The place of the claim that was granted last.
    served: Cell<u64>,
    serial: Cell<u64>,
    waiting: RefCell<BTreeMap<Place, Rc<Waiter>>>,
}

#[derive(Debug)]
struct Waiter {
    share: Rc<Share>,
    bytes: u64,
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// The part of one connection.
#[derive(Debug)]
pub(crate) struct Share {
    of: Rc<Shared>,
    held: Cell<u64>,
    /// The place at which its next claim begins, at least.
    next: Cell<u64>,
}

impl Shared {
    pub(crate) fn new(limit: u64) -> Rc<Shared> {
        Rc::new(Shared {
            limit: Cell::new(limit.max(1)),
            held: Cell::new(0),
            served: Cell::new(0),
            serial: Cell::new(0),
            waiting: RefCell::default(),
        })
    }

    /// Takes bytes off the limit until the end of what is returned. They are no part of what is
    /// held: a claim that is longer than what is left goes alone, and would wait for them for ever.
    pub(crate) fn set_aside(self: &Rc<Self>, bytes: u64) -> Aside {
        let bytes = bytes.min(self.limit.get());
        self.limit.set(self.limit.get() - bytes);
        Aside { of: self.clone(), bytes }
    }

    /// The share of one more connection.
    pub(crate) fn share(self: &Rc<Self>) -> Rc<Share> {
        Rc::new(Share { of: self.clone(), held: Cell::new(0), next: Cell::new(0) })
    }

    /// Bytes that connections hold.
    pub(crate) fn held(&self) -> u64 {
        self.held.get()
    }

    /// Returns true if a connection waits.
    pub(crate) fn is_short(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    /// Grants what fits, in order. A claim of a connection that holds nothing lets no later one
    /// pass: a long one would never find room.
    fn grant(&self) {
        loop {
            let mut found = None;
            for (place, waiter) in &*self.waiting.borrow() {
                if waiter.share.fits(waiter.bytes) {
                    found = Some(*place);
                    break;
                }
                if waiter.share.held.get() == 0 {
                    break;
                }
            }
            let waiter = found.and_then(|place| self.waiting.borrow_mut().remove(&place));
            let (Some(waiter), Some((start, _))) = (waiter, found) else { return };
            self.served.set(self.served.get().max(start));
            waiter.share.take(waiter.bytes);
            waiter.granted.set(true);
            if let Some(waker) = waiter.waker.take() {
                waker.wake();
            }
        }
    }
}

impl Share {
    fn fits(&self, bytes: u64) -> bool {
        let (mine, all) = (self.held.get(), self.of.held.get());
        mine + bytes <= self.of.limit.get().saturating_sub(all) / 2
            || mine == 0 && bytes <= SMALL_BYTES
            || all == 0
    }

    /// Takes bytes, whatever others hold: those that are in use already.
    pub(crate) fn take(&self, bytes: u64) {
        self.held.set(self.held.get() + bytes);
        self.of.held.set(self.of.held.get() + bytes);
    }

    /// Takes bytes if nothing has to be waited for.
    pub(crate) fn try_claim(&self, bytes: u64) -> bool {
        let small = self.held.get() == 0 && bytes <= SMALL_BYTES;
        let fits = self.fits(bytes) && (small || !self.of.is_short());
        if fits {
            self.next.set(self.next.get().max(self.of.served.get()) + bytes);
            self.take(bytes);
        }
        fits
    }

    /// Takes bytes, when it is the connection's turn.
    pub(crate) async fn claim(self: &Rc<Self>, bytes: u64) {
        if self.try_claim(bytes) {
            return;
        }
        let start = self.next.get().max(self.of.served.get());
        self.next.set(start + bytes);
        let waiter = Rc::new(Waiter {
            share: self.clone(),
            bytes,
            granted: Cell::new(false),
            waker: RefCell::default(),
        });
        let serial = self.of.serial.replace(self.of.serial.get() + 1);
        let place = (start, serial);
        self.of.waiting.borrow_mut().insert(place, waiter.clone());
        let mut pending = Pending { place: Some(place), waiter };
        self.of.grant();
        poll_fn(|cx| {
            if pending.waiter.granted.get() {
                return Poll::Ready(());
            }
            *pending.waiter.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        pending.place = None;
    }

    /// Gives bytes back.
    pub(crate) fn release(&self, bytes: u64) {
        self.held.set(self.held.get() - bytes);
        self.of.held.set(self.of.held.get() - bytes);
        if self.of.is_short() {
            self.of.grant();
        }
    }
}

/// A claim that waits; dropped, it waits no more.
struct Pending {
    place: Option<Place>,
    waiter: Rc<Waiter>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(place) = self.place else { return };
        let share = &self.waiter.share;
        if self.waiter.granted.get() {
            share.release(self.waiter.bytes);
        } else {
            share.of.waiting.borrow_mut().remove(&place);
            share.of.grant();
        }
    }
}

/// Bytes that are set aside; given back when dropped.
#[derive(Debug)]
pub(crate) struct Aside {
    of: Rc<Shared>,
    bytes: u64,
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.of.limit.set(self.of.limit.get() + self.bytes);
        self.of.grant();
    }
}

/// The turn of a request on its volume; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    share: Rc<Share>,
    bytes: u64,
}

impl Turn {
    /// Waits for the turn of a request of so many bytes.
    pub(crate) async fn of(share: &Rc<Share>, bytes: u64) -> Turn {
        share.claim(bytes).await;
        Turn { share: share.clone(), bytes }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.share.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::Context;

    use super::*;

    type Claim = Pin<Box<dyn Future<Output = ()>>>;

    fn claim(share: &Rc<Share>, bytes: u64) -> Claim {
        let share = share.clone();
        Box::pin(async move { share.claim(bytes).await })
    }

    fn is_granted(claim: &mut Claim) -> bool {
        claim.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn one_connection_leaves_room_for_the_next() {
        let shared = Shared::new(48 * MIB);
        let shares = [shared.share(), shared.share(), shared.share()];
        let mut took = Vec::new();
        let mut waiting = Vec::new();
        for share in &shares {
            let mut count = 0;
            let mut next = claim(share, MIB);
            while is_granted(&mut next) {
                count += 1;
                next = claim(share, MIB);
            }
            took.push(count);
            waiting.push(next);
        }
        assert_eq!(took, [16, 11, 7], "each within half of what was free");
        assert!(is_granted(&mut claim(&shared.share(), SMALL_BYTES)), "a small one passes");
    }

    #[test]
    fn claims_that_wait_are_granted_in_turn_by_bytes() {
        let shared = Shared::new(3 * MIB);
        let (first, second) = (shared.share(), shared.share());
        let mut log = Vec::new();
        let mut claims = [claim(&first, MIB), claim(&second, MIB / 4)];
        for _ in 0..50 {
            for (which, (share, bytes)) in [(&first, MIB), (&second, MIB / 4)].iter().enumerate() {
                if is_granted(&mut claims[which]) {
                    log.push(which);
                    share.release(*bytes);
                    claims[which] = claim(share, *bytes);
                }
            }
        }
        assert_eq!(log.iter().filter(|which| **which == 0).count(), 50);
        assert_eq!(log.iter().filter(|which| **which == 1).count(), 50);
    }

    #[test]
    fn long_claim_is_not_passed_for_ever() {
        let shared = Shared::new(64 * MIB);
        let others: Vec<_> = (0..20).map(|_| shared.share()).collect();
        for other in &others {
            assert!(is_granted(&mut claim(other, MIB)));
        }
        let patient = shared.share();
        let mut long = claim(&patient, 30 * MIB);
        assert!(!is_granted(&mut long));
        let mut behind: Vec<Claim> = Vec::new();
        for other in &others {
            other.release(MIB);
            let mut again = claim(other, MIB);
            let granted = is_granted(&mut again);
            behind.push(again);
            if is_granted(&mut long) {
                break;
            }
            assert!(!granted, "it waits behind the long one");
        }
        assert_eq!(patient.held.get(), 30 * MIB);
    }

    #[test]
    fn bytes_that_are_set_aside_make_the_limit_smaller_and_stop_nobody() {
        let shared = Shared::new(MIB);
        let (first, second) = (shared.share(), shared.share());
        let mut aside: Vec<_> = (0..9).map(|_| shared.set_aside(MIB / 8)).collect();
        assert!(is_granted(&mut claim(&first, SMALL_BYTES)), "a small one");
        let mut long = claim(&second, MIB / 2);
        assert!(!is_granted(&mut long));
        aside.truncate(1);
        assert!(!is_granted(&mut long), "within half of what is left");
        first.release(SMALL_BYTES);
        assert!(is_granted(&mut long), "alone");
        second.release(MIB / 2);
        drop(aside);
        assert!(is_granted(&mut claim(&first, MIB / 4)));
        assert!(is_granted(&mut claim(&second, MIB / 4)));
    }

    #[test]
    fn claim_longer_than_the_limit_goes_alone() {
        let shared = Shared::new(MIB);
        let (first, second) = (shared.share(), shared.share());
        assert!(is_granted(&mut claim(&first, 1000)));
        let mut long = claim(&second, 32 * MIB);
        assert!(!is_granted(&mut long));
        first.release(1000);
        assert!(is_granted(&mut long));
        let mut given_up = claim(&first, MIB);
        assert!(!is_granted(&mut given_up));
        drop(given_up);
        assert!(!shared.is_short());
        second.release(32 * MIB);
        assert_eq!(shared.held(), 0);
    }
}
