//! Finding, making and recovering of a device.

use std::path::Path;
use std::time::Duration;

use ubcache_format::Uuid;
use ubcache_ublk::control::NewDevice;
use ubcache_ublk::features::{UPDATE_SIZE, USER_COPY, USER_RECOVERY};
use ubcache_ublk::{Control, ControlDevice, DeviceInfo, DeviceState, Features, Parameters};

use super::driver::{Driver, block_device, character_device, devices, is_running, refused};
use super::options::UblkOptions;
use super::record;
use crate::failure::Failure;
use crate::log::STATE;

/// The most bytes of a read or write.
pub(super) const IO_BYTES_MAX: u32 = 1 << 20;
/// Without user copy every slot has memory for the longest request.
const COPIED_IO_BYTES_MAX: u32 = 256 << 10;

/// Time that the kernel gets to notice the end of the former daemon, whose I/O has to end before.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(30);
const RECOVERY_PAUSE: Duration = Duration::from_millis(10);

/// The chain of starts of a set, each of which has every write that the one before has answered.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Lineage {
    /// It has this number.
    Of(u64),
    /// There is no kept memory, so each start is alone.
    Unknown,
    /// There is no cache that could have more than the disk.
    Uncached,
}

/// A device that is wanted for a volume.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) export: String,
    pub(super) device: Option<u32>,
    pub(super) identity: u64,
    pub(super) parameters: Parameters,
    pub(super) lineage: Lineage,
    pub(super) options: UblkOptions,
}

/// A device that waits for the commands of its queues.
#[derive(Copy, Clone, Debug)]
pub(super) struct Prepared {
    pub(super) info: DeviceInfo,
    /// It was served before, and its requests wait.
    pub(super) recovered: bool,
    /// It has to become larger: the sectors.
    grow: Option<u64>,
}

/// The number by which a device is known as that of a volume.
pub(super) fn identity_of(volume: Uuid) -> u64 {
    let halves = volume.0.split_at(8);
    let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
    // Never 0, which is what other servers leave it at.
    (number(halves.0) ^ number(halves.1)) | 1
}

/// Another process serves the device.
fn is_served(info: &DeviceInfo) -> bool {
    info.state == DeviceState::Live && info.pid != std::process::id() && is_running(info.pid)
}

fn max_io_bytes(features: Features) -> u32 {
    if features.has(USER_COPY) { IO_BYTES_MAX } else { COPIED_IO_BYTES_MAX }
}

/// A version of Linux as numbers.
fn version(text: &str) -> Vec<u32> {
    text.split('.').filter_map(|part| part.parse().ok()).collect()
}

impl Wanted {
    /// Finds the device of the volume, or makes one. Blocks.
    pub(super) fn prepare(&self) -> Result<Prepared, Failure> {
        let driver = Driver::open()?;
        let known = devices(&driver).map_err(|error| refused(&error))?;
        if let Some(other) = self.taken_by_another(&known) {
            return Err(other);
        }
        match known.iter().find(|info| info.identity == self.identity) {
            Some(info) if info.state == DeviceState::Dead => self.make_anew(&driver, info),
            Some(info) if !info.features.has(USER_RECOVERY) && !is_served(info) => {
                // The kernel may not have noticed yet that its daemon is gone.
                driver.stop(info).map_err(|error| refused(&error))?;
                self.make_anew(&driver, info)
            }
            Some(info) => self.recover(&driver, info),
            None => self.make(&driver),
        }
    }

    /// Makes a device in the place of one that has ended.
    fn make_anew(
        &self,
        driver: &Control<impl ControlDevice>,
        old: &DeviceInfo,
    ) -> Result<Prepared, Failure> {
        if !super::driver::delete(*old)? {
            tracing::warn!(
                target: STATE,
                export = self.export,
                device = %block_device(old.device).display(),
                "a former device of the volume has ended, and is still in use: unmount what is \
                 mounted on it. The volume gets another one"
            );
        }
        self.make(driver)
    }

