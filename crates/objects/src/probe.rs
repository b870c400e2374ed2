//! The refusal of stores that ignore conditions: with one, two writers would destroy the volume.

use bytes::Bytes;

use crate::store::{Condition, Store, StoreError};

/// Reasons for the refusal of a store.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProbeFailure {
    /// A request failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store does not do what a condition says.
    #[error("found {found}; expected {expected}")]
    Ignored {
        /// The request and its outcome.
        found: &'static str,
        /// The outcome that a store with conditions has.
        expected: &'static str,
    },
}

/// Beginning of the keys of probes.
pub const PROBES: &str = "probe-";
/// A tag that no content has.
const WRONG_TAG: &str = "\"00000000000000000000000000000000\"";

/// Writes an object of its own, `unique` in its name, under conditions that are met and that are
/// not. The store must be the one that repeats requests which fail for a while. `epoch`: the one
/// that the writer is about to have; a writer that has it, or a later one, deletes the object.
pub async fn probe<S: Store>(store: &S, epoch: u64, unique: &str) -> Result<(), ProbeFailure> {
    let key = format!("{PROBES}{epoch:x}-{unique}");
    let outcome = conditions(store, &key).await;
    let deleted = store.delete(&key).await;
    outcome?;
    Ok(deleted?)
}

async fn conditions<S: Store>(store: &S, key: &str) -> Result<(), ProbeFailure> {
    let put = |text: &'static str, condition| store.put(key, Bytes::from(text), condition);
    // The answer to the first may have been lost, and the second one is then its repetition.
    let first = match put("first", Condition::Absent).await {
        Ok(etag) => etag,
        Err(StoreError::Conflict) => store.get(key, None).await?.etag,
        Err(error) => return Err(error.into()),
    };
    refused(
        put("second", Condition::Absent).await,
        "a PUT with If-None-Match: * that replaced an object",
    )?;
    refused(
        put("second", Condition::Matches(WRONG_TAG.to_owned())).await,
        "a PUT with If-Match of another tag that replaced an object",
    )?;
    match put("third", Condition::Matches(first)).await {
        Ok(_) | Err(StoreError::Conflict) => {}
        Err(error) => return Err(error.into()),
    }
    if store.get(key, None).await?.bytes != "third" {
        return Err(ProbeFailure::Ignored {
            found: "a PUT with If-Match of the right tag that was refused",
            expected: "the object replaced",
        });
    }
    Ok(())
}

/// Epoch in the key of a probe; none: an earlier version made it.
pub fn epoch_of(key: &str) -> Option<u64> {
    let (epoch, _) = key.strip_prefix(PROBES)?.split_once('-')?;
    u64::from_str_radix(epoch, 16).ok()
}

fn refused(result: Result<String, StoreError>, found: &'static str) -> Result<(), ProbeFailure> {
    match result {
        Err(StoreError::Conflict) => Ok(()),
        Ok(_) => Err(ProbeFailure::Ignored { found, expected: "status 412" }),
        Err(error) => Err(error.into()),
    }
}
