//! Waiting for Unix signals.
//!
//! The handler of a signal adds one to an eventfd of the process. (A signalfd would need the
//! signal blocked in every thread, also in those of libraries and in child processes.)

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::op::IoRequest;
use crate::reactor::{Host, HostEnv};
use crate::sys;

/// Interrupt from the keyboard.
pub const SIGINT: i32 = libc::SIGINT;
/// Request to end.
pub const SIGTERM: i32 = libc::SIGTERM;
/// Hang-up; by custom a request to read the configuration again.
pub const SIGHUP: i32 = libc::SIGHUP;

/// The thread for which signals wait; 0: none.
static KEEPER: AtomicI32 = AtomicI32::new(0);

/// Lets signals wait that would end the process, until a program that comes waits for them itself;
/// `false`: no such program comes. Call it on the thread that executes the program.
///
/// Other threads take signals as before, and pass them on to this one: what waits for it outlives
/// the exec, and what they counted does not.
pub fn keep_for_next(keep: bool) -> io::Result<()> {
    if !keep {
        KEEPER.store(0, Ordering::Relaxed);
    }
    [SIGINT, SIGTERM, SIGHUP].into_iter().try_for_each(|signal| sys::block_signal(signal, keep))?;
    if keep {
        KEEPER.store(sys::thread_id(), Ordering::Relaxed);
    }
    Ok(())
}

const SIGNALS: usize = 65;

/// The eventfd of each signal, for the handler; 0: none.
static EVENT_FDS: [AtomicI32; SIGNALS] = [const { AtomicI32::new(0) }; SIGNALS];

extern "C" fn on_signal(signal: libc::c_int) {
    // Only what is allowed in a signal handler: atomic loads, tgkill(2) and write(2).
    let keeper = KEEPER.load(Ordering::Relaxed);
    if keeper > 0 && keeper != sys::thread_id() && sys::signal_thread(keeper, signal) {
        return;
    }
    let fd = usize::try_from(signal).ok().and_then(|signal| EVENT_FDS.get(signal));
    if let Some(fd) = fd.map(|fd| fd.load(Ordering::Relaxed)).filter(|fd| *fd > 0) {
        sys::eventfd_signal(fd);
    }
}

/// The eventfd of a signal; made, with the handler, at the first call.
fn event_fd(signal: i32) -> io::Result<OwnedFd> {
    static MADE: Mutex<BTreeMap<i32, OwnedFd>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(fd) = made.get(&signal) {
        return fd.try_clone();
    }
    let slot = usize::try_from(signal).ok().and_then(|signal| EVENT_FDS.get(signal));
    let slot = slot.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let fd = sys::eventfd()?;
    // The handler may run at any later time: its descriptor is never closed.
    let for_handler: RawFd = fd.try_clone()?.into_raw_fd();
    slot.store(for_handler, Ordering::Relaxed);
    sys::install_signal_handler(signal, on_signal)?;
    // The program before may have kept it for this one.
    sys::block_signal(signal, false)?;
    let copy = fd.try_clone()?;
    made.insert(signal, fd);
    Ok(copy)
}

/// A signal that can be waited for. It keeps its handler when this is dropped.
///
/// A delivery wakes one waiter. Deliveries without a waiter count as one.
#[derive(Debug)]
pub struct Signal {
    env: HostEnv,
    fd: Rc<OwnedFd>,
}

impl Signal {
    /// Waits for the next delivery.
    pub async fn wait(&self) {
        while sys::eventfd_take(self.fd.as_raw_fd()) == 0 {
            let request = IoRequest::Poll { fd: self.fd.clone(), events: libc::POLLIN as u32 };
            if self.env.core().submit(request).await.1 == Err(libc::ESHUTDOWN) {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Signals that a thread without a reactor waits for.
#[derive(Debug)]
pub struct Deliveries(Vec<(i32, OwnedFd)>);

impl Deliveries {
    /// From now on these signals do not end the process but can be waited for.
    pub fn of(signals: &[i32]) -> io::Result<Deliveries> {
        let fds = signals.iter().map(|signal| Ok((*signal, event_fd(*signal)?)));
        Ok(Deliveries(fds.collect::<io::Result<_>>()?))
    }

    /// Blocks until one is delivered.
    pub fn next(&self) -> io::Result<i32> {
        loop {
            for (signal, fd) in &self.0 {
                if sys::eventfd_take(fd.as_raw_fd()) > 0 {
                    return Ok(*signal);
                }
            }
            let fds: Vec<RawFd> = self.0.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
            sys::wait_readable(&fds)?;
        }
    }
}

impl Host {
    /// From now on `signal` does not end the process but can be waited for.
    pub fn signal(&self, signal: i32) -> io::Result<Signal> {
        Ok(Signal { env: self.env(), fd: Rc::new(event_fd(signal)?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only the thread that executes the next program blocks signals. One that comes meanwhile went
    /// to another thread, whose count ended with the program.
    #[test]
    fn signal_that_another_thread_takes_waits_for_the_next_program() {
        let fd = event_fd(SIGHUP).expect("a handler");
        keep_for_next(true).expect("it can be kept");
        // The threads of the tests do not block it.
        let mut kill = std::process::Command::new("kill");
        let status = kill.args(["-HUP", &std::process::id().to_string()]).status();
        assert!(status.expect("kill runs").success());
        while !sys::is_pending(SIGHUP) {
            std::thread::yield_now();
        }
        assert_eq!(sys::eventfd_take(fd.as_raw_fd()), 0, "no thread has counted it");
        keep_for_next(false).expect("it comes");
        assert_eq!(sys::eventfd_take(fd.as_raw_fd()), 1);
    }
}