    /// The wanted number is that of another device.
    fn taken_by_another(&self, known: &[DeviceInfo]) -> Option<Failure> {
        let device = self.device?;
        let own = known.iter().find(|info| info.identity == self.identity);
        if let Some(own) = own.filter(|own| own.device != device && own.state != DeviceState::Dead)
        {
            let path = block_device(own.device);
            let failure = Failure::refused(&path, "the volume has this device already")
                .found(format_args!("\"{}\", state: {}", self.export, own.state.word()))
                .expected(format_args!("device {device}, as chosen by --ublk"))
                .advice(format_args!(
                    "use it: --ublk {}={}; or end it: ubcache ublk remove {}",
                    self.export, own.device, own.device
                ));
            return Some(failure);
        }
        let other = known.iter().find(|info| info.device == device)?;
        if other.identity == self.identity {
            return None;
        }
        Some(
            Failure::refused(&block_device(device), "the number is in use")
                .found(format_args!(
                    "a device of another volume or program, state: {}, process {}",
                    other.state.word(),
                    other.pid
                ))
                .expected(format_args!("a free number, or the device of \"{}\"", self.export))
                .advice(format_args!(
                    "choose another number, or none; `ubcache ublk list` shows all devices, and \
                     `ubcache ublk remove {device}` ends this one"
                )),
        )
    }

    fn make(&self, driver: &Control<impl ControlDevice>) -> Result<Prepared, Failure> {
        let (has, off) = (super::driver::features(driver)?, self.options.without);
        let features = has.of_device(off);
        self.check_required(features, "this kernel's driver")?;
        let info = match driver.add(&self.new_device(features)) {
            Ok(info) => info,
            Err(error) if error.exists() => return Err(self.number_of_somebody()),
            Err(error) if error.is_forbidden() => match has.of_unprivileged_device(off) {
                Some(features) => self.add_as_user(driver, features)?,
                None => return Err(refused(&error)),
            },
            Err(error) => return Err(refused(&error)),
        };
        let max_io_bytes = max_io_bytes(info.features);
        let parameters = Parameters { max_io_bytes, ..self.parameters };
        if let Err(error) = driver.set_parameters(&info, &parameters) {
            // The first error is what counts.
            let _ = driver.delete(&info);
            return Err(refused(&error));
        }
        Ok(Prepared { info, recovered: false, grow: None })
    }

    /// Makes a device without CAP_SYS_ADMIN. All further commands need rights on its character
    /// device.
    fn add_as_user(
        &self,
        driver: &Control<impl ControlDevice>,
        features: Features,
    ) -> Result<DeviceInfo, Failure> {
        self.check_required(features, "a device that is made without CAP_SYS_ADMIN")?;
        let info = driver.add(&self.new_device(features)).map_err(|error| {
            if error.exists() { self.number_of_somebody() } else { refused(&error) }
        })?;
        if driver.0.wait_for_access(info.device) {
            return Ok(info);
        }
        let path = character_device(info.device);
        Err(Failure::refused(&path, "the device was made, and is not given to its user")
            .expected("a rule of udev that does")
            .advice(format_args!(
                "install /usr/share/ubcache/67-ublk-users.rules in /etc/udev/rules.d; as root: \
                 `ubcache ublk remove {}`; or run it as root, or leave out --ublk",
                info.device
            )))
    }

    fn new_device(&self, features: Features) -> NewDevice {
        NewDevice {
            device: self.device,
            queues: self.options.queues,
            depth: self.options.depth,
            max_io_bytes: max_io_bytes(features),
            features,
            identity: self.identity,
        }
    }

    /// Refuses a new device without the abilities that `--ublk-require` names.
    fn check_required(&self, has: Features, of: &str) -> Result<(), Failure> {
        let newest = |text: &&str| version(text);
        let since = has.lacks(self.options.require).map(|it| it.since).max_by_key(newest);
        let Some(since) = since else { return Ok(()) };
        Err(self.lacks_required(has, of).advice(format_args!(
            "run Linux {since} or later, as root; or require less; `ubcache doctor` tells what \
             this kernel has"
        )))
    }

    fn lacks_required(&self, has: Features, of: &str) -> Failure {
        let missing: Vec<&str> = has.lacks(self.options.require).map(|it| it.name).collect();
        let subject = format!("block device of \"{}\"", self.export);
        Failure::refused_because(subject, format_args!("{of} lacks {}", missing.join(", ")))
            .found(format_args!("the abilities {has}"))
            .expected(format_args!("{}, as --ublk-require says", self.options.require))
    }

    /// The number is that of a device which the driver does not show to this user.
    fn number_of_somebody(&self) -> Failure {
        let path = block_device(self.device.unwrap_or_default());
        Failure::refused(&path, "the number is in use")
            .found("a device of another user, or a former one that is still mounted")
            .expected(format_args!("a free number, or the device of \"{}\"", self.export))
            .advice("choose another number, or none; as root `ubcache ublk list` shows all devices")
    }

