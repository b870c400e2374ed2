//! The client as a disk, against this crate's own server over connections in memory.

mod support;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use support::server::{pattern, sectors};
use support::volume::{Asked, MemoryVolume};
use support::world::{Duplex, TestEnv, duplex};
use ubcache_env::{Buf, Device, Durability, Env, Priority, Sector, Stream, StreamError, StreamId};
use ubcache_nbd::{
    Connect, Exports, OpenFailure, RemoteDisk, RemoteOptions, ServerOptions, serve_connection,
};

/// A server that can be reached any number of times.
#[derive(Clone)]
struct Way {
    env: TestEnv,
    exports: Rc<Exports<MemoryVolume>>,
    made: Rc<RefCell<Vec<Rc<Duplex>>>>,
    away: Rc<Cell<bool>>,
}

impl Connect for Way {
    type Stream = Rc<Duplex>;

    async fn connect(&self) -> Result<Rc<Duplex>, StreamError> {
        if self.away.get() {
            return Err(StreamError::Os(111));
        }
        let (ours, theirs) = duplex(128 << 10);
        self.made.borrow_mut().push(theirs.clone());
        let (env, exports) = (self.env.clone(), self.exports.clone());
        self.env.spawn(Priority::Foreground, async move {
            let options = ServerOptions::default();
            let _ = serve_connection(env, ours, exports, options, StreamId(1)).await;
        });
        Ok(theirs)
    }
}

struct Bench {
    env: TestEnv,
    way: Way,
    volume: Rc<MemoryVolume>,
}

fn bench(sectors: u64) -> Bench {
    let env = TestEnv::default();
    let volume = MemoryVolume::new("disk", sectors);
    let exports = Rc::new(Exports::new());
    exports.add(volume.clone()).expect("new name");
    let way = Way { env: env.clone(), exports, made: Rc::default(), away: Rc::default() };
    Bench { env, way, volume }
}

impl Bench {
    async fn open(&self, options: RemoteOptions) -> Rc<RemoteDisk<TestEnv, Way>> {
        let (env, way) = (self.env.clone(), self.way.clone());
        RemoteDisk::open(env, way, "disk".to_owned(), options).await.expect("served")
    }
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
            waiting.yield_now().await;
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
        bench.way.made.borrow().iter().for_each(|stream| stream.close());
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
