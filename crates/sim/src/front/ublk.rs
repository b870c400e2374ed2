//! A volume behind the driver of ublk: what a file system on `/dev/ublkb0` sees.
//!
//! The driver is modelled at its commands: slots of queues that wait for requests, descriptors,
//! data that is copied by position or by way of a slot's memory, and the end of a server, after
//! which another one goes on. Long requests are split, as the block layer does. What a server must
//! not do is reported. Where requests have places, the driver gives them to most requests only.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use ubcache_env::local::{Event, Notify, join_all};
use ubcache_env::{
    BlockStatus, Buf, Command, CommandDevice, Env, ForeignMemory, IoError, IoVec, Nanos, Priority,
    Sector, SectorRange, StreamEnd, StreamId, Volume, VolumeError, VolumeInfo,
};
use ubcache_ublk::abi::{
    BUFFERS_AT, IO_RES_ABORT, IO_RES_OK, IoCommand, IoDescriptor, buffer_at, io, op, op_flag,
    place_word,
};
use ubcache_ublk::{QueueEnd, QueueOptions, Requests, serve_queue};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::executor::SimEnv;
use crate::oracle::OpKind;
use crate::places::Requester;
use crate::plan::UblkShape;

const EIO: i32 = 5;
const ENOMEM: i32 = 12;
/// Byte of memory that a read has not reached.
const NOT_READ: u8 = 0x5a;
/// Time until a server that could not start is started again.
const RESTART_PAUSE: Nanos = Nanos::from_millis(10);

/// Data of a requester.
enum Data {
    None,
    /// Of a write.
    Owned(IoVec),
    /// Of a write, by somebody who may still change it.
    Foreign(Rc<dyn ForeignMemory>),
    /// Of a read, as it comes.
    Wanted(Option<Vec<u8>>),
}

/// A request of the block layer.
struct Request {
    op_flags: u32,
    range: SectorRange,
    data: RefCell<Data>,
    /// Disks can read to its memory.
    has_place: Cell<bool>,
    result: Cell<i32>,
    done: Event,
}

impl Request {
    fn bytes(&self) -> usize {
        self.range.bytes() as usize
    }

    fn op(&self) -> u8 {
        self.op_flags as u8
    }

    /// The data of a write at this moment.
    fn copy_out(&self) -> Option<Buf> {
        match &*self.data.borrow() {
            Data::Owned(data) => Some(data.to_buf()),
            Data::Foreign(data) => Some(data.copy()),
            Data::None | Data::Wanted(_) => None,
        }
    }
}

#[derive(Default)]
struct Slot {
    /// The driver has its command.
    waits: bool,
    request: Option<Rc<Request>>,
    changed: Rc<Notify>,
}

/// A queue of the driver.
struct Queue {
    number: u16,
    slots: RefCell<Vec<Slot>>,
    waiting: RefCell<VecDeque<Rc<Request>>>,
    /// No request goes to the present server any more.
    ending: Cell<bool>,
    user_copy: bool,
    /// Number of the place of its first slot.
    places: Option<u32>,
    blame: Rc<dyn Fn(String)>,
    env: SimEnv,
    delay_max: Nanos,
}

impl Requester for Queue {
    fn receive(&self, slot: usize, at: usize, bytes: &[u8]) -> bool {
        let Some(request) = self.request(slot).filter(|request| request.has_place.get()) else {
            (self.blame)(format!("a disk reads to slot {slot}, which has no place"));
            return false;
        };
        let mut data = request.data.borrow_mut();
        let (Data::Wanted(data), len) = (&mut *data, request.bytes()) else {
            (self.blame)("a disk reads to memory that is to be written".to_owned());
            return false;
        };
        let data = data.get_or_insert_with(|| vec![NOT_READ; len]);
        match data.get_mut(at..at + bytes.len()) {
            Some(data) => data.copy_from_slice(bytes),
            None => (self.blame)(format!("{} bytes at {at} of {len}", bytes.len())),
        }
        true
    }
}

impl Queue {
    /// Number of the place of a slot.
    fn place(&self, slot: u16) -> Option<u32> {
        self.places.map(|first| first + u32::from(slot))
    }

