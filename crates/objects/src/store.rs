//! The requests that an object store has to understand.

use std::ops::Range;

use bytes::Bytes;

/// Content of an object, or a part of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    /// The bytes.
    pub bytes: Bytes,
    /// Tag of the whole object's content, from the store.
    pub etag: String,
}

/// Condition of a PUT. The store checks it and replaces the object in one step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// No condition.
    None,
    /// There is no object of this name.
    Absent,
    /// The object has this tag.
    Matches(String),
}

/// Reasons for the failure of a request.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no object of this name, or no such bucket.
    #[error("not found: {0}")]
    NotFound(String),
    /// The condition of a PUT is not met.
    #[error("the condition of a PUT is not met")]
    Conflict,
    /// The store is overloaded, or has an error of its own (status 429, 5xx).
    #[error("the store is busy: {0}")]
    Busy(String),
    /// No answer: the request may have been carried out, or may still be.
    #[error("no answer from the store: {0}")]
    Unreachable(String),
    /// The credentials do not permit it (status 401, 403).
    #[error("access denied: {0}")]
    Denied(String),
    /// The clock of this machine and that of the store differ, and requests are signed with the
    /// time.
    #[error("the clocks differ: {0}")]
    ClockSkew(String),
    /// The store has no such request, or no such condition.
    #[error("not supported by the store: {0}")]
    NotSupported(String),
    /// An answer that makes no sense.
    #[error("{0}")]
    Other(String),
}

impl StoreError {
    /// Returns true if the same request may succeed later. A clock is set while requests wait, as
    /// on a machine that has just booted.
    pub fn is_passing(&self) -> bool {
        matches!(self, StoreError::Busy(_) | StoreError::Unreachable(_) | StoreError::ClockSkew(_))
    }

    /// The corresponding errno.
    pub fn errno(&self) -> i32 {
        match self {
            StoreError::Unreachable(_) => 110,
            StoreError::Denied(_) | StoreError::ClockSkew(_) => 13,
            StoreError::NotSupported(_) => 95,
            _ => 5,
        }
    }
}

/// An object store, below the prefix of one volume. Keys are relative to the prefix.
///
/// Dropping a future gives up its answer; the request may still be carried out.
#[allow(async_fn_in_trait, reason = "one thread, never boxed, no Send bound wanted")]
pub trait Store: 'static {
    /// The object, or the bytes of it in the range, all of them.
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, StoreError>;

    /// Writes the whole object if the condition is met. Returns its tag.
    async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        condition: Condition,
    ) -> Result<String, StoreError>;

    /// Deletes the object. One that is not there is no error.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// Keys that begin with `prefix` and come after `after`, in order: the first of them, some
    /// thousand at most; none at the end.
    async fn list(&self, prefix: &str, after: &str) -> Result<Vec<String>, StoreError>;
}

impl<S: Store> Store for std::rc::Rc<S> {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, StoreError> {
        (**self).get(key, range).await
    }
    async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        condition: Condition,
    ) -> Result<String, StoreError> {
        (**self).put(key, bytes, condition).await
    }
    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        (**self).delete(key).await
    }
    async fn list(&self, prefix: &str, after: &str) -> Result<Vec<String>, StoreError> {
        (**self).list(prefix, after).await
    }
}
