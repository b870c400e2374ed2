//! Users of devices: daemons, by what they report, and the kernel, by what sysfs says.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use ubcache_host::sysfs_directory;

use super::listed::{DeviceUser, ListProblem, ListedDevice};
use crate::backing::{is_same_uri, is_uri};
use crate::control::{denied, find_sockets, report};
use crate::served::report::SetReport;

/// All daemons of this machine that answer.
#[derive(Debug)]
pub struct Daemons(Vec<(PathBuf, Vec<SetReport>)>);

impl Daemons {
    /// Asks them; with the reasons why some could not be asked.
    pub fn find() -> (Daemons, Vec<ListProblem>) {
        Daemons::find_others(|_| false, Vec::new())
    }

    /// Asks the others, for the daemon at a control socket that has these sets.
    pub(crate) fn find_beside(socket: &Path, sets: Vec<SetReport>) -> (Daemons, Vec<ListProblem>) {
        let own = fs::metadata(socket).ok();
        let is_own = |other: &Path| {
            let other = fs::metadata(other).ok();
            own.as_ref().zip(other).is_some_and(|(own, other)| is_same(own, &other))
        };
        Daemons::find_others(is_own, vec![(socket.to_owned(), sets)])
    }

    fn find_others(
        is_known: impl Fn(&Path) -> bool,
        known: Vec<(PathBuf, Vec<SetReport>)>,
    ) -> (Daemons, Vec<ListProblem>) {
        let sockets = find_sockets();
        let mut problems: Vec<ListProblem> =
            sockets.denied.iter().map(|path| ListProblem::new(path, &denied(path))).collect();
        let mut daemons = known;
        for socket in sockets.live.into_iter().filter(|socket| !is_known(socket)) {
            match report(&socket) {
                Ok(report) => daemons.push((socket, report.sets)),
                Err(why) => problems.push(ListProblem::new(&socket, &why)),
            }
        }
        (Daemons(daemons), problems)
    }

    /// Files that they serve, by absolute paths.
    pub(super) fn files(&self) -> impl Iterator<Item = PathBuf> {
        let sets = self.0.iter().flat_map(|(_, sets)| sets);
        let paths = sets.flat_map(|set| paths(set).map(|(path, _)| PathBuf::from(path)));
        paths.filter(|path| path.is_absolute() && path.is_file())
    }

    /// User of a device.
    pub(super) fn user_of(&self, path: &Path, device: &ListedDevice) -> Option<DeviceUser> {
        if is_uri(path) {
            let has = |set: &SetReport| {
                paths(set).any(|(served, _)| is_same_uri(Path::new(served), path))
            };
            let daemon = self.0.iter().find(|(_, sets)| sets.iter().any(has));
            return daemon.map(|(socket, _)| DeviceUser::Ubcache { control: socket.clone() });
        }
        let metadata = fs::metadata(path).ok()?;
        let has = |set: &SetReport| {
            paths(set).any(|(served, uuid)| match Path::new(served) {
                served if served.is_absolute() => {
                    fs::metadata(served).is_ok_and(|served| is_same(&metadata, &served))
                }
                // Relative to a directory that only the daemon knows.
                _ => uuid == device.uuid || uuid == set.uuid && device.role == "cache",
            })
        };
        let daemon = self.0.iter().find(|(_, sets)| sets.iter().any(has));
        daemon
            .map(|(socket, _)| DeviceUser::Ubcache { control: socket.clone() })
            .or_else(|| kernel_user(&metadata))
    }
}

/// Paths of the devices of a set, with their UUIDs; the cache has that of the set.
fn paths(set: &SetReport) -> impl Iterator<Item = (&str, &str)> {
    let disks = set.volumes.iter().map(|it| (it.backing.path.as_str(), it.uuid.as_str()));
    std::iter::once((set.cache.path.as_str(), set.uuid.as_str())).chain(disks)
}

fn is_same(a: &Metadata, b: &Metadata) -> bool {
    let both_devices = a.file_type().is_block_device() && b.file_type().is_block_device();
    (a.dev(), a.ino()) == (b.dev(), b.ino()) || both_devices && a.rdev() == b.rdev()
}

/// Driver or block device that has a device, by sysfs.
fn kernel_user(metadata: &Metadata) -> Option<DeviceUser> {
    let sysfs = sysfs_directory(metadata)?;
    if sysfs.join("bcache").is_dir() {
        let above = fs::read_link(sysfs.join("bcache/dev")).ok();
        let device = above.and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
        return Some(DeviceUser::KernelBcache { device });
    }
    let mut holders = fs::read_dir(sysfs.join("holders")).ok()?;
    let holder = holders.find_map(Result::ok)?;
    Some(DeviceUser::BlockDevice { name: holder.file_name().to_string_lossy().into_owned() })
}
