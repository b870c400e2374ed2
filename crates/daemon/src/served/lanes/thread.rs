//! The thread of a lane: clients whose hits it serves itself.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use ubcache_env::{Env, LaneVolume, Priority, StreamEnd, StreamId, Volume};
use ubcache_format::Uuid;
use ubcache_host::{FileToRead, Host, HostEnv, HostFile, HostSocket};
use ubcache_nbd::{
    ClientMemory, ConnectionStats, Drain, Exports, Handover, Parked, ServeError, ServerOptions,
    serve_until_handover,
};

use super::letters::{Letters, Owned};
use crate::clients::{LOOK_PERIOD, READING_PATIENCE};
use crate::served::client::Client;
use crate::served::connection::{Connection, take_unsent};
use crate::served::world::World;

/// Threads that serve NBD clients.
#[derive(Copy, Clone, Debug)]
pub struct Threads {
    /// Their number; 1: the set's thread alone.
    pub count: usize,
    /// Time that they wait awake.
    pub busy_poll: Duration,
    /// They have buffers from the start.
    pub lock_memory: bool,
}

impl Threads {
    /// A thread's part of the memory for clients: of each lane, and of the set's thread.
    pub(crate) fn share(self, memory: u64) -> u64 {
        match self.count {
            0 | 1 => memory,
            count => memory / (count as u64 + 1),
        }
    }
}

/// A client between two requests, on its way to another thread.
pub(crate) struct Guest {
    pub(crate) id: u64,
    pub(crate) from: String,
    pub(crate) socket: OwnedFd,
    pub(crate) parked: Parked,
}

/// An order to a lane. When there will be no more, the lane ends.
pub(crate) enum Order<W: World> {
    /// Serves a client of the volume. The file is the cache device of the set.
    Serve(Box<Guest>, Owned<W>, (Uuid, FileToRead)),
    /// Hands all clients back.
    HandBack,
    /// Goes on with the clients that were not handed back yet.
    KeepOn,
    /// Refuses requests from now on, and ends connections when what is in flight is answered.
    Drain,
    /// Closes the connections of clients of an export; `None`: of all.
    Close(Option<String>),
}

/// News of a lane.
pub(crate) enum News {
    /// A client was handed back.
    Back(Box<Guest>),
    /// A client has gone.
    Gone(u64),
    /// The lane with this number has panicked, with all of its clients.
    Died(usize),
}

type Served<W> = LaneVolume<HostEnv, Letters<W>, HostFile>;

/// The exports of one volume, over one cache device. Connections that share them take turns.
struct OfVolume<W: World> {
    owned: Owned<W>,
    set: Uuid,
    exports: Rc<Exports<Served<W>>>,
}

/// See the module.
struct Lane<W: World> {
    env: HostEnv,
    news: UnboundedSender<News>,
    memory: ClientMemory,
    drain: Rc<Drain>,
    /// That of the clients that come from now on.
    handover: RefCell<Rc<Handover>>,
    /// With the names of their exports.
    connections: RefCell<Vec<(String, Connection)>>,
    volumes: RefCell<Vec<OfVolume<W>>>,
    caches: RefCell<Vec<(Uuid, Rc<HostFile>)>>,
    ended: Cell<bool>,
}

/// Serves clients until there are no more orders. `memory`: bytes for them.
pub(super) fn run<W: World>(
    host: &Host,
    mut orders: UnboundedReceiver<Order<W>>,
    news: UnboundedSender<News>,
    memory: u64,
    threads: Threads,
) {
    host.set_busy_poll(threads.busy_poll);
    let env = host.env();
    if threads.lock_memory {
        env.buffers().fill();
    }
    let lane = Rc::new(Lane {
        env: env.clone(),
        news,
        memory: ClientMemory::new(memory),
        drain: Rc::default(),
        handover: RefCell::default(),
        connections: RefCell::default(),
        volumes: RefCell::default(),
        caches: RefCell::default(),
        ended: Cell::new(false),
    });
    let looking = lane.clone();
    env.spawn(Priority::Background, async move {
        while !looking.ended.get() {
            looking.env.sleep(LOOK_PERIOD).await;
            let short = looking.memory.is_short();
            looking.connections.borrow().iter().for_each(|(_, it)| it.end_if_silent(short));
        }
    });
    host.block_on(async {
        while let Some(order) = orders.recv().await {
            lane.carry_out(order);
        }
    });
    lane.ended.set(true);
}

impl<W: World> Lane<W> {
    fn carry_out(self: &Rc<Self>, order: Order<W>) {
        match order {
            Order::Serve(guest, owned, cache) => self.begin(*guest, &owned, cache),
            Order::HandBack => self.hand_back(),
            // Clients that were not held yet are held some time, and go on with another one.
            Order::KeepOn => drop(self.handover.take()),
            Order::Drain => self.drain.begin(),
            Order::Close(export) => {
                let connections = self.connections.borrow();
                let is_meant = |of: &str| export.as_ref().is_none_or(|export| of == export);
                let meant = connections.iter().filter(|(of, _)| is_meant(of));
                meant.for_each(|(_, connection)| connection.close());
            }
        }
    }

