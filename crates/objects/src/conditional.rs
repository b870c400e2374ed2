//! Conditional PUTs with a known outcome.

use bytes::Bytes;

use crate::store::{Condition, Object, Store, StoreError};

/// The outcome of a conditional PUT.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The object has this content, and this tag.
    Done(String),
    /// The object has another content; none: it is not there.
    Beaten(Option<Object>),
}

/// Writes the object if the condition is met. The content must be unique: a request whose answer
/// was lost is repeated, and is refused then because it has been carried out.
pub async fn put_if<S: Store>(
    store: &S,
    key: &str,
    bytes: Bytes,
    condition: Condition,
) -> Result<Outcome, StoreError> {
    match store.put(key, bytes.clone(), condition).await {
        Ok(etag) => Ok(Outcome::Done(etag)),
        // Some stores have no object to compare with, and say that.
        Err(StoreError::Conflict | StoreError::NotFound(_)) => match store.get(key, None).await {
            Ok(object) if object.bytes == bytes => Ok(Outcome::Done(object.etag)),
            Ok(object) => Ok(Outcome::Beaten(Some(object))),
            Err(StoreError::NotFound(_)) => Ok(Outcome::Beaten(None)),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    }
}
