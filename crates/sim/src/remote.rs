//! A backing device behind an NBD server, on a network where everything goes wrong.
//!
//! ```text
//! engine ── SimDisk ── RemoteDisk ═══ SimStream ═══ server ── Shelf ── SimDisk, the disk itself
//!            handle     client          cuts         this crate's   delays, hangs
//! ```
//!
//! The server outlives the instances of the engine. A request may be the occasion for trouble: the
//! connections are cut and the request is carried out later, although its client is connected
//! again; the server hangs over it for longer than its client waits; the server is killed, or its
//! machine loses its power with what was not flushed, and starts again. What was cut is carried out
//! within `LATE_MAX`, which the client's fence is longer than.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use ubcache_env::{
    BlockStatus, Buf, Device, Durability, Env, IoError, IoVec, Nanos, Priority, SectorRange,
    StreamEnd, StreamError, StreamId, Volume, VolumeError, VolumeInfo,
};
use ubcache_nbd::client::ClientRules;
use ubcache_nbd::{
    Connect, Exports, RemoteDisk, RemoteEvent, RemoteOptions, ServerOptions, serve_connection,
};

use crate::disk::SimDisk;
use crate::executor::{SimEnv, SimWorld};
use crate::plan::Remote;
use crate::rng::Rng;
use crate::stream::SimStream;

/// A request of a connection that was cut is carried out within this time.
const LATE_MAX: Nanos = Nanos::from_secs(40);
/// The client's fence: longer, by more than any request takes on the disk.
const FENCE: Nanos = Nanos::from_secs(60);
/// The client's patience with one request.
const DEADLINE: Nanos = Nanos::from_secs(30);
/// A server that was killed is there again within this time.
const AWAY_MS_MAX: u64 = 20_000;

/// The name of every export.
const EXPORT: &str = "disk";

/// A server with one disk. Lives as long as the disk.
pub struct RemoteServer {
    world: SimWorld,
    disk: SimDisk,
    shape: Remote,
    rng: RefCell<Rng>,
    budget: Cell<u32>,
    /// Tasks of the present server; none: there is none.
    env: RefCell<Option<SimEnv>>,
    /// Its ends of connections.
    streams: RefCell<Vec<Rc<SimStream>>>,
    rules: ClientRules,
    /// No trouble begins.
    calm: Cell<bool>,
    /// It has lost its power, and its client has not made up for that.
    behind: Rc<Cell<bool>>,
    this: Weak<RemoteServer>,
}

/// The disk as a device of the engine.
pub type Client = RemoteDisk<SimEnv, Way>;

/// The way to a server.
pub struct Way {
    env: SimEnv,
    server: Rc<RemoteServer>,
}

impl Connect for Way {
    type Stream = Rc<SimStream>;

    async fn connect(&self) -> Result<Rc<SimStream>, StreamError> {
        const ECONNREFUSED: i32 = 111;
        let (ours, theirs) = SimStream::pair(&self.env, self.server.shape.delay_max);
        match self.server.accept(Rc::new(theirs)) {
            true => Ok(Rc::new(ours)),
            false => Err(StreamError::Os(ECONNREFUSED)),
        }
    }
}

impl RemoteServer {
    /// A server for the disk.
    pub fn new(
        world: &SimWorld,
        disk: &SimDisk,
        shape: Remote,
        rules: ClientRules,
    ) -> Rc<RemoteServer> {
        let rng = Rng::fork(world.env().random(), disk.name());
        Rc::new_cyclic(|this| RemoteServer {
            world: world.clone(),
            disk: disk.clone(),
            shape,
            rng: RefCell::new(rng),
            budget: Cell::new(shape.budget),
            env: RefCell::default(),
            streams: RefCell::default(),
            rules,
            calm: Cell::new(true),
            behind: Rc::default(),
            this: this.clone(),
        })
    }

    /// A client of the server, which is started anew.
    ///
    /// # Errors
    /// The server can't be reached.
    pub async fn open(&self, env: &SimEnv) -> Result<SimDisk, String> {
        self.end();
        self.begin();
        let server = self.this.upgrade().expect("it is called through a handle");
        let (disk, world) = (self.disk.clone(), self.world.clone());
        let behind = self.behind.clone();
        behind.set(false);
        let options = RemoteOptions {
            connections: self.shape.connections,
            deadline: DEADLINE,
            patience: Nanos(u64::MAX),
            fence: FENCE,
            keep_bytes: self.shape.keep_bytes as usize,
            rules: self.rules,
            events: Some(Rc::new(move |event| {
                world.row(|| format!("{:<10} {event}", disk.name()));
                match event {
                    RemoteEvent::MayBeLost { .. } => {
                        // The next flush fails, and the oracle has to know why.
                        let losses = disk.flush_losses();
                        losses.set(losses.get() + 1);
                    }
                    RemoteEvent::Back { .. } => behind.set(false),
                    _ => {}
                }
            })),
            ..RemoteOptions::default()
        };
        let way = Way { env: env.clone(), server };
        let opened = RemoteDisk::open(env.clone(), way, EXPORT.to_owned(), options).await;
        opened.map(|client| self.disk.over(client)).map_err(|failure| failure.to_string())
    }

    /// The server is gone from one moment to the next, and what it had not begun is not done.
    pub fn end(&self) {
        if let Some(env) = self.env.take() {
            self.world.kill(&env);
        }
        self.cut();
    }

    /// Lets trouble begin from now on, or not.
    pub fn set_calm(&self, calm: bool) {
        self.calm.set(calm);
    }

