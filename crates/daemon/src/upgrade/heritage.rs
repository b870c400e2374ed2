//! The state with its descriptors: how it comes into a program, and goes to another one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ubcache_host::ListenAddress;
use ubcache_host::exec::{Program, exec, own_program};
use ubcache_host::handover::take_inherited;
use ubcache_host::memory::file_in_memory;

use super::state::{Listener, RawPath, State};
use crate::config::ServeConfig;
use crate::failure::Failure;

/// The variable of the environment that names the descriptor of the state: `PID:DESCRIPTOR`.
pub const VARIABLE: &str = "UBCACHE_UPGRADE";

/// Variables that are for the program that the service manager has started. The sockets that they
/// announce are handed over with the state.
const FOR_THE_FIRST: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", VARIABLE];

/// The state that this program has inherited, as long as it has not taken over.
static PENDING: Mutex<Option<Heritage>> = Mutex::new(None);

/// State of the daemon, and the descriptors that it names.
#[derive(Debug)]
pub struct Heritage {
    /// The state.
    pub state: State,
    /// Its descriptors, by their numbers.
    descriptors: BTreeMap<RawFd, OwnedFd>,
    memory: File,
}

fn pending() -> MutexGuard<'static, Option<Heritage>> {
    PENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what the program before has left, if it has. To be called before anything is opened.
pub fn receive() -> Result<(), Failure> {
    let Some(value) = std::env::var_os(VARIABLE) else { return Ok(()) };
    let value = value.to_string_lossy().into_owned();
    let failed = |why: &dyn std::fmt::Display| {
        Failure::usage(
            VARIABLE,
            format_args!("can't go on with the state of another program: {why}"),
        )
        .found(&value)
        .advice("it is set by `ubcache upgrade` only; unset it")
    };
    let Some((pid, number)) = value.split_once(':') else {
        return Err(failed(&"expected PID:DESCRIPTOR"));
    };
    if pid != std::process::id().to_string() {
        // It is another process that a program was to go on in.
        return Ok(());
    }
    let number = number.parse().map_err(|error| failed(&error))?;
    let memory = File::from(take_inherited(number).map_err(|error| failed(&error))?);
    let state = State::read(&memory).map_err(|error| failed(&error))?;
    let take = |number| take_inherited(number).map(|fd| (number, fd));
    let descriptors = state.descriptors().map(take).collect::<io::Result<_>>();
    let descriptors = descriptors.map_err(|error| failed(&error))?;
    *pending() = Some(Heritage { state, descriptors, memory });
    Ok(())
}

/// This program can't go on: the program before does, if this one has inherited from it and has not
/// taken over. Returns if not.
pub fn go_back(why: &str) {
    let Some(mut heritage) = pending().take() else { return };
    if heritage.state.failed.is_some() {
        // This is the program before.
        return;
    }
    heritage.state.failed = Some(why.to_owned());
    let program = heritage.state.before.path();
    let error = heritage.start(&program);
    tracing::error!("can't go back to the program before, {}: {error}", program.display());
}

/// The state that was inherited and not taken over yet.
pub(crate) fn pending_state() -> Option<State> {
    pending().as_ref().map(|heritage| heritage.state.clone())
}

/// Takes over: there is no way back.
pub(crate) fn commit() -> Option<Heritage> {
    pending().take()
}

impl Heritage {
    /// The state, with the descriptors that it names.
    pub(crate) fn new(
        mut state: State,
        descriptors: impl IntoIterator<Item = OwnedFd>,
    ) -> io::Result<Heritage> {
        let memory = file_in_memory(0)?;
        let before = own_program()?;
        state.before_fd = before.as_raw_fd();
        state.arguments = std::env::args_os().skip(1).map(RawPath::from).collect();
        state.environment = std::env::vars_os()
            .filter(|(name, _)| FOR_THE_FIRST.iter().all(|other| name != other))
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        let descriptors = descriptors.into_iter().chain([before]);
        let descriptors = descriptors.map(|fd| (fd.as_raw_fd(), fd)).collect();
        Ok(Heritage { state, descriptors, memory })
    }

