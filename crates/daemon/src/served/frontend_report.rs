//! The part of the report that is about frontends: block devices of the kernel, and sockets for
//! virtual machines.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Frontends of an export, beside NBD.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct FrontendsReport {
    /// Block devices of the kernel.
    pub ublk: Vec<BlockDeviceReport>,
    /// Sockets for virtual machines.
    pub vhost_user: Vec<GuestReport>,
}

/// A block device of the kernel.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct BlockDeviceReport {
    /// Its path.
    pub path: String,
    /// Its number.
    pub device: u32,
    /// `served`, `held` for another program, or `ended`: the driver takes no commands any more.
    pub state: String,
    /// Its queues.
    pub queues: u64,
    /// Requests that each of them holds.
    pub depth: u64,
    /// Abilities of the driver that it uses.
    pub abilities: Vec<String>,
    /// A former daemon made it, and this one goes on with it.
    pub recovered: bool,
    /// Requests that are being carried out.
    pub in_flight: u64,
}

/// A socket for virtual machines, and the guest that is connected to it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct GuestReport {
    /// Its path.
    pub socket: String,
    /// A guest is connected.
    pub connected: bool,
    /// Features that its driver and the disk have agreed on.
    pub features: Vec<String>,
    /// Queues that are served.
    pub queues: u64,
    /// Those of them that are not served until the guest resets the disk: it made a mistake.
    pub broken_queues: u64,
    /// Requests that are being carried out.
    pub in_flight: u64,
    /// Requests of a former connection that had no answer and were carried out again.
    pub reissued: u64,
    /// The rings of the queues that are served.
    pub rings: Vec<RingReport>,
}

/// A ring of a guest.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct RingReport {
    /// Number of its queue.
    pub queue: u64,
    /// Its descriptors.
    pub size: u64,
    /// Requests that are being carried out.
    pub in_flight: u64,
    /// It is not served until the guest resets the disk.
    pub broken: bool,
}

/// Numbers of one frontend of an export, for metrics: of its block devices, or of its sockets for
/// guests.
pub(super) struct Frontend {
    pub(super) name: &'static str,
    pub(super) connected: u64,
    pub(super) queues: u64,
    pub(super) broken_queues: u64,
    pub(super) in_flight: u64,
    pub(super) reissued: u64,
}

impl Frontend {
    /// Those that an export has.
    pub(super) fn all(report: &FrontendsReport) -> impl Iterator<Item = Frontend> {
        let (devices, guests) = (&report.ublk, &report.vhost_user);
        let ublk = Frontend {
            name: "ublk",
            connected: devices.iter().filter(|it| it.state == "served").count() as u64,
            queues: devices.iter().map(|it| it.queues).sum(),
            broken_queues: 0,
            in_flight: devices.iter().map(|it| it.in_flight).sum(),
            // The driver gives them as it gives new ones.
            reissued: 0,
        };
        let vhost_user = Frontend {
            name: "vhost-user",
            connected: guests.iter().filter(|it| it.connected).count() as u64,
            queues: guests.iter().map(|it| it.queues).sum(),
            broken_queues: guests.iter().map(|it| it.broken_queues).sum(),
            in_flight: guests.iter().map(|it| it.in_flight).sum(),
            reissued: guests.iter().map(|it| it.reissued).sum(),
        };
        let all = [(!devices.is_empty(), ublk), (!guests.is_empty(), vhost_user)];
        all.into_iter().filter_map(|(is_there, frontend)| is_there.then_some(frontend))
    }
}