    /// Gives waiting requests to slots that wait.
    fn dispatch(&self) {
        if self.ending.get() {
            return;
        }
        let mut slots = self.slots.borrow_mut();
        let mut free: Vec<usize> = (0..slots.len())
            .filter(|at| slots[*at].waits && slots[*at].request.is_none())
            .collect();
        while !free.is_empty() {
            let Some(request) = self.waiting.borrow_mut().pop_front() else { return };
            let at = free.swap_remove(self.env.random() as usize % free.len());
            slots[at].request = Some(request);
            slots[at].changed.notify_all();
        }
    }

    fn submit(&self, request: Rc<Request>) {
        self.waiting.borrow_mut().push_back(request);
        self.dispatch();
    }

    /// Takes the commands of idle slots back: their server ends.
    fn end_server(&self) {
        self.ending.set(true);
        for slot in &*self.slots.borrow() {
            slot.changed.notify_all();
        }
    }

    fn begin_server(&self) {
        self.ending.set(false);
        self.dispatch();
    }

    /// The request of a slot.
    fn request(&self, slot: usize) -> Option<Rc<Request>> {
        self.slots.borrow().get(slot)?.request.clone()
    }

    /// The request that a position of the device has the data of.
    fn at(&self, position: u64) -> Option<Rc<Request>> {
        let slot = (position.checked_sub(BUFFERS_AT)? >> 25) & 0xffff;
        let slot = u16::try_from(slot).ok()?;
        let request = self.request(usize::from(slot))?;
        (position == buffer_at(self.number, slot)).then_some(request)
    }

    /// The server has answered the request of a slot.
    fn answered(&self, slot: usize, result: i32, memory: Option<&Buf>) {
        let request = self.slots.borrow_mut()[slot].request.take();
        let Some(request) = request else {
            return (self.blame)(format!("slot {slot} was answered without a request"));
        };
        let transfers = matches!(request.op(), op::READ | op::WRITE);
        if result >= 0 && transfers && result as usize != request.bytes() {
            (self.blame)(format!("{result} bytes of {} were answered", request.bytes()));
        }
        if let (Data::Wanted(data), Some(memory)) = (&mut *request.data.borrow_mut(), memory) {
            *data = Some(memory.as_slice()[..request.bytes()].to_vec());
        }
        if result >= 0 && matches!(&*request.data.borrow(), Data::Wanted(None)) {
            (self.blame)("a read was answered without its data".to_owned());
        }
        request.result.set(result);
        request.done.set();
    }

    async fn pause(&self) {
        if self.delay_max.0 > 0 {
            self.env.sleep(Nanos(self.env.random() % (self.delay_max.0 + 1))).await;
        }
    }
}

/// The end of the driver that a server has.
struct Handle(Rc<Queue>);

impl CommandDevice for Handle {
    async fn command(&self, command: Command, mut memory: Option<Buf>) -> (Option<Buf>, i32) {
        let queue = &*self.0;
        let parsed = IoCommand::read_from_bytes(&command.payload).expect("as many bytes");
        let slot = usize::from(parsed.slot);
        if parsed.queue != queue.number || slot >= queue.slots.borrow().len() {
            (queue.blame)(format!("a command for slot {slot} of queue {}", parsed.queue));
            return (memory, -EIO);
        }
        let word = queue.places.map_or(0, |_| place_word(queue.place(parsed.slot)));
        if command.word != word {
            (queue.blame)(format!("the word {:x} beside a command, not {word:x}", command.word));
        }
        if queue.user_copy == memory.is_some() {
            (queue.blame)("memory and user copy exclude each other".to_owned());
        }
        if command.code == io::COMMIT_AND_FETCH_REQ {
            queue.answered(slot, parsed.result, memory.as_ref());
        }
        let changed = {
            let slot = &mut queue.slots.borrow_mut()[slot];
            if std::mem::replace(&mut slot.waits, true) {
                (queue.blame)("a slot has two commands".to_owned());
            }
            slot.changed.clone()
        };
        queue.dispatch();
        let request = loop {
            if let Some(request) = queue.request(slot) {
                break Some(request);
            }
            if queue.ending.get() {
                break None;
            }
            changed.notified().await;
        };
        queue.pause().await;
        queue.slots.borrow_mut()[slot].waits = false;
        let Some(request) = request else { return (memory, IO_RES_ABORT) };
        request.has_place.set(queue.places.is_some() && !queue.env.random().is_multiple_of(8));
        if let (Some(memory), Some(data)) = (&mut memory, request.copy_out()) {
            memory.as_mut_slice()[..data.len()].copy_from_slice(data.as_slice());
        }
        (memory, IO_RES_OK)
    }

