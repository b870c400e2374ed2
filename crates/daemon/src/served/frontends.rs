//! Frontends of exports, as the report shows them.

use ubcache_env::Task;

use super::daemon::Daemon;
use super::frontend_report::{BlockDeviceReport, FrontendsReport, GuestReport, RingReport};
use super::world::World;
use crate::ublk::device::BlockDevice;
use crate::vhost_user::socket::GuestSocket;

impl From<&BlockDevice> for BlockDeviceReport {
    fn from(device: &BlockDevice) -> BlockDeviceReport {
        let state = match (device.requests.is_held(), device.queues.iter().all(Task::is_finished)) {
            (_, true) => "ended",
            (true, false) => "held",
            (false, false) => "served",
        };
        let abilities = device.info.features.used().filter(|(_, used)| *used);
        BlockDeviceReport {
            path: device.path().display().to_string(),
            device: device.info.device,
            state: state.to_owned(),
            queues: device.info.queues.into(),
            depth: device.info.depth.into(),
            abilities: abilities.map(|(ability, _)| ability.name.to_owned()).collect(),
            recovered: device.recovered,
            in_flight: device.requests.in_flight().into(),
        }
    }
}

impl From<&GuestSocket> for GuestReport {
    fn from(socket: &GuestSocket) -> GuestReport {
        let disk = socket.control.disk().unwrap_or_default();
        let rings = disk.rings.iter().map(|ring| RingReport {
            queue: ring.queue.into(),
            size: ring.size.into(),
            in_flight: ring.in_flight,
            broken: ring.broken,
        });
        let rings: Vec<RingReport> = rings.collect();
        GuestReport {
            socket: socket.path.display().to_string(),
            connected: socket.is_connected(),
            features: disk.features.iter().map(|&feature| feature.to_owned()).collect(),
            queues: rings.len() as u64,
            broken_queues: rings.iter().filter(|ring| ring.broken).count() as u64,
            in_flight: rings.iter().map(|ring| ring.in_flight).sum(),
            reissued: socket.counters.reissued(),
            rings,
        }
    }
}

impl<W: World> Daemon<W> {
    /// The frontends of an export.
    pub(crate) fn frontends(&self, export: &str) -> FrontendsReport {
        let (devices, sockets) = (self.block_devices(), self.guest_sockets());
        let devices = devices.iter().filter(|device| device.export == export);
        let sockets = sockets.iter().filter(|socket| socket.export == export);
        FrontendsReport {
            ublk: devices.map(|device| BlockDeviceReport::from(&**device)).collect(),
            vhost_user: sockets.map(|socket| GuestReport::from(&**socket)).collect(),
        }
    }
}
