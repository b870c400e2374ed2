//! Counters of a connection, for the caller of [`crate::serve_connection`].

use std::cell::RefCell;

use ubcache_env::local::Event;

use crate::proto::Command;

/// Counts of one connection.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConnectionCounts {
    /// Name of the export, once it is chosen.
    pub export: Option<String>,
    /// Bytes received, headers included.
    pub received_bytes: u64,
    /// Bytes sent, headers included.
    pub sent_bytes: u64,
    /// Times that bytes were received during transmission.
    pub receives: u64,
    /// Times that replies were sent during transmission.
    pub sends: u64,
    /// Bytes of content that clients asked to read.
    pub read_bytes: u64,
    /// Bytes of content that clients asked to write.
    pub written_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Trim requests.
    pub trims: u64,
    /// Requests to write zeroes.
    pub write_zeroes: u64,
    /// Requests to bring a range into the cache.
    pub caches: u64,
    /// Requests for the status of blocks.
    pub block_statuses: u64,
    /// Requests with an unknown command.
    pub unknown: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Requests that have come and are not answered yet.
    pub inflight_requests: u32,
    /// Bytes of content that these hold.
    pub inflight_bytes: u64,
}

impl ConnectionCounts {
    /// All requests, those that failed included.
    pub fn requests(&self) -> u64 {
        self.reads
            + self.writes
            + self.flushes
            + self.trims
            + self.write_zeroes
            + self.caches
            + self.block_statuses
            + self.unknown
    }
}

/// Counts of a connection, shared with their readers.
#[derive(Debug, Default)]
pub struct ConnectionStats {
    counts: RefCell<ConnectionCounts>,
    settled: Event,
}

impl ConnectionStats {
    /// The counts at this moment.
    pub fn snapshot(&self) -> ConnectionCounts {
        self.counts.borrow().clone()
    }

    /// Waits until the client has chosen an export, or has gone.
    pub async fn settled(&self) {
        self.settled.wait().await;
    }

    /// Wakes whoever waits for the choice of an export: it was made, or the client has left.
    pub fn settle(&self) {
        self.settled.set();
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut ConnectionCounts)) {
        change(&mut self.counts.borrow_mut());
    }

    pub(crate) fn count_request(&self, command: Command, length: u32) {
        self.update(|counts| {
            let counter = match command {
                Command::Read => {
                    counts.read_bytes += u64::from(length);
                    &mut counts.reads
                }
                Command::Write => {
                    counts.written_bytes += u64::from(length);
                    &mut counts.writes
                }
                Command::Flush => &mut counts.flushes,
                Command::Trim => &mut counts.trims,
                Command::WriteZeroes => &mut counts.write_zeroes,
                Command::Cache => &mut counts.caches,
                Command::BlockStatus => &mut counts.block_statuses,
                Command::Disconnect => return,
                Command::Unknown(_) => &mut counts.unknown,
            };
            *counter += 1;
        });
    }
}
