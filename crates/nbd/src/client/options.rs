//! Settings of a remote disk, what it tells, and what it counts.

use std::fmt;
use std::rc::Rc;

use ubcache_env::Nanos;

/// Settings of a [`RemoteDisk`](super::RemoteDisk).
#[derive(Clone)]
pub struct RemoteOptions {
    /// Connections at most, where the server allows more than one.
    pub connections: u32,
    /// Time for one request. A server that takes longer has hung, and its connection is closed.
    pub deadline: Nanos,
    /// Time without a server, or of one request, before requests fail. `Nanos(u64::MAX)`: they
    /// wait for ever.
    pub patience: Nanos,
    /// Time for which a server may still carry out what came over a connection that was closed
    /// (rule L1). Must be longer than any server takes.
    pub fence: Nanos,
    /// Memory for answered writes until a flush covers them (rule L2).
    pub keep_bytes: usize,
    /// Take a server that can't flush for one that has written what it answered.
    pub assume_durable: bool,
    /// The first wait between two attempts to reach the server; it doubles up to `retry_max`.
    pub retry_min: Nanos,
    /// The longest wait between two attempts.
    pub retry_max: Nanos,
    /// Called at each change of state.
    pub events: Option<Rc<dyn Fn(RemoteEvent)>>,
    /// The broken rule of the client: none, by default.
    pub rules: ClientRules,
}

impl Default for RemoteOptions {
    fn default() -> RemoteOptions {
        RemoteOptions {
            connections: 4,
            deadline: Nanos::from_secs(30),
            patience: Nanos::from_secs(120),
            fence: Nanos::from_secs(30),
            keep_bytes: 64 << 20,
            assume_durable: false,
            retry_min: Nanos::from_millis(100),
            retry_max: Nanos::from_secs(5),
            events: None,
            rules: ClientRules::default(),
        }
    }
}

impl fmt::Debug for RemoteOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteOptions")
            .field("connections", &self.connections)
            .field("deadline", &self.deadline)
            .field("patience", &self.patience)
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

/// Rules that a test has switched off, to see that the simulator finds out.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct ClientRules {
    /// L1: writes over what may still land do not wait.
    pub no_fence: bool,
    /// L2: a flush on a new connection stands for what was answered on the old one.
    pub no_replay: bool,
    /// L3: an error is given before its write has ceased to land.
    pub early_errors: bool,
}

/// A change of state of a remote disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RemoteEvent {
    /// A connection was lost, and all of them are made anew.
    Lost {
        /// The reason.
        reason: String,
    },
    /// The server is there again, and has everything that it had been sent.
    Back {
        /// Time without it.
        after: Nanos,
        /// Requests that were sent again.
        again: u64,
    },
    /// Patience is over: requests fail until the server is back.
    Failing {
        /// The reason of the last attempt's failure.
        reason: String,
    },
    /// The server has another export now: requests fail for good.
    GivenUp {
        /// The difference: found, and expected.
        reason: String,
    },
    /// The export has become longer. The disk keeps its size until it is asked to look again.
    Grown {
        /// Size now, in bytes.
        found: u64,
        /// Size when it was opened, in bytes.
        expected: u64,
    },
    /// Answered writes of which no copy was kept may be lost: the next flush fails.
    MayBeLost {
        /// Sectors.
        sectors: u64,
    },
}

impl fmt::Display for RemoteEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |span: &Nanos| span.as_millis();
        match self {
            RemoteEvent::Lost { reason } => write!(f, "connection lost: {reason}"),
            RemoteEvent::Back { after, again } => {
                write!(f, "connected again after {} ms, {again} requests sent again", ms(after))
            }
            RemoteEvent::Failing { reason } => write!(
                f,
                "no server for too long ({reason}): requests fail until it is back, and attempts \
                 to reach it go on. To do: start the server, or check the network"
            ),
            RemoteEvent::GivenUp { reason } => write!(f, "given up: {reason}"),
            RemoteEvent::Grown { found, expected } => write!(
                f,
                "the export has {found} bytes now and had {expected}. To do: `ubcache resize` to \
                 use them"
            ),
            RemoteEvent::MayBeLost { sectors } => write!(
                f,
                "the server may have lost {sectors} sectors that were written and not flushed: \
                 the next flush fails. To do: check what programs wrote last before they got an \
                 error"
            ),
        }
    }
}

/// Counters of a remote disk.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct RemoteCounters {
    /// Connections that carry requests now.
    pub connections: u64,
    /// Times that the server was reached again.
    pub reconnects: u64,
    /// Requests that were sent again.
    pub resent: u64,
    /// Sectors now under writes that may still land (L1).
    pub quarantined_sectors: u64,
    /// Writes that waited for that.
    pub fenced: u64,
    /// Bytes of answered writes that are kept until a flush (L2).
    pub kept_bytes: u64,
    /// Requests that failed because the server was away for too long.
    pub given_up: u64,
}
