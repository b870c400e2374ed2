//! Entrance for NBD clients: listening sockets, one task a connection, an orderly end of all of
//! them.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use ubcache_engine::CachedVolume;
use ubcache_env::{Nanos, Priority, Stream, StreamId};
use ubcache_host::{HostListener, HostSocket};
use ubcache_nbd::{ClientMemory, ConnectionStats, Drain, Exports, ServerOptions, serve_connection};

use crate::config::NbdAddress;
use crate::failure::Failure;
use crate::served::world::{World, listen};

/// After a failed accept (no descriptors left): how long to wait for better times.
const ACCEPT_PAUSE: Nanos = Nanos::from_millis(100);

/// After the connections are closed: how long to wait for devices that are at work for them.
const DEVICE_TIMEOUT: Nanos = Nanos::from_secs(10);

/// A connection that may still be there.
struct Connection {
    socket: Weak<HostSocket>,
    stats: Rc<ConnectionStats>,
}

/// All listening sockets and the connections that came from them.
pub struct Listeners<W: World> {
    listeners: Vec<(NbdAddress, Rc<HostListener>)>,
    exports: Rc<Exports<CachedVolume<W>>>,
    connections: RefCell<Vec<Connection>>,
    drain: Rc<Drain>,
    active: Cell<u64>,
    next: Cell<u64>,
    closing: Cell<bool>,
    memory: ClientMemory,
}

impl<W: World> Listeners<W> {
    /// Binds all addresses.
    pub async fn bind(
        world: &W,
        addresses: &[NbdAddress],
        exports: Rc<Exports<CachedVolume<W>>>,
    ) -> Result<Listeners<W>, Failure> {
        let mut listeners = Vec::new();
        for address in addresses {
            let bound = listen(world.host(), address).await;
            let listener =
                bound.map_err(|error| Failure::usage(format_args!("--nbd {address}"), error))?;
            // Port 0 means "any": clients need the number of the chosen one.
            let address = listener.tcp_address().map_or_else(|| address.clone(), NbdAddress::Tcp);
            listeners.push((address, Rc::new(listener)));
        }
        Ok(Listeners {
            listeners,
            exports,
            connections: RefCell::default(),
            drain: Rc::default(),
            active: Cell::new(0),
            next: Cell::new(1),
            closing: Cell::new(false),
            memory: ClientMemory::default(),
        })
    }

    /// The addresses as bound.
    pub fn addresses(&self) -> Vec<NbdAddress> {
        self.listeners.iter().map(|(address, _)| address.clone()).collect()
    }

    /// Accepts clients from now on.
    pub fn start(self: &Rc<Self>, world: &W) {
        for (address, listener) in &self.listeners {
            let (all, world, listener, address) =
                (self.clone(), world.clone(), listener.clone(), address.clone());
            let task = world.clone();
            task.spawn(Priority::Foreground, async move {
                while !all.closing.get() {
                    match listener.accept().await {
                        Ok(socket) if !all.closing.get() => all.connected(&world, Rc::new(socket)),
                        Ok(_) => break,
                        Err(error) => {
                            tracing::warn!(%address, %error, "can't accept a client");
                            world.sleep(ACCEPT_PAUSE).await;
                        }
                    }
                }
            });
        }
    }

    fn connected(self: &Rc<Self>, world: &W, socket: Rc<HostSocket>) {
        let id = self.next.replace(self.next.get() + 1);
        let mut connections = self.connections.borrow_mut();
        connections.retain(|known| known.socket.strong_count() > 0);
        let options = ServerOptions {
            drain: self.drain.clone(),
            memory: self.memory.clone(),
            ..ServerOptions::default()
        };
        connections
            .push(Connection { socket: Rc::downgrade(&socket), stats: options.stats.clone() });
        self.active.set(self.active.get() + 1);
        let (all, env, exports) = (self.clone(), world.clone(), self.exports.clone());
        world.spawn(Priority::Foreground, async move {
            tracing::debug!(client = id, "connected");
            match serve_connection(env, socket, exports, options, StreamId(id)).await {
                Ok(()) => tracing::debug!(client = id, "gone"),
                Err(error) => tracing::info!(client = id, %error, "connection ended"),
            }
            all.active.set(all.active.get() - 1);
        });
    }

    /// Ends all connections. Requests in flight are answered within `drain_timeout`, new ones are
    /// refused. Then the sockets are closed, and devices that are still at work are waited for, up
    /// to a limit.
    pub async fn close(&self, world: &W, drain_timeout: Nanos) {
        self.closing.set(true);
        self.drain.begin();
        self.close_sockets(|connection| connection.stats.snapshot().export.is_none());
        self.wait_for_end(world, drain_timeout).await;
        if self.active.get() > 0 {
            tracing::warn!(
                connections = self.active.get(),
                "requests of clients are still in flight after {} s (--drain-timeout): their \
                 connections are closed",
                drain_timeout.0 / Nanos::from_secs(1).0
            );
        }
        self.close_sockets(|_| true);
        self.wait_for_end(world, DEVICE_TIMEOUT).await;
        if self.active.get() > 0 {
            tracing::warn!(
                connections = self.active.get(),
                "requests of clients are still in flight"
            );
        }
    }

    fn close_sockets(&self, which: impl Fn(&Connection) -> bool) {
        for connection in self.connections.borrow().iter().filter(|known| which(known)) {
            if let Some(socket) = connection.socket.upgrade() {
                socket.close();
            }
        }
    }

    async fn wait_for_end(&self, world: &W, timeout: Nanos) {
        let end = world.now().after(timeout);
        while self.active.get() > 0 && world.now() < end {
            world.sleep(Nanos::from_millis(1)).await;
        }
    }
}
