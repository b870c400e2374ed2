//! Synchronisation for tasks of one thread: first come, first served, no clock, no threads.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Set once; every task that waits, now or later, goes on.
#[derive(Default, Debug)]
pub struct Event {
    set: Cell<bool>,
    notify: Notify,
}

impl Event {
    /// Sets it.
    pub fn set(&self) {
        self.set.set(true);
        self.notify.notify_all();
    }
    /// Returns true if the event is set.
    pub fn is_set(&self) -> bool {
        self.set.get()
    }
    /// Waits until it is set.
    pub async fn wait(&self) {
        while !self.set.get() {
            self.notify.notified().await;
        }
    }
}

#[derive(Debug)]
struct Waiter {
    woken: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A place to wait for the next notification of a change. Carries no state: check the condition
/// before and after, as with a condition variable.
#[derive(Default, Debug)]
pub struct Notify {
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
}

impl Notify {
    /// Waits for the next notification. Counts from this call, not from the first poll.
    pub fn notified(&self) -> Notified<'_> {
        let waiter = Rc::new(Waiter { woken: Cell::new(false), waker: RefCell::new(None) });
        self.waiters.borrow_mut().push_back(waiter.clone());
        Notified { notify: self, waiter }
    }

    /// Wakes the task that has waited longest. Returns true if there was one.
    pub fn notify_one(&self) -> bool {
        let waiter = self.waiters.borrow_mut().pop_front();
        match waiter {
            Some(waiter) => {
                waiter.woken.set(true);
                if let Some(waker) = waiter.waker.borrow_mut().take() {
                    waker.wake();
                }
                true
            }
            None => false,
        }
    }

    /// Wakes all waiters.
    #[inline]
    pub fn notify_all(&self) {
        let waiting = self.waiters.borrow().len();
        for _ in 0..waiting {
            self.notify_one();
        }
    }
}

/// See [`Notify::notified`].
#[derive(Debug)]
pub struct Notified<'a> {
    notify: &'a Notify,
    waiter: Rc<Waiter>,
}

impl Future for Notified<'_> {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.waiter.woken.get() {
            return Poll::Ready(());
        }
        *self.waiter.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        if !self.waiter.woken.get() {
            self.notify.waiters.borrow_mut().retain(|other| !Rc::ptr_eq(other, &self.waiter));
        }
    }
}

/// A number of permits, given out in order of request.
#[derive(Debug)]
pub struct Semaphore {
    free: Cell<u64>,
    queue: RefCell<VecDeque<Rc<PermitWaiter>>>,
}

#[derive(Debug)]
struct PermitWaiter {
    permits: u64,
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Semaphore {
    /// A semaphore with this many permits.
    pub fn new(permits: u64) -> Semaphore {
        Semaphore { free: Cell::new(permits), queue: RefCell::default() }
    }

    /// Free permits.
    pub fn available(&self) -> u64 {
        self.free.get()
    }

    /// Waits for `permits` permits at once, behind all earlier tasks.
    pub async fn acquire(self: &Rc<Self>, permits: u64) -> Permit {
        let claim =
            Rc::new(PermitWaiter { permits, granted: Cell::new(false), waker: RefCell::new(None) });
        self.queue.borrow_mut().push_back(claim.clone());
        self.grant();
        let mut pending = PendingClaim { semaphore: self, claim: Some(claim) };
        std::future::poll_fn(|cx| {
            let claim = pending.claim.as_ref().expect("polled after completion");
            if claim.granted.get() {
                return Poll::Ready(());
            }
            *claim.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        pending.claim = None;
        Permit { semaphore: self.clone(), permits }
    }

    /// Takes permits if they are free and no task waits.
    pub fn try_acquire(self: &Rc<Self>, permits: u64) -> Option<Permit> {
        if !self.queue.borrow().is_empty() || self.free.get() < permits {
            return None;
        }
        self.free.set(self.free.get() - permits);
        Some(Permit { semaphore: self.clone(), permits })
    }

    /// Hot: mostly nobody waits.
    fn release(&self, permits: u64) {
        self.free.set(self.free.get() + permits);
        if !self.queue.borrow().is_empty() {
            self.grant();
        }
    }

    fn grant(&self) {
        loop {
            let claim = match self.queue.borrow_mut().front() {
                Some(claim) if claim.permits <= self.free.get() => claim.clone(),
                _ => return,
            };
            self.queue.borrow_mut().pop_front();
            self.free.set(self.free.get() - claim.permits);
            claim.granted.set(true);
            if let Some(waker) = claim.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }
}

struct PendingClaim<'a> {
    semaphore: &'a Rc<Semaphore>,
    claim: Option<Rc<PermitWaiter>>,
}

impl Drop for PendingClaim<'_> {
    fn drop(&mut self) {
        let Some(claim) = self.claim.take() else { return };
        if claim.granted.get() {
            self.semaphore.release(claim.permits);
        } else {
            self.semaphore.queue.borrow_mut().retain(|other| !Rc::ptr_eq(other, &claim));
            self.semaphore.grant();
        }
    }
}

/// Permits of a [`Semaphore`]; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    semaphore: Rc<Semaphore>,
    permits: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.semaphore.release(self.permits);
    }
}

