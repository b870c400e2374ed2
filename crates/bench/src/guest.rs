//! Cost of vhost-user-blk alone: a guest that reads 4 KiB at a time, with its memory and rings, and
//! a volume that has the data at hand.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};
use std::task::{Poll, Waker};

use ubcache_env::{
    Bell, BlockStatus, IoVec, SectorRange, Slice, StreamEnd, StreamError, StreamId, Volume,
    VolumeError, VolumeInfo,
};
use ubcache_vhost::{Device, Ring, Settings};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileMemory};

use crate::BLOCK_BYTES;
use crate::engine::measured_phase;
use crate::null::device::client_data;
use crate::null::executor::NullWorld;

const SIZE: u16 = 128;
const MEMORY_BYTES: usize = 1 << 20;
/// Requests in flight, at most: each has three descriptors, and a batch of them divides the ring.
pub const DEPTH_MAX: u16 = 32;
const AVAILABLE_AT: u64 = 0x1000;
const USED_AT: u64 = 0x2000;
const HEADER_AT: u64 = 0x3000;
const STATUS_AT: u64 = 0x3800;
const DATA_AT: u64 = 0x8000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// `VIRTIO_F_VERSION_1` and `VIRTIO_RING_F_EVENT_IDX`.
const FEATURES: u64 = 1 << 32 | 1 << 29;

/// A volume that has everything at hand.
struct AtHand(Slice);

impl Volume for AtHand {
    fn info(&self) -> VolumeInfo {
        VolumeInfo {
            name: "at hand".to_owned(),
            sectors: 1 << 20,
            block_bytes: 512,
            preferred_bytes: 4096,
            read_only: false,
        }
    }
    async fn read(&self, _: StreamId, _: SectorRange) -> Result<IoVec, VolumeError> {
        Ok(self.0.clone().into())
    }
    async fn write(
        &self,
        _: StreamId,
        _: SectorRange,
        _: IoVec,
        _: bool,
    ) -> Result<(), VolumeError> {
        Ok(())
    }
    async fn write_bytes(&self, _: StreamId, _: u64, _: IoVec, _: bool) -> Result<(), VolumeError> {
        Ok(())
    }
    async fn discard(&self, _: StreamId, _: SectorRange, _: bool) -> Result<(), VolumeError> {
        Ok(())
    }
    async fn write_zeroes(
        &self,
        _: StreamId,
        _: SectorRange,
        _: bool,
        _: bool,
    ) -> Result<(), VolumeError> {
        Ok(())
    }
    async fn flush(&self, _: StreamId) -> Result<(), VolumeError> {
        Ok(())
    }
    fn stream_ended(&self, _: StreamId, _: StreamEnd) {}
    async fn prefetch(&self, _: StreamId, _: SectorRange) -> Result<(), VolumeError> {
        Ok(())
    }
    async fn block_status(
        &self,
        range: SectorRange,
    ) -> Result<Vec<(SectorRange, BlockStatus)>, VolumeError> {
        Ok(vec![(range, BlockStatus::default())])
    }
}

/// An event that costs next to nothing.
#[derive(Clone, Default)]
struct NullBell(Rc<(Cell<bool>, RefCell<Option<Waker>>)>);

impl Bell for NullBell {
    async fn rung(&self) -> Result<(), StreamError> {
        let (rung, waiter) = &*self.0;
        poll_fn(|cx| {
            if rung.take() {
                return Poll::Ready(());
            }
            let mut waiter = waiter.borrow_mut();
            if !waiter.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                *waiter = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
        Ok(())
    }

    fn ring(&self) {
        let (rung, waiter) = &*self.0;
        rung.set(true);
        if let Some(waker) = &*waiter.borrow() {
            waker.wake_by_ref();
        }
    }
}

fn put(memory: &GuestMemoryMmap, at: u64, bytes: &[u8]) {
    memory.write_slice(bytes, GuestAddress(at)).expect("the guest has this memory");
}

fn describe(memory: &GuestMemoryMmap, index: u64, (at, len, flags): (u64, u32, u16)) {
    let mut bytes = at.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend((index as u16 + 1).to_le_bytes());
    put(memory, index * 16, &bytes);
}

/// Reads so often, so many requests at a time with one kick. Everything but the guest's own work is
/// measured with it.
///
/// # Panics
/// If a read is not answered, or the depth is no power of two of at most [`DEPTH_MAX`].
pub fn hits(requests: u64, depth: u16) {
    assert!(depth.is_power_of_two() && depth <= DEPTH_MAX, "a depth of {depth}");
    let world = NullWorld::new(7);
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).expect("memory");
    let content = client_data(BLOCK_BYTES as usize).parts()[0].clone();
    let device =
        Device::new(world.env(), Rc::new(AtHand(content)), &Settings::default(), StreamId::default);
    let (kick, call) = (NullBell::default(), NullBell::default());
    for slot in 0..u64::from(depth) {
        let data = DATA_AT + slot * BLOCK_BYTES;
        describe(&memory, slot * 3, (HEADER_AT + slot * 16, 16, NEXT));
        describe(&memory, slot * 3 + 1, (data, BLOCK_BYTES as u32, NEXT | WRITE));
        describe(&memory, slot * 3 + 2, (STATUS_AT + slot, 1, WRITE));
    }
    // The same requests come again and again, in the same order.
    for place in 0..u64::from(SIZE) {
        let head = 3 * (place % u64::from(depth)) as u16;
        put(&memory, AVAILABLE_AT + 4 + 2 * place, &head.to_le_bytes());
    }
    assert!(device.set_features(FEATURES), "the disk has these");
    device.set_memory(memory.clone());
    let ring = Ring { descriptors: 0, available: AVAILABLE_AT, used: USED_AT };
    let begin = || {
        device.set_size(0, u32::from(SIZE))?;
        device.set_ring(0, ring)?;
        device.set_call(0, Some(call.clone()))?;
        device.start(0, kick.clone())
    };
    begin().expect("the ring makes sense");
    // The guest's own accesses, each found once.
    let host = |at: u64, len: usize| memory.get_slice_at(at, len);
    let (available, used) = (host(AVAILABLE_AT, 512), host(USED_AT, 8));
    let index = available.get_ref::<u16>(2).expect("within the ring");
    let used_event = available.get_ref::<u16>(4 + 2 * usize::from(SIZE)).expect("within the ring");
    let answered = used.get_ref::<u16>(2).expect("within the ring");
    let run = |from: u64, count: u64| {
        world.run(async {
            for batch in from..from + count {
                let end = ((batch + 1) * u64::from(depth)) as u16;
                // A call is wanted for the last one of the batch.
                used_event.store(end.wrapping_sub(1));
                index.store(end);
                fence(Ordering::SeqCst);
                kick.ring();
                call.rung().await.expect("a call");
                assert_eq!(answered.load(), end);
            }
        });
    };
    let batches = requests / u64::from(depth);
    run(0, 1000);
    measured_phase(&mut || run(1000, batches));
    world.run(device.stop_all());
    world.run(device.end());
}

/// Places of the guest's memory, as it sees them.
trait GetSlice {
    fn get_slice_at(&self, at: u64, len: usize) -> vm_memory::VolatileSlice<'_>;
}

impl GetSlice for GuestMemoryMmap {
    fn get_slice_at(&self, at: u64, len: usize) -> vm_memory::VolatileSlice<'_> {
        use vm_memory::GuestMemoryBackend;
        GuestMemoryBackend::get_slice(self, GuestAddress(at), len).expect("within the memory")
    }
}
