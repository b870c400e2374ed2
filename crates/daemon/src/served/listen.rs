//! Entrance for NBD clients: listening sockets, one task a connection, an orderly end of all of
//! them.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use ubcache_engine::CachedVolume;
use ubcache_env::{Nanos, Priority, Stream, StreamId};
use ubcache_host::{HostListener, HostSocket};
use ubcache_nbd::{Exports, ServerOptions, serve_connection};

use crate::config::NbdAddress;
use crate::failure::Failure;
use crate::served::world::{World, listen};

/// After a failed accept (no descriptors left): how long to wait for better times.
const ACCEPT_PAUSE: Nanos = Nanos::from_millis(100);

/// All listening sockets and the connections that came from them.
pub struct Listeners<W: World> {
    listeners: Vec<(NbdAddress, Rc<HostListener>)>,
    exports: Rc<Exports<CachedVolume<W>>>,
    connections: RefCell<Vec<Weak<HostSocket>>>,
    active: Cell<u64>,
    next: Cell<u64>,
    closing: Cell<bool>,
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
            active: Cell::new(0),
            next: Cell::new(1),
            closing: Cell::new(false),
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
        connections.retain(|known| known.strong_count() > 0);
        connections.push(Rc::downgrade(&socket));
        self.active.set(self.active.get() + 1);
        let (all, env, exports) = (self.clone(), world.clone(), self.exports.clone());
        world.spawn(Priority::Foreground, async move {
            tracing::debug!(client = id, "connected");
            match serve_connection(env, socket, exports, ServerOptions::default(), StreamId(id))
                .await
            {
                Ok(()) => tracing::debug!(client = id, "gone"),
                Err(error) => tracing::info!(client = id, %error, "connection ended"),
            }
            all.active.set(all.active.get() - 1);
        });
    }

    /// Ends all connections; returns when no request is in flight any more, or at the end of
    /// `timeout`.
    pub async fn close(&self, world: &W, timeout: Nanos) {
        self.closing.set(true);
        for socket in self.connections.borrow().iter().filter_map(Weak::upgrade) {
            socket.close();
        }
        let end = world.now().after(timeout);
        while self.active.get() > 0 && world.now() < end {
            world.sleep(Nanos::from_millis(1)).await;
        }
        if self.active.get() > 0 {
            tracing::warn!(
                connections = self.active.get(),
                "requests of clients are still in flight"
            );
        }
    }
}
