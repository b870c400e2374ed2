//! The lease: a note of who has the volume, which its holder renews.
//!
//! A courtesy: it keeps a second daemon from taking a volume that is in use. What makes it safe to
//! be wrong about it is the epoch in the root. Clocks are not compared: a lease is in use if it
//! changes while somebody watches it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use ubcache_env::{Env, Nanos};

use crate::conditional::{Outcome, put_if};
use crate::names::LEASE;
use crate::store::{Condition, Object, Store, StoreError};

/// Time between two renewals.
pub const RENEWAL: Nanos = Nanos::from_secs(5);
/// A lease that does not change for this time is nobody's.
pub const WATCH: Nanos = Nanos::from_secs(20);

/// The text of a lease.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease {
    /// Host, process and the like, for people.
    pub holder: String,
    /// Random name of the attachment.
    pub writer: String,
    /// Number of renewals.
    pub renewed: u64,
    /// True after a detachment in order.
    pub released: bool,
}

impl Lease {
    fn to_bytes(&self) -> Bytes {
        serde_json::to_vec(self).expect("a lease is plain data").into()
    }

    fn parse(object: &Object) -> Option<Lease> {
        serde_json::from_slice(&object.bytes).ok()
    }
}

/// Reasons why a lease is not had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LeaseFailure {
    /// A request failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another one has it.
    #[error("in use by {0}")]
    InUse(String),
}

/// A lease that this program holds.
pub struct Held {
    lease: Lease,
    etag: String,
}

/// Answers whether the holder, by its name, can't be running any more.
pub type IsGone = std::rc::Rc<dyn Fn(&str) -> bool>;

/// Takes the lease: at once if it was released or its holder is gone, after a time of watching if
/// it does not change.
pub async fn acquire<E: Env, S: Store>(
    env: &E,
    store: &S,
    holder: &str,
    writer: &str,
    is_gone: &IsGone,
) -> Result<Held, LeaseFailure> {
    let found = read(store).await?;
    let condition = match &found {
        None => Condition::Absent,
        Some(object) => Condition::Matches(object.etag.clone()),
    };
    if let Some(lease) = found.as_ref().and_then(Lease::parse)
        && !lease.released
        && !is_gone(&lease.holder)
    {
        watch(env, store, &condition).await?;
    }
    let (holder, writer) = (holder.to_owned(), writer.to_owned());
    let lease = Lease { holder, writer, renewed: 0, released: false };
    match put_if(store, LEASE, lease.to_bytes(), condition).await? {
        Outcome::Done(etag) => Ok(Held { lease, etag }),
        Outcome::Beaten(object) => Err(LeaseFailure::InUse(holder_of(object.as_ref()))),
    }
}

async fn read<S: Store>(store: &S) -> Result<Option<Object>, StoreError> {
    match store.get(LEASE, None).await {
        Ok(object) => Ok(Some(object)),
        Err(StoreError::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn holder_of(object: Option<&Object>) -> String {
    let lease = object.and_then(Lease::parse);
    lease.map_or_else(|| "a lease that is gone".to_owned(), |lease| lease.holder)
}

/// Fails as soon as the lease changes.
async fn watch<E: Env, S: Store>(env: &E, store: &S, seen: &Condition) -> Result<(), LeaseFailure> {
    let end = env.now().after(WATCH);
    while env.now() < end {
        env.sleep(Nanos(RENEWAL.0 / 2)).await;
        match read(store).await? {
            Some(object) if *seen == Condition::Matches(object.etag.clone()) => {}
            object => {
                if object.as_ref().and_then(Lease::parse).is_none_or(|lease| !lease.released) {
                    return Err(LeaseFailure::InUse(holder_of(object.as_ref())));
                }
                return Err(LeaseFailure::InUse("a daemon that is just stopping".to_owned()));
            }
        }
    }
    Ok(())
}

impl Held {
    /// Renews it. An error [`LeaseFailure::InUse`]: another one has taken it.
    pub async fn renew<S: Store>(&mut self, store: &S) -> Result<(), LeaseFailure> {
        let renewed = self.lease.renewed + 1;
        self.change(store, Lease { renewed, ..self.lease.clone() }).await
    }

    /// Gives it back: the next one need not wait.
    pub async fn release<S: Store>(&mut self, store: &S) -> Result<(), LeaseFailure> {
        let renewed = self.lease.renewed + 1;
        self.change(store, Lease { renewed, released: true, ..self.lease.clone() }).await
    }

    async fn change<S: Store>(&mut self, store: &S, lease: Lease) -> Result<(), LeaseFailure> {
        loop {
            let condition = Condition::Matches(self.etag.clone());
            match put_if(store, LEASE, lease.to_bytes(), condition).await? {
                Outcome::Done(etag) => {
                    self.etag = etag;
                    self.lease = lease;
                    return Ok(());
                }
                Outcome::Beaten(object) => {
                    let found = object.as_ref().and_then(Lease::parse);
                    match (object, found) {
                        // A renewal of this holder that was given up has taken effect late.
                        (Some(object), Some(found)) if found.writer == lease.writer => {
                            self.etag = object.etag;
                        }
                        (object, _) => return Err(LeaseFailure::InUse(holder_of(object.as_ref()))),
                    }
                }
            }
        }
    }
}
