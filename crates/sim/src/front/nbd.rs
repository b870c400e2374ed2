//! A volume behind an NBD server: what a client of the network sees.
//!
//! Several clients share a connection, each with a request under way. When a connection is cut,
//! what becomes of its requests is open: they have arrived or not, and those that have go on until
//! the server has let go of the connection. Only then is their client told that they failed. So a
//! request that was cut takes effect at some moment before it is told, or never, which is what an
//! error means anyway; meanwhile other clients are connected again and at work on the same sectors.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ubcache_env::local::Lock;
use ubcache_env::{BlockStatus, Sector};
use ubcache_env::{
    Buf, Env, IoError, IoVec, Priority, SectorRange, StreamEnd, StreamId, Volume, VolumeError,
    VolumeInfo,
};
use ubcache_nbd::proto::Command;
use ubcache_nbd::proto::constants::{STATE_HOLE, cmd_flag};
use ubcache_nbd::{Exports, ServeError, ServerOptions, serve_connection};

use super::connection::{Answer, Connection, Cut};
use crate::executor::SimEnv;
use crate::plan::NbdShape;
use crate::stream::SimStream;

const CUT: &str = "the connection was cut";

/// Returns true if a request failed because its connection was cut.
pub fn is_cut(error: &VolumeError) -> bool {
    matches!(error, VolumeError::Unavailable(text) if text == CUT)
}

/// See the module.
pub struct NbdVolume<V> {
    shape: NbdShape,
    env: SimEnv,
    exports: Rc<Exports<V>>,
    info: VolumeInfo,
    /// Client `c` uses number `c` modulo their number.
    lines: Vec<Line>,
    /// Connections so far, over all lines.
    connections: Cell<u64>,
    blame: Rc<dyn Fn(String)>,
}

/// The present connection, which clients share.
#[derive(Default)]
struct Line {
    present: RefCell<Option<Rc<Connection>>>,
    connecting: Lock,
}

impl<V: Volume> NbdVolume<V> {
    /// Puts a server in front of a volume.
    ///
    /// # Panics
    /// If the name of the volume can't be that of an export.
    pub fn new(
        shape: NbdShape,
        env: SimEnv,
        volume: Rc<V>,
        blame: Rc<dyn Fn(String)>,
    ) -> NbdVolume<V> {
        let info = volume.info();
        let exports = Exports::new();
        exports.add(volume).expect("the names of volumes are short");
        let lines = (0..shape.connections.max(1)).map(|_| Line::default()).collect();
        let exports = Rc::new(exports);
        NbdVolume { shape, env, exports, info, lines, connections: Cell::new(0), blame }
    }

    /// Cuts every connection.
    pub fn disconnect(&self) {
        for line in &self.lines {
            if let Some(connection) = &*line.present.borrow() {
                connection.disconnect();
            }
        }
    }

    /// Disconnects every connection and waits until the server has dropped it.
    pub async fn leave(&self) {
        for line in &self.lines {
            let present = line.present.take();
            if let Some(connection) = present {
                connection.leave().await;
                connection.served.wait().await;
            }
        }
    }

    /// The connection of a client, made if there is none that works.
    async fn connection(&self, client: StreamId) -> Rc<Connection> {
        let line = &self.lines[client.0 as usize % self.lines.len()];
        loop {
            let _one = line.connecting.lock().await;
            let present = line.present.borrow().clone();
            if let Some(present) = present.filter(|present| !present.is_cut()) {
                return present;
            }
            let connection = self.connect();
            *line.present.borrow_mut() = Some(connection.clone());
            let Ok(decoder) = connection.negotiate(&self.info.name, self.shape.structured).await
            else {
                line.present.take();
                connection.disconnect();
                continue;
            };
            let receiver = connection.clone();
            self.env.spawn(Priority::Foreground, async move { receiver.receive(decoder).await });
            return connection;
        }
    }

