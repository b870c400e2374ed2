//! A server on a host's thread, and guests on another.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::disallowed_methods, reason = "guests run beside the server, on a thread")]

pub mod guest;

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;

use ubcache_env::StreamId;
use ubcache_env::local::Event;
use ubcache_env::testing::MemoryVolume;
use ubcache_host::{Host, HostChannel, HostListener, IoBackend, RemoteHandle};
use ubcache_vhost::{
    Control, Lineage, Options, Pace, QueueError, ServeError, Settings, serve_connection,
};

pub const SECTORS: u64 = 16 << 11;
pub const QUEUES: u16 = 4;

/// State on the thread of the server.
pub struct Served {
    pub volume: Rc<MemoryVolume>,
    pub control: Rc<Control>,
    /// Gates of requests that wait.
    pub gates: RefCell<Vec<Rc<Event>>>,
    pub queue_errors: RefCell<Vec<(u16, QueueError)>>,
    pub ends: RefCell<Vec<Result<(), ServeError>>>,
    /// Limits on the next connections.
    pub pace: RefCell<Option<Pace>>,
    /// Writes of earlier connections that the next ones find.
    pub lineage: Cell<Lineage>,
}

thread_local! {
    static SERVED: RefCell<Option<Rc<Served>>> = const { RefCell::new(None) };
}

/// The server, for the thread of the guests.
#[derive(Clone)]
pub struct Server {
    path: PathBuf,
    remote: RemoteHandle,
}

impl Server {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs something on the server's thread.
    pub fn ask<T: Send + 'static>(&self, call: impl FnOnce(&Served) -> T + Send + 'static) -> T {
        let (sender, receiver) = mpsc::channel();
        let run = Box::new(move |_: &Host| {
            let served = SERVED.with_borrow(|served| served.clone().expect("it serves"));
            sender.send(call(&served)).expect("the guest waits");
        });
        self.remote.send(run).expect("the server runs");
        receiver.recv().expect("it answers")
    }

    /// Asks until there is something: what was awaited is seen by a change of state, which leaves
    /// no event on this side.
    pub fn until<T: Send + 'static>(
        &self,
        call: impl Fn(&Served) -> Option<T> + Clone + Send + 'static,
    ) -> T {
        loop {
            if let Some(found) = self.ask(call.clone()) {
                return found;
            }
            thread::yield_now();
        }
    }

    /// Makes the next requests of the volume wait.
    pub fn hold(&self, requests: usize) {
        self.ask(move |served| {
            let gates = (0..requests).map(|_| served.volume.hold());
            served.gates.borrow_mut().extend(gates);
        });
    }

    /// Lets all requests go on that wait.
    pub fn release(&self) {
        self.ask(|served| {
            served.gates.take().iter().for_each(|gate| gate.set());
            served.volume.gates.borrow_mut().clear();
        });
    }

    /// Content of the volume.
    pub fn content(&self, from: usize, len: usize) -> Vec<u8> {
        self.ask(move |served| served.volume.content.borrow()[from..from + len].to_vec())
    }
}

/// Serves a volume, one connection after the other, with both backends, while the guests run.
pub fn serve(guests: fn(&Server)) {
    serve_volume(|| MemoryVolume::new("a volume with a long name", SECTORS), guests);
}

pub fn serve_volume(volume: fn() -> Rc<MemoryVolume>, guests: fn(&Server)) {
    for backend in [IoBackend::Ring, IoBackend::Pool] {
        match Host::new(backend) {
            Ok(host) => serve_on(&host, volume(), guests),
            Err(error) => println!("skipped: no backend {backend:?} here: {error}"),
        }
    }
}

fn serve_on(host: &Host, volume: Rc<MemoryVolume>, guests: fn(&Server)) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let env = host.env();
    let listener = HostListener::bind_unix(&env, &path).expect("a socket");
    let served = Rc::new(Served {
        volume: volume.clone(),
        control: Rc::default(),
        gates: RefCell::default(),
        queue_errors: RefCell::default(),
        ends: RefCell::default(),
        pace: RefCell::default(),
        lineage: Cell::new(Lineage::Whole),
    });
    SERVED.set(Some(served.clone()));
    let reported = served.clone();
    let settings = Settings {
        queues: QUEUES,
        report: Rc::new(move |queue, error| {
            reported.queue_errors.borrow_mut().push((queue, error));
        }),
        ..Settings::default()
    };
    let options = Options { settings, control: served.control.clone() };
    let accepting = async {
        let streams = Cell::new(0);
        loop {
            let socket = listener.accept().await.expect("a guest");
            let channel = HostChannel::over(&env, socket);
            let next = || StreamId(streams.replace(streams.get() + 1));
            let mut options = options.clone();
            options.settings.lineage = served.lineage.get();
            options.settings.pace = served.pace.borrow().clone();
            let end = serve_connection(env.clone(), channel, volume.clone(), options, next).await;
            served.ends.borrow_mut().push(end);
        }
    };
    let server = Server { path: path.clone(), remote: host.remote_handle() };
    let finished = Rc::new(Event::default());
    let (waiter, remote) = (finished.clone(), host.remote_handle());
    FINISHED.set(Some(finished));
    let running = thread::spawn(move || {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| guests(&server)));
        let end = Box::new(|_: &Host| FINISHED.with_borrow(|end| end.as_ref().expect("set").set()));
        remote.send(end).expect("the server runs");
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    host.block_on(ubcache_env::local::first(waiter.wait(), accepting));
    running.join().expect("the guests are content");
    SERVED.set(None);
}

thread_local! {
    static FINISHED: RefCell<Option<Rc<Event>>> = const { RefCell::new(None) };
}
