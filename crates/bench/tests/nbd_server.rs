//! Allocations of the NBD server and the engine together, counted.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use ubcache_bench::allocations::{Allocations, Counting};
use ubcache_bench::null::{Rig, Shape};
use ubcache_engine::SetOptions;
use ubcache_env::{Buf, IoVec, Stream, StreamError, StreamId};
use ubcache_format::CacheMode;
use ubcache_nbd::proto::constants::REQUEST_BYTES;
use ubcache_nbd::proto::{ClientOption, Command, InfoQuery, Request, encode_client_flags};
use ubcache_nbd::{Exports, ServerOptions, serve_connection};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BLOCK_BYTES: u64 = 4096;
const WORKING_SET_BYTES: u64 = 16 << 20;
/// The header of a simple reply to a read, and its content.
const REPLY_BYTES: u64 = 16 + BLOCK_BYTES;

/// A client that sends a batch of reads whenever it has all replies to the one before.
struct Client {
    handshake: RefCell<Vec<u8>>,
    depth: u64,
    batches: u64,
    sent: Cell<u64>,
    received: Cell<u64>,
    /// Allocations of the server after the warm-up batches.
    warm: Cell<Option<Allocations>>,
    end: Cell<Option<Allocations>>,
    /// Waker of the server's task, while it waits for requests.
    waiting: RefCell<Option<Waker>>,
    /// Kept for its memory.
    scratch: RefCell<Vec<u8>>,
}

impl Client {
    fn new(depth: u64, batches: u64) -> Client {
        let mut handshake = Vec::new();
        encode_client_flags(3, &mut handshake);
        ClientOption::Go(InfoQuery { export: "data".into(), wanted: Vec::new() })
            .encode(&mut handshake);
        Client {
            handshake: RefCell::new(handshake),
            depth,
            batches,
            sent: Cell::new(0),
            received: Cell::new(0),
            warm: Cell::new(None),
            end: Cell::new(None),
            waiting: RefCell::default(),
            scratch: RefCell::new(Vec::with_capacity(REQUEST_BYTES)),
        }
    }

    fn answered(&self) -> bool {
        self.received.get() == self.sent.get() * self.depth * REPLY_BYTES
    }
}

impl Stream for Client {
    async fn recv_at(&self, mut into: Buf, start: usize) -> (Buf, Result<usize, StreamError>) {
        let handshake = self.handshake.take();
        if !handshake.is_empty() {
            into.as_mut_slice()[start..][..handshake.len()].copy_from_slice(&handshake);
            return (into, Ok(handshake.len()));
        }
        poll_fn(|cx| {
            if self.answered() {
                return Poll::Ready(());
            }
            *self.waiting.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        let batch = self.sent.get();
        if batch == self.batches / 2 {
            self.warm.set(Some(Allocations::now()));
        }
        if batch == self.batches {
            self.end.set(Some(Allocations::now()));
            return (into, Ok(0));
        }
        self.sent.set(batch + 1);
        for index in 0..self.depth {
            // Far from each other, as random ones are.
            let block = (batch * self.depth + index).wrapping_mul(1_000_003)
                % (WORKING_SET_BYTES / BLOCK_BYTES);
            let request = Request {
                flags: 0,
                command: Command::Read,
                cookie: index,
                offset: block * BLOCK_BYTES,
                length: BLOCK_BYTES as u32,
            };
            let mut bytes = self.scratch.borrow_mut();
            bytes.clear();
            request.encode(&mut bytes);
            let at = index as usize * REQUEST_BYTES;
            into.as_mut_slice()[start + at..][..REQUEST_BYTES].copy_from_slice(&bytes);
        }
        (into, Ok(self.depth as usize * REQUEST_BYTES))
    }

    async fn send(&self, from: IoVec) -> Result<(), StreamError> {
        if self.sent.get() > 0 {
            self.received.set(self.received.get() + from.len() as u64);
            if let Some(waker) = self.waiting.take() {
                waker.wake();
            }
        }
        Ok(())
    }

    fn close(&self) {}
}

/// Allocations for a hit, at this many requests at a time.
fn allocations_per_hit(depth: u64) -> f64 {
    let shape = Shape {
        cache_bytes: 320 << 20,
        bucket_sectors: ubcache_bench::null::BUCKET_SECTORS,
        volume_bytes: WORKING_SET_BYTES,
        mode: CacheMode::Writethrough,
        options: SetOptions::default(),
    };
    let rig = Rig::new(&shape).expect("a good set");
    rig.fill(0, WORKING_SET_BYTES, BLOCK_BYTES);
    let exports = Rc::new(Exports::new());
    exports.add_as("data".into(), String::new(), rig.volume.clone()).expect("a new name");
    let batches = 20_000 / depth;
    let client = Rc::new(Client::new(depth, batches));
    let options = ServerOptions::default();
    let served =
        serve_connection(rig.world.env(), client.clone(), exports, options.clone(), StreamId(1));
    rig.world.run(served).expect("a good client");
    let counts = options.stats.snapshot();
    assert_eq!(
        (counts.reads, counts.errors),
        (batches * depth, 0),
        "every request is a read, and succeeds"
    );
    let misses = rig.set.status().volumes[0].stats.cache_misses;
    assert_eq!(
        misses,
        WORKING_SET_BYTES / BLOCK_BYTES,
        "all reads but those that filled the cache are hits"
    );
    let (warm, end) = (client.warm.get().expect("half way"), client.end.get().expect("the end"));
    end.since(warm).count as f64 / ((batches - batches / 2) * depth) as f64
}

#[test]
fn hits_cost_one_allocation_for_each_send_of_several_replies() {
    let single = allocations_per_hit(1);
    assert!(single <= 0.01, "{single} allocations for a hit that is answered alone");
    // Sends end at 64 KiB: two for 32 replies of 4 KiB.
    let deep = allocations_per_hit(32);
    assert!(deep <= 2.1 / 32.0, "{deep} allocations for a hit that is answered with 31 others");
}
