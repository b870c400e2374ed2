//! Byte streams that behave like sockets on a bad day.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use ubcache_env::local::Notify;
use ubcache_env::{Buf, Env, IoVec, Nanos, Stream, StreamError};

use crate::executor::SimEnv;
use crate::rng::Rng;

/// Bytes that a direction holds before `send` has to wait.
const WINDOW_BYTES: usize = 64 << 10;

#[derive(Default)]
struct Direction {
    chunks: VecDeque<(Nanos, Vec<u8>)>,
    held: usize,
    ended: bool,
    last: Nanos,
}

struct Wire {
    env: SimEnv,
    rng: RefCell<Rng>,
    directions: [RefCell<Direction>; 2],
    /// One end sent, received or closed.
    changed: Notify,
    delay_max: Nanos,
}

/// One end of a simulated connection.
///
/// Bytes arrive in order, late, and cut anywhere. [`SimStream::disconnect`] loses what is under
/// way.
pub struct SimStream {
    wire: Rc<Wire>,
    side: usize,
}

impl SimStream {
    /// A connection whose bytes take up to `delay_max` to arrive.
    pub fn pair(env: &SimEnv, delay_max: Nanos) -> (SimStream, SimStream) {
        let wire = Rc::new(Wire {
            env: env.clone(),
            rng: RefCell::new(Rng::fork(env.random(), "stream")),
            directions: [RefCell::default(), RefCell::default()],
            changed: Notify::default(),
            delay_max,
        });
        (SimStream { wire: wire.clone(), side: 0 }, SimStream { wire, side: 1 })
    }

    /// The network fails: bytes under way are lost from a drawn point on, both ends see the end.
    pub fn disconnect(&self) {
        for direction in &self.wire.directions {
            let mut direction = direction.borrow_mut();
            direction.ended = true;
            let keep = self.wire.rng.borrow_mut().below(direction.chunks.len() as u64 + 1);
            direction.chunks.truncate(keep as usize);
            direction.held = direction.chunks.iter().map(|(_, bytes)| bytes.len()).sum();
        }
        self.wire.changed.notify_all();
    }

    fn inbound(&self) -> &RefCell<Direction> {
        &self.wire.directions[1 - self.side]
    }

    fn outbound(&self) -> &RefCell<Direction> {
        &self.wire.directions[self.side]
    }

    fn put(&self, bytes: &[u8]) {
        let mut rng = self.wire.rng.borrow_mut();
        let mut direction = self.outbound().borrow_mut();
        let delay = Nanos(rng.below(self.wire.delay_max.0 + 1));
        direction.last = direction.last.max(self.wire.env.now().after(delay));
        direction.held += bytes.len();
        let at = direction.last;
        direction.chunks.push_back((at, bytes.to_vec()));
    }

    fn take(&self, into: &mut [u8]) -> usize {
        let mut direction = self.inbound().borrow_mut();
        let mut rng = self.wire.rng.borrow_mut();
        let Some((_, bytes)) = direction.chunks.front_mut() else { return 0 };
        let most = bytes.len().min(into.len());
        let count = if rng.chance(1, 4) { rng.between(1, most as u64) as usize } else { most };
        into[..count].copy_from_slice(&bytes[..count]);
        bytes.drain(..count);
        if bytes.is_empty() {
            direction.chunks.pop_front();
        }
        direction.held -= count;
        count
    }
}

impl Stream for SimStream {
    async fn recv_at(&self, mut into: Buf, at: usize) -> (Buf, Result<usize, StreamError>) {
        loop {
            let changed = self.wire.changed.notified();
            let (next, ended) = {
                let direction = self.inbound().borrow();
                (direction.chunks.front().map(|(at, _)| *at), direction.ended)
            };
            match next {
                Some(time) if time <= self.wire.env.now() => {
                    let count = self.take(&mut into.as_mut_slice()[at..]);
                    drop(changed);
                    self.wire.changed.notify_all();
                    return (into, Ok(count));
                }
                Some(time) => {
                    drop(changed);
                    self.wire.env.sleep_until(time).await;
                }
                None if ended => return (into, Ok(0)),
                None => changed.await,
            }
        }
    }

    async fn send(&self, from: IoVec) -> Result<(), StreamError> {
        for part in from.parts() {
            let mut rest = part.as_slice();
            while !rest.is_empty() {
                let changed = self.wire.changed.notified();
                if self.outbound().borrow().ended {
                    return Err(StreamError::Closed);
                }
                let held = self.outbound().borrow().held;
                if held >= WINDOW_BYTES {
                    changed.await;
                    continue;
                }
                drop(changed);
                let most = rest.len().min(WINDOW_BYTES - held) as u64;
                let cut = self.wire.rng.borrow_mut().chance(1, 2);
                let count = if cut { self.wire.rng.borrow_mut().scale(1, most) } else { most };
                let (now, later) = rest.split_at(count.min(most) as usize);
                self.put(now);
                rest = later;
                self.wire.changed.notify_all();
            }
        }
        Ok(())
    }

    fn close(&self) {
        for direction in &self.wire.directions {
            direction.borrow_mut().ended = true;
        }
        self.inbound().borrow_mut().chunks.clear();
        self.wire.changed.notify_all();
    }
}
