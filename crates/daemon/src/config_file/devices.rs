//! Devices of this machine by path, or by UUID or label of their superblocks.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ubcache_format::{Superblock, Uuid};

use crate::backing::{BackingName, is_uri};
use crate::failure::Failure;
use crate::open::superblock::{ExpectedKind, parse, remote_cache};
use crate::open::target::{Access, Target};

/// Directories whose files are looked at instead of this machine's block devices.
pub const VARIABLE: &str = "UBCACHE_DEVICES";

/// Block devices without disks, which are not looked at.
const NO_DISKS: [&str; 4] = ["ram", "zram", "sr", "fd"];

/// Block devices behind which may be a daemon of ours. A read of one that waits for the next daemon
/// never ends if that daemon is the reader.
const SERVED_BY_DAEMONS: [&str; 2] = ["nbd", "ublkb"];

/// A device with a superblock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its path.
    pub path: PathBuf,
    /// UUID of the device.
    pub uuid: Uuid,
    /// UUID of its set.
    pub set_uuid: Uuid,
    /// Its label.
    pub label: String,
    /// True for a cache device.
    pub is_cache: bool,
}

/// The devices of this machine, at the moment when the first of them is asked for: disks that sleep
/// are not woken for paths.
#[derive(Clone, Debug, Default)]
pub struct Lookup(OnceLock<Vec<Found>>);

/// Use of a device.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Use {
    /// The cache of a set, also by the UUID of the set.
    Cache,
    /// A backing device.
    Backing,
}

impl Lookup {
    /// All devices with superblocks: of all block devices, or of the files in the directories of
    /// `UBCACHE_DEVICES`.
    pub fn devices(&self) -> &[Found] {
        self.0.get_or_init(Lookup::look)
    }

    fn look() -> Vec<Found> {
        let paths = match std::env::var_os(VARIABLE) {
            Some(directories) => std::env::split_paths(&directories)
                .flat_map(|directory| entries(&directory))
                .filter(|path| path.is_file())
                .collect(),
            None => block_devices(),
        };
        paths.iter().filter_map(|path| look_at(path)).collect()
    }

    /// The path of a device that a file names.
    pub fn find(&self, text: &str, wanted: Use) -> Result<PathBuf, Failure> {
        let is_it: &dyn Fn(&Found) -> bool = match text.split_once('=') {
            Some(("UUID", uuid)) => &move |found: &Found| {
                let is = |it: Uuid| it.to_string().eq_ignore_ascii_case(uuid);
                is(found.uuid) || wanted == Use::Cache && is(found.set_uuid)
            },
            Some(("LABEL", label)) => &move |found: &Found| found.label == label,
            _ => {
                let path = PathBuf::from(text);
                if is_uri(&path) {
                    if wanted == Use::Cache {
                        return Err(remote_cache(&path));
                    }
                    return BackingName::parse(&path).map(|_| path);
                }
                return match path.try_exists() {
                    Ok(false) => Err(Failure::could_not_run(&path, "there is no such device")),
                    // Any other fault of it shows when it is opened.
                    _ => Ok(path),
                };
            }
        };
        let fits = |found: &&Found| found.is_cache == (wanted == Use::Cache) && is_it(found);
        let fitting: Vec<&Found> = self.devices().iter().filter(fits).collect();
        let kind = if wanted == Use::Cache { "cache" } else { "backing" };
        match fitting.as_slice() {
            [found] => Ok(found.path.clone()),
            [] => Err(Failure::could_not_run(
                Path::new(text),
                format_args!("no {kind} device of this machine has it in its superblock"),
            )
            .advice("`ubcache show DEVICE` prints what a device has")),
            several => {
                let paths: Vec<String> =
                    several.iter().map(|found| found.path.display().to_string()).collect();
                Err(Failure::refused(Path::new(text), "more than one device has it")
                    .found(paths.join(", "))
                    .expected("one device: copies of a device can't be told apart")
                    .advice("name the device by its path"))
            }
        }
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn block_devices() -> Vec<PathBuf> {
    let has_bytes = |node: &Path| {
        std::fs::read_to_string(node.join("size")).is_ok_and(|size| size.trim() != "0")
    };
    let nodes = entries(Path::new("/sys/class/block"));
    let nodes = nodes.iter().filter(|node| {
        !is_one_of(&NO_DISKS, node) && has_bytes(node) && !lies_over(&SERVED_BY_DAEMONS, node)
    });
    nodes.map(|node| Path::new("/dev").join(node.file_name().unwrap_or_default())).collect()
}

/// Returns true if a directory of sysfs is that of a block device, or a partition of one, whose
/// name is one of these and a number.
fn is_one_of(names: &[&str], node: &Path) -> bool {
    let name = node.file_name().unwrap_or_default().to_string_lossy().into_owned();
    names.iter().any(|prefix| {
        name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    })
}

/// Returns true if a block device, by its directory in sysfs, has one of these names and a number,
/// or lies over such a device, as a logical volume, an encrypted disk or an array does.
pub(crate) fn lies_over(names: &[&str], node: &Path) -> bool {
    is_one_of(names, node)
        || entries(&node.join("slaves")).iter().any(|below| lies_over(names, below))
}

pub(super) fn look_at(path: &Path) -> Option<Found> {
    let target = Target::open(path, Access::Look).ok()?;
    let bytes = target.read_superblock_bytes().ok()?;
    let superblock: Superblock = parse(&target, &bytes, ExpectedKind::Any).ok()?;
    Some(Found {
        path: path.to_owned(),
        uuid: superblock.uuid,
        set_uuid: superblock.set_uuid,
        label: superblock.label_str(),
        is_cache: superblock.is_cache(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_over_a_block_device_of_a_daemon_are_left_out() {
        let sysfs = tempfile::tempdir().expect("a directory");
        for below in ["ublkb0", "ublkb0p1", "sda/slaves", "dm-0/slaves/ublkb0p1"] {
            std::fs::create_dir_all(sysfs.path().join(below)).expect("a directory");
        }
        for below in ["dm-1/slaves", "dm-2/slaves", "md0/slaves"] {
            std::fs::create_dir_all(sysfs.path().join(below)).expect("a directory");
        }
        for (above, below) in [("dm-1", "dm-0"), ("dm-2", "sda"), ("md0", "dm-1")] {
            let link = sysfs.path().join(above).join("slaves").join(below);
            std::os::unix::fs::symlink(sysfs.path().join(below), link).expect("a link");
        }
        let may_wait = |name: &str| lies_over(&SERVED_BY_DAEMONS, &sysfs.path().join(name));
        for name in ["ublkb0", "ublkb0p1", "dm-0", "dm-1", "md0"] {
            assert!(may_wait(name), "{name}");
        }
        for name in ["sda", "dm-2"] {
            assert!(!may_wait(name), "{name}");
        }
    }
}
