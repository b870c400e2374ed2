//! A volume as the disk of a virtual machine: what the programs in a guest see.
//!
//! The guest lives as long as the instance of the system. When the connection to its monitor
//! breaks, the requests that were taken are carried out to their end and not answered; the next
//! connection finds them in the notes of requests in flight, carries them out again and answers
//! them. So the programs see a pause and no error, and a request takes effect at one or more
//! moments before its answer.

pub mod bell;
mod guest;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use ubcache_env::local::Notify;
use ubcache_env::{
    BlockStatus, Buf, Env, ForeignMemory, IoError, IoVec, Priority, Sector, SectorRange, StreamEnd,
    StreamId, Volume, VolumeError, VolumeInfo,
};
use ubcache_vhost::{Device, InflightRegion, Settings};
use vm_memory::MmapRegion;

use crate::executor::SimEnv;
use crate::plan::VhostShape;
use bell::SimBell;
use guest::{Guest, OK, kind};

/// Place of the byte that switches writeback on and off.
const WRITEBACK_AT: u32 = 32;
const EIO: i32 = 5;

type SimDevice<V> = Device<SimEnv, V, SimBell>;

/// See the module.
pub struct VhostVolume<V> {
    line: Rc<Line<V>>,
    info: VolumeInfo,
    /// Writes under way that have to be durable when they are answered.
    durable: Cell<u32>,
}

/// The guest, and the present connection of its monitor.
struct Line<V> {
    shape: VhostShape,
    env: SimEnv,
    volume: Rc<V>,
    guest: Guest,
    inflight: Arc<MmapRegion>,
    device: RefCell<Option<Rc<SimDevice<V>>>>,
    connected: Notify,
    connections: Cell<u64>,
    blame: Rc<dyn Fn(String)>,
}

impl<V: Volume> VhostVolume<V> {
    /// Makes a volume the disk of a guest.
    ///
    /// # Panics
    /// If there is no memory for the guest.
    pub fn new(
        shape: VhostShape,
        env: SimEnv,
        volume: Rc<V>,
        blame: Rc<dyn Fn(String)>,
    ) -> VhostVolume<V> {
        let info = volume.info();
        let guest = Guest::new(&shape, &env);
        let bytes = InflightRegion::bytes(shape.queues, guest.size());
        let line = Line {
            shape,
            env,
            volume,
            guest,
            inflight: Arc::new(MmapRegion::new(bytes).expect("memory")),
            device: RefCell::default(),
            connected: Notify::default(),
            connections: Cell::new(0),
            blame,
        };
        let line = Rc::new(line);
        line.connect();
        line.guest.listen();
        VhostVolume { line, info, durable: Cell::new(0) }
    }

    /// The connection of the monitor breaks, and is made again.
    pub fn disconnect(&self) {
        let Some(device) = self.line.device.take() else { return };
        let line = self.line.clone();
        self.line.env.spawn(Priority::Foreground, async move {
            device.end().await;
            line.connect();
            line.connected.notify_all();
        });
    }

    /// The guest is shut down in good order.
    pub async fn leave(&self) {
        let device = loop {
            let connected = self.line.connected.notified();
            let present = self.line.device.take();
            match present {
                Some(device) => break device,
                None => connected.await,
            }
        };
        device.stop_all().await;
        device.end().await;
        self.line.guest.end();
    }

    fn set_writeback(&self, writeback: bool) {
        if let Some(device) = &*self.line.device.borrow() {
            device.set_config(WRITEBACK_AT, &[u8::from(writeback)]);
        }
    }

    async fn ask(
        &self,
        client: StreamId,
        kind: u32,
        sector: u64,
        (out, room): (&[u8], usize),
        changing: Option<&dyn ForeignMemory>,
    ) -> Result<Vec<u8>, VolumeError> {
        let asked = self.line.guest.request(client, (kind, sector), (out, room), changing);
        match asked.await {
            (OK, content) => Ok(content),
            // The status says no more.
            _ => Err(VolumeError::Io(IoError::Os(EIO))),
        }
    }

