//! Devices of this machine that belong to sets, by their superblocks: `ubcache list`, and the same
//! in the control API. Blocking calls only.
//!
//! | module | holds |
//! |---|---|
//! | [`listed`] | what is listed |
//! | [`devices`] | finding devices, and reading what they are |
//! | [`users`] | the daemon or driver that has a device |

pub mod devices;
pub mod listed;
pub mod users;

use std::path::PathBuf;

use serde::Serialize;

pub use self::listed::ListProblem;
use self::listed::ListedDevice;
pub use self::users::Daemons;
use crate::ublk::listed::{ListedBlockDevice, all as all_block_devices};

/// The whole list.
#[derive(Serialize, Debug, utoipa::ToSchema)]
pub struct Listing {
    /// Devices with a superblock.
    pub devices: Vec<ListedDevice>,
    /// Block devices of the kernel that daemons serve, or that wait for theirs.
    pub block_devices: Vec<ListedBlockDevice>,
    /// Devices that could not be read, or not as they are.
    pub problems: Vec<ListProblem>,
}

impl Listing {
    /// Looks at all block devices of this machine, and at the files that daemons serve.
    pub fn of_machine((daemons, mut problems): (Daemons, Vec<ListProblem>)) -> Listing {
        let paths = devices::all(&daemons, &mut problems);
        // Without the driver, or without rights to it, there are none to tell of.
        let block_devices = all_block_devices().unwrap_or_default();
        Listing { block_devices, ..Listing::of(&paths, false, (daemons, problems)) }
    }

    /// Looks at these devices and files; one that is none of bcache's is a problem.
    pub fn of_paths(paths: &[PathBuf], found: (Daemons, Vec<ListProblem>)) -> Listing {
        Listing::of(paths, true, found)
    }

    fn of(
        paths: &[PathBuf],
        named: bool,
        (daemons, mut problems): (Daemons, Vec<ListProblem>),
    ) -> Listing {
        let mut devices: Vec<ListedDevice> = Vec::new();
        for path in paths {
            match devices::look(path, named) {
                Ok(None) => {}
                Ok(Some((mut device, misfit))) => {
                    device.user = daemons.user_of(path, &device);
                    device.witness = device.witness.filter(|_| device.user.is_none());
                    let twin = devices.iter().find(|other| other.uuid == device.uuid);
                    device.same_uuid_as = twin.map(|other| other.path.clone());
                    devices.push(device);
                    problems.extend(misfit.map(|why| ListProblem::new(path, &why)));
                }
                Err(why) => problems.push(ListProblem::new(path, &why)),
            }
        }
        Listing { devices, block_devices: Vec::new(), problems }
    }
}
