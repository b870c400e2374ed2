//! Flash-only volumes: exports without a backing device, whose data is in the cache and nowhere
//! else.
//!
//! All of a set are served, each under its label; under its UUID if it has none, or if another
//! export has that name.

use std::rc::Rc;

use ubcache_engine::{EngineError, Exported, FlashSlot};
use ubcache_env::{StreamId, Volume};
use ubcache_format::SECTOR_BYTES;

use super::daemon::{Daemon, ServedFlash};
use super::report::FlashReport;
use super::request_report::paths;
use super::world::World;
use crate::control::refusal::{Kind, Refusal};
use crate::size::show_size;

impl<W: World> Daemon<W> {
    /// The flash-only volumes that are served.
    pub fn flash(&self) -> Vec<Rc<ServedFlash<W>>> {
        self.flash.borrow().clone()
    }

    /// Serves all flash-only volumes that are not served yet.
    ///
    /// # Errors
    /// The set has failed.
    pub(crate) fn serve_flash(&self) -> Result<(), EngineError> {
        let slots = self.set().flash_volumes();
        for slot in slots.into_iter().filter(|slot| !slot.served) {
            let name = self.flash_name(&slot);
            let read_only = self.config.read_only.holds_for(&name);
            let volume = self.set().open_flash(slot.uuid, &name, read_only)?;
            let uuid = slot.uuid.to_string();
            let exported = Rc::new(Exported::Flash(volume.clone()));
            if self.exports.add_as(name.clone(), String::new(), exported).is_err() {
                tracing::error!(uuid, "another export has the name of this flash-only volume");
                continue;
            }
            self.exports.also_as(&name, uuid.clone());
            self.exports.limit(&name, self.config.clients.of_export(&name));
            tracing::info!(
                export = name,
                uuid,
                size = show_size(slot.size_bytes),
                "a flash-only volume is served"
            );
            let served = ServedFlash { name, label: slot.label, volume };
            self.flash.borrow_mut().push(Rc::new(served));
        }
        Ok(())
    }

    /// Name of the export of a flash-only volume.
    fn flash_name(&self, slot: &FlashSlot) -> String {
        let uuid = slot.uuid.to_string();
        let is_taken = |name: &str| {
            let volumes = self.volumes();
            let by_volume = volumes
                .iter()
                .any(|served| served.name == name || served.now().uuid().to_string() == name);
            by_volume || self.exports.get(name).is_some()
        };
        match slot.label.as_str() {
            "" => uuid,
            label if is_taken(label) => uuid,
            label => label.to_owned(),
        }
    }

    /// The part of the report about them.
    pub(crate) fn flash_report(&self, uris: impl Fn(&str) -> Vec<String>) -> Vec<FlashReport> {
        let report = |served: &Rc<ServedFlash<W>>| {
            let status = served.volume.status();
            FlashReport {
                name: served.name.clone(),
                uuid: status.uuid.to_string(),
                label: served.label.clone(),
                size_bytes: status.size_bytes,
                used_bytes: status.used_bytes,
                refused_writes: status.refused_writes,
                requests: paths(&status.requests),
                frontends: self.frontends(&served.name),
                uris: uris(&served.name),
            }
        };
        self.flash.borrow().iter().map(report).collect()
    }

    fn flash_named(&self, name: &str) -> Result<Rc<ServedFlash<W>>, Refusal> {
        let all = self.flash();
        let of_set = |it: &ServedFlash<W>| {
            let Some(origin) = self.config.origin.as_ref() else { return false };
            name.split_once('/') == Some((origin.set.as_str(), it.name.as_str()))
        };
        let is_it = |it: &&Rc<ServedFlash<W>>| {
            it.name == name || it.volume.uuid().to_string() == name || of_set(it)
        };
        match all.iter().find(is_it) {
            Some(found) => Ok(found.clone()),
            None => {
                let names = all.iter().map(|it| it.name.as_str());
                Err(Refusal::missing("flash-only volume", name, names))
            }
        }
    }

    /// Returns true if a flash-only volume has this name.
    pub(crate) fn is_flash(&self, name: &str) -> bool {
        self.flash_named(name).is_ok()
    }

    /// Makes a flash-only volume and serves it; returns the name of its export, which is its UUID
    /// if it has no label.
    pub async fn create_flash(&self, label: &str, bytes: u64) -> Result<String, Refusal> {
        let _one = self.change_membership().await?;
        if self.no_cache.borrow().is_some() {
            let said = "there is no cache, which would have the data of a flash-only volume";
            return Err(Refusal::new(Kind::Conflict, said));
        }
        let volumes = self.volumes();
        let names = volumes.iter().map(|served| served.name.as_str());
        let is_taken = names.into_iter().any(|name| name == label) || self.is_flash(label);
        if is_taken && !label.is_empty() {
            let said = format!("there is an export \"{label}\" already");
            return Err(Refusal::new(Kind::Conflict, said).expected("a name of its own"));
        }
        let made = self.set().create_flash(label, bytes / SECTOR_BYTES).await;
        let uuid = made.map_err(|error| Refusal::new(kind(&error), error))?;
        tracing::info!(export = label, %uuid, bytes, "a flash-only volume was made");
        let served = self.serve_flash();
        served.map_err(|error| Refusal::new(Kind::Failed, error))?;
        self.publish();
        self.add_block_devices().await;
        self.add_guest_sockets().await;
        let found = self.flash().into_iter().find(|served| served.volume.uuid() == uuid);
        Ok(found.map_or_else(|| uuid.to_string(), |served| served.name.clone()))
    }

