//! The client as a disk, against this crate's own server over connections in memory.

mod support;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use support::server::{pattern, sectors};
use support::volume::{Asked, MemoryVolume};
use support::world::{Duplex, TestEnv, duplex};
use ubcache_env::local::join;
use ubcache_env::{
    Buf, Device, Durability, Env, IoError, IoResult, IoVec, Nanos, Priority, Sector, Stream,
    StreamError, StreamId,
};
use ubcache_nbd::client::ClientRules;
use ubcache_nbd::{
    Connect, Exports, OpenFailure, RemoteDisk, RemoteEvent, RemoteOptions, ServerOptions,
    serve_connection,
};

/// A server that can be reached any number of times.
#[derive(Clone)]
struct Way {
    env: TestEnv,
    exports: Rc<RefCell<Rc<Exports<MemoryVolume>>>>,
    made: Rc<RefCell<Vec<Rc<Duplex>>>>,
    away: Rc<Cell<bool>>,
    /// Sends and receives of the client until its connection breaks.
    left: Rc<Cell<u64>>,
}

/// A connection that breaks after so many sends and receives, over all connections.
struct Brittle {
    stream: Rc<Duplex>,
    left: Rc<Cell<u64>>,
}

impl Brittle {
    fn step(&self) {
        let left = self.left.get();
        self.left.set(left.wrapping_sub(1));
        if left == 0 {
            self.stream.close();
        }
    }
}

impl Stream for Brittle {
    async fn recv_at(&self, into: Buf, at: usize) -> (Buf, Result<usize, StreamError>) {
        self.step();
        self.stream.recv_at(into, at).await
    }
    async fn send(&self, from: IoVec) -> Result<(), StreamError> {
        self.step();
        self.stream.send(from).await
    }
    fn close(&self) {
        self.stream.close();
    }
}

impl Connect for Way {
    type Stream = Brittle;

    async fn connect(&self) -> Result<Brittle, StreamError> {
        if self.away.get() {
            return Err(StreamError::Os(111));
        }
        let (ours, theirs) = duplex(128 << 10);
        self.made.borrow_mut().push(theirs.clone());
        let (env, exports) = (self.env.clone(), self.exports.borrow().clone());
        self.env.spawn(Priority::Foreground, async move {
            let options = ServerOptions::default();
            let _ = serve_connection(env, ours, exports, options, StreamId(1)).await;
        });
        Ok(Brittle { stream: theirs, left: self.left.clone() })
    }
}

type Disk = Rc<RemoteDisk<TestEnv, Way>>;

struct Bench {
    env: TestEnv,
    way: Way,
    volume: Rc<MemoryVolume>,
    events: Rc<RefCell<Vec<RemoteEvent>>>,
}

fn exports(volume: &Rc<MemoryVolume>) -> Rc<Exports<MemoryVolume>> {
    let exports = Exports::new();
    exports.add(volume.clone()).expect("new name");
    Rc::new(exports)
}

fn bench(sectors: u64) -> Bench {
    let env = TestEnv::default();
    let volume = MemoryVolume::new("disk", sectors);
    let way = Way {
        env: env.clone(),
        exports: Rc::new(RefCell::new(exports(&volume))),
        made: Rc::default(),
        away: Rc::default(),
        left: Rc::new(Cell::new(u64::MAX)),
    };
    Bench { env, way, volume, events: Rc::default() }
}

impl Bench {
    async fn open(&self, options: RemoteOptions) -> Disk {
        let (env, way, events) = (self.env.clone(), self.way.clone(), self.events.clone());
        let events: Rc<dyn Fn(RemoteEvent)> = Rc::new(move |event| events.borrow_mut().push(event));
        let options = RemoteOptions { events: Some(events), ..options };
        RemoteDisk::open(env, way, "disk".to_owned(), options).await.expect("served")
    }

    /// Every connection breaks.
    fn cut(&self) {
        self.way.made.take().iter().for_each(|stream| stream.close());
    }

    /// The server loses its power, and has this then.
    fn lose_power(&self, content: &[u8]) {
        self.cut();
        self.volume.content.borrow_mut().copy_from_slice(content);
    }

    fn content(&self, at: usize, len: usize) -> Vec<u8> {
        self.volume.content.borrow()[at * 512..at * 512 + len].to_vec()
    }
}

async fn write(disk: &Disk, at: u64, content: &[u8]) -> IoResult {
    disk.write(Sector(at), Buf::from_bytes(content).into(), Durability::Volatile).await
}

