//! Entrance for NBD clients: listening sockets, one task a connection, an orderly end of all of
//! them.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::sync::mpsc::UnboundedReceiver;
use ubcache_engine::Exported;
use ubcache_env::local::{Notify, first};
use ubcache_env::{Nanos, Priority, StreamId};
use ubcache_format::Uuid;
use ubcache_host::{
    FileToRead, HostListener, HostSocket, ListenAddress, PassedAddress, PassedSocket, SocketAccess,
};
use ubcache_nbd::{
    ClientMemory, Drain, Exports, Handover, Parked, ServerOptions, serve_connection,
    serve_until_handover,
};
use ubcache_tls::TlsStream;

use crate::clients::{ClientLimits, LOOK_PERIOD, READING_PATIENCE, connections_max};
use crate::config::{NbdAddress, Network};
use crate::failure::Failure;
use crate::served::client::Client;
use crate::served::connection::{Connection, take_unsent};
use crate::served::gate::Gate;
use crate::served::lanes::{Guest, Lanes, News, Threads};
use crate::served::world::{World, listen};
use crate::tls::Certificates;

/// After a failed accept (no descriptors left): how long to wait for better times, unless a client
/// leaves before. Doubled with each failure, up to the limit.
const ACCEPT_PAUSE: Nanos = Nanos::from_millis(100);
const ACCEPT_PAUSE_MAX: Nanos = Nanos::from_secs(5);

/// Connections beyond the limit, for a moment: those that were ended for others to come.
const LEAVING_MAX: u64 = 8;

/// After the connections are closed: how long to wait for devices that are at work for them.
const DEVICE_TIMEOUT: Nanos = Nanos::from_secs(10);

/// Before another program goes on: time for clients that are about to choose an export, and for
/// devices.
const CHOICE_PATIENCE: Nanos = Nanos::from_millis(500);
const DEVICE_PATIENCE: Nanos = Nanos::from_secs(5);

/// A connection that another program is to go on with.
pub(crate) struct Parting {
    pub(crate) id: u64,
    pub(crate) from: String,
    pub(crate) socket: Rc<HostSocket>,
    pub(crate) parked: Parked,
}

/// A connection that is about to be served.
struct Coming {
    id: u64,
    from: String,
    encrypted: bool,
}