    fn place(&self, slot: u16) -> Option<u32> {
        self.0.place(slot)
    }

    fn shared(&self, at: usize, into: &mut [u8]) {
        let mut descriptor = IoDescriptor::new_zeroed();
        if let Some(request) = self.0.request(at / size_of::<IoDescriptor>()) {
            let without = self.0.places.is_some() && !request.has_place.get();
            descriptor.op_flags = request.op_flags | if without { op_flag::NO_PLACE } else { 0 };
            descriptor.sectors = request.range.sectors() as u32;
            descriptor.start = request.range.start.0;
        }
        into.copy_from_slice(descriptor.as_bytes());
    }

    fn copy_out(&self, at: u64, into: &mut [u8]) -> Result<(), i32> {
        let data = self.0.at(at).and_then(|request| request.copy_out()).ok_or(EIO)?;
        into.copy_from_slice(data.as_slice());
        Ok(())
    }

    fn copy_in(&self, at: u64, from: &IoVec) -> Result<(), i32> {
        let request = self.0.at(at).ok_or(EIO)?;
        if from.len() != request.bytes() {
            (self.0.blame)(format!("{} bytes of {} were copied", from.len(), request.bytes()));
        }
        match &mut *request.data.borrow_mut() {
            Data::Wanted(data) => *data = Some(from.to_buf().as_slice().to_vec()),
            _ => (self.0.blame)("data for a request that wants none".to_owned()),
        }
        Ok(())
    }
}

/// A request that a server took with it when it died: the driver gives it to the next one.
#[derive(Debug)]
pub struct HeldRequest {
    queue: usize,
    op_flags: u32,
    /// Its range of the volume.
    pub range: SectorRange,
    /// Of a write.
    pub data: Option<Buf>,
}

impl HeldRequest {
    /// The request, for one who knows clients.
    pub fn kind(&self) -> OpKind {
        let fua = self.op_flags & op_flag::FUA != 0;
        match self.op_flags as u8 {
            op::READ => OpKind::Read,
            op::WRITE => OpKind::Write { fua },
            op::WRITE_ZEROES => OpKind::Zeroes { fua },
            op::DISCARD => OpKind::Discard { fua },
            _ => OpKind::Flush,
        }
    }
}

/// See the module.
pub struct UblkVolume<V> {
    shape: UblkShape,
    env: SimEnv,
    volume: Rc<V>,
    queues: Vec<Rc<Queue>>,
    requests: Rc<Requests>,
    /// Servers so far, of each queue.
    servers: Cell<u64>,
    present: RefCell<Vec<Rc<Event>>>,
    blame: Rc<dyn Fn(String)>,
}

impl<V: Volume> UblkVolume<V> {
    /// Puts the driver in front of a volume, with a server behind it.
    pub fn new(
        shape: UblkShape,
        env: SimEnv,
        volume: Rc<V>,
        blame: Rc<dyn Fn(String)>,
    ) -> UblkVolume<V> {
        let queue = |number: u16| {
            Rc::new_cyclic(|me: &Weak<Queue>| Queue {
                number,
                slots: RefCell::new((0..shape.depth).map(|_| Slot::default()).collect()),
                waiting: RefCell::default(),
                ending: Cell::new(false),
                user_copy: shape.user_copy,
                places: (shape.user_copy && shape.places).then(|| {
                    let me: Weak<dyn Requester> = me.clone();
                    env.places().take(&me, usize::from(shape.depth))
                }),
                blame: blame.clone(),
                env: env.clone(),
                delay_max: shape.delay_max,
            })
        };
        let queues = (0..shape.queues).map(queue).collect();
        let requests = Rc::default();
        let (servers, present) = (Cell::new(0), RefCell::default());
        let made = UblkVolume { shape, env, volume, queues, requests, servers, present, blame };
        made.serve();
        made
    }