async fn read(disk: &Disk, at: u64, len: usize) -> Result<Vec<u8>, IoError> {
    let (buf, result) = disk.read(Sector(at), Buf::zeroed(len)).await;
    result.map(|()| buf.as_slice().to_vec())
}

/// Runs a test with a server, and sees that nothing is left over.
fn with<F: Future<Output = ()> + 'static>(sectors: u64, test: impl FnOnce(Rc<Bench>) -> F) {
    let bench = Rc::new(bench(sectors));
    let env = bench.env.clone();
    env.run(test(bench));
    // Servers notice the end of their connections.
    let waiting = env.clone();
    env.run(async move {
        while waiting.tasks() > 0 {
            waiting.sleep(Nanos::from_secs(1)).await;
        }
    });
}

#[test]
fn what_is_written_is_read() {
    with(4096, |bench| async move {
        let disk = bench.open(RemoteOptions::default()).await;
        let limits = disk.limits();
        assert_eq!((limits.sectors, limits.logical_block_bytes), (4096, 512));
        assert!(limits.volatile_cache && limits.discard);
        let content = pattern(100 << 10, 3);
        let data = Buf::from_bytes(&content);
        assert_eq!(disk.write(Sector(8), data.into(), Durability::Volatile).await, Ok(()));
        let (buf, result) = disk.read(Sector(8), Buf::zeroed(100 << 10)).await;
        assert_eq!((result, buf.as_slice()), (Ok(()), &content[..]));
        assert_eq!(disk.flush().await, Ok(()));
        let asked = bench.volume.asked.borrow().clone();
        let range = sectors(8, 200);
        let expected = [Asked::Write { range, fua: false }, Asked::Read(range), Asked::Flush];
        assert_eq!(asked, expected);
        assert_eq!(disk.counters().connections, 4);
        disk.close().await;
        assert_eq!(disk.counters().connections, 0);
    });
}

#[test]
fn an_export_that_is_not_there_is_refused() {
    with(4096, |bench| async move {
        let (env, way) = (bench.env.clone(), bench.way.clone());
        let opened = RemoteDisk::open(env, way, "other".into(), RemoteOptions::default()).await;
        let failure = opened.expect_err("not there");
        assert!(matches!(&failure, OpenFailure::Refused { .. }), "{failure}");
        bench.cut();
    });
}

#[test]
fn the_disk_does_its_duties() {
    with(32768, |bench| async move {
        let disk = bench.open(RemoteOptions::default()).await;
        ubcache_env::testing::device_conformance(&bench.env, disk.clone()).await;
        disk.close().await;
    });
}

#[test]
fn a_connection_may_break_between_any_two_messages() {
    let whole = Rc::new(Cell::new(0));
    for breaks_at in 0..200 {
        let (left, used) = (breaks_at, whole.clone());
        with(4096, move |bench| async move {
            let options = RemoteOptions { connections: 2, ..RemoteOptions::default() };
            let disk = bench.open(options).await;
            bench.way.left.set(left);
            let (a, b) = (pattern(8192, 1), pattern(4096, 2));
            let both = join(write(&disk, 0, &a), write(&disk, 100, &b)).await;
            assert_eq!(both, (Ok(()), Ok(())));
            assert_eq!(disk.write_zeroes(sectors(4, 4)).await, Ok(()));
            assert_eq!(read(&disk, 100, 4096).await.as_ref(), Ok(&b));
            assert_eq!(disk.flush().await, Ok(()));
            let data = Buf::from_bytes(&b).into();
            assert_eq!(disk.write(Sector(100), data, Durability::Fua).await, Ok(()));
            assert_eq!(disk.discard(sectors(200, 8)).await, Ok(()));
            assert_eq!(read(&disk, 0, 2048).await.as_deref(), Ok(&a[..2048]));
            assert_eq!(read(&disk, 4, 2048).await, Ok(vec![0; 2048]));
            used.set(u64::MAX - bench.way.left.get());
            assert_eq!(disk.counters().given_up, 0);
            disk.close().await;
        });
    }
    assert!(whole.get() < u64::MAX, "the last break came in the midst of it");
}