impl Parting {
    /// The connection with the bytes of replies that its client did not read.
    fn with_unsent(mut self) -> Parting {
        take_unsent(&self.socket, &mut self.parked);
        self
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
    /// Sockets that the program before has left.
    pub inherited: Vec<(OwnedFd, ListenAddress)>,
    /// Networks of the clients that may connect over TCP; if empty, all.
    pub allow: Vec<Network>,
    /// Encryption of TCP; none: it is in the clear.
    pub(crate) tls: Option<Rc<Certificates>>,
}

/// All listening sockets and the connections that came from them.
pub struct Listeners<W: World> {
    listeners: Vec<(NbdAddress, Rc<HostListener>)>,
    allow: Vec<Network>,
    tls: Option<Rc<Certificates>>,
    exports: Rc<Exports<Exported<W>>>,
    connections: RefCell<Vec<Connection>>,
    drain: Rc<Drain>,
    /// The end of encrypted connections before another program goes on: it has no keys of theirs.
    encrypted_drain: RefCell<Rc<Drain>>,
    /// That of the clients that come from now on.
    handover: RefCell<Rc<Handover>>,
    gate: Gate,
    partings: RefCell<Vec<Parting>>,
    active: Cell<u64>,
    next: Cell<u64>,
    closing: Cell<bool>,
    /// No client is served any more.
    cut_off: Cell<bool>,
    limits: ClientLimits,
    memory: ClientMemory,
    connections_max: u64,
    /// Clients are turned away, and that was logged.
    full: Cell<bool>,
    /// A connection has ended.
    ended: Notify,
    lanes: Option<Lanes<W>>,
    /// News of the lanes, until somebody listens.
    arriving: Cell<Option<UnboundedReceiver<News>>>,
}

impl<W: World> Listeners<W> {
    /// Binds all addresses, and takes the sockets that were passed.
    pub async fn bind(
        world: &W,
        places: Places,
        exports: Rc<Exports<Exported<W>>>,
        limits: ClientLimits,
        threads: Threads,
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
        for (fd, place) in places.inherited {
            let address = match &place {
                ListenAddress::Unix { path, .. } | ListenAddress::Passed(path) => {
                    NbdAddress::Unix(path.clone())
                }
                ListenAddress::Tcp(address) => of_tcp(*address),
            };
            listeners.push((address, Rc::new(HostListener::inherited(world.host(), fd, place))));
        }
        let (lanes, arriving) = Lanes::start(threads, limits.memory)?.unzip();
        Ok(Listeners {
            listeners,
            lanes,
            arriving: Cell::new(arriving),
            allow: places.allow,
            tls: places.tls,
            exports,
            connections: RefCell::default(),
            drain: Rc::default(),
            encrypted_drain: RefCell::default(),
            handover: RefCell::default(),
            gate: Gate::default(),
            partings: RefCell::default(),
            active: Cell::new(0),
            next: Cell::new(1),
            closing: Cell::new(false),
            cut_off: Cell::new(false),
            memory: ClientMemory::new(threads.share(limits.memory)),
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
        if let Some(arriving) = self.arriving.take() {
            let (all, env) = (self.clone(), world.clone());
            world.spawn(Priority::Foreground, async move { all.hear(&env, arriving).await });
        }
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
            match self.gate.pass(|| listener.accept()).await {
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

    /// Hears from lanes.
    async fn hear(self: &Rc<Self>, world: &W, mut arriving: UnboundedReceiver<News>) {
        let Some(lanes) = &self.lanes else { return };
        while let Some(news) = arriving.recv().await {
            match news {
                News::Back(guest) => {
                    let Guest { id, from, socket, parked } = *guest;
                    let socket = Rc::new(HostSocket::inherited(world.host(), socket));
                    lanes.left(id);
                    if self.cut_off.get() {
                        continue;
                    }
                    self.go_on(world, Parting { id, from, socket, parked });
                }
                News::Gone(id) => {
                    lanes.left(id);
                    self.has_ended();
                }
                News::Died(lane) => {
                    lanes.died(lane);
                    self.has_ended();
                }
            }
        }
    }

    fn has_ended(&self) {
        self.full.set(false);
        self.ended.notify_all();
    }

    /// Sends clients away that keep something from others.
    fn end_silent(&self) {
        let short = self.memory.is_short();
        self.connections.borrow().iter().for_each(|it| it.end_if_silent(short));
    }

    /// Returns true if there may be one more connection. Of clients that have not chosen an export
    /// the oldest gives its place away: who only connects keeps nobody out.
    fn has_room(&self) -> bool {
        let max = self.connections_max;
        let full = self.active() >= max;
        if full && self.active() < max + LEAVING_MAX {
            let connections = self.connections.borrow();
            let is_choosing = |known: &&Connection| known.is_open() && known.watch.is_choosing();
            if let Some(oldest) = connections.iter().find(is_choosing) {
                let reason = "it has not chosen an export, and another one needs its place";
                tracing::info!(client = oldest.id, reason, "a client is sent away");
                oldest.close();
                return true;
            }
        }
        if full && !self.full.replace(true) {
            tracing::warn!(
                connections = self.active(),
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
        let encrypted = matches!(address, NbdAddress::Tls(_));
        let coming = Coming { id, from, encrypted };
        self.serve(world, socket, coming, None);
    }

    /// Serves a client; `parked`: one with which this or another program goes on.
    fn serve(
        self: &Rc<Self>,
        world: &W,
        socket: Rc<HostSocket>,
        Coming { id, from, encrypted }: Coming,
        parked: Option<Parked>,
    ) {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|known| known.id != id && known.is_open());
        let options = ServerOptions {
            drain: if encrypted {
                self.encrypted_drain.borrow().clone()
            } else {
                self.drain.clone()
            },
            handover: match &self.lanes {
                _ if encrypted => Rc::default(),
                // A lane goes on with it as soon as it has chosen an export.
                Some(_) if parked.is_none() && self.limits.pace().is_none() => begun(),
                _ => self.handover.borrow().clone(),
            },
            memory: self.memory.clone(),
            pace: self.limits.pace(),
            ..ServerOptions::default()
        };
        let tls = match &self.tls {
            Some(certificates) if encrypted => {
                Some(Rc::new(TlsStream::new(socket.clone(), certificates.current())))
            }
            _ => None,
        };
        let progress = tls.as_ref().map(|tls| tls.progress());
        let (stats, watch) = (options.stats.clone(), options.watch.clone());
        connections.push(Connection::new(id, &socket, progress, stats, watch));
        self.active.set(self.active.get() + 1);
        let (all, env, exports) = (self.clone(), world.clone(), self.exports.clone());
        let client = Rc::new(Client { id, from, stats: options.stats.clone() });
        if parked.is_none() {
            client.log_export(world);
        }
        world.spawn(Priority::Foreground, async move {
            let (stream, id) = (socket.clone(), StreamId(id));
            let served = match tls {
                None => {
                    serve_until_handover(env.clone(), stream, exports, options, id, parked).await
                }
                Some(tls) => {
                    let served = Box::pin(serve_connection(env.clone(), tls, exports, options, id));
                    served.await.map(|()| None)
                }
            };
            all.active.set(all.active.get() - 1);
            match served {
                Ok(Some(parked)) => all.parted(&env, &client, socket, parked),
                Ok(None) => client.log_end(Ok(())),
                Err(error) => client.log_end(Err(error)),
            }
            all.has_ended();
        });
    }

    /// A client was held. If the handover was given up meanwhile, it goes on here.
    fn parted(self: &Rc<Self>, world: &W, client: &Client, socket: Rc<HostSocket>, parked: Parked) {
        let parting = Parting { id: client.id, from: client.from.clone(), socket, parked };
        if self.handover.borrow().has_begun() {
            self.partings.borrow_mut().push(parting);
        } else {
            self.go_on(world, parting);
        }
    }

    /// Goes on with a client that was held, in a lane if that may be.
    pub(crate) fn go_on(self: &Rc<Self>, world: &W, parting: Parting) {
        let parting = parting.with_unsent();
        let Some(Parting { id, from, socket, parked }) = self.give(world, parting) else { return };
        let coming = Coming { id, from, encrypted: false };
        self.serve(world, socket, coming, Some(parked));
    }

    /// Gives a client to a lane, or returns it.
    fn give(&self, world: &W, parting: Parting) -> Option<Parting> {
        let Some(lanes) = &self.lanes else { return Some(parting) };
        // Limits on requests are kept by one thread.
        let export = &parting.parked.export;
        let limited = self.limits.pace().is_some() || self.exports.pace(export).is_some();
        let volume = self.exports.get(export).filter(|volume| lanes.take(volume));
        let descriptor = parting.socket.descriptor();
        let (Some(volume), Ok(descriptor), false, false) =
            (volume, descriptor, limited, self.closing.get())
        else {
            return Some(parting);
        };
        let Parting { id, from, socket, parked } = parting;
        let guest = Box::new(Guest { id, from, socket: descriptor, parked });
        match lanes.give(world, guest, &volume) {
            Ok(()) => {
                socket.leave();
                None
            }
            Err(guest) => {
                let Guest { id, from, parked, .. } = *guest;
                Some(Parting { id, from, socket, parked })
            }
        }
    }

    /// The set has another cache. Clients come back from lanes, which let go of the old one.
    pub(crate) async fn replace_cache(&self, world: &W, cache: Option<(Uuid, FileToRead)>) {
        let Some(lanes) = &self.lanes else { return };
        lanes.call_back();
        self.wait_until(world, DEVICE_PATIENCE, || lanes.clients() == 0).await;
        lanes.set_cache(cache);
        lanes.keep_on_when_empty();
    }

    /// Lanes read this device from now on, as the cache of the set.
    pub(crate) fn set_cache(&self, cache: Option<(Uuid, FileToRead)>) {
        if let Some(lanes) = &self.lanes {
            lanes.set_cache(cache);
        }
    }

    /// Number of the next client.
    pub(crate) fn next_client(&self) -> u64 {
        self.next.get()
    }

    /// Numbers clients from there on.
    pub(crate) fn number_from(&self, next: u64) {
        self.next.set(next);
    }

    /// The sockets.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = &HostListener> {
        self.listeners.iter().map(|(_, listener)| &**listener)
    }

    /// Holds all clients, for another program: their requests in flight are answered, and nothing
    /// more is read from them.
    ///
    /// # Errors
    /// Requests are not answered in time; all clients go on.
    pub(crate) async fn hand_over(self: &Rc<Self>, world: &W) -> Result<Vec<Parting>, String> {
        self.gate.hold();
        if let Some(lanes) = &self.lanes {
            lanes.call_back();
            self.wait_until(world, DEVICE_PATIENCE, || lanes.clients() == 0).await;
            if lanes.clients() > 0 {
                let waiting = lanes.clients();
                // The others are to go back to lanes.
                self.handover.borrow().begin();
                self.each_socket_of_export(HostSocket::hold_input);
                self.keep_on();
                return Err(still_in_flight(waiting));
            }
        }
        let is_negotiating = |known: &Connection| known.export().is_none();
        let negotiating = || {
            let connections = self.connections.borrow();
            connections.iter().any(|known| known.is_open() && is_negotiating(known))
        };
        self.wait_until(world, CHOICE_PATIENCE, || !negotiating()).await;
        self.close_sockets(is_negotiating);
        self.handover.borrow().begin();
        self.each_socket_of_export(HostSocket::hold_input);
        self.wait_until(world, READING_PATIENCE, || self.active.get() == self.encrypted()).await;
        self.each_socket_of_export(HostSocket::keep_output);
        self.wait_until(world, DEVICE_PATIENCE, || self.active.get() == self.encrypted()).await;
        if self.active.get() == self.encrypted() {
            self.end_encrypted(world).await;
        }
        let waiting = self.active.get();
        let partings = self.partings.take();
        if waiting == 0 {
            return Ok(partings.into_iter().map(Parting::with_unsent).collect());
        }
        self.keep_on();
        partings.into_iter().for_each(|parting| self.go_on(world, parting));
        Err(still_in_flight(waiting))
    }

    /// Clients that are not held yet are not held any more, and new ones come again.
    pub(crate) fn keep_on(&self) {
        // Those that are not held yet will be, for the one that has begun, and go on then.
        drop(self.handover.take());
        if let Some(lanes) = &self.lanes {
            lanes.keep_on();
        }
        self.gate.open();
    }

    /// Number of encrypted connections.
    fn encrypted(&self) -> u64 {
        let connections = self.connections.borrow();
        let is_encrypted = |known: &&Connection| known.is_encrypted() && known.is_open();
        connections.iter().filter(is_encrypted).count() as u64
    }

    /// Ends encrypted connections in good order: their clients connect again, to the next program.
    async fn end_encrypted(&self, world: &W) {
        let encrypted = self.encrypted();
        if encrypted == 0 {
            return;
        }
        tracing::info!(clients = encrypted, "encrypted connections end: they can't be handed over");
        self.encrypted_drain.take().begin();
        self.wait_until(world, CHOICE_PATIENCE, || self.active.get() == 0).await;
        self.close_sockets(Connection::is_encrypted);
        self.wait_until(world, DEVICE_PATIENCE, || self.active.get() == 0).await;
    }

    /// Does this with each socket whose client has chosen an export, and is not encrypted.
    fn each_socket_of_export(&self, act: impl Fn(&HostSocket)) {
        let connections = self.connections.borrow();
        let plain = connections.iter().filter(|it| !it.is_encrypted() && it.export().is_some());
        plain.filter_map(Connection::socket).for_each(|it| act(&it));
    }

    /// Ends the connections to an export that is gone.
    pub fn disconnect(&self, export: &str) {
        self.close_sockets(|connection| connection.export().as_deref() == Some(export));
        if let Some(lanes) = &self.lanes {
            lanes.close(Some(export));
        }
    }

    /// Connections that use an export.
    pub fn connected_to(&self, export: &str) -> usize {
        let connections = self.connections.borrow();
        let open = connections.iter().filter(|it| it.is_open());
        let here = open.filter(|it| it.export().as_deref() == Some(export)).count();
        here + self.lanes.as_ref().map_or(0, |lanes| lanes.clients_of(export))
    }

    /// Connections at the moment.
    pub fn active(&self) -> u64 {
        self.active.get() + self.lanes.as_ref().map_or(0, Lanes::clients)
    }

    /// Ends all connections. Requests in flight are answered within `drain_timeout`, new ones are
    /// refused. Then the sockets are closed, and devices that are still at work are waited for, up
    /// to a limit.
    pub async fn close(&self, world: &W, drain_timeout: Nanos) {
        self.closing.set(true);
        if let Some(lanes) = &self.lanes {
            lanes.drain();
        }
        self.drain.begin();
        self.encrypted_drain.borrow().begin();
        self.close_sockets(|connection| connection.export().is_none());
        self.wait_for_end(world, drain_timeout).await;
        if self.active() > 0 {
            tracing::warn!(
                connections = self.active(),
                "requests of clients are still in flight after {} s (--drain-timeout): their \
                 connections are closed",
                drain_timeout.0 / Nanos::from_secs(1).0
            );
        }
        self.cut_off.set(true);
        self.close_sockets(|_| true);
        if let Some(lanes) = &self.lanes {
            lanes.close(None);
        }
        self.wait_for_end(world, DEVICE_TIMEOUT).await;
        if self.active() > 0 {
            tracing::warn!(connections = self.active(), "requests of clients are still in flight");
        }
        self.set_cache(None);
    }

    fn close_sockets(&self, which: impl Fn(&Connection) -> bool) {
        for connection in self.connections.borrow().iter().filter(|known| which(known)) {
            connection.close();
        }
    }

    async fn wait_for_end(&self, world: &W, timeout: Nanos) {
        self.wait_until(world, timeout, || self.active() == 0).await;
    }

    async fn wait_until(&self, world: &W, timeout: Nanos, condition: impl Fn() -> bool) {
        let end = world.now().after(timeout);
        while !condition() && world.now() < end {
            world.sleep(Nanos::from_millis(1)).await;
        }
    }
}

/// A handover that has begun: a connection with it ends as soon as it has chosen an export.
fn begun() -> Rc<Handover> {
    let handover = Handover::default();
    handover.begin();
    Rc::new(handover)
}

fn still_in_flight(clients: u64) -> String {
    format!(
        "requests of {clients} clients are still in flight after {} s: a device is slow, or does \
         not answer",
        DEVICE_PATIENCE.0 / Nanos::from_secs(1).0
    )
}
