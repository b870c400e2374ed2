//! Requests of one queue, carried out on a volume.
//!
//! A queue has slots. Each slot has a task, which gives the driver the slot's command, waits for a
//! request, carries it out, and gives the next command with the answer. So a slot holds one request
//! at a time, and nothing is allocated for it but the memory of its data.
//!
//! Data of a read goes from the cache device straight to the memory of the requester, if the driver
//! has given that a place and the cache has all of it; otherwise it is copied there.
//!
//! Data of a write is copied once, to memory that nobody changes, before anything else: that of the
//! requester may change under it (rule T0 of docs/internals/coherence.md).

use std::cell::Cell;
use std::rc::Rc;

use ubcache_env::local::{Event, Notify};
use ubcache_env::{
    Buf, Command, CommandDevice, Env, IoVec, Nanos, Place, Priority, Sector, SectorRange,
    StreamEnd, StreamId, Volume, VolumeError,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::abi::{
    IO_RES_ABORT, IO_RES_OK, IoCommand, IoDescriptor, buffer_at, io, op, op_flag, place_word,
};

const EIO: i32 = 5;
const ENOMEM: i32 = 12;
const ENOTSUP: i32 = 95;
const ESHUTDOWN: i32 = 108;
const ECANCELED: i32 = 125;

/// Requests of a device: what is in flight, and a gate before them.
#[derive(Debug, Default)]
pub struct Requests {
    in_flight: Cell<u32>,
    held: Cell<bool>,
    changed: Notify,
}

impl Requests {
    /// Requests that come from now on wait, so that another server, or this one, goes on with them.
    pub fn hold(&self) {
        self.held.set(true);
    }

    /// They go on.
    pub fn release(&self) {
        self.held.set(false);
        self.changed.notify_all();
    }

    /// Requests that are being carried out.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// Returns true if requests wait for another server, or for [`Requests::release`].
    pub fn is_held(&self) -> bool {
        self.held.get()
    }

    /// Waits until no request is being carried out.
    pub async fn idle(&self) {
        while self.in_flight.get() > 0 {
            self.changed.notified().await;
        }
    }

    async fn begin(self: &Rc<Self>) -> UnderWay {
        while self.held.get() {
            self.changed.notified().await;
        }
        self.in_flight.set(self.in_flight.get() + 1);
        UnderWay(self.clone())
    }
}

/// A request that is being carried out.
struct UnderWay(Rc<Requests>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let left = self.0.in_flight.get() - 1;
        self.0.in_flight.set(left);
        if left == 0 {
            self.0.changed.notify_all();
        }
    }
}

/// Limits on requests: takes the present moment and the bytes of a request, and gives the moment at
/// which it may start.
pub type Pace = Rc<dyn Fn(Nanos, u64) -> Nanos>;

/// Settings of a queue.
#[derive(Clone)]
pub struct QueueOptions {
    /// Its number.
    pub queue: u16,
    /// Its slots.
    pub depth: u16,
    /// Data is copied by reads and writes of the character device; otherwise each slot has memory
    /// of its own for it.
    pub user_copy: bool,
    /// The driver gives places to data; with user copy only.
    pub places: bool,
    /// The most bytes of a request.
    pub max_io_bytes: u32,
    /// The stream of its requests.
    pub stream: StreamId,
    /// Requests of the device, of all of its queues.
    pub requests: Rc<Requests>,
    /// Limits on requests; none: there are none.
    pub pace: Option<Pace>,
}

/// The end of a queue.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum QueueEnd {
    /// The device was stopped, or is kept for another server.
    Stopped,
    /// The driver refused a command: an errno.
    Refused(i32),
}

/// State that the slots of a queue share.
struct Queue<D, V> {
    device: D,
    volume: V,
    options: QueueOptions,
    left: Cell<u16>,
    refused: Cell<Option<i32>>,
    ended: Event,
}

/// Serves a queue until its device ends. Without memory for its slots, where they need some, it
/// gives the driver no command.
pub async fn serve_queue<E: Env, D: CommandDevice, V: Volume>(
    env: E,
    device: D,
    volume: V,
    options: QueueOptions,
) -> QueueEnd {
    let (stream, depth) = (options.stream, options.depth);
    let Some(memory) = memory_of_slots(&env, &options) else { return QueueEnd::Refused(ENOMEM) };
    let (left, refused, ended) = (Cell::new(depth), Cell::default(), Event::default());
    let queue = Rc::new(Queue { device, volume, options, left, refused, ended });
    for (slot, memory) in (0..depth).zip(memory) {
        let (queue, world) = (queue.clone(), env.clone());
        env.spawn(Priority::Foreground, async move {
            if let QueueEnd::Refused(errno) = serve_slot(&world, &queue, slot, memory).await {
                queue.refused.set(Some(errno));
            }
            queue.left.set(queue.left.get() - 1);
            if queue.left.get() == 0 {
                queue.ended.set();
            }
        });
    }
    queue.ended.wait().await;
    // The file system on the device may go on with another server, which owes it every error.
    queue.volume.stream_ended(stream, StreamEnd::Cut);
    queue.refused.get().map_or(QueueEnd::Stopped, QueueEnd::Refused)
}