/// A server that hung over a write carries it out when another one over the same sectors has been
/// answered, unless that one waits.
fn hang_over_a_write(rules: ClientRules) -> Vec<u8> {
    let found = Rc::new(RefCell::new(Vec::new()));
    let result = found.clone();
    with(4096, move |bench| async move {
        let options = RemoteOptions { rules, ..RemoteOptions::default() };
        let disk = bench.open(options).await;
        let hung = bench.volume.hold();
        let (env, late) = (bench.env.clone(), hung.clone());
        bench.env.spawn(Priority::Foreground, async move {
            env.sleep(Nanos::from_secs(50)).await;
            late.set();
        });
        assert_eq!(write(&disk, 8, &pattern(512, 1)).await, Ok(()), "sent again after 30 s");
        assert_eq!(bench.env.now().since(Nanos::from_secs(30)).as_millis(), 0);
        assert_eq!(disk.counters().quarantined_sectors, 1);
        assert_eq!(read(&disk, 8, 512).await, Ok(pattern(512, 1)));
        assert_eq!(write(&disk, 8, &pattern(512, 2)).await, Ok(()));
        assert_eq!(disk.counters().quarantined_sectors, u64::from(rules.no_fence));
        hung.wait().await;
        bench.env.sleep(Nanos::from_secs(1)).await;
        *result.borrow_mut() = read(&disk, 8, 512).await.expect("served");
        disk.close().await;
    });
    found.take()
}

#[test]
fn a_write_waits_until_a_lost_one_can_not_land() {
    assert_eq!(hang_over_a_write(ClientRules::default()), pattern(512, 2));
    let no_fence = ClientRules { no_fence: true, ..ClientRules::default() };
    assert_eq!(hang_over_a_write(no_fence), pattern(512, 1), "the older one is back");
}

#[test]
fn unflushed_writes_are_written_again_after_a_loss_of_power() {
    for no_replay in [false, true] {
        with(4096, move |bench| async move {
            let rules = ClientRules { no_replay, ..ClientRules::default() };
            let disk = bench.open(RemoteOptions { rules, ..RemoteOptions::default() }).await;
            let before = bench.volume.content.borrow().clone();
            assert_eq!(write(&disk, 8, &pattern(4096, 1)).await, Ok(()));
            assert_eq!(write(&disk, 10, &pattern(512, 2)).await, Ok(()));
            bench.lose_power(&before);
            assert_eq!(disk.flush().await, Ok(()));
            let mut expected = pattern(4096, 1);
            expected[1024..1536].copy_from_slice(&pattern(512, 2));
            assert_eq!(bench.content(8, 4096) == expected, !no_replay);
            assert_eq!(disk.counters().kept_bytes, 0);
            disk.close().await;
        });
    }
}

#[test]
fn a_flush_fails_once_where_no_copy_was_kept() {
    with(4096, |bench| async move {
        let disk = bench.open(RemoteOptions { keep_bytes: 0, ..RemoteOptions::default() }).await;
        let before = bench.volume.content.borrow().clone();
        assert_eq!(write(&disk, 8, &pattern(4096, 1)).await, Ok(()));
        assert_eq!(write(&disk, 100, &pattern(512, 2)).await, Ok(()));
        bench.lose_power(&before);
        assert_eq!(read(&disk, 8, 512).await, Err(IoError::Os(5)), "older data than was answered");
        assert_eq!(read(&disk, 200, 512).await, Ok(vec![0; 512]));
        assert_eq!(write(&disk, 100, &pattern(512, 3)).await, Ok(()));
        assert_eq!(read(&disk, 100, 512).await, Ok(pattern(512, 3)));
        assert_eq!(disk.flush().await, Err(IoError::Os(5)));
        assert_eq!(disk.flush().await, Ok(()));
        assert_eq!(read(&disk, 8, 512).await, Ok(vec![0; 512]));
        let told = |event: &RemoteEvent| matches!(event, RemoteEvent::MayBeLost { sectors: 9 });
        assert!(bench.events.borrow().iter().any(told), "{:?}", bench.events);
        disk.close().await;
    });
}

#[test]
fn requests_fail_when_patience_is_over_and_go_on_when_the_server_is_back() {
    with(4096, |bench| async move {
        let disk = bench.open(RemoteOptions::default()).await;
        assert_eq!(write(&disk, 8, &pattern(512, 1)).await, Ok(()));
        bench.way.away.set(true);
        bench.cut();
        assert_eq!(read(&disk, 8, 512).await, Err(IoError::Os(110)));
        assert_eq!(bench.env.now().as_millis() / 1000, 120);
        assert_eq!(write(&disk, 8, &pattern(512, 2)).await, Err(IoError::Os(110)), "at once");
        assert_eq!(bench.env.now().as_millis() / 1000, 120);
        bench.way.away.set(false);
        bench.env.sleep(Nanos::from_secs(10)).await;
        assert_eq!(read(&disk, 100, 512).await, Ok(vec![0; 512]));
        assert_eq!(disk.counters().reconnects, 1);
        // The write that was refused was never sent: nothing is doubted.
        assert_eq!(read(&disk, 8, 512).await, Ok(pattern(512, 1)));
        assert_eq!(disk.flush().await, Ok(()));
        disk.close().await;
    });
}

