//! A server over a connection in memory, and what its tests send to it.

use std::cell::Cell;
use std::rc::Rc;

use super::volume::MemoryVolume;
use super::world::{Duplex, TestEnv, duplex};
use ubcache_env::local::join;
use ubcache_env::{BufPool, Sector, SectorRange, StreamId};
use ubcache_nbd::proto::{ClientOption, InfoQuery, MetaQuery, OptionReply};
use ubcache_nbd::{ConnectionStats, Exports, ServeError, ServerOptions, serve_connection};

/// A server with two volumes, and what became of the connection.
pub struct Server {
    pub env: TestEnv,
    pub stream: Rc<Duplex>,
    pub first: Rc<MemoryVolume>,
    pub second: Rc<MemoryVolume>,
    pub exports: Rc<Exports<MemoryVolume>>,
    pub stats: Rc<ConnectionStats>,
    /// The most bytes of memory that a request gets.
    pub supply: Rc<Cell<usize>>,
}

/// Runs a client against a server. Both must end, and no task may be left over.
pub fn serve<F: Future<Output = ()> + 'static>(
    client: impl FnOnce(Server) -> F + 'static,
) -> Result<(), ServeError> {
    serve_with(ServerOptions::default(), client)
}

pub fn serve_with<F: Future<Output = ()> + 'static>(
    options: ServerOptions,
    client: impl FnOnce(Server) -> F + 'static,
) -> Result<(), ServeError> {
    let supply = Rc::new(Cell::new(usize::MAX));
    let most = supply.clone();
    let buffers = BufPool::with_supply(Box::new(move |bytes| bytes <= most.get()));
    let env = TestEnv::with_buffers(buffers);
    let (ours, theirs) = duplex(128 << 10);
    let first = MemoryVolume::new("first", 4096);
    let second = MemoryVolume::new("second", 200);
    let exports = Rc::new(Exports::new());
    exports.add(first.clone()).expect("new name");
    exports.add_as("second".into(), "the other one".into(), second.clone()).expect("new name");
    let server = Server {
        env: env.clone(),
        stream: theirs,
        first,
        second,
        exports: exports.clone(),
        stats: options.stats.clone(),
        supply,
    };
    let serving = serve_connection(env.clone(), ours, exports, options.clone(), StreamId(7));
    let client = client(server);
    let (result, ()) = env.run(async move { join(serving, client).await });
    assert_eq!(env.tasks(), 0, "the server waits for its tasks");
    let counts = options.stats.snapshot();
    assert_eq!((counts.inflight_requests, counts.inflight_bytes), (0, 0));
    result
}

pub fn sectors(start: u64, count: u64) -> SectorRange {
    SectorRange::new(Sector(start), count)
}

pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed).collect()
}

pub fn go(export: &str, wanted: &[u16]) -> ClientOption {
    ClientOption::Go(InfoQuery { export: export.into(), wanted: wanted.to_vec() })
}

pub fn query(export: &str, queries: &[&str]) -> MetaQuery {
    MetaQuery {
        export: export.into(),
        queries: queries.iter().map(|query| (*query).to_owned()).collect(),
    }
}

pub fn error_kind(replies: &[OptionReply]) -> Option<u32> {
    match replies {
        [OptionReply::Error { kind, .. }] => Some(*kind),
        _ => None,
    }
}
