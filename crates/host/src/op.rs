//! One I/O in flight: what was asked, how far it is, who waits for it.
//!
//! A backend makes *attempts*: one submission to io_uring, one system call. The rules of going on
//! after a short transfer or an interrupted call are here, once for all backends. An operation
//! owns its memory and its descriptor until its last attempt has ended, whether or not somebody
//! still waits for it.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Waker;

use ubcache_env::{Buf, COMMAND_ADDRESS_AT, Command, IoVec, Place};

use crate::sys;

/// Most bytes in one attempt: what Linux transfers at most, in whole pages.
pub(crate) const ATTEMPT_BYTES_MAX: usize = 0x7fff_f000;

/// Most bytes that are copied in one attempt: the thread does nothing else meanwhile, and a small
/// request that comes waits for it.
pub(crate) const SLICE_BYTES: usize = 64 << 10;

/// Most bytes that another thread copies in one attempt.
const THREAD_SLICE_BYTES: usize = 256 << 10;

/// Most bytes of one receive. The rest of a payload comes with the next.
const RECEIVE_BYTES_MAX: usize = 128 << 10;

/// File operations up to this size are never held back for others.
pub(crate) const PROMPT_BYTES_MAX: usize = 32 << 10;

/// To start direct I/O of so many bytes takes as long as to copy one.
const DIRECT_BYTES_PER_COPIED: usize = 8;

/// Attempts in a row that end with EAGAIN before the operation fails with it.
const AGAIN_MAX: u16 = 1000;

/// Work for a thread that may block. Returns a count or a negative errno.
pub(crate) type Call = Box<dyn FnOnce() -> i32 + Send>;

/// Operation that was asked for.
pub(crate) enum IoRequest {
    /// Completes.
    Nop,
    /// Fills the buffer from the byte position; `copied`: from memory; `cached`: the page cache may
    /// have it.
    Read { fd: Rc<OwnedFd>, at: u64, buf: Buf, copied: bool, cached: bool },
    /// Reads so many bytes from the byte position to memory that the ring knows by a number.
    ReadInto { fd: Rc<OwnedFd>, at: u64, len: u32, place: Place },
    /// Writes the string at the byte position; `dsync`: durable when it completes; `copied`: to
    /// memory.
    Write { fd: Rc<OwnedFd>, at: u64, data: IoVec, dsync: bool, copied: bool },
    /// `fdatasync`.
    Sync { fd: Rc<OwnedFd> },
    /// `fallocate`.
    Fallocate { fd: Rc<OwnedFd>, mode: i32, at: u64, len: u64 },
    /// Receives at least one byte, or 0 at the end of the stream, to the buffer from byte `at`.
    Recv { fd: Rc<OwnedFd>, buf: Buf, at: usize },
    /// Sends all of the string.
    Send { fd: Rc<OwnedFd>, data: IoVec },
    /// Waits until the descriptor has one of the events.
    Poll { fd: Rc<OwnedFd>, events: u32 },
    /// Gives the driver of a character device a command; it may use the memory.
    Command { fd: Rc<OwnedFd>, command: Command, memory: Option<Buf> },
    /// Runs on a worker thread. `None` once a worker has it.
    Call { call: Option<Call> },
}

impl IoRequest {
    /// Bytes that have to be transferred before the operation is complete.
    fn goal(&self) -> usize {
        match self {
            IoRequest::Read { buf, .. } => buf.len(),
            IoRequest::ReadInto { len, .. } => *len as usize,
            IoRequest::Write { data, .. } | IoRequest::Send { data, .. } => data.len(),
            _ => 0,
        }
    }

    /// Most bytes of one attempt.
    fn attempt_bytes_max(&self) -> usize {
        match self {
            IoRequest::Recv { .. } => RECEIVE_BYTES_MAX,
            request if request.copies() => THREAD_SLICE_BYTES,
            _ => ATTEMPT_BYTES_MAX,
        }
    }

    /// Returns true if the thread that makes an attempt copies all of its bytes.
    pub(crate) fn copies(&self) -> bool {
        matches!(
            self,
            IoRequest::Send { .. }
                | IoRequest::Read { copied: true, .. }
                | IoRequest::Write { copied: true, .. }
        )
    }

    /// Kind of a wait for it.
    pub(crate) fn wait_kind(&self) -> WaitKind {
        match self {
            IoRequest::Write { dsync: true, .. }
            | IoRequest::Sync { .. }
            | IoRequest::Fallocate { .. } => WaitKind::Durable,
            IoRequest::Read { .. } | IoRequest::ReadInto { .. } | IoRequest::Write { .. } => {
                WaitKind::Devices
            }
            _ => WaitKind::Peers,
        }
    }