    fn serve(&self) {
        let number = self.servers.replace(self.servers.get() + 1);
        let mut present = self.present.borrow_mut();
        present.clear();
        for queue in &self.queues {
            queue.begin_server();
            let options = QueueOptions {
                queue: queue.number,
                depth: self.shape.depth,
                user_copy: self.shape.user_copy,
                places: self.shape.user_copy && self.shape.places,
                max_io_bytes: self.shape.max_io_bytes,
                stream: StreamId(number * u64::from(self.shape.queues) + u64::from(queue.number)),
                requests: self.requests.clone(),
                pace: None,
            };
            let (env, volume, queue) = (self.env.clone(), self.volume.clone(), queue.clone());
            let (ended, blame) = (Rc::<Event>::default(), self.blame.clone());
            present.push(ended.clone());
            self.env.spawn(Priority::Foreground, async move {
                loop {
                    let (handle, options) = (Handle(queue.clone()), options.clone());
                    match serve_queue(env.clone(), handle, volume.clone(), options).await {
                        QueueEnd::Stopped => break,
                        // Started again until there is memory for its slots.
                        QueueEnd::Refused(ENOMEM) => env.sleep(RESTART_PAUSE).await,
                        QueueEnd::Refused(errno) => {
                            blame(format!("the server ended with errno {errno}"));
                            break;
                        }
                    }
                }
                ended.set();
            });
        }
    }

    /// Another server goes on: new requests wait until the present one has answered its own.
    pub async fn change_servers(&self) {
        self.leave().await;
        self.serve();
    }

    /// Ends the servers; no request is under way.
    pub async fn leave(&self) {
        self.queues.iter().for_each(|queue| queue.end_server());
        let present = self.present.borrow().clone();
        join_all(present.iter().map(|ended| ended.wait())).await;
    }

    /// Requests without an answer.
    pub fn held(&self) -> Vec<HeldRequest> {
        let mut held = Vec::new();
        for (number, queue) in self.queues.iter().enumerate() {
            let slots = queue.slots.borrow();
            let waiting = queue.waiting.borrow();
            let given = slots.iter().filter_map(|slot| slot.request.as_ref());
            held.extend(given.chain(&*waiting).map(|request| HeldRequest {
                queue: number,
                op_flags: request.op_flags,
                range: request.range,
                data: request.copy_out(),
            }));
        }
        held
    }

    /// Has a request of the server before carried out again. Returns the data of a read.
    pub async fn carry_out_again(&self, held: HeldRequest) -> Result<IoVec, VolumeError> {
        let HeldRequest { queue, op_flags, range, data } = held;
        let data = match data {
            Some(data) => Data::Owned(data.into()),
            None if op_flags as u8 == op::READ => Data::Wanted(None),
            None => Data::None,
        };
        match self.ask_queue(&self.queues[queue], op_flags, range, data).await? {
            Data::Wanted(Some(bytes)) => Ok(Buf::from_bytes(&bytes).into()),
            _ => Ok(IoVec::new()),
        }
    }

    async fn ask(
        &self,
        client: StreamId,
        op_flags: u32,
        range: SectorRange,
        data: Data,
    ) -> Result<Data, VolumeError> {
        let queue = &self.queues[client.0 as usize % self.queues.len()];
        self.ask_queue(queue, op_flags, range, data).await
    }

    async fn ask_queue(
        &self,
        queue: &Queue,
        op_flags: u32,
        range: SectorRange,
        data: Data,
    ) -> Result<Data, VolumeError> {
        let (result, done, has_place) = (Cell::default(), Event::default(), Cell::default());
        let data = RefCell::new(data);
        let request = Rc::new(Request { op_flags, range, data, has_place, result, done });
        queue.submit(request.clone());
        request.done.wait().await;
        match request.result.get() {
            code if code < 0 => Err(VolumeError::Io(IoError::Os(-code))),
            _ => Ok(request.data.replace(Data::None)),
        }
    }

    /// The stream of a client's queue, for what a block device does not have.
    fn stream(&self, client: StreamId) -> StreamId {
        let queues = self.queues.len() as u64;
        StreamId((self.servers.get() - 1) * queues + client.0 % queues)
    }