    /// Answered writes may be only in the memory of the client now, which ends.
    pub fn is_behind(&self) -> bool {
        self.behind.get()
    }

    fn begin(&self) {
        *self.env.borrow_mut() = Some(self.world.new_server());
    }

    fn cut(&self) {
        self.streams.take().iter().for_each(|stream| stream.disconnect());
    }

    /// Serves a connection. Returns false if there is no server.
    fn accept(&self, stream: Rc<SimStream>) -> bool {
        let Some(env) = self.env.borrow().clone() else { return false };
        let exports = Rc::new(Exports::new());
        let server = self.this.upgrade().expect("it is called through a handle");
        exports.add(Rc::new(Shelf { env: env.clone(), server })).expect("a good name");
        self.streams.borrow_mut().push(stream.clone());
        let options = ServerOptions { fast_zero: true, ..ServerOptions::default() };
        let serve = serve_connection(env.clone(), stream, exports, options, StreamId(0));
        env.spawn(Priority::Foreground, async move {
            let _ = serve.await;
        });
        true
    }

    /// A request has come. Returns the time for which it is held up.
    fn trouble(&self) -> Nanos {
        let rng = &mut *self.rng.borrow_mut();
        if self.calm.get() || self.budget.get() == 0 || !rng.chance(1, u64::from(self.shape.period))
        {
            return Nanos(0);
        }
        self.budget.set(self.budget.get() - 1);
        let env = self.world.env();
        let late = |rng: &mut Rng, most: Nanos| Nanos::from_micros(rng.scale(1, most.as_micros()));
        match rng.below(4) {
            0 => {
                env.mark("world_remote_cut");
                self.cut();
                late(rng, LATE_MAX)
            }
            1 => {
                // It goes on for up to this long after the client has closed the connection.
                env.mark("world_remote_hang");
                DEADLINE.after(late(rng, LATE_MAX))
            }
            kind => {
                let loses = kind == 2;
                let away = Nanos::from_millis(rng.scale(1, AWAY_MS_MAX));
                let server = self.this.upgrade().expect("it is called through a handle");
                env.clone().spawn(Priority::Foreground, async move {
                    server.restart(&env, loses, away).await;
                });
                Nanos(0)
            }
        }
    }

    async fn restart(&self, env: &SimEnv, loses: bool, away: Nanos) {
        if self.env.borrow().is_none() {
            return;
        }
        self.end();
        if loses {
            env.mark("world_remote_power_failure");
            self.disk.power_failure();
            self.behind.set(true);
        } else {
            env.mark("world_remote_killed");
            self.disk.host_restart();
        }
        self.world.row(|| format!("{:<10} the server is gone", self.disk.name()));
        env.sleep(away).await;
        if self.env.borrow().is_none() {
            self.begin();
        }
    }
}

/// The disk as the volume of a server.
struct Shelf {
    env: SimEnv,
    server: Rc<RemoteServer>,
}

impl Shelf {
    async fn held_up(&self) {
        let late = self.server.trouble();
        if late.0 > 0 {
            self.env.sleep(late).await;
        }
    }

    fn disk(&self) -> &SimDisk {
        &self.server.disk
    }
}

fn told(result: Result<(), IoError>) -> Result<(), VolumeError> {
    result.map_err(VolumeError::Io)
}

impl Volume for Shelf {
    fn info(&self) -> VolumeInfo {
        VolumeInfo {
            name: EXPORT.to_owned(),
            sectors: self.disk().limits().sectors,
            block_bytes: 512,
            preferred_bytes: 4096,
            read_only: false,
        }
    }
    async fn read(&self, _: StreamId, range: SectorRange) -> Result<IoVec, VolumeError> {
        self.held_up().await;
        let (buf, result) = self.disk().read(range.start, Buf::for_sectors(range.sectors())).await;
        told(result).map(|()| buf.into())
    }
    async fn write(
        &self,
        _: StreamId,
        range: SectorRange,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.held_up().await;
        let durability = if fua { Durability::Fua } else { Durability::Volatile };
        told(self.disk().write(range.start, data, durability).await)
    }
    async fn write_bytes(&self, _: StreamId, _: u64, _: IoVec, _: bool) -> Result<(), VolumeError> {
        told(Err(IoError::NotSupported))
    }
    async fn discard(&self, _: StreamId, _: SectorRange, _: bool) -> Result<(), VolumeError> {
        self.held_up().await;
        Ok(())
    }
    async fn write_zeroes(
        &self,
        _: StreamId,
        range: SectorRange,
        fua: bool,
        _: bool,
    ) -> Result<(), VolumeError> {
        self.held_up().await;
        told(self.disk().write_zeroes(range).await)?;
        if fua { told(self.disk().flush().await) } else { Ok(()) }
    }
    async fn flush(&self, _: StreamId) -> Result<(), VolumeError> {
        self.held_up().await;
        told(self.disk().flush().await)
    }
    fn stream_ended(&self, _: StreamId, _: StreamEnd) {}
    async fn prefetch(&self, _: StreamId, _: SectorRange) -> Result<(), VolumeError> {
        Ok(())
    }
    async fn block_status(
        &self,
        range: SectorRange,
    ) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError> {
        self.held_up().await;
        let parts = self.disk().holes(range, usize::MAX).await.map_err(VolumeError::Io)?;
        let status = |hole| BlockStatus { hole, ..BlockStatus::default() };
        Ok(parts.into_iter().map(|(part, hole)| (part, status(hole))).collect())
    }
}
