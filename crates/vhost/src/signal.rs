//! A place where one task waits for what others do.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

/// Wakes one task. A signal that nobody waits for is kept.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    set: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    /// Sets it, and wakes the task that waits.
    pub(crate) fn set(&self) {
        if !self.set.replace(true)
            && let Some(waker) = self.waker.borrow().as_ref()
        {
            waker.wake_by_ref();
        }
    }

    /// Takes the signal, if it is set.
    pub(crate) fn clear(&self) {
        self.set.set(false);
    }

    /// Takes the signal; if it is not set, wakes the task of `cx` when it is.
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>) -> bool {
        if self.set.take() {
            return true;
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        false
    }

    /// Waits until the condition holds; whoever changes it sets the signal.
    pub(crate) async fn until(&self, condition: impl Fn() -> bool) {
        poll_fn(|cx| {
            // Registers the task in any case.
            while self.poll_take(cx) {}
            if condition() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}
