//! The way from clients to the volumes of a plan.

use ubcache_env::Nanos;

use super::{ControlAction, Plan};
use crate::rng::Rng;

/// The other end of clients.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Frontend {
    /// The volumes.
    Direct,
    /// NBD servers, one for each volume.
    Nbd(NbdShape),
    /// The driver of ublk, with a device for each volume.
    Ublk(UblkShape),
    /// Virtual machines, one for each volume.
    Vhost(VhostShape),
}

/// The NBD servers and what is between them and the clients.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct NbdShape {
    /// Connections to each volume; clients share them.
    pub connections: u32,
    /// Bytes take up to this long to arrive.
    pub delay_max: Nanos,
    /// Structured replies, negotiated; otherwise simple ones, and the oldest way in.
    pub structured: bool,
    /// Requests under way on a connection at most.
    pub requests: u32,
    /// Bytes of content in flight on a connection at most.
    pub inflight_bytes: u64,
    /// Size of the server's receive buffer.
    pub receive_bytes: u32,
}

/// The devices of ublk.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct UblkShape {
    /// Queues of each device; clients share them.
    pub queues: u16,
    /// Slots of a queue.
    pub depth: u16,
    /// The most bytes of a request; the block layer splits longer ones.
    pub max_io_bytes: u32,
    /// Data is copied by position; otherwise by way of memory of the slot.
    pub user_copy: bool,
    /// Disks read to the memory of requesters; with user copy only.
    pub places: bool,
    /// Commands take up to this long to complete.
    pub delay_max: Nanos,
}

/// The virtual machines, and the way in which they use their disks.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct VhostShape {
    /// Queues of each disk; clients share them.
    pub queues: u16,
    /// Requests under way in a queue at most.
    pub slots: u16,
    /// Kicks and calls take up to this long to arrive.
    pub delay_max: Nanos,
    /// Pieces of a request's data at most.
    pub pieces: u16,
    /// Half of the requests have a table of descriptors of their own.
    pub indirect: bool,
    /// Kicks and calls are made only where the other side wants them.
    pub event_idx: bool,
    /// Memory for the data of requests in flight.
    pub memory_bytes: u64,
}

impl Frontend {
    /// Streams that clients share, of each volume.
    pub fn streams(&self) -> Option<u32> {
        match self {
            Frontend::Direct => None,
            Frontend::Nbd(shape) => Some(shape.connections),
            Frontend::Ublk(shape) => Some(u32::from(shape.queues)),
            Frontend::Vhost(shape) => Some(u32::from(shape.queues)),
        }
    }

    /// Bytes of memory that each stream holds for itself.
    pub(super) fn stream_bytes(&self) -> u64 {
        match self {
            Frontend::Direct => 0,
            Frontend::Nbd(shape) => u64::from(shape.receive_bytes) + shape.inflight_bytes,
            Frontend::Ublk(shape) => {
                u64::from(shape.depth) * u64::from(shape.max_io_bytes.next_multiple_of(4096)) * 2
            }
            Frontend::Vhost(shape) => shape.memory_bytes,
        }
    }
}

/// Puts block devices or NBD servers between clients and volumes in some of the plans, and cuts
/// connections in some of those.
pub(super) fn add_frontend(plan: &mut Plan, rng: &mut Rng) {
    let drawn = rng.chance(1, 5);
    let mut devices = Rng::fork(plan.seed, "ublk");
    if devices.chance(1, 6) {
        plan.frontend = Frontend::Ublk(UblkShape {
            queues: devices.pick(&[1, 1, 2, 4]),
            depth: devices.pick(&[1, 2, 16, 128]),
            max_io_bytes: devices.pick(&[4096, 65_536, 1 << 20]),
            user_copy: devices.chance(2, 3),
            places: Rng::fork(plan.seed, "places").chance(2, 3),
            delay_max: Nanos::from_micros(devices.pick(&[0, 0, 50, 2_000])),
        });
        return cut(plan, &mut devices);
    }
    if !drawn {
        return add_guests(plan, &mut Rng::fork(plan.seed, "guests"));
    }
    plan.frontend = Frontend::Nbd(NbdShape {
        connections: rng.pick(&[1, 1, 2, 4]),
        delay_max: Nanos::from_micros(rng.pick(&[0, 50, 2_000, 100_000])),
        structured: rng.chance(2, 3),
        requests: rng.pick(&[1, 2, 64]),
        inflight_bytes: rng.pick(&[4096, 65_536, 64 << 20]),
        receive_bytes: rng.pick(&[64, 4096, 256 << 10]),
    });
    cut(plan, rng);
}

/// Lets clients be programs in virtual machines, in some of the plans.
fn add_guests(plan: &mut Plan, rng: &mut Rng) {
    if !rng.chance(1, 10) {
        return;
    }
    plan.frontend = Frontend::Vhost(VhostShape {
        queues: rng.pick(&[1, 1, 2, 4]),
        slots: rng.pick(&[1, 2, 16]),
        delay_max: Nanos::from_micros(rng.pick(&[0, 50, 2_000])),
        pieces: rng.pick(&[1, 2, 6]),
        indirect: rng.chance(1, 2),
        event_idx: rng.chance(2, 3),
        memory_bytes: rng.pick(&[4 << 20, 64 << 20]),
    });
    // No connection is cut here: a request that is carried out once more may undo what came
    // between, which guests permit and the oracle does not know. `tests/vhost.rs` cuts.
}

/// Cuts connections in half of the plans.
fn cut(plan: &mut Plan, rng: &mut Rng) {
    if rng.chance(1, 2) {
        for _ in 0..rng.between(1, 8) {
            let volume = rng.below(plan.volumes.len() as u64) as u32;
            super::faults::add_control(plan, ControlAction::Disconnect { volume }, rng);
        }
    }
}
