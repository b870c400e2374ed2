//! Growth of a volume, while it is used.

use ubcache_env::{Env, IoError};

use crate::disk::ObjectDisk;
use crate::manifest::{ManifestError, Root, Shape};
use crate::store::Store;

/// Reasons why a volume does not become longer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GrowFailure {
    /// It would become shorter.
    #[error("the volume has {0} bytes, and does not become shorter")]
    Shorter(u64),
    /// No volume has this size.
    #[error(transparent)]
    Shape(#[from] ManifestError),
    /// The root could not be written.
    #[error("the object store: {0}")]
    Store(#[from] IoError),
}

impl<E: Env, S: Store> ObjectDisk<E, S> {
    /// Makes the volume longer, durably. What it gains reads as zeroes. What was written before is
    /// not flushed by this.
    ///
    /// # Errors
    /// It keeps its size then.
    pub async fn grow(&self, size_bytes: u64) -> Result<(), GrowFailure> {
        let inner = &self.0;
        inner.check_write()?;
        let _turn = inner.flushing.lock().await;
        let shape = Shape { size_bytes, ..inner.shape() };
        shape.check()?;
        if size_bytes < inner.shape().size_bytes {
            return Err(GrowFailure::Shorter(inner.shape().size_bytes));
        }
        let root = inner.committed.borrow().root.clone();
        let mut pages = root.pages.clone();
        pages.resize(shape.pages() as usize, None);
        inner.put_root(Root { size_bytes, pages, ..root }).await?;
        inner.map.borrow_mut().grow(shape);
        inner.shape.set(shape);
        Ok(())
    }
}
