//! Orders for a set, from other threads of its process.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// An order.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Stop cleanly.
    Stop,
    /// Read the certificates again.
    ReloadCertificates,
}

/// Orders on their way to a set. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Orders(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Order>,
    waker: Option<Waker>,
}

impl Orders {
    /// Gives an order.
    pub fn give(&self, order: Order) {
        let waker = {
            let mut state = self.state();
            state.waiting.push_back(order);
            state.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// Waits for the next one, on the thread of the set.
    pub async fn next(&self) -> Order {
        poll_fn(|context| {
            let mut state = self.state();
            match state.waiting.pop_front() {
                Some(order) => Poll::Ready(order),
                None => {
                    state.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
