//! Copies of headers on the cache device of the set, and on the one that takes its place.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use ubcache_env::joined::{CopyPlaces, Header, HeaderCopy};
use ubcache_format::Uuid;
use ubcache_host::HostDisk;

use crate::open::superblock::superblock_of;

/// A cache device, for copies of headers.
#[derive(Clone)]
pub(crate) struct CacheCopies {
    path: PathBuf,
    device: Rc<HostDisk>,
    places: Rc<CopyPlaces>,
}

impl CacheCopies {
    pub(crate) fn new(path: &Path, device: HostDisk) -> CacheCopies {
        CacheCopies { path: path.to_owned(), device: Rc::new(device), places: Rc::default() }
    }

    /// The device.
    pub(crate) fn device(&self) -> &HostDisk {
        &self.device
    }

    /// The place of the copy of a header. `None`, which is logged: it has none.
    pub(crate) async fn place(&self, header: &Path, uuid: Uuid) -> Option<HeaderCopy<HostDisk>> {
        let device = &*self.device;
        let place = match superblock_of(device).await {
            Ok(superblock) => {
                let place = self.places.place(device, &superblock, uuid).await;
                place.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        match place {
            Ok(Some(at)) => return Some(HeaderCopy { device: self.device.clone(), at }),
            Ok(None) => tracing::warn!(
                header = %header.display(),
                cache = %self.path.display(),
                "the cache device has no room for a copy of the header: keep a backup of the file"
            ),
            Err(error) => tracing::warn!(
                header = %header.display(),
                cache = %self.path.display(),
                "no copy of the header on the cache device, keep a backup of the file: {error}"
            ),
        }
        None
    }
}

/// The header of a disk that is served.
pub(crate) struct OpenHeader {
    path: PathBuf,
    pub(crate) device: Rc<Header<HostDisk>>,
}

impl OpenHeader {
    pub(crate) fn new(path: &Path, header: Header<HostDisk>) -> OpenHeader {
        let shown = path.to_owned();
        header.when_copy_fails(move |error| {
            tracing::warn!(
                header = %shown.display(),
                "the copy of the header on the cache device is not written any more, keep a backup \
                 of the file: {error}"
            );
        });
        OpenHeader { path: path.to_owned(), device: Rc::new(header) }
    }

    /// Has the copy on this cache device from now on. It is durable there when this returns, or the
    /// log says that there is none.
    pub(crate) async fn copy_to(&self, cache: &CacheCopies) {
        let place = cache.place(&self.path, self.device.record().uuid).await;
        self.device.move_copy(place).await;
    }
}
