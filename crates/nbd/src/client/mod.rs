//! A block device over NBD: a client that keeps the export of a server as a
//! [`Device`](ubcache_env::Device).
//!
//! | module | holds |
//! |---|---|
//! | [`options`] | [`RemoteOptions`], [`RemoteEvent`], [`RemoteCounters`] |
//! | [`failure`] | [`OpenFailure`]: why an export can't be a disk |
//! | `handshake`, `export` | the negotiation, and what it tells |
//! | `device` | calls of the device become requests |
//! | `request` | a request, which outlives its caller |
//! | `shared` | requests that wait, and what becomes of answers |
//! | `link` | one connection: sends, receives, watches the deadline |
//! | `session` | connections are made, lost, and made again |
//! | `fence` | where writes may land (L1) |
//! | `kept` | answered writes that a server may lose (L2) |
//!
//! The rules L1 to L3 are in docs/internals/coherence.md.

mod device;
mod export;
pub mod failure;
mod fence;
mod handshake;
mod kept;
mod link;
pub mod options;
mod request;
mod session;
mod shared;

use std::rc::Rc;

use ubcache_env::{Env, Nanos, Priority, Stream, StreamError, Task};

use crate::proto::constants::transmission;
pub use failure::OpenFailure;
pub use options::{ClientRules, RemoteCounters, RemoteEvent, RemoteOptions};
use shared::Shared;

/// Bytes of a sector.
const SECTOR_BYTES: u64 = 512;

/// A way to the server.
#[allow(async_fn_in_trait, reason = "one thread, never boxed, no Send bound wanted")]
pub trait Connect: 'static {
    /// A connection.
    type Stream: Stream;

    /// Makes a connection, over which the server greets.
    async fn connect(&self) -> Result<Self::Stream, StreamError>;
}

/// An export of an NBD server. See the [module](self).
pub struct RemoteDisk<E: Env, C: Connect> {
    shared: Rc<Shared<E, C>>,
    task: Task,
}

impl<E: Env, C: Connect> RemoteDisk<E, C> {
    /// Connects, and takes the export of that name.
    pub async fn open(
        env: E,
        connect: C,
        export: String,
        options: RemoteOptions,
    ) -> Result<Rc<RemoteDisk<E, C>>, OpenFailure> {
        let connections = session::connect_all(&env, &connect, &export, &options).await?;
        let found = connections[0].export.clone();
        if let Err(failure) = found.check(options.assume_durable) {
            for fresh in &connections {
                fresh.stream.close();
            }
            return Err(failure);
        }
        let shared = Rc::new(Shared::new(env.clone(), connect, export, options, found));
        let task = env.spawn(Priority::Foreground, session::supervise(shared.clone(), connections));
        Ok(Rc::new(RemoteDisk { shared, task }))
    }

    /// Name of the export.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Returns true if the server takes no writes.
    pub fn read_only(&self) -> bool {
        self.shared.export.has(transmission::READ_ONLY)
    }

    /// Counters so far.
    pub fn counters(&self) -> RemoteCounters {
        self.shared.counters()
    }

    /// Answers requests that are under way, and says goodbye to the server. Later ones fail.
    /// Returns when nothing of a lost connection can land any more (L1): whoever opens the export
    /// next knows of none.
    pub async fn close(&self) {
        self.hang_up();
        self.task.join().await;
        self.landed().await;
    }

    /// Waits until no write of a connection that was lost by now can land any more.
    pub async fn landed(&self) {
        let env = &self.shared.env;
        if let Some(fence) = self.shared.landing.last_fence(env.now()) {
            env.sleep_until(fence).await;
        }
    }

    /// Time until no write of a connection that was lost by now can land any more.
    pub fn landing(&self) -> Nanos {
        let now = self.shared.env.now();
        self.shared.landing.last_fence(now).map_or(Nanos(0), |fence| fence.since(now))
    }

    fn hang_up(&self) {
        self.shared.closing.set();
        self.shared.trouble.notify_all();
    }
}

impl<E: Env, C: Connect> Drop for RemoteDisk<E, C> {
    fn drop(&mut self) {
        self.hang_up();
    }
}

impl<E: Env, C: Connect> std::fmt::Debug for RemoteDisk<E, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteDisk")
            .field("name", &self.shared.name)
            .field("export", &self.shared.export)
            .finish_non_exhaustive()
    }
}