    fn begin(self: &Rc<Self>, guest: Guest, owned: &Owned<W>, cache: (Uuid, FileToRead)) {
        let Some(exports) = self.exports(&guest.parked.export, owned, cache) else {
            // The set has ended, and its thread closes what it still has.
            let _ = self.news.send(News::Gone(guest.id));
            return;
        };
        let Guest { id, from, socket, parked } = guest;
        let socket = Rc::new(HostSocket::inherited(&self.env, socket));
        self.serve(id, from, socket, exports, parked);
    }

    fn serve(
        self: &Rc<Self>,
        id: u64,
        from: String,
        socket: Rc<HostSocket>,
        exports: Rc<Exports<Served<W>>>,
        parked: Parked,
    ) {
        let stats = Rc::<ConnectionStats>::default();
        let options = ServerOptions {
            stats: stats.clone(),
            drain: self.drain.clone(),
            handover: self.handover.borrow().clone(),
            memory: self.memory.clone(),
            ..ServerOptions::default()
        };
        let mut connections = self.connections.borrow_mut();
        connections.retain(|(_, known)| known.id != id && known.is_open());
        let watch = options.watch.clone();
        let connection = Connection::new(id, &socket, None, stats.clone(), watch);
        connections.push((parked.export.clone(), connection));
        drop(connections);
        let (lane, client) = (self.clone(), Client { id, from, stats });
        self.env.spawn(Priority::Foreground, async move {
            let (env, stream) = (lane.env.clone(), socket.clone());
            let of_lane = exports.clone();
            let served =
                serve_until_handover(env, stream, exports, options, StreamId(id), Some(parked));
            // A task's memory is its own anyway.
            match Box::pin(served).await {
                Ok(Some(parked)) => lane.parted(client, socket, of_lane, parked),
                Ok(None) => lane.gone(&client, of_lane, Ok(())),
                Err(error) => lane.gone(&client, of_lane, Err(error)),
            }
        });
    }

    fn gone(&self, client: &Client, of: Rc<Exports<Served<W>>>, how: Result<(), ServeError>) {
        client.log_end(how);
        drop(of);
        self.forget_unused();
        let _ = self.news.send(News::Gone(client.id));
    }

    /// A client was held. If it is not to be handed back any more, it goes on here.
    fn parted(
        self: &Rc<Self>,
        client: Client,
        socket: Rc<HostSocket>,
        exports: Rc<Exports<Served<W>>>,
        mut parked: Parked,
    ) {
        take_unsent(&socket, &mut parked);
        if !self.handover.borrow().has_begun() {
            let Client { id, from, .. } = client;
            return self.serve(id, from, socket, exports, parked);
        }
        let descriptor = match socket.descriptor() {
            Ok(descriptor) => descriptor,
            Err(error) => {
                tracing::error!(client = client.id, %error, "no descriptor for a client");
                if let Some(volume) = exports.get(&parked.export) {
                    volume.stream_ended(StreamId(client.id), StreamEnd::Cut);
                }
                return self.gone(&client, exports, Err(ServeError::Disconnected));
            }
        };
        socket.leave();
        drop(exports);
        self.forget_unused();
        let Client { id, from, .. } = client;
        let guest = Guest { id, from, socket: descriptor, parked };
        let _ = self.news.send(News::Back(Box::new(guest)));
    }

    /// Forgets volumes and devices whose last client has gone: whoever removes or replaces them
    /// needs them closed.
    fn forget_unused(&self) {
        self.volumes.borrow_mut().retain(|it| Rc::strong_count(&it.exports) > 1);
        self.caches.borrow_mut().retain(|(_, file)| Rc::strong_count(file) > 1);
    }

    fn hand_back(self: &Rc<Self>) {
        let handover = self.handover.borrow().clone();
        handover.begin();
        self.each_socket(HostSocket::hold_input);
        let lane = self.clone();
        self.env.spawn(Priority::Foreground, async move {
            lane.env.sleep(READING_PATIENCE).await;
            if Rc::ptr_eq(&handover, &lane.handover.borrow()) {
                lane.each_socket(HostSocket::keep_output);
            }
        });
    }

    fn each_socket(&self, act: impl Fn(&HostSocket)) {
        let connections = self.connections.borrow();
        connections.iter().filter_map(|(_, it)| it.socket()).for_each(|it| act(&it));
    }

    /// The volume under this name, over the lane's own handle to the cache device.
    fn exports(
        &self,
        name: &str,
        owned: &Owned<W>,
        (set, file): (Uuid, FileToRead),
    ) -> Option<Rc<Exports<Served<W>>>> {
        let mut volumes = self.volumes.borrow_mut();
        let is_it = |it: &&OfVolume<W>| std::sync::Arc::ptr_eq(&it.owned, owned) && it.set == set;
        if let Some(known) = volumes.iter().find(is_it) {
            return Some(known.exports.clone());
        }
        let mut caches = self.caches.borrow_mut();
        let known = caches.iter().find(|(of, _)| *of == set).map(|(_, file)| file.clone());
        let cache = known.unwrap_or_else(|| {
            let file = Rc::new(HostFile::reading(&self.env, file));
            caches.push((set, file.clone()));
            file
        });
        let letters = Rc::new(Letters::new(owned.clone())?);
        let volume = Rc::new(Served::<W>::new(self.env.clone(), letters, (set, cache)));
        let exports = Rc::new(Exports::new());
        exports.add_as(name.to_owned(), String::new(), volume).ok()?;
        volumes.push(OfVolume { owned: owned.clone(), set, exports: exports.clone() });
        Some(exports)
    }
}
