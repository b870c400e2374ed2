//! Devices: making, starting, recovering and removing them.
//!
//! Every command may take its time, and some wait for others: START_DEV ends when all queues have
//! given their commands, DEL_DEV when nobody has the device open or mapped. So they are not for the
//! thread that serves requests.

use std::fmt;

use zerocopy::{FromBytes, IntoBytes};

use crate::abi::{ControlCommand, DeviceInfoRaw, control};
use crate::features::{Features, UNPRIVILEGED};
use crate::parameters::Parameters;

/// Number for "any device" and "no queue".
const ANY: u32 = u32::MAX;
const NO_QUEUE: u16 = u16::MAX;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EACCES: i32 = 13;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;

/// The control device of the driver. Blocks.
pub trait ControlDevice {
    /// Gives the driver a command with its data: a result, or a negative errno.
    fn command(&self, code: u32, command: ControlCommand, data: &mut [u8]) -> i32;

    /// Path of the character device of a device. Rights on it are what the driver asks for where
    /// the device was made by a user.
    fn path(&self, device: u32) -> String;

    /// Waits until the caller has these rights on a new device: a rule of udev gives them. Returns
    /// false if it takes too long.
    fn wait_for_access(&self, device: u32) -> bool;
}

/// A command that was refused.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct ControlError {
    /// Its name.
    pub command: &'static str,
    /// Number of the device; none: any.
    pub device: Option<u32>,
    /// The errno.
    pub errno: i32,
}

impl ControlError {
    /// There is no such device.
    pub fn is_missing(&self) -> bool {
        matches!(self.errno, ENODEV | ENOENT)
    }

    /// The device is not ready for this yet.
    pub fn is_busy(&self) -> bool {
        self.errno == EBUSY
    }

    /// A device has this number already.
    pub fn exists(&self) -> bool {
        self.errno == EEXIST
    }

    /// The caller may not do this.
    pub fn is_forbidden(&self) -> bool {
        matches!(self.errno, EPERM | EACCES)
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = std::io::Error::from_raw_os_error(self.errno);
        match self.device {
            Some(device) => write!(f, "{} of ublk device {device}: {error}", self.command),
            None => write!(f, "{}: {error}", self.command),
        }
    }
}

impl std::error::Error for ControlError {}

/// State of a device.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum DeviceState {
    /// It was made, and has no block device (any more).
    Dead,
    /// A server serves it.
    Live,
    /// Its server is gone, and requests wait for another one.
    Quiesced,
    /// Its server is gone, and requests fail until another one comes.
    FailIo,
    /// A state that is not known here.
    Other(u16),
}

impl DeviceState {
    fn from_raw(state: u16) -> DeviceState {
        match state {
            0 => DeviceState::Dead,
            1 => DeviceState::Live,
            2 => DeviceState::Quiesced,
            3 => DeviceState::FailIo,
            other => DeviceState::Other(other),
        }
    }

    /// The state in a word.
    pub fn word(self) -> &'static str {
        match self {
            DeviceState::Dead => "stopped",
            DeviceState::Live => "served",
            DeviceState::Quiesced => "waits for its daemon",
            DeviceState::FailIo => "fails until its daemon comes",
            DeviceState::Other(_) => "unknown",
        }
    }
}

/// A device, as the driver knows it.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// Its number: that of `/dev/ublkbN` and `/dev/ublkcN`.
    pub device: u32,
    /// Queues.
    pub queues: u16,
    /// Slots of a queue.
    pub depth: u16,
    /// State.
    pub state: DeviceState,
    /// The most bytes of a request.
    pub max_io_bytes: u32,
    /// Process that serves it, or did so last.
    pub pid: u32,
    /// Abilities that are used.
    pub features: Features,
    /// A number that its server has given it.
    pub identity: u64,
    /// User and group that made it.
    pub owner: (u32, u32),
}

impl DeviceInfo {
    /// A user without CAP_SYS_ADMIN made it.
    pub fn is_unprivileged(&self) -> bool {
        self.features.has(UNPRIVILEGED)
    }

    fn from_raw(raw: &DeviceInfoRaw) -> DeviceInfo {
        DeviceInfo {
            device: raw.device,
            queues: raw.queues,
            depth: raw.depth,
            state: DeviceState::from_raw(raw.state),
            max_io_bytes: raw.max_io_bytes,
            pid: u32::try_from(raw.pid).unwrap_or(0),
            features: Features(raw.flags),
            identity: raw.server_flags,
            owner: (raw.owner_uid, raw.owner_gid),
        }
    }
}

/// A device that is wanted.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct NewDevice {
    /// Its number; none: any that is free.
    pub device: Option<u32>,
    /// Queues.
    pub queues: u16,
    /// Slots of a queue.
    pub depth: u16,
    /// The most bytes of a request.
    pub max_io_bytes: u32,
    /// Abilities to use.
    pub features: Features,
    /// A number by which its server finds it again.
    pub identity: u64,
}

/// The driver, by its control device.
#[derive(Debug)]
pub struct Control<C>(pub C);

