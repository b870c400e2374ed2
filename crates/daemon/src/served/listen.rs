//! Entrance for NBD clients: listening sockets, one task a connection, an orderly end of all of
//! them.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use ubcache_engine::ServedVolume;
use ubcache_env::local::{Notify, first};
use ubcache_env::{Nanos, Priority, Stream, StreamId};
use ubcache_host::{HostListener, HostSocket, PassedAddress, PassedSocket, SocketAccess};
use ubcache_nbd::{
    ClientMemory, ConnectionStats, Drain, Exports, ServerOptions, Watch, serve_connection,
};
use ubcache_tls::{Progress, ServerConfig, TlsStream};

use crate::clients::{
    ClientLimits, LOOK_PERIOD, connections_max, reason_to_end, reason_to_end_tls,
};
use crate::config::{NbdAddress, Network};
use crate::failure::Failure;
use crate::served::client::Client;
use crate::served::world::{World, listen};

/// After a failed accept (no descriptors left): how long to wait for better times, unless a client
/// leaves before. Doubled with each failure, up to the limit.
const ACCEPT_PAUSE: Nanos = Nanos::from_millis(100);
const ACCEPT_PAUSE_MAX: Nanos = Nanos::from_secs(5);

/// After the connections are closed: how long to wait for devices that are at work for them.
const DEVICE_TIMEOUT: Nanos = Nanos::from_secs(10);

/// A connection that may still be there.
struct Connection {
    id: u64,
    socket: Weak<HostSocket>,
    /// Present if it has to be encrypted: it can't be handed to another process.
    tls: Option<Rc<Progress>>,
    stats: Rc<ConnectionStats>,
    watch: Rc<Watch>,
}

impl Connection {
    fn close(&self) {
        if let Some(tls) = &self.tls {
            tls.set_closed();
        }
        if let Some(socket) = self.socket.upgrade() {
            socket.close();
        }
    }

    /// The reason to send the client away, if there is one.
    fn reason_to_end(&self, memory_is_short: bool) -> Option<&'static str> {
        let silent = self.tls.as_ref().map_or(0, |tls| tls.look());
        reason_to_end(self.watch.look(), memory_is_short).or_else(|| reason_to_end_tls(silent))
    }
}

/// The places where clients connect.
pub struct Places {
    /// Addresses to listen at.
    pub addresses: Vec<NbdAddress>,
    /// Rights of unix sockets.
    pub access: SocketAccess,
    /// Sockets that the parent process made.
    pub passed: Vec<PassedSocket>,
    /// Networks of the clients that may connect over TCP; if empty, all.
    pub allow: Vec<Network>,
    /// Encryption of TCP; none: it is in the clear.
    pub tls: Option<Arc<ServerConfig>>,
}

/// All listening sockets and the connections that came from them.
pub struct Listeners<W: World> {
    listeners: Vec<(NbdAddress, Rc<HostListener>)>,
    allow: Vec<Network>,
    tls: Option<Arc<ServerConfig>>,
    exports: Rc<Exports<ServedVolume<W>>>,
    connections: RefCell<Vec<Connection>>,
    drain: Rc<Drain>,
    active: Cell<u64>,
    next: Cell<u64>,
    closing: Cell<bool>,
    limits: ClientLimits,
    memory: ClientMemory,
    connections_max: u64,
    /// Clients are turned away, and that was logged.
    full: Cell<bool>,
    /// A connection has ended.
    ended: Notify,
}

impl<W: World> Listeners<W> {
    /// Binds all addresses, and takes the sockets that were passed.
    pub async fn bind(
        world: &W,
        places: Places,
        exports: Rc<Exports<ServedVolume<W>>>,
        limits: ClientLimits,
    ) -> Result<Listeners<W>, Failure> {
        let mut listeners = Vec::new();
        let of_tcp = |address| match places.tls {
            Some(_) => NbdAddress::Tls(address),
            None => NbdAddress::Tcp(address),
        };
        for address in &places.addresses {
            let bound = listen(world.host(), address, places.access).await;
            let listener =
                bound.map_err(|error| Failure::usage(format_args!("--nbd {address}"), error))?;
            // Port 0 means "any": clients need the number of the chosen one.
            let address = listener.tcp_address().map_or_else(|| address.clone(), of_tcp);
            listeners.push((address, Rc::new(listener)));
        }
        for socket in places.passed {
            let address = match &socket.address {
                PassedAddress::Unix(path) => NbdAddress::Unix(path.clone()),
                PassedAddress::Tcp(address) => of_tcp(*address),
            };
            listeners.push((address, Rc::new(HostListener::passed(world.host(), socket))));
        }
        Ok(Listeners {
            listeners,
            allow: places.allow,
            tls: places.tls,
            exports,
            connections: RefCell::default(),
            drain: Rc::default(),
            active: Cell::new(0),
            next: Cell::new(1),
            closing: Cell::new(false),
            memory: ClientMemory::new(limits.memory),
            connections_max: connections_max(limits.connections),
            limits,
            full: Cell::new(false),
            ended: Notify::default(),
        })
    }

    /// The addresses as bound.
    pub fn addresses(&self) -> Vec<NbdAddress> {
        self.listeners.iter().map(|(address, _)| address.clone()).collect()
    }