    /// The parts that the block layer makes of a request.
    fn parts(&self, range: SectorRange) -> Vec<SectorRange> {
        let most = u64::from(self.shape.max_io_bytes / 512);
        let mut parts = Vec::new();
        let mut at = range.start.0;
        while at < range.end.0 {
            let sectors = most.min(range.end.0 - at);
            parts.push(SectorRange::new(Sector(at), sectors));
            at += sectors;
        }
        parts
    }

    async fn ask_in_parts(
        &self,
        client: StreamId,
        op_flags: u32,
        range: SectorRange,
        data: impl Fn(SectorRange) -> Data,
    ) -> Result<Vec<Data>, VolumeError> {
        let parts = self.parts(range).into_iter();
        let asked = parts.map(|part| self.ask(client, op_flags, part, data(part)));
        join_all(asked).await.into_iter().collect()
    }
}

fn fua_flag(fua: bool) -> u32 {
    if fua { op_flag::FUA } else { 0 }
}

impl<V: Volume> Volume for UblkVolume<V> {
    fn info(&self) -> VolumeInfo {
        self.volume.info()
    }

    async fn read(&self, stream: StreamId, range: SectorRange) -> Result<IoVec, VolumeError> {
        let wanted = |_| Data::Wanted(None);
        let found = self.ask_in_parts(stream, u32::from(op::READ), range, wanted).await?;
        let mut all = IoVec::new();
        for part in found {
            let Data::Wanted(Some(bytes)) = part else { return Err(IoError::Os(EIO).into()) };
            all.push(Buf::from_bytes(&bytes).freeze());
        }
        Ok(all)
    }

    async fn write(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        let of_part = |part: SectorRange| {
            Data::Owned(data.cut_sectors(part.start.0 - range.start.0, part.sectors()))
        };
        let op_flags = u32::from(op::WRITE) | fua_flag(fua);
        self.ask_in_parts(stream, op_flags, range, of_part).await.map(drop)
    }

    async fn write_foreign(
        &self,
        stream: StreamId,
        range: SectorRange,
        data: Rc<dyn ForeignMemory>,
        fua: bool,
    ) -> Result<(), VolumeError> {
        if self.parts(range).len() > 1 {
            return self.write(stream, range, data.copy().into(), fua).await;
        }
        let op_flags = u32::from(op::WRITE) | fua_flag(fua);
        self.ask(stream, op_flags, range, Data::Foreign(data)).await.map(drop)
    }

    /// Parts of blocks never come to a block device.
    async fn write_bytes(
        &self,
        stream: StreamId,
        offset: u64,
        data: IoVec,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.volume.write_bytes(self.stream(stream), offset, data, fua).await
    }

    async fn discard(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
    ) -> Result<(), VolumeError> {
        if fua {
            return self.volume.discard(self.stream(stream), range, fua).await;
        }
        let op_flags = u32::from(op::DISCARD);
        self.ask_in_parts(stream, op_flags, range, |_| Data::None).await.map(drop)
    }

    async fn write_zeroes(
        &self,
        stream: StreamId,
        range: SectorRange,
        fua: bool,
        may_unmap: bool,
    ) -> Result<(), VolumeError> {
        let unmap = if may_unmap { 0 } else { op_flag::NOUNMAP };
        let op_flags = u32::from(op::WRITE_ZEROES) | fua_flag(fua) | unmap;
        self.ask_in_parts(stream, op_flags, range, |_| Data::None).await.map(drop)
    }

    async fn flush(&self, stream: StreamId) -> Result<(), VolumeError> {
        let nothing = SectorRange::default();
        self.ask(stream, u32::from(op::FLUSH), nothing, Data::None).await.map(drop)
    }

    /// The server itself says so when a queue ends.
    fn stream_ended(&self, _: StreamId, _: StreamEnd) {}

    async fn prefetch(&self, stream: StreamId, range: SectorRange) -> Result<(), VolumeError> {
        self.volume.prefetch(self.stream(stream), range).await
    }

    async fn block_status(
        &self,
        range: SectorRange,
    ) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError> {
        self.volume.block_status(range).await
    }
}