/// Mutual exclusion across awaits, in order of request. Guards a piece of work, not a value.
#[derive(Debug, Clone)]
pub struct Lock {
    semaphore: Rc<Semaphore>,
}

impl Default for Lock {
    fn default() -> Lock {
        Lock { semaphore: Rc::new(Semaphore::new(1)) }
    }
}

impl Lock {
    /// Waits for its turn; holds it until the permit is dropped.
    pub async fn lock(&self) -> Permit {
        self.semaphore.acquire(1).await
    }
    /// Takes the lock if it is free and no task waits.
    pub fn try_lock(&self) -> Option<Permit> {
        self.semaphore.try_acquire(1)
    }
    /// Returns true if the lock is held.
    pub fn is_locked(&self) -> bool {
        self.semaphore.available() == 0
    }
}

/// Waits for both, interleaved in this task.
pub async fn join<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    let (mut a_out, mut b_out) = (None, None);
    std::future::poll_fn(move |cx| {
        if a_out.is_none()
            && let Poll::Ready(out) = a.as_mut().poll(cx)
        {
            a_out = Some(out);
        }
        if b_out.is_none()
            && let Poll::Ready(out) = b.as_mut().poll(cx)
        {
            b_out = Some(out);
        }
        match (a_out.take(), b_out.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (a_out, b_out) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}

/// A future until it has completed, its output from then on.
type Running<F> = (Option<Pin<Box<F>>>, Option<<F as Future>::Output>);

/// Waits for all, interleaved in this task; the results in the order of the futures.
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Running<F>> =
        futures.into_iter().map(|future| (Some(Box::pin(future)), None)).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (future, output) in &mut running {
            if let Some(running) = future {
                match running.as_mut().poll(cx) {
                    Poll::Ready(out) => {
                        *output = Some(out);
                        *future = None;
                    }
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    running.into_iter().map(|(_, output)| output.expect("every future has completed")).collect()
}

/// Waits for the first of two; the other is dropped. Left if both are ready.
pub async fn first<A: Future, B: Future>(a: A, b: B) -> Either<A::Output, B::Output> {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    std::future::poll_fn(move |cx| {
        if let Poll::Ready(out) = a.as_mut().poll(cx) {
            return Poll::Ready(Either::Left(out));
        }
        b.as_mut().poll(cx).map(Either::Right)
    })
    .await
}

/// A value of one of two types.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Either<A, B> {
    /// The first.
    Left(A),
    /// The second.
    Right(B),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll<F: Future>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
        future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn permits_are_granted_in_order_of_request() {
        let semaphore = Rc::new(Semaphore::new(2));
        let held = semaphore.try_acquire(1).expect("free");
        let (a, b) = (semaphore.clone(), semaphore.clone());
        let mut big = Box::pin(async move { a.acquire(2).await });
        let mut small = Box::pin(async move { b.acquire(1).await });
        assert!(poll(&mut big).is_pending());
        assert!(poll(&mut small).is_pending(), "a small claim does not overtake a big one");
        drop(held);
        let Poll::Ready(permit) = poll(&mut big) else { panic!("the big claim is next") };
        assert!(poll(&mut small).is_pending());
        drop(permit);
        assert!(poll(&mut small).is_ready());
        assert_eq!(semaphore.available(), 2);
    }

    #[test]
    fn dropped_acquire_leaves_the_queue() {
        let semaphore = Rc::new(Semaphore::new(1));
        let held = semaphore.try_acquire(1);
        let (a, b) = (semaphore.clone(), semaphore.clone());
        let mut first = Box::pin(async move { a.acquire(1).await });
        let mut second = Box::pin(async move { b.acquire(1).await });
        assert!(poll(&mut first).is_pending());
        assert!(poll(&mut second).is_pending());
        drop(held);
        drop(first);
        assert!(poll(&mut second).is_ready());
    }

    #[test]
    fn notification_reaches_waiters_registered_before_it() {
        let notify = Notify::default();
        let mut early = Box::pin(notify.notified());
        notify.notify_all();
        let mut late = Box::pin(notify.notified());
        assert!(poll(&mut early).is_ready());
        assert!(poll(&mut late).is_pending());
        assert!(notify.notify_one());
        assert!(poll(&mut late).is_ready());
        assert!(!notify.notify_one());
    }
}
