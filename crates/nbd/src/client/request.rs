//! A request to the server, which outlives the future that waits for its answer.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use ubcache_env::local::Event;
use ubcache_env::{Buf, IoError, IoResult, IoVec, Nanos, Sector, SectorRange};

use super::SECTOR_BYTES;
use super::export::Export;
use crate::proto::constants::{cmd_flag, transmission};
use crate::proto::{Command, StatusExtent};

/// Operation of a request.
#[derive(Debug)]
pub(super) enum Ask {
    Read,
    Write { data: IoVec, fua: bool },
    Zeroes { holes: bool, fast: bool },
    Trim,
    Flush,
    Status,
}

/// A request. Its fields change while it waits, is under way, and is sent again.
#[derive(Debug)]
pub(super) struct Request {
    pub ask: Ask,
    pub range: SectorRange,
    /// When it was asked for.
    pub asked: Nanos,
    /// Memory of a read.
    pub buf: RefCell<Option<Buf>>,
    /// Bytes of a read that have come.
    pub got: Cell<u32>,
    /// Answer to a question for the status.
    pub extents: RefCell<Vec<StatusExtent>>,
    /// Error in a reply that has not ended.
    pub error: Cell<Option<i32>>,
    /// Of a flush: its number. Of a write: flushes that had failed when it was sent.
    pub mark: Cell<u64>,
    /// It was sent, once at least.
    pub sent: Cell<bool>,
    /// It was under way over a connection that was lost.
    pub lost: Cell<bool>,
    /// Bytes of a read that chunks have brought: end by start.
    pub covered: RefCell<BTreeMap<u64, u64>>,
    /// A flush that the client needs itself: its error is owed to the caller of the next one.
    pub own: bool,
    /// It was sent over a connection that was lost, and may land until then.
    pub fence: Cell<Option<Nanos>>,
    /// It is sent before other requests of a new session.
    pub urgent: Cell<bool>,
    /// A kept write that is sent again: nobody waits for it.
    pub replay: bool,
    pub result: RefCell<Option<IoResult>>,
    pub done: Event,
}

impl Request {
    pub fn new(ask: Ask, range: SectorRange, asked: Nanos) -> Request {
        Request {
            ask,
            range,
            asked,
            buf: RefCell::default(),
            got: Cell::default(),
            extents: RefCell::default(),
            error: Cell::default(),
            mark: Cell::default(),
            sent: Cell::default(),
            lost: Cell::default(),
            covered: RefCell::default(),
            own: false,
            fence: Cell::default(),
            urgent: Cell::default(),
            replay: false,
            result: RefCell::default(),
            done: Event::default(),
        }
    }

    pub fn flush(asked: Nanos, own: bool) -> Request {
        Request { own, ..Request::new(Ask::Flush, SectorRange::new(Sector(0), 0), asked) }
    }

    /// Returns true if it changes what the server has.
    pub fn changes(&self) -> bool {
        matches!(self.ask, Ask::Write { .. } | Ask::Zeroes { .. } | Ask::Trim)
    }

    /// Bytes that it covers.
    pub fn length(&self) -> u32 {
        self.range.bytes() as u32
    }

    /// Bytes of content in its answer.
    pub fn read_length(&self) -> u32 {
        if matches!(self.ask, Ask::Read) { self.length() } else { 0 }
    }

    /// Bytes that it moves one way or the other.
    pub fn payload(&self) -> u64 {
        match self.ask {
            Ask::Read | Ask::Write { .. } => self.range.bytes(),
            _ => 0,
        }
    }