    /// Begins to serve a device whose daemon is gone.
    fn recover(
        &self,
        driver: &Control<impl ControlDevice>,
        info: &DeviceInfo,
    ) -> Result<Prepared, Failure> {
        let path = block_device(info.device);
        if is_served(info) {
            return Err(Failure::refused(&path, "another daemon serves the volume there")
                .found(format_args!("process {}", info.pid))
                .expected("no other daemon of this set")
                .advice("stop that one first: ubcache stop"));
        }
        let is_same = match self.lineage {
            Lineage::Of(number) => record::lineage_of(info.device) == Some(number),
            Lineage::Unknown => false,
            Lineage::Uncached => true,
        };
        if !is_same {
            return Err(Failure::refused(&path, "it can't be served again")
                .found(
                    "the former daemon was killed, and the kept memory with its last writes is \
                     missing or of another run: what it has answered may be lost",
                )
                .expected(
                    "the file SET-UUID.kept beside the control socket, as that daemon has left it",
                )
                .advice(format_args!(
                    "unmount {}, `ubcache ublk remove {} --force`, start again, and check the \
                     file system (fsck) before it is mounted",
                    path.display(),
                    info.device
                )));
        }
        if info.features.lacks(self.options.require).next().is_some() {
            let of = format!("{}, made by a former daemon,", path.display());
            return Err(self.lacks_required(info.features, &of).advice(format_args!(
                "unmount it, `ubcache ublk remove {}`, and start again: a new one has what this \
                 kernel has",
                info.device
            )));
        }
        let grow = self.fits(driver, info, &path)?;
        self.begin(driver, info, &path)?;
        Ok(Prepared { info: *info, recovered: true, grow })
    }

    /// Waits until the kernel has noticed that the former daemon is gone.
    fn begin(
        &self,
        driver: &Control<impl ControlDevice>,
        info: &DeviceInfo,
        path: &Path,
    ) -> Result<(), Failure> {
        let end = std::time::Instant::now() + RECOVERY_PATIENCE;
        loop {
            match driver.begin_recovery(info) {
                Ok(()) => return Ok(()),
                // Nothing tells when it has.
                Err(error) if error.is_busy() && std::time::Instant::now() < end => {
                    std::thread::sleep(RECOVERY_PAUSE);
                }
                Err(error) => {
                    return Err(Failure::refused(path, error)
                        .found("a device of this volume that can't be served again")
                        .advice(format_args!(
                            "if nothing uses it: ubcache ublk remove {}",
                            info.device
                        )));
                }
            }
        }
    }

    /// Compares the device with the volume: the size that it has to grow to, if any.
    fn fits(
        &self,
        driver: &Control<impl ControlDevice>,
        info: &DeviceInfo,
        path: &Path,
    ) -> Result<Option<u64>, Failure> {
        let has = driver.parameters(info).map_err(|error| refused(&error))?;
        let wants = &self.parameters;
        let remove = format!("if nothing uses it: ubcache ublk remove {}", info.device);
        let Some(has) = has.filter(|has| has.logical_bytes == wants.logical_bytes) else {
            let found = has.map_or("no sense".to_owned(), |it| it.logical_bytes.to_string());
            return Err(Failure::refused(path, "its blocks are not those of the volume")
                .found(format_args!("{found} bytes"))
                .expected(format_args!("{} bytes", wants.logical_bytes))
                .advice(remove));
        };
        match has.sectors.cmp(&wants.sectors) {
            std::cmp::Ordering::Equal => Ok(None),
            std::cmp::Ordering::Less if info.features.has(UPDATE_SIZE) => Ok(Some(wants.sectors)),
            _ => Err(Failure::refused(path, "it has not the size of the volume")
                .found(format_args!("{} sectors", has.sectors))
                .expected(format_args!("{} sectors", wants.sectors))
                .advice(remove)),
        }
    }
}

impl Prepared {
    /// Lets requests come, when all queues have given their commands or are about to. Blocks.
    pub(super) fn go(&self) -> Result<(), Failure> {
        let (driver, info) = (Driver::open()?, &self.info);
        let pid = std::process::id();
        let gone = match self.recovered {
            true => driver.end_recovery(info, pid),
            false => driver.start(info, pid),
        };
        gone.map_err(|error| refused(&error))?;
        match self.grow {
            Some(sectors) => driver.update_size(info, sectors).map_err(|error| refused(&error)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