/// Memory for the data of each slot, unless it is copied by position; none: there is not enough.
fn memory_of_slots<E: Env>(env: &E, options: &QueueOptions) -> Option<Vec<Option<Buf>>> {
    let of_slot = |_| match options.user_copy {
        true => Some(None),
        false => env.buffers().for_bytes(options.max_io_bytes as usize).map(Some),
    };
    (0..options.depth).map(of_slot).collect()
}

async fn serve_slot<E: Env, D: CommandDevice, V: Volume>(
    env: &E,
    queue: &Queue<D, V>,
    slot: u16,
    mut memory: Option<Buf>,
) -> QueueEnd {
    let options = &queue.options;
    let place = if options.places { queue.device.place(slot) } else { None };
    let word = if options.places { place_word(place) } else { 0 };
    let (mut code, mut result) = (io::FETCH_REQ, 0);
    loop {
        let command = IoCommand { queue: options.queue, slot, result, address: 0 };
        let mut payload = [0; 16];
        payload.copy_from_slice(command.as_bytes());
        let answer;
        (memory, answer) = queue.device.command(Command { code, payload, word }, memory).await;
        match answer {
            IO_RES_OK => {}
            IO_RES_ABORT => return QueueEnd::Stopped,
            // The host ends, and takes its commands back.
            code if code == -ECANCELED || code == -ESHUTDOWN => return QueueEnd::Stopped,
            code => return QueueEnd::Refused(-code),
        }
        let mut request = IoDescriptor::new_zeroed();
        let at = usize::from(slot) * size_of::<IoDescriptor>();
        queue.device.shared(at, request.as_mut_bytes());
        if let Some(pace) = &options.pace {
            let start = pace(env.now(), u64::from(request.sectors) * 512);
            Box::pin(env.sleep_until(start)).await;
        }
        let under_way = options.requests.begin().await;
        let place = place.filter(|_| request.op_flags & op_flag::NO_PLACE == 0);
        let place = place.map(|number| Place { number, at: 0 });
        let outcome = carry_out(env, queue, slot, &request, (&mut memory, place)).await;
        drop(under_way);
        result = match outcome {
            Ok(bytes) => i32::try_from(bytes).unwrap_or(i32::MAX),
            Err(errno) => -errno,
        };
        code = io::COMMIT_AND_FETCH_REQ;
    }
}

/// Carries a request out: the bytes that were transferred, or an errno.
async fn carry_out<E: Env, D: CommandDevice, V: Volume>(
    env: &E,
    queue: &Queue<D, V>,
    slot: u16,
    request: &IoDescriptor,
    (memory, place): (&mut Option<Buf>, Option<Place>),
) -> Result<u32, i32> {
    let options = &queue.options;
    let (volume, stream) = (&queue.volume, options.stream);
    let range = SectorRange::new(Sector(request.start), u64::from(request.sectors));
    let bytes = request.sectors.checked_mul(512).ok_or(EIO)?;
    let fua = request.op_flags & op_flag::FUA != 0;
    let at = buffer_at(options.queue, slot);
    match request.op_flags as u8 {
        op::READ => {
            check_length(bytes, options)?;
            let data = match place {
                None => volume.read(stream, range).await,
                Some(place) => volume.read_into(stream, range, place).await,
            };
            let data = data.map_err(errno)?;
            if data.is_empty() && place.is_some() {
                return Ok(bytes);
            }
            if data.len() as u64 != range.bytes() {
                return Err(EIO);
            }
            match memory {
                Some(memory) => data.copy_to(&mut memory.as_mut_slice()[..data.len()]),
                None => queue.device.copy_in(at, &data)?,
            }
            Ok(bytes)
        }
        op::WRITE => {
            check_length(bytes, options)?;
            let mut data = env.buffers().for_bytes(bytes as usize).ok_or(ENOMEM)?;
            match memory {
                Some(memory) => {
                    data.as_mut_slice().copy_from_slice(&memory.as_slice()[..bytes as usize]);
                }
                None => queue.device.copy_out(at, data.as_mut_slice())?,
            }
            volume.write(stream, range, IoVec::from(data), fua).await.map_err(errno)?;
            Ok(bytes)
        }
        other => {
            let may_unmap = request.op_flags & op_flag::NOUNMAP == 0;
            // Seldom, and longer than the others: no part of their futures.
            let done =
                Box::pin(carry_out_without_data(volume, stream, other, range, fua, may_unmap));
            done.await?;
            Ok(bytes)
        }
    }
}

async fn carry_out_without_data<V: Volume>(
    volume: &V,
    stream: StreamId,
    op: u8,
    range: SectorRange,
    fua: bool,
    may_unmap: bool,
) -> Result<(), i32> {
    let done = match op {
        op::FLUSH => volume.flush(stream).await,
        op::DISCARD => volume.discard(stream, range, fua).await,
        op::WRITE_ZEROES => volume.write_zeroes(stream, range, fua, may_unmap).await,
        _ => return Err(ENOTSUP),
    };
    done.map_err(errno)
}

fn check_length(bytes: u32, options: &QueueOptions) -> Result<(), i32> {
    if bytes == 0 || bytes > options.max_io_bytes { Err(EIO) } else { Ok(()) }
}

fn errno(error: VolumeError) -> i32 {
    error.errno()
}