    /// Takes a descriptor.
    pub(crate) fn take(&mut self, number: RawFd) -> Option<OwnedFd> {
        self.descriptors.remove(&number)
    }

    /// Lets the other program go on in this process. Returns only if it can't be run: then this one
    /// has inherited from itself.
    pub(crate) fn hand_over(mut self) {
        let program = self.state.program.path();
        let error = self.start(&program);
        self.state.failed = Some(format!("{} can't be run: {error}", program.display()));
        *pending() = Some(self);
    }

    fn start(&mut self, program: &Path) -> io::Error {
        if let Err(error) = self.state.write(&self.memory) {
            return error;
        }
        let value = format!("{}:{}", std::process::id(), self.memory.as_raw_fd());
        let text = |text: &RawPath| text.path().into_os_string();
        let environment = self.state.environment.iter();
        let environment = environment
            .map(|(name, value)| (text(name), text(value)))
            .chain([(VARIABLE.into(), value.into())])
            .collect::<Vec<(OsString, OsString)>>();
        let arguments = [program.as_os_str().to_owned()]
            .into_iter()
            .chain(self.state.arguments.iter().map(text))
            .collect::<Vec<_>>();
        crate::log::finish_quickly();
        let program = match self.descriptors.get(&self.state.before_fd) {
            Some(open) if self.state.failed.is_some() && !is_same(program, open) => {
                Program::Open(open)
            }
            _ => Program::File(program),
        };
        let memory = self.memory.as_fd();
        let keep = self.descriptors.values().map(AsFd::as_fd).chain([memory]);
        exec(program, &arguments, &environment, keep)
    }
}

/// Returns true if the path leads to the open file.
fn is_same(path: &Path, open: &OwnedFd) -> bool {
    let Ok(open) = open.try_clone().map(File::from).and_then(|open| open.metadata()) else {
        return false;
    };
    std::fs::metadata(path).is_ok_and(|it| (it.dev(), it.ino()) == (open.dev(), open.ino()))
}

/// The path by which this program was started, so that an upgrade finds what is there then. It may
/// be a link to a file whose name is that of a version.
pub(crate) fn own_path() -> PathBuf {
    let own = own_program().ok();
    let is_own = |path: &PathBuf| own.as_ref().is_some_and(|own| is_same(path, own));
    let named = PathBuf::from(std::env::args_os().next().unwrap_or_default());
    let by_name = match named.parent() {
        Some(directory) if directory != Path::new("") => std::path::absolute(&named).ok(),
        _ => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).map(|directory| directory.join(&named)).find(is_own)
        }
    };
    by_name.filter(is_own).or_else(|| std::env::current_exe().ok()).unwrap_or(named)
}

impl Heritage {
    /// Takes the control socket.
    pub(crate) fn take_control(&mut self) -> Option<(OwnedFd, ListenAddress)> {
        self.take(self.state.control.fd).map(|fd| (fd, self.state.control.place()))
    }

    /// Takes the sockets for clients.
    pub(crate) fn take_listeners(&mut self) -> Vec<(OwnedFd, ListenAddress)> {
        let listeners = self.state.listeners.clone();
        let take = |listener: &Listener| Some((self.take(listener.fd)?, listener.place()));
        listeners.iter().filter_map(take).collect()
    }
}

impl State {
    /// Path of this program.
    pub(crate) fn own_program(&self) -> PathBuf {
        if self.failed.is_some() { self.before.path() } else { self.program.path() }
    }

    /// The configuration by the command line, with what has become of it since.
    pub(crate) fn adjust(&self, config: &ServeConfig) -> ServeConfig {
        let served = self.volumes.iter().map(|volume| (volume.path.path(), volume.name.clone()));
        let down = self.down.iter().map(|(path, name)| (path.path(), name.clone()));
        let (backings, names) = served.chain(down).map(|(path, name)| (path, Some(name))).unzip();
        ServeConfig {
            cache: Some(self.cache.path()),
            backings,
            names,
            control: Some(self.control.path.path()),
            // The choices of the start were made.
            drop_clean_cache: false,
            believe_disk: Vec::new(),
            believe_cache: Vec::new(),
            ..config.clone()
        }
    }
}
