//! Lines of the log about clients: each connection that has chosen an export, and each that ends.

use std::rc::Rc;

use ubcache_env::{Env, Priority, StreamError};
use ubcache_nbd::{ConnectionStats, ServeError};

use crate::size::show_size;

/// A connection, for the log.
pub struct Client {
    /// Its number.
    pub id: u64,
    /// Its address, or that of the socket to which it is connected.
    pub from: String,
    /// Its counts.
    pub stats: Rc<ConnectionStats>,
}

impl Client {
    /// Logs the connection as soon as it has chosen an export. Most strangers never do.
    pub fn log_export(self: &Rc<Self>, world: &impl Env) {
        tracing::debug!(client = self.id, from = self.from, "connected");
        let client = self.clone();
        world.spawn(Priority::Background, async move {
            client.stats.settled().await;
            if let Some(export) = client.stats.snapshot().export {
                tracing::info!(client = client.id, from = client.from, export, "client connected");
            }
        });
    }

    /// Logs the end of the connection.
    pub fn log_end(&self, result: Result<(), ServeError>) {
        self.stats.settle();
        let counts = self.stats.snapshot();
        let (client, from) = (self.id, &self.from);
        match (result, counts.export) {
            (Ok(()), Some(export)) => tracing::info!(
                client,
                from,
                export,
                read = show_size(counts.read_bytes),
                written = show_size(counts.written_bytes),
                errors = counts.errors,
                "client disconnected"
            ),
            (Ok(()), None) => tracing::debug!(client, from, "gone"),
            (
                Err(error @ (ServeError::Stream(StreamError::Tls(_)) | ServeError::TlsRequired)),
                None,
            ) => {
                tracing::warn!(client, from, %error, "a client is refused");
            }
            (Err(error), export) => {
                let export = export.unwrap_or_default();
                tracing::info!(client, from, export, %error, "connection ended");
            }
        }
    }
}
