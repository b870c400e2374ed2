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

/// Puts NBD servers between clients and volumes in some of the plans, and cuts connections in some
/// of those.
pub(super) fn add_frontend(plan: &mut Plan, rng: &mut Rng) {
    if !rng.chance(1, 5) {
        return;
    }
    plan.frontend = Frontend::Nbd(NbdShape {
        connections: rng.pick(&[1, 1, 2, 4]),
        delay_max: Nanos::from_micros(rng.pick(&[0, 50, 2_000, 100_000])),
        structured: rng.chance(2, 3),
        requests: rng.pick(&[1, 2, 64]),
        inflight_bytes: rng.pick(&[4096, 65_536, 64 << 20]),
        receive_bytes: rng.pick(&[64, 4096, 256 << 10]),
    });
    if rng.chance(1, 2) {
        for _ in 0..rng.between(1, 8) {
            let volume = rng.below(plan.volumes.len() as u64) as u32;
            super::faults::add_control(plan, ControlAction::Disconnect { volume }, rng);
        }
    }
}
