//! Signs of life of an encrypted connection.
//!
//! A client may be idle between two records for as long as it likes, as it may between two
//! requests. One that has sent a part of a record holds memory for the rest.

use std::cell::Cell;

/// Bytes in front of each record: type, version, length.
const HEADER_BYTES: usize = 5;

/// The place in the sequence of records, and how often bytes came.
#[derive(Debug, Default)]
pub struct Progress {
    header: Cell<[u8; HEADER_BYTES]>,
    /// Bytes of the header that have come.
    header_len: Cell<usize>,
    /// Bytes of the record's body that are still to come.
    left: Cell<usize>,
    received: Cell<u64>,
    /// Receives at the last look, and the looks in a row without one inside a record.
    last: Cell<(u64, u32)>,
    closed: Cell<bool>,
}

impl Progress {
    /// Bytes of records have come.
    pub(crate) fn count(&self, mut bytes: &[u8]) {
        self.received.set(self.received.get() + 1);
        while !bytes.is_empty() {
            if self.left.get() > 0 {
                let taken = self.left.get().min(bytes.len());
                self.left.set(self.left.get() - taken);
                bytes = &bytes[taken..];
                continue;
            }
            let (mut header, at) = (self.header.get(), self.header_len.get());
            let taken = bytes.len().min(HEADER_BYTES - at);
            header[at..at + taken].copy_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            self.header.set(header);
            self.header_len.set((at + taken) % HEADER_BYTES);
            if at + taken == HEADER_BYTES {
                self.left.set(usize::from(u16::from_be_bytes([header[3], header[4]])));
            }
        }
    }

    /// Returns true if a record has begun that is not complete.
    pub fn is_inside_record(&self) -> bool {
        self.left.get() > 0 || self.header_len.get() > 0
    }

    /// Looks: for how many looks in a row, this one included, no byte has come of a record that has
    /// begun.
    pub fn look(&self) -> u32 {
        let (received, silent) = self.last.get();
        let quiet = self.is_inside_record() && received == self.received.get();
        let silent = if quiet { silent + 1 } else { 0 };
        self.last.set((self.received.get(), silent));
        silent
    }

    /// This side ends the connection: the end is no surprise then.
    pub fn set_closed(&self) {
        self.closed.set(true);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_of_a_record_is_silent_and_a_pause_between_records_is_not() {
        let record = [&[23, 3, 3, 1, 2][..], &[7; 258]].concat();
        for cut in 1..record.len() {
            let progress = Progress::default();
            progress.count(&[&record[..], &record[..cut]].concat());
            assert!(progress.is_inside_record(), "{cut}");
            assert_eq!([progress.look(), progress.look(), progress.look()], [0, 1, 2]);
            progress.count(&record[cut..]);
            assert!(!progress.is_inside_record(), "{cut}");
            assert_eq!([progress.look(), progress.look()], [0, 0]);
        }
    }
}
