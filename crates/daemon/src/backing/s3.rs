//! A volume on an object store as a backing device.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use ubcache_env::Nanos;
use ubcache_host::HostEnv;
use ubcache_objects::attach::look;
use ubcache_objects::manifest::OBJECT_BYTES_DEFAULT;
use ubcache_objects::names::ROOT;
use ubcache_objects::s3::S3Store;
use ubcache_objects::{
    GrowFailure, ObjectDisk, OpenFailure, OpenOptions, Shape, StoreError, StoreEvent, create,
};

use super::connection::{Connection, ConnectionState, Purpose};
use super::s3_address::S3Volume;
use crate::failure::Failure;
use crate::size::show_size;

/// Time that a store has for a command.
const COMMAND_PATIENCE: Nanos = Nanos::from_secs(10);

type Disk = ObjectDisk<HostEnv, S3Store>;

/// A volume that is in use.
pub struct S3Disk {
    disk: Disk,
    state: Rc<RefCell<ConnectionState>>,
    returns: Rc<RefCell<u64>>,
}

impl S3Disk {
    /// Attaches the volume, and creates it where a command is to write to one that is not there.
    /// `name`: the URI as it was given.
    ///
    /// # Errors
    /// The store does not answer, has no such volume, or one that is in use or of another size.
    pub(super) async fn open(
        env: &HostEnv,
        name: &Path,
        to: &S3Volume,
        purpose: Purpose,
    ) -> Result<S3Disk, Failure> {
        let state = Rc::<RefCell<ConnectionState>>::default();
        let returns = Rc::<RefCell<u64>>::default();
        let options = options(name, purpose, &state, &returns);
        let failed = |failure| open_failure(name, &failure);
        let store = || S3Store::new(&to.location).map_err(|error| failed(error.into()));
        let found = look(env, store()?, &options).await.map_err(failed)?;
        match found {
            Some(root) => check(name, to, root.shape())?,
            None if purpose == Purpose::Change => {
                let size_bytes = to.size_bytes.ok_or_else(|| without_size(name))?;
                let object_bytes = to.object_bytes.unwrap_or(OBJECT_BYTES_DEFAULT);
                let shape = Shape { size_bytes, object_bytes };
                create(env, store()?, shape, &options).await.map_err(failed)?;
            }
            None => return Err(failed(OpenFailure::NoVolume)),
        }
        let disk = ObjectDisk::open(env, store()?, &options).await.map_err(failed)?;
        Ok(S3Disk { disk, state, returns })
    }

    /// The device.
    pub(super) fn device(&self) -> Disk {
        self.disk.clone()
    }

    /// The state of the store.
    pub(super) fn connection(&self) -> Connection {
        let state = self.state.borrow().clone();
        Connection {
            connections: u64::from(state == ConnectionState::Connected),
            state,
            reconnects: *self.returns.borrow(),
            resent_requests: 0,
        }
    }

    /// Makes the volume longer.
    pub(super) async fn grow(&self, bytes: u64) -> Result<(), GrowFailure> {
        self.disk.grow(bytes).await
    }

    /// Makes everything durable and gives the lease back.
    pub(super) async fn close(&self) {
        if let Err(error) = self.disk.close().await {
            tracing::error!(volume = self.disk.volume(), "a volume was not closed: {error}");
        }
    }
}

fn options(
    name: &Path,
    purpose: Purpose,
    state: &Rc<RefCell<ConnectionState>>,
    returns: &Rc<RefCell<u64>>,
) -> OpenOptions {
    let mut options = OpenOptions {
        holder: this_process(),
        is_gone: Rc::new(is_gone),
        read_only: purpose == Purpose::Look,
        ..OpenOptions::default()
    };
    if purpose == Purpose::Serve {
        let (state, returns) = (state.clone(), returns.clone());
        let device = name.display().to_string();
        options.events = Rc::new(move |event| follow(&state, &returns, &device, event));
    } else {
        options.patience = COMMAND_PATIENCE;
    }
    options
}

/// Notes and logs a change of state.
fn follow(
    state: &RefCell<ConnectionState>,
    returns: &RefCell<u64>,
    device: &str,
    event: StoreEvent,
) {
    let next = match &event {
        StoreEvent::Away { error, .. } => ConnectionState::Lost(error.to_string()),
        StoreEvent::Back { .. } => ConnectionState::Connected,
        StoreEvent::GivenUp { error } => ConnectionState::Failing(error.to_string()),
        StoreEvent::Lost { reason } => ConnectionState::GivenUp(reason.clone()),
    };
    let before = state.replace(next.clone());
    match event {
        // One message for all requests that fail.
        StoreEvent::GivenUp { .. } if matches!(before, ConnectionState::Failing(_)) => {}
        StoreEvent::GivenUp { error } => tracing::error!(
            device,
            "a request was given up, and what needed it failed: {error}. What was written and not \
             flushed is kept, and the next flush tries again"
        ),
        StoreEvent::Away { error, patience } => tracing::warn!(
            device,
            "the object store is away: {error}; each request is repeated for {} s",
            patience.as_millis() / 1000
        ),
        StoreEvent::Back { after } => {
            *returns.borrow_mut() += 1;
            tracing::info!(device, "the object store is back after {} ms", after.as_millis());
        }
        StoreEvent::Lost { reason } => tracing::error!(
            device,
            "the volume has another writer: {reason}; all requests fail. To do: stop one of the \
             daemons; what this one had not flushed is lost"
        ),
    }
}

