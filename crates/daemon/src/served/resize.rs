//! Volumes that get the size that their disks have now.

use ubcache_engine::EngineError;
use ubcache_env::Volume;
use ubcache_format::SECTOR_BYTES;
use ubcache_objects::GrowFailure;

use super::daemon::Daemon;
use super::world::World;
use crate::control::refusal::{Kind, Refusal};
use crate::size::show_size;

impl<W: World> Daemon<W> {
    /// Gives an export this size: a flash-only volume, or a volume on an object store, which only
    /// becomes longer. Others have the size of their disks.
    pub async fn resize_to(
        &self,
        name: &str,
        bytes: u64,
        discard_data: bool,
    ) -> Result<String, Refusal> {
        if self.is_flash(name) {
            return self.resize_flash(name, bytes, discard_data).await;
        }
        // One that is neither is looked for among the flash-only volumes, which have this request.
        let Ok(served) = self.only(Some(name)) else {
            return self.resize_flash(name, bytes, discard_data).await;
        };
        let path = served.path.display();
        let grown = match &served.remote {
            Some(remote) => remote.grow(bytes).await,
            None => None,
        };
        match grown {
            Some(Ok(())) => self.resize(Some(name)).await,
            Some(Err(failure)) => {
                let kind = match failure {
                    GrowFailure::Store(_) => Kind::Failed,
                    _ => Kind::Conflict,
                };
                Err(Refusal::new(kind, format_args!("{path}: {failure}")))
            }
            None => {
                let said = format!("{name} has the size of its disk, {path}");
                Err(Refusal::new(Kind::Conflict, said)
                    .advice(format_args!("make the disk larger, and then: ubcache resize {name}")))
            }
        }
    }

    /// Looks at the size of the disk of an export, and gives the volume that size; returns words
    /// about it.
    pub async fn resize(&self, volume: Option<&str>) -> Result<String, Refusal> {
        let _one = self.change_membership().await?;
        if let Some(name) = volume.filter(|name| self.is_flash(name)) {
            let said = format!("{name} is flash-only: it has no disk whose size it could have");
            return Err(Refusal::new(Kind::Conflict, said)
                .advice(format_args!("ubcache flash resize {name} --size SIZE")));
        }
        let served = self.only(volume)?;
        let (name, path) = (&served.name, served.path.display());
        let users = self.users_of(name);
        let resized = self.set_of(&served).resize(&served.now(), users.is_none()).await;
        let resized = resized.map_err(|error| match error {
            EngineError::WouldShorten { before, after } => {
                let (before, after) = (before * SECTOR_BYTES, after * SECTOR_BYTES);
                let said = format!(
                    "{path} has become shorter, and {name} is in use by {}, which counts on all of \
                     its {}",
                    users.as_deref().unwrap_or("somebody"),
                    show_size(before)
                );
                Refusal::new(Kind::Conflict, said)
                    .found(format_args!("room for {}", show_size(after)))
                    .advice(
                        "end its users, or give the disk its former size again; then this command \
                         again",
                    )
            }
            EngineError::BeyondEnd { dirty, last, end } => {
                let said = format!(
                    "{path} ends at byte {}, and the cache has {} of dirty data beyond, up to byte \
                     {}",
                    end.bytes(),
                    show_size(dirty * SECTOR_BYTES),
                    last.bytes()
                );
                Refusal::new(Kind::Conflict, said).advice(format_args!(
                    "give the disk its former size again, and then: ubcache resize {name} && \
                     ubcache drain {name} --wait"
                ))
            }
            EngineError::Stopping => Refusal::new(Kind::Conflict, error),
            error => Refusal::new(Kind::Failed, format_args!("{path}: {error}")),
        })?;
        let (before, after) = (resized.before * SECTOR_BYTES, resized.after * SECTOR_BYTES);
        if before == after {
            return Ok(format!("{name}: {}, as before", show_size(after)));
        }
        tracing::info!(export = name, before, after, "resized");
        let mut said = format!("{name}: {}, before {}", show_size(after), show_size(before));
        said += &self.resize_block_device(name, served.volume.info().sectors).await;
        said += self.resize_guest_disks(name);
        if self.clients_of(name) > 0 {
            said += "; clients see the new size when they connect again";
        }
        self.publish();
        Ok(said)
    }

    /// The users of an export that count on its size, in words.
    fn users_of(&self, name: &str) -> Option<String> {
        if let Some(device) = self.block_device_of(name) {
            return Some(format!("the block device {}", device.path().display()));
        }
        if self.has_guest(name) {
            return Some("a virtual machine".to_owned());
        }
        let clients = self.clients_of(name);
        (clients > 0).then(|| format!("{clients} connections"))
    }
}