    /// Returns true if it may wait for a peer for ever, so that it is cancelled when no waiter is
    /// left.
    pub(crate) fn is_patient(&self) -> bool {
        matches!(
            self,
            IoRequest::Recv { .. }
                | IoRequest::Send { .. }
                | IoRequest::Poll { .. }
                | IoRequest::Command { .. }
        )
    }
}

/// Kinds of operations in flight; waits of one kind are about as long. A wait for several is of the
/// last of them.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum WaitKind {
    /// Sockets, timers, worker threads.
    Peers,
    /// Data that a device has taken is to become durable. A thread of the kernel ends that, and has
    /// to wait for its processor while this thread is awake.
    Durable,
    /// Data goes to or from a device.
    Devices,
}

/// The outcome of an operation: a count (see the request) or an errno.
pub(crate) type Outcome = Result<usize, i32>;

/// State of an operation.
enum State {
    /// In the hands of the backend, with the waker of its waiter.
    Running(Option<Waker>),
    /// In the hands of the backend, abandoned by its waiter.
    Abandoned,
    /// Complete; the outcome is not taken yet.
    Done(Outcome),
}

/// An operation. At most one attempt is under way at any time.
pub(crate) struct Op {
    pub(crate) request: IoRequest,
    /// Bytes transferred by the attempts before the present one.
    done: usize,
    again: u16,
    /// The waiter wants the outcome of what was done so far.
    interrupted: bool,
    state: State,
    /// The scatter list of the present attempt.
    list: Vec<libc::iovec>,
    /// The message header of the present attempt.
    header: Option<Box<libc::msghdr>>,
    /// The page cache has had all that it was asked for so far.
    cached: bool,
    /// Bytes that the present attempt asks the page cache for.
    asked: usize,
}

/// Step after the end of an attempt.
pub(crate) enum Next {
    /// Another attempt.
    Attempt,
    /// The operation is complete; wake the one who waits.
    Complete(Option<Waker>),
    /// The operation is complete and abandoned: drop it.
    Drop,
}

/// Memory of an attempt: one piece, or the scatter list kept in the operation.
pub(crate) enum Memory {
    One { start: *mut u8, len: u32 },
    List { list: *const libc::iovec, count: usize },
}

impl Op {
    pub(crate) fn new(request: IoRequest, list: Vec<libc::iovec>) -> Op {
        let cached = matches!(request, IoRequest::Read { cached: true, .. });
        let state = State::Running(None);
        let (done, again, asked, interrupted, header) = (0, 0, 0, false, None);
        Op { request, done, again, interrupted, state, list, header, cached, asked }
    }

    /// Returns true if the next attempt asks the page cache.
    pub(crate) fn asks_page_cache(&self) -> bool {
        self.cached
    }

    /// The scatter list for an attempt that asks the page cache: a slice, so that others have their
    /// turn.
    pub(crate) fn page_cache_list(&mut self) -> (*const libc::iovec, usize) {
        self.asked = (self.bytes() - self.done).min(THREAD_SLICE_BYTES);
        self.list_up_to(THREAD_SLICE_BYTES)
    }

    /// Returns true if the present attempt copies much.
    pub(crate) fn is_copying(&self) -> bool {
        self.request.copies() && self.bulk_cost().is_some()
    }

    /// Returns true if its bytes are copied, and many.
    pub(crate) fn is_copied_bulk(&self) -> bool {
        self.request.copies() && self.bytes() > PROMPT_BYTES_MAX
    }

    /// Bytes that are to be transferred.
    pub(crate) fn bytes(&self) -> usize {
        self.request.goal()
    }

    /// Time that the next attempt takes, as bytes that are copied; `None` if it is short.
    pub(crate) fn bulk_cost(&self) -> Option<usize> {
        let left = self.request.goal().saturating_sub(self.done);
        match self.request {
            IoRequest::Send { .. } => Some(left.min(SLICE_BYTES)),
            IoRequest::Read { copied, .. } | IoRequest::Write { copied, .. }
                if left > PROMPT_BYTES_MAX =>
            {
                Some(if copied { left } else { left / DIRECT_BYTES_PER_COPIED })
            }
            _ => None,
        }
    }

    /// Position in bytes where the present attempt of a read or write starts.
    pub(crate) fn position(&self, at: u64) -> u64 {
        at + self.done as u64
    }

    /// The place to which the next attempt of a [`IoRequest::ReadInto`] reads: its number, the
    /// first byte and the length.
    pub(crate) fn place(&self) -> (u16, usize, u32) {
        let IoRequest::ReadInto { len, place, .. } = &self.request else {
            unreachable!("asked of a read to a place only")
        };
        (place.number as u16, place.at as usize + self.done, len - self.done as u32)
    }