/// Refuses a volume of other sizes than those of the URI.
fn check(name: &Path, to: &S3Volume, found: Shape) -> Result<(), Failure> {
    for (what, found, given) in [
        ("the volume has another size", found.size_bytes, to.size_bytes),
        ("the volume has objects of another size", found.object_bytes, to.object_bytes),
    ] {
        if let Some(given) = given.filter(|given| *given != found) {
            return Err(Failure::refused(name, what)
                .found(show_size(found))
                .expected(show_size(given))
                .advice("leave size= and object= out of the URI: the volume knows them"));
        }
    }
    Ok(())
}

fn without_size(name: &Path) -> Failure {
    Failure::refused(name, "there is no volume, and no size for a new one")
        .found(format_args!("no object \"{ROOT}\" below the prefix"))
        .expected("a volume, or a URI with size=")
        .advice("add ?size=100G to create one; or check bucket, prefix and endpoint")
}

fn open_failure(name: &Path, failure: &OpenFailure) -> Failure {
    match failure {
        OpenFailure::NoVolume => Failure::refused(name, "there is no volume")
            .found(format_args!("no object \"{ROOT}\" below the prefix"))
            .expected("a volume that `ubcache make -B` created")
            .advice("check bucket, prefix and endpoint; `ubcache make` with size= creates one"),
        OpenFailure::InUse(holder) => Failure::refused(name, "the volume is in use")
            .found(holder)
            .expected("no other daemon")
            .advice("stop that daemon; one that has crashed is forgotten after 20 seconds"),
        OpenFailure::Unfit(probe) => {
            Failure::refused(name, "the store ignores conditions, and two writers would destroy it")
                .found(probe)
                .expected("a store with conditional PUT (If-None-Match, If-Match)")
                .advice("use another store, or a newer version of it")
        }
        OpenFailure::Manifest { key, error } => {
            Failure::refused(name, format_args!("object \"{key}\" is not what it should be"))
                .found(&error.found)
                .expected(&error.expected)
                .advice("check the prefix; a newer version needs a newer ubcache")
        }
        OpenFailure::Exists(bytes) => Failure::refused(name, "somebody else has just created it")
            .found(show_size(*bytes))
            .advice("do it again"),
        OpenFailure::Store(error) => store_failure(name, error),
    }
}

fn store_failure(name: &Path, error: &StoreError) -> Failure {
    let advice = match error {
        StoreError::Denied(_) => {
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile, and the bucket's \
             permissions"
        }
        StoreError::ClockSkew(_) => {
            "set the clock of this machine (`timedatectl` shows it, and whether it is \
             synchronized), or that of the store: they may differ by 15 minutes at most"
        }
        StoreError::NotFound(_) => "create the bucket, or check its name",
        StoreError::Unreachable(_) | StoreError::Busy(_) => {
            "start the store, or check the endpoint of the URI (or AWS_ENDPOINT_URL)"
        }
        _ => "check bucket, region and endpoint of the URI (or AWS_ENDPOINT_URL, AWS_REGION)",
    };
    Failure::could_not_run(name, "the object store can't be used").found(error).advice(advice)
}

fn first_line(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

fn boot() -> String {
    first_line("/proc/sys/kernel/random/boot_id")
}

/// Start of a process, in ticks since the boot; none: it is not running.
fn started(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program is in parentheses, and may have any characters.
    let (_, rest) = stat.rsplit_once(") ")?;
    let state = rest.split(' ').next()?;
    let start = rest.split(' ').nth(19)?;
    (!matches!(state, "Z" | "X")).then(|| start.to_owned())
}

/// This process in words that [`is_gone`] understands.
fn this_process() -> String {
    let pid = std::process::id();
    let host = first_line("/proc/sys/kernel/hostname");
    let start = started(pid).unwrap_or_default();
    format!("process {pid} on {host} (start {start}, boot {})", boot())
}

/// Returns true if the holder was a process of this machine that has ended. Others may run.
fn is_gone(holder: &str) -> bool {
    let parse = || {
        let pid: u32 = holder.strip_prefix("process ")?.split(' ').next()?.parse().ok()?;
        let (start, boot) = holder.rsplit_once("(start ")?.1.split_once(", boot ")?;
        Some((pid, start.to_owned(), boot.strip_suffix(')')?.to_owned()))
    };
    let Some((pid, start, of_boot)) = parse() else { return false };
    of_boot == boot() && started(pid) != Some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_that_has_ended_is_told_from_one_that_runs() {
        let own = this_process();
        assert!(!is_gone(&own), "{own}");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep runs");
        let holder = own.replace(&std::process::id().to_string(), &child.id().to_string()).replace(
            &started(std::process::id()).expect("runs"),
            &started(child.id()).expect("runs"),
        );
        assert!(!is_gone(&holder), "{holder}");
        child.kill().expect("a child can be killed");
        child.wait().expect("a child can be waited for");
        assert!(is_gone(&holder), "{holder}");
        assert!(!is_gone(&holder.replace("boot ", "boot x")), "another machine");
        assert!(!is_gone("somebody"));
    }
}