impl<C: ControlDevice> Control<C> {
    fn give(
        &self,
        (code, name): (u32, &'static str),
        device: Option<u32>,
        value: u64,
        data: &mut [u8],
    ) -> Result<(), ControlError> {
        let command = ControlCommand {
            device: device.unwrap_or(ANY),
            queue: NO_QUEUE,
            len: len_of(data),
            value,
            ..ControlCommand::default()
        };
        outcome(name, device, self.0.command(code, command, data))
    }

    /// Gives a command with the path of the device before its data.
    fn give_with_path(
        &self,
        (code, name): (u32, &'static str),
        device: u32,
        value: u64,
        data: &mut [u8],
    ) -> Result<(), ControlError> {
        let path = self.0.path(device).into_bytes();
        let mut all = [&path, &*data].concat();
        let command = ControlCommand {
            device,
            queue: NO_QUEUE,
            len: len_of(&all),
            value,
            path_len: len_of(&path),
            ..ControlCommand::default()
        };
        let result = self.0.command(code, command, &mut all);
        data.copy_from_slice(&all[path.len()..]);
        outcome(name, Some(device), result)
    }

    /// Gives a command for a device in the form that its kind needs.
    fn give_to(
        &self,
        command: (u32, &'static str),
        device: &DeviceInfo,
        value: u64,
        data: &mut [u8],
    ) -> Result<(), ControlError> {
        match device.is_unprivileged() {
            true => self.give_with_path(command, device.device, value, data),
            false => self.give(command, Some(device.device), value, data),
        }
    }

    /// Abilities of the driver. Refused by those before Linux 6.5.
    pub fn features(&self) -> Result<Features, ControlError> {
        let mut bits = [0; 8];
        self.give((control::GET_FEATURES, "GET_FEATURES"), None, 0, &mut bits)?;
        Ok(Features(u64::from_ne_bytes(bits)))
    }

    /// A device; none: there is none of this number. Forbidden for devices of others.
    pub fn info(&self, device: u32) -> Result<Option<DeviceInfo>, ControlError> {
        let mut data = [0; size_of::<DeviceInfoRaw>()];
        let command = (control::GET_DEV_INFO2, "GET_DEV_INFO2");
        match self.give_with_path(command, device, 0, &mut data) {
            Ok(()) => {}
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(error),
        }
        let raw = DeviceInfoRaw::read_from_bytes(&data).expect("as many bytes");
        Ok(Some(DeviceInfo::from_raw(&raw)))
    }

    /// Makes a device that has no block device yet.
    pub fn add(&self, wanted: &NewDevice) -> Result<DeviceInfo, ControlError> {
        let mut raw = DeviceInfoRaw {
            queues: wanted.queues,
            depth: wanted.depth,
            max_io_bytes: wanted.max_io_bytes,
            device: wanted.device.unwrap_or(ANY),
            flags: wanted.features.0,
            server_flags: wanted.identity,
            ..DeviceInfoRaw::default()
        };
        self.give((control::ADD_DEV, "ADD_DEV"), wanted.device, 0, raw.as_mut_bytes())?;
        Ok(DeviceInfo::from_raw(&raw))
    }

    /// Gives a new device its properties.
    pub fn set_parameters(
        &self,
        device: &DeviceInfo,
        parameters: &Parameters,
    ) -> Result<(), ControlError> {
        let mut data = parameters.to_bytes();
        self.give_to((control::SET_PARAMS, "SET_PARAMS"), device, 0, &mut data)
    }

    /// Its properties; none: they make no sense.
    pub fn parameters(&self, device: &DeviceInfo) -> Result<Option<Parameters>, ControlError> {
        let mut data = Parameters::room();
        self.give_to((control::GET_PARAMS, "GET_PARAMS"), device, 0, &mut data)?;
        Ok(Parameters::from_bytes(&data))
    }

    /// Makes the block device appear. Returns when all queues have their commands, and the kernel
    /// has looked for partitions.
    pub fn start(&self, device: &DeviceInfo, pid: u32) -> Result<(), ControlError> {
        let pid = u64::from(pid);
        self.give_to((control::START_DEV, "START_DEV"), device, pid, &mut [])
    }

    /// Makes the block device disappear: its requests fail.
    pub fn stop(&self, device: &DeviceInfo) -> Result<(), ControlError> {
        self.give_to((control::STOP_DEV, "STOP_DEV"), device, 0, &mut [])
    }

    /// Removes the device. Waits until nobody has its character device open or mapped.
    pub fn delete(&self, device: &DeviceInfo) -> Result<(), ControlError> {
        self.give_to((control::DEL_DEV, "DEL_DEV"), device, 0, &mut [])
    }

    /// Begins to serve a device whose server is gone. Busy until the kernel has noticed that.
    pub fn begin_recovery(&self, device: &DeviceInfo) -> Result<(), ControlError> {
        let command = (control::START_USER_RECOVERY, "START_USER_RECOVERY");
        self.give_to(command, device, 0, &mut [])
    }

    /// Ends that, when all queues have their commands: requests come again.
    pub fn end_recovery(&self, device: &DeviceInfo, pid: u32) -> Result<(), ControlError> {
        let command = (control::END_USER_RECOVERY, "END_USER_RECOVERY");
        self.give_to(command, device, u64::from(pid), &mut [])
    }

    /// Lets requests that come from now on wait in the kernel for the next server. The present one
    /// gets back the commands of idle slots, and answers what it has been given. The driver keeps
    /// all other commands for the device waiting meanwhile, up to so long.
    pub fn quiesce(&self, device: &DeviceInfo, patience_ms: u64) -> Result<(), ControlError> {
        let command = (control::QUIESCE_DEV, "QUIESCE_DEV");
        self.give_to(command, device, patience_ms, &mut [])
    }

    /// Changes the size of the block device.
    pub fn update_size(&self, device: &DeviceInfo, sectors: u64) -> Result<(), ControlError> {
        self.give_to((control::UPDATE_SIZE, "UPDATE_SIZE"), device, sectors, &mut [])
    }
}

fn len_of(data: &[u8]) -> u16 {
    u16::try_from(data.len()).expect("control data is short")
}

fn outcome(command: &'static str, device: Option<u32>, result: i32) -> Result<(), ControlError> {
    match result {
        code if code < 0 => Err(ControlError { command, device, errno: -code }),
        _ => Ok(()),
    }
}
