//! Block devices of the volumes of a set: made at the start, and as volumes come and go.

use std::rc::Rc;

use ubcache_engine::Exported;
use ubcache_env::local::join_all;
use ubcache_env::{Priority, StreamId, Task, Volume};
use ubcache_format::Uuid;
use ubcache_host::HostCommands;
use ubcache_ublk::abi::{IoDescriptor, descriptors_at};
use ubcache_ublk::features::{AUTO_PLACES, UPDATE_SIZE, USER_COPY};
use ubcache_ublk::{Pace, Parameters, QueueEnd, QueueOptions, Requests, serve_queue};

use super::device::{BlockDevice, DeviceEnd, InUse, control, delete_device};
use super::driver::{block_device, character_device};
use super::record::{self, Record};
use super::start::{IO_BYTES_MAX, Lineage, Prepared, Wanted, identity_of};
use crate::control::refusal::{Kind, Refusal};
use crate::failure::Failure;
use crate::log::STATE;
use crate::served::daemon::Daemon;
use crate::served::world::World;

/// Streams of devices; connections count from 1.
const FIRST_STREAM: u64 = 1 << 48;

const PAGE_BYTES: usize = 4096;

/// A volume for which a device is started.
struct Source {
    export: String,
    label: String,
    uuid: Uuid,
}

impl<W: World> Daemon<W> {
    /// The block devices that are served.
    pub fn block_devices(&self) -> Vec<Rc<BlockDevice>> {
        self.block_devices.borrow().clone()
    }

    /// Makes block devices for all volumes that get one and have none. A volume whose device can't
    /// be made is served without it.
    ///
    /// # Errors
    /// None could be made.
    pub(crate) async fn start_block_devices(&self) -> Result<(), Failure> {
        let options = &self.config.ublk;
        if options.exports.is_empty() {
            return Ok(());
        }
        if let Some(names) = options.impossible() {
            return Err(Failure::usage(format_args!("--ublk-require {names}"), "can't be had")
                .found(format_args!("--ublk-without {}", options.without))
                .expected("abilities of a device made by root that are not switched off"));
        }
        let sources = self.sources();
        if let Some(number) = options.ambiguous(sources.len()) {
            let names: Vec<&str> = sources.iter().map(|it| it.export.as_str()).collect();
            return Err(Failure::usage(format_args!("--ublk {number}"), "several volumes")
                .found(names.join(", "))
                .expected("a number for one of them, as in --ublk NAME=NUMBER"));
        }
        for chosen in options.exports.iter().filter_map(|it| it.export.as_deref()) {
            if !sources.iter().any(|source| source.export == chosen)
                && !self.down.borrow().iter().any(|down| down.name == chosen)
            {
                let names: Vec<&str> = sources.iter().map(|it| it.export.as_str()).collect();
                return Err(Failure::usage(format_args!("--ublk {chosen}"), "no such export")
                    .expected(format_args!("one of {}", names.join(", "))));
            }
        }
        let mut failures = Vec::new();
        let had_none = self.block_devices.borrow().is_empty();
        for source in sources {
            if let Err(failure) = self.start_block_device(&source).await {
                failures.push((source.export, failure));
            }
        }
        if self.block_devices.borrow().is_empty()
            && let Some((_, failure)) = failures.pop()
        {
            return Err(failure);
        }
        for (export, failure) in failures {
            tracing::error!(target: STATE, export, "served without its block device: {failure:#}");
        }
        if had_none && let Err(error) = ubcache_host::memory::is_io_flusher() {
            tracing::warn!(
                %error,
                "when memory is short, the kernel may make this daemon wait for file systems on \
                 its own block devices: it is not allowed to be an I/O flusher \
                 (PR_SET_IO_FLUSHER). Give it CAP_SYS_RESOURCE"
            );
        }
        Ok(())
    }

    fn sources(&self) -> Vec<Source> {
        let volumes = self.volumes();
        let cached = volumes.iter().map(|served| Source {
            export: served.name.clone(),
            label: served.now().attribute("label").unwrap_or_default(),
            uuid: served.now().uuid(),
        });
        let flash = self.flash();
        let flash = flash.iter().map(|served| Source {
            export: served.name.clone(),
            label: served.label.clone(),
            uuid: served.volume.uuid(),
        });
        cached.chain(flash).collect()
    }