    fn connect(&self) -> Rc<Connection> {
        let number = self.connections.get();
        self.connections.set(number + 1);
        let (ours, theirs) = SimStream::pair(&self.env, self.shape.delay_max);
        let connection = Rc::new(Connection::new(Rc::new(ours)));
        let options = ServerOptions {
            max_inflight_bytes: self.shape.inflight_bytes,
            max_requests: self.shape.requests,
            receive_buffer_bytes: self.shape.receive_bytes as usize,
            ..ServerOptions::default()
        };
        let serve = serve_connection(
            self.env.clone(),
            Rc::new(theirs),
            self.exports.clone(),
            options,
            StreamId(number),
        );
        let (served, blame) = (connection.clone(), self.blame.clone());
        self.env.spawn(Priority::Foreground, async move {
            match serve.await {
                Ok(()) | Err(ServeError::Disconnected) => {}
                Err(error) => blame(format!("the server ended connection {number}: {error}")),
            }
            served.served.set();
        });
        connection
    }

    async fn ask(
        &self,
        client: StreamId,
        command: Command,
        flags: u16,
        range: SectorRange,
        payload: IoVec,
    ) -> Result<Answer, VolumeError> {
        let connection = self.connection(client).await;
        let length = u32::try_from(range.bytes()).expect("requests of the plan are short");
        match connection.request(command, flags, (range.start.bytes(), length), payload).await {
            Ok(Answer::Failed(errno)) => Err(VolumeError::Io(IoError::Os(errno.cast_signed()))),
            Ok(answer) => Ok(answer),
            Err(Cut) => {
                connection.served.wait().await;
                Err(VolumeError::Unavailable(CUT.to_owned()))
            }
        }
    }
}

fn fua_flag(fua: bool) -> u16 {
    if fua { cmd_flag::FUA } else { 0 }
}

impl<V: Volume> Volume for NbdVolume<V> {
    fn info(&self) -> VolumeInfo {
        self.info.clone()
    }

    async fn read(&self, stream: StreamId, range: SectorRange) -> Result<IoVec, VolumeError> {
        match self.ask(stream, Command::Read, 0, range, IoVec::new()).await? {
            Answer::Done(content) => Ok(IoVec::from(Buf::from_bytes(&content))),
            other => panic!("a read was answered with {other:?}"),
        }
    }

    async fn write(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.ask(stream, Command::Write, fua_flag(fua), range, data).await.map(drop)
    }

    async fn write_bytes(
        &self,
        stream: StreamId,
        offset: u64,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let range = SectorRange::new(Sector(offset / 512), data.sectors());
        self.write(stream, range, data, fua).await
    }

    async fn discard(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.ask(stream, Command::Trim, fua_flag(fua), range, IoVec::new()).await.map(drop)
    }

    async fn write_zeroes(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
        may_unmap: bool,
    ) -> Result<(), VolumeError> {
        let flags = fua_flag(fua) | if may_unmap { 0 } else { cmd_flag::NO_HOLE };
        self.ask(stream, Command::WriteZeroes, flags, range, IoVec::new()).await.map(drop)
    }

    async fn flush(&self, stream: StreamId) -> Result<(), VolumeError> {
        let nothing = SectorRange::default();
        self.ask(stream, Command::Flush, 0, nothing, IoVec::new()).await.map(drop)
    }

    /// The server itself says so when a connection ends.
    fn stream_ended(&self, _: StreamId, _: StreamEnd) {}

    async fn prefetch(&self, stream: StreamId, range: SectorRange) -> Result<(), VolumeError> {
        self.ask(stream, Command::Cache, 0, range, IoVec::new()).await.map(drop)
    }

    async fn block_status(
        &self,
        range: SectorRange,
    ) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError> {
        if !self.shape.structured {
            return Ok(vec![(range, BlockStatus::default())]);
        }
        let answer = self.ask(StreamId(0), Command::BlockStatus, 0, range, IoVec::new()).await?;
        let Answer::Extents(extents) = answer else {
            panic!("a status was answered with {answer:?}")
        };
        let mut at = range.start;
        let parts = extents.into_iter().map(|extent| {
            let part = SectorRange::new(at, u64::from(extent.length) / 512);
            at = Sector(part.end.0);
            let hole = extent.flags & STATE_HOLE != 0;
            (part, BlockStatus { hole, ..BlockStatus::default() })
        });
        Ok(parts.collect())
    }
}
