//! The control device of the kernel's driver.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use ubcache_host::{control, wait_for_access};
use ubcache_ublk::abi::{CONTROL_ADDRESS_AT, ControlCommand};
use ubcache_ublk::{Control, ControlDevice, ControlError, DeviceInfo, Features};

use crate::failure::Failure;

/// The control device.
pub const CONTROL_DEVICE: &str = "/dev/ublk-control";

/// Directory of the devices.
const DEVICES: &str = "/dev";
const CHARACTER_DEVICE: &str = "ublkc";

/// The driver, opened.
pub struct Driver(OwnedFd);

impl Driver {
    /// Opens the control device.
    pub fn open() -> Result<Control<Driver>, Failure> {
        let path = Path::new(CONTROL_DEVICE);
        match File::options().read(true).write(true).open(path) {
            Ok(file) => Ok(Control(Driver(file.into()))),
            Err(error) => Err(not_opened(path, &error)),
        }
    }
}

impl ControlDevice for Driver {
    fn command(&self, code: u32, command: ControlCommand, data: &mut [u8]) -> i32 {
        let bytes = command.to_bytes();
        control(&self.0, code, bytes, CONTROL_ADDRESS_AT, data)
            .unwrap_or_else(|error| -error.raw_os_error().unwrap_or(EIO))
    }

    fn path(&self, device: u32) -> String {
        character_device(device).display().to_string()
    }

    fn wait_for_access(&self, device: u32) -> bool {
        wait_for_access(&character_device(device), ACCESS_PATIENCE).unwrap_or(false)
    }
}

/// Time that udev gets to give a user the device that the user has made.
const ACCESS_PATIENCE: Duration = Duration::from_secs(30);

const EIO: i32 = 5;

fn not_opened(path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::could_not_run(path, format_args!("can't be opened: {error}"));
    match error.kind() {
        io::ErrorKind::NotFound => failure
            .expected("a kernel with ublk: Linux 6.5 or later, with CONFIG_BLK_DEV_UBLK")
            .advice(
                "modprobe ublk_drv; `ubcache doctor` tells what this kernel has. NBD needs no \
                 driver: leave out --ublk",
            ),
        io::ErrorKind::PermissionDenied => {
            failure.expected("root, or a user to whom a rule of udev gives the device").advice(
                "run it as root; or install /usr/share/ubcache/67-ublk-users.rules, and join its \
                 group (docs/reference/ublk.md); or leave out --ublk: NBD needs no rights",
            )
        }
        _ => failure,
    }
}

/// A control command that failed, for the user.
pub fn refused(error: &ControlError) -> Failure {
    let path = Path::new(CONTROL_DEVICE);
    let failure = Failure::refused(path, error);
    if error.is_forbidden() {
        return failure.expected("root: CAP_SYS_ADMIN; or the user who made the device");
    }
    failure
}

/// Abilities of the driver.
pub fn features(driver: &Control<impl ControlDevice>) -> Result<Features, Failure> {
    driver.features().map_err(|error| {
        refused(&error).expected("the driver of Linux 6.5 or later").advice("use NBD")
    })
}

/// Use of a block device by others.
#[derive(Debug)]
pub enum Claim {
    /// Nobody can begin to use it as long as this is open.
    Own(File),
    /// It is mounted, or otherwise in use.
    Busy,
    /// It has gone, or can't be opened.
    None,
}

/// Claims a block device, if nobody else has.
pub fn claim(path: &Path) -> Claim {
    /// Of a block device that is in use the kernel refuses it.
    const O_EXCL: i32 = 0o200;
    match File::options().read(true).custom_flags(O_EXCL).open(path) {
        Ok(file) => Claim::Own(file),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Claim::Busy,
        Err(_) => Claim::None,
    }
}

/// Numbers of the devices that there are.
pub fn device_numbers() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(DEVICES) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let numbers = names.filter_map(|name| name.strip_prefix(CHARACTER_DEVICE)?.parse().ok());
    let mut numbers: Vec<u32> = numbers.collect();
    numbers.sort_unstable();
    numbers
}

/// All devices, as the driver knows them; to a user without CAP_SYS_ADMIN it shows the user's own.
pub fn devices(driver: &Control<Driver>) -> Result<Vec<DeviceInfo>, ControlError> {
    let found = device_numbers().into_iter().map(|number| driver.info(number));
    let own = found.filter(|found| !found.as_ref().is_err_and(ControlError::is_forbidden));
    own.filter_map(Result::transpose).collect()
}

/// Removes a device that has been stopped. Its number is free when nobody has it open any more,
/// which is waited for: a moment. Returns false if that was too short, as with a file system on a
/// device whose daemon is gone. Blocks.
pub fn delete(info: DeviceInfo) -> Result<bool, Failure> {
    let (done, wait) = std::sync::mpsc::channel();
    let removal = move || {
        let deleted =
            Driver::open().and_then(|driver| driver.delete(&info).map_err(|error| refused(&error)));
        // Nobody may wait any more.
        let _ = done.send(deleted);
    };
    std::thread::Builder::new().name("ublk-delete".to_owned()).spawn(removal).map_err(|error| {
        Failure::could_not_run(Path::new(CONTROL_DEVICE), format_args!("no thread: {error}"))
    })?;
    match wait.recv_timeout(DELETE_PATIENCE) {
        Ok(deleted) => deleted.map(|()| true),
        Err(_) => Ok(false),
    }
}

const DELETE_PATIENCE: Duration = Duration::from_secs(10);

/// Path of the block device.
pub fn block_device(number: u32) -> std::path::PathBuf {
    format!("{DEVICES}/ublkb{number}").into()
}

/// Path of the character device.
pub(crate) fn character_device(number: u32) -> std::path::PathBuf {
    format!("{DEVICES}/{CHARACTER_DEVICE}{number}").into()
}

/// Returns true if a process of this number runs.
pub fn is_running(pid: u32) -> bool {
    pid != 0 && Path::new(&format!("/proc/{pid}")).exists()
}
