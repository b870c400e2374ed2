//! The real store: S3 and what speaks like it, by the crate `object_store`.
//!
//! Requests run on a thread of their own, which has the runtime that the crate needs; their answers
//! wake the task that waits, whatever runs it. The crate repeats nothing: [`Patient`] does.
//!
//! [`Patient`]: crate::retry::Patient

mod address;
mod errors;
mod profile;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::path::Path;
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, RetryConfig, UpdateVersion,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::store::{Condition, Object, Store, StoreError};
use errors::translate;
pub use profile::{Profile, read_profile};

/// A request that is not answered in this time is given up, and repeated.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for connections.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Keys of one answer to a listing.
const LIST_MAX: usize = 1000;

/// The place of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Location {
    /// The bucket.
    pub bucket: String,
    /// Beginning of all keys of the volume, without a slash at the end; may be empty.
    pub prefix: String,
    /// URL of the store; none: from the environment or profile, or that of AWS.
    pub endpoint: Option<String>,
    /// Region; none: from the environment or profile, or us-east-1.
    pub region: Option<String>,
    /// Section of the files with credentials; none: from the environment, or "default".
    pub profile: Option<String>,
    /// File of the form of `~/.aws/credentials`; none: that, or what the environment names.
    pub credentials: Option<PathBuf>,
}

/// A store behind HTTP. Dropping it ends its thread; requests under way may still be carried out.
pub struct S3Store {
    store: Arc<AmazonS3>,
    prefix: String,
    runtime: Handle,
    /// Its end ends the thread.
    _running: oneshot::Sender<()>,
}

impl S3Store {
    /// Prepares requests. None is sent.
    pub fn new(location: &Location) -> Result<S3Store, StoreError> {
        // An earlier call has done it, or the program has: any of them is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = builder(location)?;
        address::check(&builder)?;
        let store = Arc::new(builder.build().map_err(|error| translate(&error))?);
        let (running, ended) = oneshot::channel();
        let runtime = start(ended).map_err(|error| StoreError::Other(error.to_string()))?;
        Ok(S3Store { store, prefix: location.prefix.clone(), runtime, _running: running })
    }

    fn path(&self, key: &str) -> Result<Path, StoreError> {
        let path =
            if self.prefix.is_empty() { key.to_owned() } else { format!("{}/{key}", self.prefix) };
        Path::parse(path).map_err(|error| StoreError::Other(error.to_string()))
    }

    /// Runs a request on the thread.
    async fn run<T: Send + 'static>(
        &self,
        request: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.runtime.spawn(async move {
            let _ = answer.send(request.await);
        });
        match answered.await {
            Ok(result) => result.map_err(|error| translate(&error)),
            Err(_) => Err(StoreError::Other("the thread of the store has ended".to_owned())),
        }
    }
}

/// Starts the thread, which runs until `ended`.
fn start(ended: oneshot::Receiver<()>) -> std::io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let run = move || {
        let _ = runtime.block_on(ended);
    };
    std::thread::Builder::new().name("ubcache-s3".to_owned()).spawn(run)?;
    Ok(handle)
}

/// Credentials and the rest of what the environment says, then the profile, then the location.
fn builder(location: &Location) -> Result<AmazonS3Builder, StoreError> {
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(&location.bucket);
    let key = AmazonS3ConfigKey::AccessKeyId;
    let in_environment = builder.get_config_value(&key).is_some();
    let file = location.credentials.as_deref();
    let profile = read_profile(location.profile.as_deref(), file)
        .map_err(|error| StoreError::Denied(error.to_string()))?;
    if file.is_some() || location.profile.is_some() || !in_environment {
        if let Some((id, secret)) = profile.keys {
            builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        }
        if let Some(token) = profile.token {
            builder = builder.with_token(token);
        }
    }
    let given = |key| builder.get_config_value(&key).is_some();
    let region = given(AmazonS3ConfigKey::Region) || given(AmazonS3ConfigKey::DefaultRegion);
    let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
    let endpoint = location.endpoint.clone().or(endpoint).or(profile.endpoint);
    let from_profile = profile.region.filter(|_| !region);
    if let Some(region) = location.region.clone().or(from_profile) {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = endpoint {
        let http = endpoint.starts_with("http://");
        builder = builder.with_endpoint(endpoint).with_allow_http(http);
    }
    let options = ClientOptions::new()
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_allow_http(true);
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    Ok(builder
        .with_client_options(options)
        .with_retry(retry)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // A deletion of one object in bulk is a request that not every store has.
        .with_disable_bulk_delete(true))
}

impl Store for S3Store {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, StoreError> {
        let (store, path) = (self.store.clone(), self.path(key)?);
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        self.run(async move {
            let answer = store.get_opts(&path, options).await?;
            let etag = answer.meta.e_tag.clone().unwrap_or_default();
            Ok(Object { bytes: answer.bytes().await?, etag })
        })
        .await
    }

    async fn put(
        &self,
        key: &str,
        bytes: Bytes,
        condition: Condition,
    ) -> Result<String, StoreError> {
        let (store, path) = (self.store.clone(), self.path(key)?);
        let mode = match condition {
            Condition::None => PutMode::Overwrite,
            Condition::Absent => PutMode::Create,
            Condition::Matches(etag) => {
                PutMode::Update(UpdateVersion { e_tag: Some(etag), version: None })
            }
        };
        let options = PutOptions { mode, ..PutOptions::default() };
        let payload = PutPayload::from_bytes(bytes);
        let put = self.run(async move { store.put_opts(&path, payload, options).await }).await?;
        Ok(put.e_tag.unwrap_or_default())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let (store, path) = (self.store.clone(), self.path(key)?);
        match self.run(async move { store.delete(&path).await }).await {
            Err(StoreError::NotFound(_)) => Ok(()),
            result => result,
        }
    }

    async fn list(&self, prefix: &str, after: &str) -> Result<Vec<String>, StoreError> {
        let store = self.store.clone();
        let below = self.path(prefix.trim_end_matches('/'))?;
        let after = if after.is_empty() { None } else { Some(self.path(after)?) };
        let keys = self.run(async move {
            let mut listing = match after {
                None => store.list(Some(&below)),
                Some(after) => store.list_with_offset(Some(&below), &after),
            };
            let mut keys = Vec::new();
            while keys.len() < LIST_MAX
                && let Some(found) = listing.try_next().await?
            {
                keys.push(String::from(found.location));
            }
            Ok(keys)
        });
        let above = if self.prefix.is_empty() { 0 } else { self.prefix.len() + 1 };
        Ok(keys.await?.into_iter().map(|key| key[above..].to_owned()).collect())
    }
}
