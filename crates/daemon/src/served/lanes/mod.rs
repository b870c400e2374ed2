//! Lanes: threads that serve NBD clients for the set's thread (`serve --threads`).
//!
//! A client comes to the set's thread, which negotiates with it and then gives it to a lane, in the
//! way in which an upgrade gives clients to another program. The lane carries out reads that hit,
//! and asks the set's thread for everything else ([`ubcache_env::lane`]). Before whatever concerns
//! all clients (an upgrade, another cache) they come back, in the same way.
//!
//! | module | holds |
//! |---|---|
//! | here | the lanes of a set, and the clients that they have |
//! | `thread` | a lane |
//! | `letters` | the volume of the set's thread, as a lane asks for it |

mod letters;
mod thread;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use ubcache_engine::{Exported, ServedVolume, VolumeState};
use ubcache_format::Uuid;
use ubcache_host::{FileToRead, Host, IoBackend, OwnedVolume};

use self::letters::Owned;
use self::thread::Order;
pub use self::thread::Threads;
pub(crate) use self::thread::{Guest, News};
use super::world::World;
use crate::failure::Failure;

/// Lanes, and what they tell.
type Started<W> = (Lanes<W>, UnboundedReceiver<News>);

/// A client that a lane has.
struct AtLane {
    lane: usize,
    export: String,
}

/// Tells of the end of a lane that has panicked, when it is dropped.
struct Obituary {
    news: UnboundedSender<News>,
    number: usize,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.news.send(News::Died(self.number));
        }
    }
}

/// Returns true if a lane knows the volume.
fn is_known<W: World>(volume: &Owned<W>) -> bool {
    Arc::strong_count(volume) > 1
}

/// The lanes of a set. Dropped, their threads end.
pub(crate) struct Lanes<W: World> {
    threads: Vec<UnboundedSender<Order<W>>>,
    clients: RefCell<BTreeMap<u64, AtLane>>,
    /// The volumes that lanes know.
    volumes: RefCell<Vec<Owned<W>>>,
    /// The cache device, and its set. `None`: there is none, and the set's thread serves all.
    cache: RefCell<Option<(Uuid, FileToRead)>>,
    /// Clients are coming back.
    are_returning: Cell<bool>,
    /// Others may come when they have.
    keeps_on_empty: Cell<bool>,
}