    /// The memory for the next attempt.
    ///
    /// The pointers stay valid until the operation is dropped or `memory` is called again: they
    /// point to the heap, not into the operation, which may move.
    pub(crate) fn memory(&mut self) -> Memory {
        self.memory_up_to(self.request.attempt_bytes_max())
    }

    fn memory_up_to(&mut self, most: usize) -> Memory {
        let from = match self.request {
            IoRequest::Recv { at, .. } => at,
            _ => self.done,
        };
        match &mut self.request {
            IoRequest::Read { buf, .. } | IoRequest::Recv { buf, .. } => {
                let rest = &mut buf.as_mut_slice()[from..];
                let len = rest.len().min(most) as u32;
                Memory::One { start: rest.as_mut_ptr(), len }
            }
            IoRequest::Write { data, .. } | IoRequest::Send { data, .. } => {
                fill_list(&mut self.list, data, from, most);
                match self.list.as_slice() {
                    [one] => Memory::One { start: one.iov_base.cast(), len: one.iov_len as u32 },
                    list => Memory::List { list: list.as_ptr(), count: list.len() },
                }
            }
            _ => Memory::List { list: std::ptr::null(), count: 0 },
        }
    }

    /// The same memory, as a scatter list in every case: all of it for the thread of a file
    /// operation, a slice for a send on the reactor's own.
    pub(crate) fn memory_list(&mut self) -> (*const libc::iovec, usize) {
        let most = match self.request {
            IoRequest::Read { .. } | IoRequest::Write { .. } => ATTEMPT_BYTES_MAX,
            IoRequest::Send { .. } => SLICE_BYTES,
            _ => self.request.attempt_bytes_max(),
        };
        self.list_up_to(most)
    }

    fn list_up_to(&mut self, most: usize) -> (*const libc::iovec, usize) {
        match self.memory_up_to(most) {
            Memory::List { list, count } => (list, count),
            Memory::One { start, len } => {
                self.list.clear();
                self.list.push(libc::iovec { iov_base: start.cast(), iov_len: len as usize });
                (self.list.as_ptr(), 1)
            }
        }
    }

    /// The bytes of a command, with the address of its memory.
    pub(crate) fn command(&mut self) -> [u8; 16] {
        let IoRequest::Command { command, memory, .. } = &mut self.request else {
            unreachable!("asked of a command only")
        };
        let mut payload = command.payload;
        if let Some(memory) = memory {
            let address = memory.as_mut_slice().as_mut_ptr() as u64;
            payload[COMMAND_ADDRESS_AT..].copy_from_slice(&address.to_ne_bytes());
        }
        payload
    }

    /// The message header of a send with this scatter list; as valid as the list.
    pub(crate) fn header(&mut self, list: *const libc::iovec, count: usize) -> &libc::msghdr {
        let header = self.header.get_or_insert_with(|| Box::new(sys::empty_message_header()));
        header.msg_iov = list.cast_mut();
        header.msg_iovlen = count as _;
        header
    }

    /// Records the end of an attempt: a count or a negative errno.
    pub(crate) fn attempt_ended(&mut self, result: i32) -> Next {
        let asked = std::mem::take(&mut self.asked);
        if asked > 0 {
            self.cached = result == asked as i32;
            if result <= 0 {
                return Next::Attempt;
            }
        }
        let goal = self.request.goal();
        if self.is_abandoned() && self.request.is_patient() {
            return self.finish(Err(libc::ECANCELED));
        }
        if self.interrupted {
            return self.finish_interrupted(result);
        }
        if let IoRequest::Command { .. } = self.request {
            // The driver has seen it, and would take a second attempt for another command.
            return self.finish(if result < 0 { Err(-result) } else { Ok(result as usize) });
        }
        let outcome = match result {
            code if code == -libc::EINTR => return Next::Attempt,
            code if code == -libc::EAGAIN && self.again < AGAIN_MAX => {
                self.again += 1;
                return Next::Attempt;
            }
            code if code < 0 => Err(-code),
            // Nothing was transferred though something should have been: the file has shrunk.
            0 if self.done < goal => Err(libc::EIO),
            count if self.done + (count as usize) < goal => {
                self.done += count as usize;
                self.again = 0;
                return Next::Attempt;
            }
            count => Ok(self.done + count as usize),
        };
        self.finish(outcome)
    }

    /// Completes an operation that was interrupted: with what the last attempt has transferred, or
    /// with ECANCELED if there is nothing to be had.
    fn finish_interrupted(&mut self, result: i32) -> Next {
        let outcome = match result {
            count if count > 0 => Ok(self.done + count as usize),
            code if code == -libc::ECANCELED || code == -libc::EINTR || code == -libc::EAGAIN => {
                if self.done > 0 {
                    Ok(self.done)
                } else {
                    Err(libc::ECANCELED)
                }
            }
            // The end of a stream.
            0 => Ok(self.done),
            code => Err(-code),
        };
        self.finish(outcome)
    }