#[test]
fn another_export_is_not_taken_for_the_one_that_was_there() {
    for (size, readable) in [(4095, false), (5000, true)] {
        with(4096, move |bench| async move {
            let disk = bench.open(RemoteOptions::default()).await;
            *bench.way.exports.borrow_mut() = exports(&MemoryVolume::new("disk", size));
            bench.cut();
            assert_eq!(read(&disk, 8, 512).await.is_ok(), readable);
            assert_eq!(disk.limits().sectors, 4096);
            let events = bench.events.borrow().clone();
            let told = events.iter().any(|event| match event {
                RemoteEvent::GivenUp { reason } => !readable && reason.contains("2096640"),
                RemoteEvent::Grown { found: 2_560_000, expected: 2_097_152 } => readable,
                _ => false,
            });
            assert!(told, "{events:?}");
            if readable {
                assert!(write(&disk, 4999, &pattern(512, 1)).await.is_err());
                assert_eq!(disk.refresh_size().await, Ok(5000));
                assert_eq!(write(&disk, 4999, &pattern(512, 1)).await, Ok(()));
                assert_eq!(read(&disk, 4999, 512).await, Ok(pattern(512, 1)));
                // From now on it is the size that it has to have.
                *bench.way.exports.borrow_mut() = exports(&MemoryVolume::new("disk", 4096));
                bench.cut();
                assert!(read(&disk, 8, 512).await.is_err());
            }
            disk.close().await;
        });
    }
}

/// A server hangs over a write for so long that the client gives it up. Returns what is read when
/// the error is there, and what is read much later.
fn give_up_on_a_write(rules: ClientRules) -> [Vec<u8>; 2] {
    let found = Rc::new(RefCell::new([Vec::new(), Vec::new()]));
    let result = found.clone();
    with(4096, move |bench| async move {
        let patience = Nanos::from_secs(20);
        let options = RemoteOptions { rules, patience, ..RemoteOptions::default() };
        let disk = bench.open(options).await;
        let hung = bench.volume.hold();
        let (env, late) = (bench.env.clone(), hung.clone());
        bench.env.spawn(Priority::Foreground, async move {
            env.sleep(Nanos::from_secs(50)).await;
            late.set();
        });
        assert_eq!(write(&disk, 8, &pattern(512, 1)).await, Err(IoError::Os(110)));
        // Nobody has a copy of older content of the range, which may be lost, too.
        assert_eq!(read(&disk, 8, 512).await, Err(IoError::Os(5)));
        assert_eq!(disk.flush().await, Err(IoError::Os(5)));
        let first = read(&disk, 8, 512).await.expect("served");
        bench.env.sleep(Nanos::from_secs(100)).await;
        let second = read(&disk, 8, 512).await.expect("served");
        *result.borrow_mut() = [first, second];
        disk.close().await;
    });
    found.take()
}

#[test]
fn a_write_that_is_sent_again_when_patience_ends_fails_after_its_last_fence() {
    with(4096, move |bench| async move {
        let options = RemoteOptions { patience: Nanos::from_secs(20), ..RemoteOptions::default() };
        let disk = bench.open(options).await;
        let hung = [bench.volume.hold(), bench.volume.hold()];
        let cutter = bench.clone();
        bench.env.spawn(Priority::Foreground, async move {
            cutter.env.sleep(Nanos::from_secs(5)).await;
            cutter.cut();
        });
        assert_eq!(write(&disk, 8, &pattern(512, 1)).await, Err(IoError::Os(110)));
        // Sent again after 5 s, while patience lasts, and lost again 30 s later.
        assert_eq!(disk.counters().resent, 1);
        assert_eq!(bench.env.now().as_millis() / 1000, 65);
        hung.iter().for_each(|hung| hung.set());
        disk.close().await;
    });
}

#[test]
fn a_write_fails_when_it_can_not_land_any_more() {
    let [first, second] = give_up_on_a_write(ClientRules::default());
    assert_eq!(first, second);
    let early_errors = ClientRules { early_errors: true, ..ClientRules::default() };
    let [first, second] = give_up_on_a_write(early_errors);
    assert_ne!(first, second, "it surfaces after its error");
}
