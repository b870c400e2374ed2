//! Connections to remote devices: their purpose, and their state.

use ubcache_env::Nanos;

/// Time after which no server carries out a request of a connection that was cut.
pub(crate) const LATE_WRITES_END: Nanos = Nanos::from_secs(30);

/// Use of a remote device.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Reading some of it, by a command or before the start of a daemon.
    Look,
    /// Writing by a command.
    Change,
    /// Serving: connections that are lost are made again.
    Serve,
}

/// The connection to a remote device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Connection {
    /// Its state.
    pub state: ConnectionState,
    /// Connections that carry requests now.
    pub connections: u64,
    /// Times that the server was reached again.
    pub reconnects: u64,
    /// Requests that were sent again.
    pub resent_requests: u64,
}

/// State of a connection, with the reason if it is not there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ConnectionState {
    /// The server is there.
    #[default]
    Connected,
    /// It is not there: requests wait.
    Lost(String),
    /// It has not been there for too long: requests fail, and attempts to reach it go on.
    Failing(String),
    /// It has something else now: requests fail for good.
    GivenUp(String),
}

impl ConnectionState {
    /// The state in a word or two, and the reason.
    pub fn words(&self) -> (&'static str, Option<&str>) {
        match self {
            ConnectionState::Connected => ("connected", None),
            ConnectionState::Lost(why) => ("lost", Some(why)),
            ConnectionState::Failing(why) => ("failing", Some(why)),
            ConnectionState::GivenUp(why) => ("given up", Some(why)),
        }
    }
}
