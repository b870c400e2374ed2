//! The fallback for io_uring: sockets by epoll. (Files go to `workers`.)
//!
//! An operation is attempted once a turn, together with all that were asked for in the turn; if
//! it would block, it waits for an event of its descriptor and is attempted again.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use slab::Slab;

use crate::op::{IoRequest, Op};
use crate::queue::Shared;
use crate::sys;

const WOKEN: u64 = u64::MAX;
const EVENTS_MAX: usize = 256;
/// Turns between looks at epoll while tasks are running.
const BUSY_TURNS: u32 = 8;

const READ_EVENTS: u32 = (libc::EPOLLIN | libc::EPOLLRDHUP) as u32;
const WRITE_EVENTS: u32 = libc::EPOLLOUT as u32;

/// Operations that wait for one descriptor: key and events.
#[derive(Default)]
struct Interest {
    waiting: Vec<(usize, u32)>,
}

/// An epoll instance and who waits for it.
pub(crate) struct Poller {
    epoll: OwnedFd,
    interests: BTreeMap<RawFd, Interest>,
    /// Operations to attempt at the end of the turn.
    attempts: Vec<usize>,
    /// Descriptors whose set of events has changed.
    changed: Vec<RawFd>,
    events: Vec<libc::epoll_event>,
    busy_turns: u32,
}

impl Poller {
    pub(crate) fn new(eventfd: &OwnedFd) -> io::Result<Poller> {
        let epoll = sys::epoll()?;
        sys::epoll_set(&epoll, eventfd.as_raw_fd(), libc::EPOLLIN as u32, WOKEN)?;
        Ok(Poller {
            epoll,
            interests: BTreeMap::new(),
            attempts: Vec::new(),
            changed: Vec::new(),
            events: Vec::with_capacity(EVENTS_MAX),
            busy_turns: 0,
        })
    }

    /// Queues the next attempt of an operation.
    pub(crate) fn attempt(&mut self, key: usize) {
        self.attempts.push(key);
    }

    /// Ends an operation early. Whether it was waiting; if not, it completes as usual.
    pub(crate) fn cancel(&mut self, key: usize, op: &Op) -> bool {
        let Some(fd) = descriptor(&op.request) else { return false };
        let Some(interest) = self.interests.get_mut(&fd) else { return false };
        let before = interest.waiting.len();
        interest.waiting.retain(|(other, _)| *other != key);
        let found = interest.waiting.len() < before;
        if interest.waiting.is_empty() {
            // One-shot registrations without waiters only cost a spurious event.
            self.interests.remove(&fd);
        }
        found
    }

    /// Makes the attempts of this turn and waits for events if `wait` is given and nothing has
    /// ended (at most so long, `Duration::MAX`: for ever).
    pub(crate) fn turn(
        &mut self,
        shared: &Shared,
        wait: Option<Duration>,
        ops: &mut Slab<Op>,
        completions: &mut Vec<(usize, i32)>,
    ) -> io::Result<()> {
        self.run_attempts(ops, completions);
        let timeout = match wait {
            Some(Duration::ZERO) => Duration::ZERO,
            Some(limit) if completions.is_empty() => limit,
            _ => {
                self.busy_turns += 1;
                if self.interests.is_empty() || self.busy_turns < BUSY_TURNS {
                    return Ok(());
                }
                Duration::ZERO
            }
        };
        self.busy_turns = 0;
        let timeout = (timeout != Duration::MAX).then_some(timeout);
        let (epoll, events) = (&self.epoll, &mut self.events);
        shared.lock().without(|| sys::epoll_wait(epoll, events, timeout))?;
        for index in 0..self.events.len() {
            let (token, events) = (self.events[index].u64, self.events[index].events);
            if token == WOKEN {
                sys::eventfd_take(shared.eventfd().as_raw_fd());
            } else {
                self.happened(token as RawFd, events);
            }
        }
        self.run_attempts(ops, completions);
        Ok(())
    }

    /// Operations that wait for these events get another attempt.
    fn happened(&mut self, fd: RawFd, events: u32) {
        let Some(interest) = self.interests.get_mut(&fd) else { return };
        let always = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
        let attempts = &mut self.attempts;
        interest.waiting.retain(|(key, wanted)| {
            let met = events & (wanted | always) != 0;
            if met {
                attempts.push(*key);
            }
            !met
        });
        if interest.waiting.is_empty() {
            self.interests.remove(&fd);
        } else {
            self.changed.push(fd);
        }
    }

    fn run_attempts(&mut self, ops: &mut Slab<Op>, completions: &mut Vec<(usize, i32)>) {
        for key in std::mem::take(&mut self.attempts) {
            let op = &mut ops[key];
            match attempt_now(op) {
                Ok(result) => completions.push((key, result)),
                // Abandoned before its attempt: nothing would ever end its waiting.
                Err(_) if op.is_abandoned() || op.is_interrupted() => {
                    completions.push((key, -libc::ECANCELED))
                }
                Err((fd, events)) => {
                    self.interests.entry(fd).or_default().waiting.push((key, events));
                    self.changed.push(fd);
                }
            }
        }
        while let Some(fd) = self.changed.pop() {
            let Some(interest) = self.interests.get(&fd) else { continue };
            let events =
                interest.waiting.iter().fold(libc::EPOLLONESHOT as u32, |all, (_, one)| all | one);
            if let Err(error) = sys::epoll_set(&self.epoll, fd, events, fd as u64) {
                let code = error.raw_os_error().unwrap_or(libc::EIO);
                let waiting =
                    self.interests.remove(&fd).map(|interest| interest.waiting).unwrap_or_default();
                completions.extend(waiting.into_iter().map(|(key, _)| (key, -code)));
            }
        }
    }
}

fn descriptor(request: &IoRequest) -> Option<RawFd> {
    match request {
        IoRequest::Recv { fd, .. } | IoRequest::Send { fd, .. } | IoRequest::Poll { fd, .. } => {
            Some(fd.as_raw_fd())
        }
        _ => None,
    }
}

/// Attempts a socket operation: its result, or what it has to wait for.
fn attempt_now(op: &mut Op) -> Result<i32, (RawFd, u32)> {
    let (result, fd, events) = match &mut op.request {
        IoRequest::Nop => return Ok(0),
        IoRequest::Poll { fd, events } => {
            let (fd, events) = (fd.as_raw_fd(), *events);
            return if sys::poll_now(fd, events) { Ok(events as i32) } else { Err((fd, events)) };
        }
        IoRequest::Recv { fd, buf, at } => {
            let fd = fd.as_raw_fd();
            (sys::recv_now(fd, &mut buf.as_mut_slice()[*at..]), fd, READ_EVENTS)
        }
        IoRequest::Send { fd, .. } => {
            let fd = fd.as_raw_fd();
            let (list, count) = op.memory_list();
            let header = op.header(list, count);
            // SAFETY: the list has just been made from memory that the operation owns.
            (unsafe { sys::sendmsg_now(fd, header) }, fd, WRITE_EVENTS)
        }
        _ => unreachable!("file operations and calls go to workers"),
    };
    if result == -libc::EAGAIN { Err((fd, events)) } else { Ok(result) }
}
