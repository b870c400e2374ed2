//! Devices of this machine, and what their superblocks say.

use std::fs;
use std::path::{Path, PathBuf};

use ubcache_format::{BackingState, Superblock, Uuid};

use super::listed::{ListProblem, ListedDevice};
use super::users::Daemons;
use crate::config_file::devices::lies_over;
use crate::failure::Failure;
use crate::open::header::{FoundHeader, find_header, header_of, witness_word};
use crate::open::probe::BCACHE_MAGIC;
use crate::open::superblock::{ExpectedKind, parse};
use crate::open::target::{Access, SUPERBLOCK_AT, SUPERBLOCK_BYTES, Target};

/// All block devices with a size, and the files that daemons serve.
pub(super) fn all(daemons: &Daemons, problems: &mut Vec<ListProblem>) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    match fs::read_dir("/sys/class/block") {
        Ok(entries) => {
            for entry in entries.filter_map(Result::ok) {
                match node(&entry.path()) {
                    Ok(node) => paths.extend(node),
                    Err(why) => problems.push(why),
                }
            }
        }
        Err(error) => {
            let path = Path::new("/sys/class/block");
            let why = format_args!("can't list the block devices: {error}");
            problems.push(ListProblem::new(path, &Failure::refused(path, why)));
        }
    }
    paths.extend(daemons.files());
    paths.sort();
    paths.dedup();
    paths
}

/// The node of a block device, by its directory in sysfs; none if it has no content: a loop device
/// without a file, a drive without a medium. Those of ublk are left out: volumes, not devices.
fn node(sysfs: &Path) -> Result<Option<PathBuf>, ListProblem> {
    let read = |name: &str| fs::read_to_string(sysfs.join(name)).unwrap_or_default();
    if read("size").trim() == "0" {
        return Ok(None);
    }
    let uevent = read("uevent");
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let Some(name) = name else { return Ok(None) };
    // A read of a block device of ublk that waits for its daemon waits as well.
    if lies_over(&["ublkb"], sysfs) {
        return Ok(None);
    }
    let node = Path::new("/dev").join(name);
    // A read would wait until the device is resumed.
    if read("dm/suspended").trim() == "1" {
        let why = Failure::refused(&node, "not read: the device is suspended")
            .advice("`dmsetup resume` ends that");
        return Err(ListProblem::new(&node, &why));
    }
    Ok(Some(node))
}

/// A device and its superblock; nothing if it has none and need not have one. With it comes the
/// reason why it could not be served.
pub(super) fn look(
    path: &Path,
    named: bool,
) -> Result<Option<(ListedDevice, Option<Failure>)>, Failure> {
    let target = Target::open(path, Access::Look)?;
    target.forget_superblock();
    let mut bytes = vec![0; SUPERBLOCK_BYTES];
    let count = target.read_some(SUPERBLOCK_AT, &mut bytes)?;
    if bytes[24..40] != BCACHE_MAGIC {
        // The content of a disk that is not named is not read.
        let has_header = named || header_of(&target)?.is_some();
        let header = if has_header { find_header(&target, &[], None)? } else { None };
        if let Some(header) = header {
            return adopted(&target, &header).map(|device| Some((device, None)));
        }
        if !named {
            return Ok(None);
        }
    }
    let superblock = parse(&target, &bytes[..count], ExpectedKind::Any)?;
    let misfit = superblock.check_device(target.sectors(), target.logical_block_bytes).err();
    let misfit = misfit
        .map(|error| Failure::refused(path, "the superblock does not fit the device").found(error));
    Ok(Some((listed(&target, &superblock), misfit)))
}

fn adopted(target: &Target, header: &FoundHeader) -> Result<ListedDevice, Failure> {
    let witness = Some(witness_word(header, target)?);
    let path = Some(header.path.clone());
    Ok(ListedDevice { header: path, witness, ..listed(target, &header.superblock) })
}

fn listed(target: &Target, superblock: &Superblock) -> ListedDevice {
    let is_cache = superblock.is_cache();
    let state = match (is_cache, superblock.state()) {
        (true, _) => ["new", "started"][usize::from(superblock.sync())],
        (false, BackingState::Clean) => "clean",
        (false, BackingState::Dirty) => "dirty",
        (false, BackingState::Stale) => "stale",
        (false, BackingState::None) if superblock.set_uuid == Uuid::default() => "detached",
        (false, BackingState::None) => "not attached",
    };
    let label = superblock.label_str();
    let has_set = superblock.set_uuid != Uuid::default();
    ListedDevice {
        path: target.path.clone(),
        kind: target.kind(),
        role: if is_cache { "cache" } else { "backing" },
        set_uuid: has_set.then(|| superblock.set_uuid.to_string()),
        uuid: superblock.uuid.to_string(),
        label: (!is_cache && !label.is_empty()).then_some(label),
        state,
        mode: (!is_cache).then(|| superblock.cache_mode().sysfs_word()),
        size_bytes: target.bytes,
        header: None,
        witness: None,
        user: None,
        same_uuid_as: None,
    }
}
