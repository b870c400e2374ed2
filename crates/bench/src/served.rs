//! Cost of a read hit by NBD without sockets and devices: the server, the engine, and a client in
//! the same process that sends its requests in batches.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use ubcache_engine::SetOptions;
use ubcache_env::{Buf, Env, IoVec, Priority, Stream, StreamError, StreamId, Task};
use ubcache_format::CacheMode;
use ubcache_nbd::proto::{ClientOption, Command, InfoQuery, Request, encode_client_flags};
use ubcache_nbd::{Exports, ServerOptions, serve_connection};

use crate::BLOCK_BYTES;
use crate::engine::measured_phase;
use crate::null::{BUCKET_SECTORS, Rig, Shape};

/// Requests of a batch, at most.
pub const DEPTH_MAX: u64 = 64;
const WORKING_SET_BYTES: u64 = 16 << 20;
const BLOCKS: u64 = WORKING_SET_BYTES / BLOCK_BYTES;
/// The header of a simple reply to a read, and its content.
const REPLY_BYTES: u64 = 16 + BLOCK_BYTES;

/// The client's end of a connection. Its memory is taken once.
#[derive(Default)]
struct Client {
    /// Bytes for the server.
    outgoing: RefCell<Vec<u8>>,
    /// Replies to the handshake are not counted.
    shook_hands: Cell<bool>,
    left: Cell<bool>,
    /// Bytes of replies.
    received: Cell<u64>,
    wanted: Cell<u64>,
    server: RefCell<Option<Waker>>,
    client: RefCell<Option<Waker>>,
}

fn wait(place: &RefCell<Option<Waker>>, waker: &Waker) {
    let mut place = place.borrow_mut();
    if !place.as_ref().is_some_and(|known| known.will_wake(waker)) {
        *place = Some(waker.clone());
    }
}

fn wake(place: &RefCell<Option<Waker>>) {
    if let Some(waker) = &*place.borrow() {
        waker.wake_by_ref();
    }
}

impl Client {
    /// Sends reads of these blocks, and waits for all replies.
    async fn read(&self, first: u64, depth: u64) {
        self.shook_hands.set(true);
        self.wanted.set(self.received.get() + depth * REPLY_BYTES);
        for index in first..first + depth {
            // Far from each other, as random ones are.
            let block = index.wrapping_mul(1_000_003) % BLOCKS;
            let request = Request {
                flags: 0,
                command: Command::Read,
                cookie: index,
                offset: block * BLOCK_BYTES,
                length: BLOCK_BYTES as u32,
            };
            request.encode(&mut self.outgoing.borrow_mut());
        }
        wake(&self.server);
        poll_fn(|cx| {
            if self.received.get() == self.wanted.get() {
                return Poll::Ready(());
            }
            wait(&self.client, cx.waker());
            Poll::Pending
        })
        .await;
    }

    fn leave(&self) {
        self.left.set(true);
        wake(&self.server);
    }
}

impl Stream for Client {
    async fn recv_at(&self, mut into: Buf, start: usize) -> (Buf, Result<usize, StreamError>) {
        poll_fn(|cx| {
            if self.left.get() || !self.outgoing.borrow().is_empty() {
                return Poll::Ready(());
            }
            wait(&self.server, cx.waker());
            Poll::Pending
        })
        .await;
        let mut outgoing = self.outgoing.borrow_mut();
        let len = outgoing.len();
        into.as_mut_slice()[start..start + len].copy_from_slice(&outgoing);
        outgoing.clear();
        (into, Ok(len))
    }

    async fn send(&self, from: IoVec) -> Result<(), StreamError> {
        if self.shook_hands.get() {
            self.received.set(self.received.get() + from.len() as u64);
            if self.received.get() == self.wanted.get() {
                wake(&self.client);
            }
        }
        Ok(())
    }

    fn close(&self) {}
}

/// A server whose client reads what is cached.
pub struct Server {
    rig: Rig,
    client: Rc<Client>,
    options: ServerOptions,
    serving: Task,
    depth: u64,
    batches: Cell<u64>,
}

impl Server {
    /// Starts it, for a client that sends so many requests at a time.
    ///
    /// # Panics
    /// If the depth is not 1 to [`DEPTH_MAX`].
    pub fn new(depth: u64) -> Server {
        assert!((1..=DEPTH_MAX).contains(&depth), "a depth of {depth}");
        let shape = Shape {
            cache_bytes: 320 << 20,
            bucket_sectors: BUCKET_SECTORS,
            volume_bytes: WORKING_SET_BYTES,
            mode: CacheMode::Writethrough,
            options: SetOptions::default(),
        };
        let rig = Rig::new(&shape).expect("a good set");
        rig.fill(0, WORKING_SET_BYTES, BLOCK_BYTES);
        let exports = Rc::new(Exports::new());
        exports.add_as("data".into(), String::new(), rig.volume.clone()).expect("a new name");
        let client = Rc::new(Client::default());
        encode_client_flags(3, &mut client.outgoing.borrow_mut());
        ClientOption::Go(InfoQuery { export: "data".into(), wanted: Vec::new() })
            .encode(&mut client.outgoing.borrow_mut());
        let options = ServerOptions::default();
        let env = rig.world.env();
        let served =
            serve_connection(env.clone(), client.clone(), exports, options.clone(), StreamId(1));
        let serving = env.spawn(Priority::Foreground, async { served.await.expect("a client") });
        rig.world.run(rig.world.settle());
        Server { rig, client, options, serving, depth, batches: Cell::new(0) }
    }

    /// Serves so many batches of reads.
    pub fn serve(&self, batches: u64) {
        let from = self.batches.replace(self.batches.get() + batches);
        self.rig.world.run(async {
            for batch in from..from + batches {
                self.client.read(batch * self.depth, self.depth).await;
            }
        });
    }

    /// The client leaves.
    ///
    /// # Panics
    /// If a request failed, or missed.
    pub fn end(self) {
        self.client.leave();
        self.rig.world.run(self.serving.join());
        let counts = self.options.stats.snapshot();
        assert_eq!((counts.reads, counts.errors), (self.batches.get() * self.depth, 0));
        let misses = self.rig.set.status().volumes[0].stats.cache_misses;
        assert_eq!(misses, BLOCKS, "all reads but those that filled the cache are hits");
    }
}

/// Reads so often, so many requests at a time, and measures it.
pub fn hits(requests: u64, depth: u64) {
    let server = Server::new(depth);
    server.serve(1000);
    measured_phase(&mut || server.serve(requests / depth));
    server.end();
}