    async fn start_block_device(&self, source: &Source) -> Result<(), Failure> {
        let options = &self.config.ublk;
        let Some(device) = options.of(&source.export) else { return Ok(()) };
        if self.block_devices().iter().any(|it| it.export == source.export) {
            return Ok(());
        }
        let Some(volume) = self.exports.get(&source.export) else { return Ok(()) };
        let parameters = Parameters::of(&volume.info(), IO_BYTES_MAX)
            .map_err(|why| Failure::usage(format_args!("--ublk {}", source.export), why))?;
        let wanted = Wanted {
            lineage: self.lineage(),
            export: source.export.clone(),
            device,
            identity: identity_of(source.uuid),
            parameters,
            options: options.clone(),
        };
        let host = self.world.host();
        let prepared = host.blocking(move || wanted.prepare()).await;
        let Some(prepared) = prepared.transpose()? else { return Ok(()) };
        let info = prepared.info;
        let lineage = match self.lineage() {
            Lineage::Of(number) => Some(number),
            Lineage::Unknown => None,
            // The record stays true of the cache.
            Lineage::Uncached => record::lineage_of(info.device),
        };
        let (export, label) = (source.export.as_str(), source.label.as_str());
        let record = Record { export, label, uuid: source.uuid, lineage };
        // Links are for the volumes of the machine, and users could take each other's names.
        if let Err(error) = if info.is_unprivileged() { Ok(()) } else { record.write(info.device) }
        {
            tracing::warn!(
                device = %block_device(info.device).display(),
                %error,
                "no record of the device can be written in /run/ubcache: it has no link in /dev, \
                 and can't be served again after this daemon is killed"
            );
        }
        let started = self.serve_queues(&prepared, &source.export, &volume);
        let device = match started {
            Ok(device) => device,
            Err(failure) => {
                self.give_up(prepared, &[]).await;
                return Err(failure);
            }
        };
        if let Some(Err(failure)) = host.blocking(move || prepared.go()).await {
            self.give_up(prepared, &device.queues).await;
            return Err(failure);
        }
        tracing::info!(
            target: STATE,
            export = source.export,
            device = %device.path().display(),
            queues = info.queues,
            depth = info.depth,
            uses = %info.features,
            recovered = prepared.recovered,
            "a block device is served"
        );
        self.block_devices.borrow_mut().push(Rc::new(device));
        Ok(())
    }

    /// The chain of starts that this one continues, each with every write that was answered (rule
    /// V3): the file system on a device goes on as if nothing had happened.
    pub(crate) fn lineage(&self) -> Lineage {
        match self.no_cache.borrow().is_some() {
            true => Lineage::Uncached,
            false => match self.set().kept_state() {
                Some(kept) => Lineage::Of(kept.lineage),
                None => Lineage::Unknown,
            },
        }
    }

    /// Removes a new device that can't be served. One that was served before stays, with its
    /// requests.
    async fn give_up(&self, prepared: Prepared, queues: &[Task]) {
        if prepared.recovered {
            return;
        }
        let (host, info) = (self.world.host(), prepared.info);
        // The failure that led here is what counts.
        let _ = control(host, move |driver| driver.stop(&info)).await;
        join_all(queues.iter().map(Task::join)).await;
        let _ = delete_device(host, info).await;
        record::remove(info.device);
    }

    /// Gives the commands of all queues to the driver.
    fn serve_queues(
        &self,
        prepared: &Prepared,
        export: &str,
        volume: &Rc<Exported<W>>,
    ) -> Result<BlockDevice, Failure> {
        let info = prepared.info;
        let path = character_device(info.device);
        let bytes = usize::from(info.depth) * size_of::<IoDescriptor>();
        let len = bytes.next_multiple_of(PAGE_BYTES);
        let not_opened = |error: std::io::Error| {
            Failure::could_not_run(&path, format_args!("can't be opened: {error}"))
        };
        let first = HostCommands::open(self.world.host(), &path, 0, len).map_err(not_opened)?;
        let mut parts = Vec::new();
        for queue in 1..info.queues {
            parts.push(first.with_part(descriptors_at(queue), len).map_err(not_opened)?);
        }
        parts.insert(0, first);
        let requests = Rc::<Requests>::default();
        let pace = self.exports.pace(export);
        let pace = pace.map(|pace| -> Pace { Rc::new(move |now, bytes| pace.start(now, bytes)) });
        let places = info.features.has(AUTO_PLACES);
        let queues = parts.into_iter().zip(0..).map(|(part, queue)| {
            let part = if places { part.with_places(info.depth) } else { part };
            let options = QueueOptions {
                queue,
                depth: info.depth,
                user_copy: info.features.has(USER_COPY),
                places,
                max_io_bytes: info.max_io_bytes,
                stream: StreamId(FIRST_STREAM + u64::from(info.device) * 4096 + u64::from(queue)),
                requests: requests.clone(),
                pace: pace.clone(),
            };
            let (world, volume, path) =
                (self.world.clone(), volume.clone(), block_device(info.device));
            self.world.spawn(Priority::Foreground, async move {
                match serve_queue(world, part, volume, options).await {
                    QueueEnd::Stopped => tracing::debug!(device = %path.display(), "queue ended"),
                    QueueEnd::Refused(errno) => {
                        let error = std::io::Error::from_raw_os_error(errno);
                        let device = path.display();
                        tracing::error!(%device, queue, %error, "the driver refuses commands");
                    }
                }
            })
        });
        let queues = queues.collect();
        let (export, recovered) = (export.to_owned(), prepared.recovered);
        Ok(BlockDevice { export, info, recovered, requests, queues })
    }