    /// Gives a flash-only volume another size; returns words about it.
    pub async fn resize_flash(
        &self,
        name: &str,
        bytes: u64,
        discard_data: bool,
    ) -> Result<String, Refusal> {
        let _one = self.change_membership().await?;
        let served = self.flash_named(name)?;
        let (name, before) = (&served.name, served.volume.info().sectors * SECTOR_BYTES);
        let clients = self.clients_of(name);
        if let Some(device) = self.block_device_of(name).filter(|_| bytes < before) {
            let said = format!("{name} is the block device {}", device.path().display());
            return Err(Refusal::new(Kind::Conflict, said).expected("no shorter one"));
        }
        if bytes < before && self.has_guest(name) {
            let said = format!("{name} is the disk of a virtual machine");
            return Err(Refusal::new(Kind::Conflict, said).expected("no shorter one"));
        }
        if bytes < before && clients > 0 {
            let said = format!(
                "{name} is in use by {clients} connections, which count on all of its {}",
                show_size(before)
            );
            return Err(Refusal::new(Kind::Conflict, said)
                .advice("disconnect them first; a longer volume needs nothing of them"));
        }
        let uuid = served.volume.uuid();
        let resized = self.set().resize_flash(uuid, bytes / SECTOR_BYTES, discard_data).await;
        let lost = resized.map_err(|error| match error {
            EngineError::HasFlashData(data) => {
                let said = format!("{name} has {} of data beyond that size", show_size(data));
                Refusal::new(Kind::Conflict, said).advice(format_args!(
                    "to give that data up: ubcache flash resize {name} --size {bytes} \
                     --discard-data"
                ))
            }
            error => Refusal::new(kind(&error), error),
        })?;
        let after = served.volume.info().sectors * SECTOR_BYTES;
        tracing::info!(export = name, before, after, discarded = lost, "resized");
        let mut said = format!("{name}: {}, before {}", show_size(after), show_size(before));
        if lost > 0 {
            said += &format!("; {} of data were discarded", show_size(lost));
        }
        said += &self.resize_block_device(name, served.volume.info().sectors).await;
        said += self.resize_guest_disks(name);
        if clients > 0 {
            said += "; clients see the new size when they connect again";
        }
        Ok(said)
    }

    /// Removes a flash-only volume for good; returns words about it.
    pub async fn remove_flash(
        &self,
        name: &str,
        discard_data: bool,
        force: bool,
    ) -> Result<String, Refusal> {
        let _one = self.change_membership().await?;
        let served = self.flash_named(name)?;
        let name = &served.name;
        let clients = self.clients_of(name);
        if clients > 0 && !force {
            let said = format!("{name} is in use by {clients} connections");
            return Err(Refusal::new(Kind::Conflict, said)
                .advice(format_args!("disconnect them, or: ubcache flash remove {name} --force")));
        }
        self.end_block_device(name, force).await?;
        self.end_guest_sockets_of(name, force).await?;
        let removed = self.set().remove_flash(served.volume.uuid(), discard_data).await;
        let lost = removed.map_err(|error| match error {
            EngineError::HasFlashData(data) => {
                let said =
                    format!("{name} has {} of data, and nobody else has it", show_size(data));
                Refusal::new(Kind::Conflict, said).advice(format_args!(
                    "to give that data up: ubcache flash remove {name} --discard-data"
                ))
            }
            error => Refusal::new(kind(&error), error),
        })?;
        self.exports.remove(name);
        self.flash.borrow_mut().retain(|other| !Rc::ptr_eq(other, &served));
        self.publish();
        let listeners = self.listeners.borrow().clone();
        if let Some(listeners) = listeners {
            listeners.disconnect(name);
        }
        tracing::info!(export = name, discarded = lost, "a flash-only volume was removed");
        Ok(match lost {
            0 => format!("{name}: removed"),
            lost => format!("{name}: removed, with {} of data", show_size(lost)),
        })
    }

    /// Makes durable what was written to a flash-only volume, or to all of them.
    pub(crate) async fn flush_flash(&self, name: Option<&str>) -> Vec<String> {
        let mut failed = Vec::new();
        for served in self.flash() {
            if name.is_some_and(|name| name != served.name) {
                continue;
            }
            if let Err(error) = served.volume.flush(StreamId(u64::MAX)).await {
                failed.push(format!("{}: {error}", served.name));
            }
        }
        failed
    }

    /// Connections to an export.
    pub(crate) fn clients_of(&self, name: &str) -> usize {
        let listeners = self.listeners.borrow().clone();
        listeners.map_or(0, |listeners| listeners.connected_to(name))
    }

    /// The set has failed, and another cache takes its place: these volumes are lost.
    pub(crate) fn give_up_flash(&self) {
        for served in self.flash.borrow_mut().drain(..) {
            tracing::error!(export = served.name, "lost with its cache");
            self.exports.remove(&served.name);
        }
    }
}

fn kind(error: &EngineError) -> Kind {
    match error {
        EngineError::FlashSize { .. } | EngineError::LongLabel(_) => Kind::Unfit,
        EngineError::NoSlot(_) | EngineError::Stopping => Kind::Conflict,
        _ => Kind::Failed,
    }
}