    /// Accepts clients from now on.
    pub fn start(self: &Rc<Self>, world: &W) {
        for (address, listener) in &self.listeners {
            let (all, env, listener, address) =
                (self.clone(), world.clone(), listener.clone(), address.clone());
            world.spawn(Priority::Foreground, async move {
                all.accept(&env, &listener, &address).await;
            });
        }
        let (all, env) = (self.clone(), world.clone());
        world.spawn(Priority::Background, async move {
            while !all.closing.get() {
                env.sleep(LOOK_PERIOD).await;
                all.end_silent();
            }
        });
    }

    async fn accept(self: &Rc<Self>, world: &W, listener: &HostListener, address: &NbdAddress) {
        let mut pause = None;
        while !self.closing.get() {
            match listener.accept().await {
                Ok(socket) if !self.closing.get() => {
                    if pause.take().is_some() {
                        tracing::info!(%address, "clients are accepted again");
                    }
                    if self.allows(address, &socket) {
                        self.connected(world, Rc::new(socket), address);
                    }
                }
                Ok(_) => break,
                Err(error) => {
                    if pause.is_none() {
                        tracing::warn!(%address, %error, "can't accept clients for now");
                    }
                    let span = pause.unwrap_or(ACCEPT_PAUSE);
                    first(self.ended.notified(), world.sleep(span)).await;
                    pause = Some(span.after(span).min(ACCEPT_PAUSE_MAX));
                }
            }
        }
    }

    /// Says, and logs if not, that a client may connect.
    fn allows(&self, listener: &NbdAddress, socket: &HostSocket) -> bool {
        if self.allow.is_empty() || matches!(listener, NbdAddress::Unix(_)) {
            return true;
        }
        let client = socket.peer().map(|peer| peer.ip().to_canonical());
        let allowed =
            client.is_some_and(|client| self.allow.iter().any(|known| known.contains(client)));
        if !allowed {
            let client = client.map(|client| client.to_string()).unwrap_or_default();
            tracing::warn!(%listener, client, "a client is refused: its address is not in --allow");
        }
        allowed
    }

    /// Sends clients away that keep something from others.
    fn end_silent(&self) {
        let short = self.memory.is_short();
        for connection in &*self.connections.borrow() {
            if connection.socket.strong_count() == 0 {
                continue;
            }
            if let Some(reason) = connection.reason_to_end(short) {
                tracing::info!(client = connection.id, reason, "a client is sent away");
                connection.close();
            }
        }
    }

    /// Returns true if there may be one more connection.
    fn has_room(&self) -> bool {
        let full = self.active.get() >= self.connections_max;
        if full && !self.full.replace(true) {
            tracing::warn!(
                connections = self.active.get(),
                "new clients are turned away: there are as many as --max-connections allows"
            );
        }
        !full
    }

    fn connected(self: &Rc<Self>, world: &W, socket: Rc<HostSocket>, address: &NbdAddress) {
        if !self.has_room() {
            return;
        }
        let peer = socket.peer().map(|peer| peer.to_string());
        let from = peer.unwrap_or_else(|| address.to_string());
        let id = self.next.replace(self.next.get() + 1);
        let mut connections = self.connections.borrow_mut();
        connections.retain(|known| known.socket.strong_count() > 0);
        let options = ServerOptions {
            drain: self.drain.clone(),
            memory: self.memory.clone(),
            pace: self.limits.pace(),
            ..ServerOptions::default()
        };
        let weak = Rc::downgrade(&socket);
        let tls = match (&self.tls, address) {
            (Some(config), NbdAddress::Tls(_)) => {
                Some(Rc::new(TlsStream::new(socket.clone(), config.clone())))
            }
            _ => None,
        };
        connections.push(Connection {
            id,
            socket: weak,
            tls: tls.as_ref().map(|tls| tls.progress()),
            stats: options.stats.clone(),
            watch: options.watch.clone(),
        });
        self.active.set(self.active.get() + 1);
        let (all, env, exports) = (self.clone(), world.clone(), self.exports.clone());
        let client = Rc::new(Client { id, from, stats: options.stats.clone() });
        client.log_export(world);
        world.spawn(Priority::Foreground, async move {
            let id = StreamId(id);
            client.log_end(match tls {
                None => serve_connection(env, socket, exports, options, id).await,
                Some(tls) => Box::pin(serve_connection(env, tls, exports, options, id)).await,
            });
            all.active.set(all.active.get() - 1);
            all.full.set(false);
            all.ended.notify_all();
        });
    }

    /// Ends the connections to an export that is gone.
    pub fn disconnect(&self, export: &str) {
        self.close_sockets(|connection| {
            connection.stats.snapshot().export.as_deref() == Some(export)
        });
    }

    /// Connections at the moment.
    pub fn active(&self) -> u64 {
        self.active.get()
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
            connection.close();
        }
    }

    async fn wait_for_end(&self, world: &W, timeout: Nanos) {
        let end = world.now().after(timeout);
        while self.active.get() > 0 && world.now() < end {
            world.sleep(Nanos::from_millis(1)).await;
        }
    }
}