    /// Removes all block devices but those that somebody uses.
    pub(crate) async fn end_block_devices(&self) {
        for device in self.block_devices() {
            if let Err(failure) = self.end_one(&device, InUse::Keep).await {
                tracing::error!(export = device.export, "{failure:#}");
            }
        }
    }

    async fn end_one(&self, device: &Rc<BlockDevice>, in_use: InUse) -> Result<DeviceEnd, Failure> {
        let end = device.end(self.world.host(), in_use).await?;
        if end == DeviceEnd::Removed {
            self.block_devices.borrow_mut().retain(|other| !Rc::ptr_eq(other, device));
            let path = device.path();
            tracing::info!(export = device.export, device = %path.display(), "removed");
        }
        Ok(end)
    }

    /// The block device of an export.
    pub(crate) fn block_device_of(&self, export: &str) -> Option<Rc<BlockDevice>> {
        self.block_devices().into_iter().find(|device| device.export == export)
    }

    /// Removes the block device of an export that is about to end. Refused if somebody uses it.
    pub(crate) async fn end_block_device(&self, export: &str, force: bool) -> Result<(), Refusal> {
        let Some(device) = self.block_device_of(export) else { return Ok(()) };
        let in_use = if force { InUse::Force } else { InUse::Refuse };
        match self.end_one(&device, in_use).await {
            Ok(DeviceEnd::Refused) => {
                let path = device.path();
                let path = path.display();
                Err(Refusal::new(Kind::Conflict, format_args!("{export}: {path} is in use"))
                    .advice(format_args!("unmount it first; `lsblk {path}` shows its users")))
            }
            Ok(_) => Ok(()),
            Err(failure) => Err(Refusal::new(Kind::Failed, failure)),
        }
    }

    /// Makes block devices for volumes that have come. They are served without one if that fails.
    pub(crate) async fn add_block_devices(&self) {
        if let Err(failure) = self.start_block_devices().await {
            tracing::error!("no block device: {failure:#}");
        }
    }

    /// Gives the block device of an export its present size; returns words about it.
    pub(crate) async fn resize_block_device(&self, export: &str, sectors: u64) -> String {
        let Some(device) = self.block_device_of(export) else { return String::new() };
        let (info, path) = (device.info, device.path());
        if !info.features.has(UPDATE_SIZE) {
            let path = path.display();
            return format!(
                "; {path} keeps its size until it is made anew: this kernel's driver \
                            can't change it"
            );
        }
        let host = self.world.host();
        match control(host, move |driver| driver.update_size(&info, sectors)).await {
            Ok(()) => format!("; {} has it, too", path.display()),
            Err(failure) => format!("; {} keeps its size: {failure:#}", path.display()),
        }
    }

    /// Lets the requests of all block devices wait, for another program.
    pub(crate) async fn hold_block_devices(&self) {
        let devices = self.block_devices();
        join_all(devices.iter().map(|device| device.hold())).await;
    }

    /// Leaves all block devices to another program, which is certain to come.
    pub(crate) async fn leave_block_devices(&self) {
        let (devices, host) = (self.block_devices(), self.world.host());
        join_all(devices.iter().map(|device| device.leave(host))).await;
    }

    /// Goes on after [`Daemon::hold_block_devices`].
    pub(crate) fn release_block_devices(&self) {
        self.block_devices().iter().for_each(|device| device.release());
    }
}
