//! Counters of a connection's progress, for the task that disconnects clients which hold up others.
//! No clock is read while requests are served: that task looks at regular times.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, Waker};

/// The phase of a connection, and how often bytes were received and sent.
#[derive(Debug, Default)]
pub struct Watch {
    negotiated: Cell<bool>,
    receiving: Cell<bool>,
    sending: Cell<bool>,
    received: Cell<u64>,
    messages: Cell<u64>,
    sent: Cell<u64>,
    last: Cell<Last>,
    given_up: Cell<bool>,
    /// The task that receives requests.
    receiver: RefCell<Option<Waker>>,
}

/// State at the last look.
#[derive(Copy, Clone, Debug, Default)]
struct Last {
    received: u64,
    messages: u64,
    sent: u64,
    silence: Silence,
}

/// For each condition, how many looks in a row have found it.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Silence {
    /// The negotiation is not over.
    pub negotiation: u32,
    /// No byte has come of a message that has begun.
    pub message: u32,
    /// The same message is being received.
    pub payload: u32,
    /// No reply could be sent of those that are ready.
    pub replies: u32,
}

impl Watch {
    pub(super) fn set_negotiated(&self) {
        self.negotiated.set(true);
    }

    /// A message has begun and is not complete; `false`: it is.
    pub(super) fn set_receiving(&self, receiving: bool) {
        self.receiving.set(receiving);
        self.messages.set(self.messages.get() + u64::from(receiving));
    }

    pub(super) fn set_sending(&self, sending: bool) {
        self.sending.set(sending);
        self.sent.set(self.sent.get() + 1);
    }

    pub(super) fn has_received(&self) {
        self.received.set(self.received.get() + 1);
    }

    /// Returns true if the client has not chosen an export, and may still do so.
    pub fn is_choosing(&self) -> bool {
        !self.negotiated.get() && !self.given_up.get()
    }

    /// The client has gone, or is sent away: requests that have not begun do not begin.
    pub fn give_up(&self) {
        self.given_up.set(true);
        if let Some(receiver) = self.receiver.take() {
            receiver.wake();
        }
    }

    /// Receives requests until that is over, or is given up.
    pub(super) async fn unless_given_up<F: Future>(&self, receive: F) -> Option<F::Output> {
        let mut receive = pin!(receive);
        poll_fn(|cx| {
            if self.given_up.get() {
                return Poll::Ready(None);
            }
            // The task stays the same one.
            if self.receiver.borrow().is_none() {
                *self.receiver.borrow_mut() = Some(cx.waker().clone());
            }
            receive.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Looks: how many looks ago, this one included, each silence began.
    pub fn look(&self) -> Silence {
        let Last { received, messages, sent, silence } = self.last.get();
        let count = |lasts: bool, before: u32| if lasts { before + 1 } else { 0 };
        let quiet = received == self.received.get();
        let stuck = sent == self.sent.get();
        let receiving = self.receiving.get();
        let same = if messages == self.messages.get() { silence.payload } else { 0 };
        let silence = Silence {
            negotiation: count(!self.negotiated.get(), silence.negotiation),
            message: count(receiving && quiet, silence.message),
            payload: count(receiving, same),
            replies: count(self.sending.get() && stuck, silence.replies),
        };
        self.last.set(Last {
            received: self.received.get(),
            messages: self.messages.get(),
            sent: self.sent.get(),
            silence,
        });
        silence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_counted_from_the_last_sign_of_life() {
        let watch = Watch::default();
        assert_eq!(watch.look(), Silence { negotiation: 1, ..Silence::default() });
        watch.has_received();
        assert_eq!(watch.look().negotiation, 2, "bytes alone are no negotiation");
        watch.set_negotiated();
        assert_eq!(watch.look(), Silence::default(), "an idle client may stay");
        watch.has_received();
        watch.set_receiving(true);
        assert_eq!(watch.look(), Silence { payload: 1, ..Silence::default() });
        assert_eq!(watch.look(), Silence { message: 1, payload: 2, ..Silence::default() });
        watch.has_received();
        assert_eq!(watch.look(), Silence { payload: 3, ..Silence::default() });
        watch.set_receiving(false);
        watch.set_receiving(true);
        assert_eq!(watch.look().payload, 1, "another message");
        watch.set_receiving(false);
        watch.set_sending(true);
        assert_eq!(watch.look(), Silence::default());
        assert_eq!(watch.look(), Silence { replies: 1, ..Silence::default() });
        watch.set_sending(false);
        assert_eq!(watch.look(), Silence::default());
    }
}