    /// From now on the end of an attempt is the end of the operation.
    pub(crate) fn interrupt(&mut self) {
        self.interrupted = true;
    }

    /// Returns true if it makes no further attempt.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupted
    }

    /// Completes the operation.
    pub(crate) fn finish(&mut self, outcome: Outcome) -> Next {
        match std::mem::replace(&mut self.state, State::Done(outcome)) {
            State::Running(waker) => Next::Complete(waker),
            State::Abandoned => Next::Drop,
            State::Done(_) => unreachable!("an operation completes once"),
        }
    }

    /// The outcome, or `waker` is kept to be woken with it.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Option<Outcome> {
        match &mut self.state {
            State::Done(outcome) => return Some(*outcome),
            State::Running(Some(old)) if old.will_wake(waker) => {}
            State::Running(slot) => *slot = Some(waker.clone()),
            State::Abandoned => unreachable!("an abandoned operation is not polled"),
        }
        None
    }

    /// Abandons the operation. True if it is complete and can be dropped.
    pub(crate) fn abandon(&mut self) -> bool {
        match self.state {
            State::Done(_) => true,
            _ => {
                self.state = State::Abandoned;
                false
            }
        }
    }

    /// Returns true if no waiter is left.
    pub(crate) fn is_abandoned(&self) -> bool {
        matches!(self.state, State::Abandoned)
    }

    /// Returns true if the backend has it.
    pub(crate) fn is_running(&self) -> bool {
        !matches!(self.state, State::Done(_))
    }

    /// Ends its life: the request with its memory, and the list for another operation.
    pub(crate) fn into_parts(self) -> (IoRequest, Vec<libc::iovec>) {
        (self.request, self.list)
    }
}

/// Makes the scatter list of `data` from byte `from` on, of up to `most` bytes, as long as the
/// kernel takes.
pub(crate) fn fill_list(list: &mut Vec<libc::iovec>, data: &IoVec, from: usize, most: usize) {
    list.clear();
    let (mut skip, mut room) = (from, most);
    for part in data.parts() {
        let bytes = part.as_slice();
        if skip >= bytes.len() {
            skip -= bytes.len();
            continue;
        }
        let bytes = &bytes[skip..];
        skip = 0;
        let len = bytes.len().min(room);
        room -= len;
        // The kernel only reads from memory that is to be written or sent.
        list.push(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: len });
        if list.len() == sys::IOV_MAX || room == 0 {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_of(parts: usize) -> Op {
        let mut data = IoVec::new();
        for _ in 0..parts {
            data.push(Buf::zeroed(512).freeze());
        }
        let fd = Rc::new(sys::eventfd().expect("an eventfd"));
        Op::new(IoRequest::Write { fd, at: 0, data, dsync: false, copied: false }, Vec::new())
    }

    #[test]
    fn short_transfer_resumes_at_its_end() {
        let mut op = write_of(3);
        assert!(matches!(op.memory(), Memory::List { count: 3, .. }));
        assert!(matches!(op.attempt_ended(700), Next::Attempt));
        assert_eq!(op.position(4096), 4796);
        assert!(matches!(op.memory(), Memory::List { count: 2, .. }));
        assert_eq!(op.list[0].iov_len, 324);
        assert!(matches!(op.attempt_ended(-libc::EINTR), Next::Attempt));
        assert!(matches!(op.attempt_ended(700), Next::Attempt));
        assert!(matches!(op.memory(), Memory::One { len: 136, .. }));
        assert!(matches!(op.attempt_ended(136), Next::Complete(None)));
        assert_eq!(op.poll(Waker::noop()), Some(Ok(1536)));
    }

    #[test]
    fn a_long_scatter_list_takes_several_attempts() {
        let mut op = write_of(sys::IOV_MAX + 5);
        assert!(matches!(op.memory(), Memory::List { count: sys::IOV_MAX, .. }));
        assert!(matches!(op.attempt_ended(512 * sys::IOV_MAX as i32), Next::Attempt));
        assert!(matches!(op.memory(), Memory::List { count: 5, .. }));
    }

    #[test]
    fn no_progress_ends_in_an_error() {
        let mut op = write_of(1);
        assert!(matches!(op.attempt_ended(0), Next::Complete(None)));
        assert_eq!(op.poll(Waker::noop()), Some(Err(libc::EIO)));
        let mut op = write_of(1);
        let attempts =
            (0..).take_while(|_| matches!(op.attempt_ended(-libc::EAGAIN), Next::Attempt)).count();
        assert_eq!(attempts, usize::from(AGAIN_MAX));
        assert_eq!(op.poll(Waker::noop()), Some(Err(libc::EAGAIN)));
    }
}