    /// The request as it is sent.
    pub fn header(&self, cookie: u64, export: &Export) -> crate::proto::Request {
        let (command, flags) = match &self.ask {
            Ask::Read => (Command::Read, 0),
            Ask::Write { fua, .. } => {
                let sent = *fua && export.has(transmission::SEND_FUA);
                (Command::Write, if sent { cmd_flag::FUA } else { 0 })
            }
            Ask::Zeroes { holes, fast } => {
                let hole = if *holes { 0 } else { cmd_flag::NO_HOLE };
                // One that may have been carried out has to be.
                let fast = if *fast && !self.lost.get() { cmd_flag::FAST_ZERO } else { 0 };
                (Command::WriteZeroes, hole | fast)
            }
            Ask::Trim => (Command::Trim, 0),
            Ask::Flush => (Command::Flush, 0),
            Ask::Status => (Command::BlockStatus, 0),
        };
        let (offset, length) = match self.ask {
            Ask::Flush => (0, 0),
            _ => (self.range.start.0 * SECTOR_BYTES, self.length()),
        };
        crate::proto::Request { flags, command, cookie, offset, length }
    }

    /// It is about to be sent: takes back what an earlier sending has brought.
    pub fn restart(&self) {
        self.sent.set(true);
        self.covered.borrow_mut().clear();
        self.got.set(0);
        self.error.set(None);
        self.extents.borrow_mut().clear();
    }

    /// A chunk brings these bytes, from the start of the read. False: one has brought some of them
    /// before.
    pub fn cover(&self, from: u64, to: u64) -> bool {
        let mut covered = self.covered.borrow_mut();
        let before = covered.range(..to).next_back();
        let is_new = from == to || before.is_none_or(|(_, end)| *end <= from);
        if is_new && from < to {
            covered.insert(from, to);
        }
        is_new
    }

    /// Its name in messages.
    pub fn name(&self) -> String {
        let what = match self.ask {
            Ask::Read => "read",
            Ask::Write { .. } => "write",
            Ask::Zeroes { .. } => "write of zeroes",
            Ask::Trim => "trim",
            Ask::Flush => return "flush".to_owned(),
            Ask::Status => "block status",
        };
        let at = self.range.start.0 * SECTOR_BYTES;
        format!("{what} of {} bytes at {at}", self.length())
    }
}

/// The server has not done it, and can't.
pub(super) const ENOTSUP: i32 = 95;

/// The error of the device for an error number of the server. No request of this client is invalid:
/// servers say EINVAL for errors that the protocol has no number for, as qemu-nbd for a timeout.
pub(super) fn error_of(errno: i32) -> IoError {
    const EIO: i32 = 5;
    const EINVAL: i32 = 22;
    match errno {
        ENOTSUP => IoError::NotSupported,
        EINVAL => IoError::Os(EIO),
        errno => IoError::Os(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_has_no_number_for_its_error_has_failed() {
        for (errno, error) in [(5, IoError::Os(5)), (22, IoError::Os(5)), (28, IoError::Os(28))] {
            assert_eq!(error_of(errno), error);
        }
        assert_eq!(error_of(ENOTSUP), IoError::NotSupported);
    }

    #[test]
    fn no_two_chunks_bring_the_same_bytes() {
        let request = Request::new(Ask::Read, SectorRange::new(Sector(8), 8), Nanos(0));
        assert!(request.cover(0, 512) && request.cover(1024, 2048) && request.cover(512, 1024));
        assert!(!request.cover(0, 1) && !request.cover(1000, 1100) && !request.cover(2047, 4096));
        assert!(request.cover(2048, 4096) && request.cover(2048, 2048));
        request.restart();
        assert!(request.cover(0, 4096));
    }

    #[test]
    fn a_discard_that_is_sent_again_has_to_be_carried_out() {
        let range = SectorRange::new(Sector(8), 8);
        let request = Request::new(Ask::Zeroes { holes: true, fast: true }, range, Nanos(0));
        let (flags, minimum, maximum) = (u16::MAX, 512, 1 << 20);
        let export = Export {
            size: 1 << 20,
            flags,
            minimum,
            preferred: 4096,
            maximum,
            structured: true,
            allocation: None,
        };
        assert_ne!(request.header(1, &export).flags & cmd_flag::FAST_ZERO, 0);
        request.lost.set(true);
        assert_eq!(request.header(1, &export).flags & cmd_flag::FAST_ZERO, 0);
    }
}