impl<W: World> Lanes<W> {
    /// Starts them, unless the set's thread serves alone. `memory`: bytes for the clients of all
    /// threads together.
    pub(crate) fn start(threads: Threads, memory: u64) -> Result<Option<Started<W>>, Failure> {
        if threads.count <= 1 {
            return Ok(None);
        }
        let memory = threads.share(memory);
        let (news, arriving) = unbounded_channel();
        let mut lanes = Vec::new();
        for number in 0..threads.count {
            let (orders, receiver) = unbounded_channel();
            let (news, (ready, started)) = (news.clone(), std::sync::mpsc::channel());
            let span = tracing::Span::current();
            let thread = move || {
                let _of_set = span.entered();
                // Dropped last: by then nothing of the lane is left.
                let _obituary = Obituary { news: news.clone(), number };
                let host = match Host::new(IoBackend::Auto) {
                    Ok(host) => host,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                let _ = ready.send(Ok(()));
                thread::run(&host, receiver, news, memory, threads);
            };
            let failed = |error: std::io::Error| {
                Failure::usage(format_args!("--threads {}", threads.count), error)
                    .advice("fewer threads, or a higher limit on processes (`ulimit -u`)")
            };
            let name = format!("lane-{number}");
            std::thread::Builder::new().name(name).spawn(thread).map_err(failed)?;
            let answer = started.recv();
            answer.unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into())).map_err(failed)?;
            lanes.push(orders);
        }
        let lanes = Lanes {
            threads: lanes,
            clients: RefCell::default(),
            volumes: RefCell::default(),
            cache: RefCell::default(),
            are_returning: Cell::new(false),
            keeps_on_empty: Cell::new(false),
        };
        Ok(Some((lanes, arriving)))
    }

    /// The cache device from now on, for clients that are given to lanes from now on.
    pub(crate) fn set_cache(&self, cache: Option<(Uuid, FileToRead)>) {
        *self.cache.borrow_mut() = cache;
    }

    /// Clients that lanes have.
    pub(crate) fn clients(&self) -> u64 {
        self.clients.borrow().len() as u64
    }

    /// Clients of an export that lanes have.
    pub(crate) fn clients_of(&self, export: &str) -> usize {
        self.clients.borrow().values().filter(|client| client.export == export).count()
    }

    /// Returns true if clients of this volume may be given to lanes at the moment.
    pub(crate) fn take(&self, volume: &Exported<W>) -> bool {
        let has_cache = |volume: &Rc<ServedVolume<W>>| {
            volume.current().state() != VolumeState::NoCache && self.cache.borrow().is_some()
        };
        volume.cached().is_some_and(has_cache) && !self.are_returning.get()
    }

    /// Gives a client to the lane with the fewest. Returns it if that can't be done.
    pub(crate) fn give(
        &self,
        world: &W,
        guest: Box<Guest>,
        volume: &Rc<Exported<W>>,
    ) -> Result<(), Box<Guest>> {
        let file = match &*self.cache.borrow() {
            Some((set, file)) => file.try_clone().map(|file| (*set, file)),
            None => return Err(guest),
        };
        let cache = match file {
            Ok(cache) => cache,
            Err(error) => {
                tracing::warn!(client = guest.id, %error, "the set's thread keeps a client");
                return Err(guest);
            }
        };
        let mut clients = self.clients.borrow_mut();
        let load = |lane: &usize| clients.values().filter(|client| client.lane == *lane).count();
        let alive = |lane: &usize| !self.threads[*lane].is_closed();
        let Some(lane) = (0..self.threads.len()).filter(alive).min_by_key(load) else {
            return Err(guest);
        };
        let (id, export) = (guest.id, guest.parked.export.clone());
        let owned = self.owned(world, volume);
        match self.threads[lane].send(Order::Serve(guest, owned, cache)) {
            Ok(()) => {
                clients.insert(id, AtLane { lane, export });
                Ok(())
            }
            Err(refused) => match refused.0 {
                Order::Serve(guest, ..) => Err(guest),
                _ => unreachable!("it was that order"),
            },
        }
    }

    fn owned(&self, world: &W, volume: &Rc<Exported<W>>) -> Owned<W> {
        let mut volumes = self.volumes.borrow_mut();
        if let Some(known) = volumes.iter().find(|known| known.is(volume)) {
            return known.clone();
        }
        let owned = OwnedVolume::new(world.host(), volume.clone());
        volumes.push(owned.clone());
        owned
    }

    /// A client is not at a lane any more.
    pub(crate) fn left(&self, id: u64) {
        self.clients.borrow_mut().remove(&id);
        self.forget_left();
    }

    /// A lane has panicked: its clients are lost, and it gets no other ones.
    pub(crate) fn died(&self, lane: usize) {
        let before = self.clients();
        self.clients.borrow_mut().retain(|_, client| client.lane != lane);
        let clients = before - self.clients();
        tracing::error!(lane, clients, "a thread for clients has panicked: they are cut off");
        self.forget_left();
    }

    /// Forgets the volumes that no lane knows any more.
    fn forget_left(&self) {
        self.volumes.borrow_mut().retain(is_known);
        if self.keeps_on_empty.get() && self.clients() == 0 {
            self.keep_on();
        }
    }

    /// All clients are to come back, and none is given to a lane.
    pub(crate) fn call_back(&self) {
        self.are_returning.set(true);
        self.tell(|| Order::HandBack);
    }

    /// Clients are given to lanes again, and those that did not come back stay.
    pub(crate) fn keep_on(&self) {
        self.are_returning.set(false);
        self.keeps_on_empty.set(false);
        self.tell(|| Order::KeepOn);
    }

    /// Clients are given to lanes again as soon as the last one has come back.
    pub(crate) fn keep_on_when_empty(&self) {
        match self.clients() {
            0 => self.keep_on(),
            _ => self.keeps_on_empty.set(true),
        }
    }

    /// Requests are refused from now on, and connections end when what is in flight is answered.
    pub(crate) fn drain(&self) {
        self.tell(|| Order::Drain);
    }

    /// Closes the connections of an export, or all.
    pub(crate) fn close(&self, export: Option<&str>) {
        self.tell(|| Order::Close(export.map(str::to_owned)));
    }

    fn tell(&self, order: impl Fn() -> Order<W>) {
        for thread in &self.threads {
            // A lane that has ended has no clients.
            let _ = thread.send(order());
        }
    }
}