    /// The same, durable when it is answered if `fua`: there is no such request, so the cache is
    /// switched off meanwhile.
    async fn ask_durably(
        &self,
        client: StreamId,
        (kind, sector): (u32, u64),
        (out, changing): (&[u8], Option<&dyn ForeignMemory>),
        fua: bool,
    ) -> Result<(), VolumeError> {
        if !fua {
            return self.ask(client, kind, sector, (out, 0), changing).await.map(drop);
        }
        // While the monitor is away nobody takes requests, and the switch waits as well.
        while self.line.device.borrow().is_none() {
            self.line.connected.notified().await;
        }
        self.durable.set(self.durable.get() + 1);
        self.set_writeback(false);
        let result = self.ask(client, kind, sector, (out, 0), changing).await;
        self.durable.set(self.durable.get() - 1);
        if self.durable.get() == 0 {
            self.set_writeback(true);
        }
        result.map(drop)
    }
}

impl<V: Volume> Line<V> {
    fn connect(&self) {
        let number = self.connections.get();
        self.connections.set(number + 1);
        let queues = u64::from(self.shape.queues);
        let mut stream = number * queues;
        let blame = self.blame.clone();
        let settings = Settings {
            queues: self.shape.queues,
            memory_bytes: self.shape.memory_bytes,
            report: Rc::new(move |queue, error| blame(format!("queue {queue} stopped: {error}"))),
            ..Settings::default()
        };
        let device = Device::new(self.env.clone(), self.volume.clone(), &settings, || {
            stream += 1;
            StreamId(stream - 1)
        });
        let region =
            InflightRegion::over(self.inflight.clone(), self.shape.queues, self.guest.size());
        self.guest.set_up(&device, region.expect("it is long enough"));
        *self.device.borrow_mut() = Some(Rc::new(device));
    }
}

fn ranges(range: SectorRange, flags: u32) -> Vec<u8> {
    let sectors = u32::try_from(range.sectors()).expect("requests of the plan are short");
    let mut bytes = range.start.0.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

impl<V: Volume> Volume for VhostVolume<V> {
    fn info(&self) -> VolumeInfo {
        self.info.clone()
    }

    async fn read(&self, stream: StreamId, range: SectorRange) -> Result<IoVec, VolumeError> {
        let room = range.bytes() as usize;
        let content = self.ask(stream, kind::IN, range.start.0, (&[], room), None).await?;
        Ok(IoVec::from(Buf::from_bytes(&content)))
    }

    async fn write(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let data = data.to_buf();
        let request = (kind::OUT, range.start.0);
        self.ask_durably(stream, request, (data.as_slice(), None), fua).await
    }

    async fn write_foreign(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: Rc<dyn ForeignMemory>,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let now = data.copy();
        let request = (kind::OUT, range.start.0);
        self.ask_durably(stream, request, (now.as_slice(), Some(&*data)), fua).await
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
        self.ask_durably(stream, (kind::DISCARD, 0), (&ranges(range, 0), None), fua).await
    }

    async fn write_zeroes(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
        may_unmap: bool,
    ) -> Result<(), VolumeError> {
        let list = ranges(range, u32::from(may_unmap));
        self.ask_durably(stream, (kind::WRITE_ZEROES, 0), (&list, None), fua).await
    }

    async fn flush(&self, stream: StreamId) -> Result<(), VolumeError> {
        self.ask(stream, kind::FLUSH, 0, (&[], 0), None).await.map(drop)
    }

    /// The disk itself says so when a connection ends.
    fn stream_ended(&self, _: StreamId, _: StreamEnd) {}

    /// A disk has no such request.
    async fn prefetch(&self, _: StreamId, _: SectorRange) -> Result<(), VolumeError> {
        Ok(())
    }

    /// Nor this.
    async fn block_status(
        &self,
        range: SectorRange,
    ) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError> {
        Ok(vec![(range, BlockStatus::default())])
    }
}
