//! The control API: HTTP and JSON on the control socket, served by a thread of its own.
//!
//! That thread touches no set. It reads requests, finds the set that is meant, and passes them to
//! its mailbox; whoever hammers it takes time from this thread, not from a set's.
//!
//! | module | holds |
//! |---|---|
//! | `connections` | accepting, limits on connections and on their time, the end |
//! | `stream` | a connection that another program may get |
//! | `phase` | from its start to its end |
//! | `pace` | how many requests there may be in a second |
//! | `body` | bodies of requests, with limits, and of responses |
//! | `forms` | what is taken and given |
//! | `routes` | paths and methods |
//! | `settings` | attributes with new values |
//! | `fleet` | requests to one set, or to all |
//! | [`openapi`] | the OpenAPI document |
//! | `page` | the files of the status page |
//! | [`browsers`] | the status page over TCP, for browsers and Prometheus |

mod body;
pub mod browsers;
mod connections;
mod fleet;
mod forms;
pub mod openapi;
mod pace;
mod page;
mod phase;
mod routes;
mod settings;
mod stream;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use ubcache_env::local::first;
use ubcache_env::{Env, Nanos};
use ubcache_host::ListenAddress;

use self::browsers::StatusPage;
use self::fleet::Fleet;
use self::phase::Phase;
use super::registry::Registry;
use super::sockets::ControlSocket;
use crate::failure::Failure;

/// Memory for the stack of the API's thread.
const STACK_BYTES: usize = 1 << 20;

/// The control API of this process. Dropped, it ends at once.
#[derive(Debug)]
pub struct Api {
    socket: ControlSocket,
    phase: watch::Sender<Phase>,
    /// Requests that are being answered.
    busy: watch::Receiver<usize>,
    /// Closed when the thread has ended.
    ended: watch::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Api {
    /// Starts the thread, which answers from now on.
    pub fn start(
        socket: ControlSocket,
        registry: Registry,
        page: Option<StatusPage>,
    ) -> Result<Api, Failure> {
        let failed = |error: std::io::Error| {
            Failure::refused_because(
                "control API",
                format_args!("can't start the thread that serves it: {error}"),
            )
        };
        let path = socket.path().to_owned();
        let listener = UnixListener::from(socket.descriptor().map_err(failed)?);
        listener.set_nonblocking(true).map_err(failed)?;
        let (phase, phases) = watch::channel(Phase::Open);
        let (busy_now, busy) = watch::channel(0);
        let (end, ended) = watch::channel(());
        // `Runtime::build` makes descriptors: its errors are those of the start.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(failed)?;
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                runtime.block_on(async {
                    let fleet = Fleet::new(registry, &path);
                    if let Some(page) = page {
                        let readers = browsers::serve(page, fleet.clone(), phases.clone());
                        tokio::spawn(readers);
                    }
                    connections::serve(listener, fleet, phases, busy_now).await;
                });
                // Connections that are left are closed with it, and not shut down: another program
                // may have them.
                drop(runtime);
                drop(end);
            })
            .map_err(failed)?;
        Ok(Api { socket, phase, busy, ended, thread: Some(thread) })
    }

    /// From now on new connections wait.
    pub fn hold(&self) {
        self.phase.send_replace(Phase::Held);
    }

    /// New connections are served again.
    pub fn release(&self) {
        self.phase.send_replace(Phase::Open);
    }

    /// Waits until no request is being answered, an upgrade's own left out, for so long at most.
    pub(crate) async fn quiet(&self, world: &impl Env, patience: Nanos) {
        let mut busy = self.busy.clone();
        // The thread has ended: nothing is being answered.
        let quiet = async move { drop(busy.wait_for(|busy| *busy == 0).await) };
        first(quiet, world.sleep(patience)).await;
    }

    /// Ends it: responses that are under way are sent, for so long at most.
    pub async fn finish(&self, patience: Duration) {
        self.phase.send_replace(Phase::Ending(patience));
        let mut ended = self.ended.clone();
        // An error is the end.
        while ended.changed().await.is_ok() {}
    }

    /// [`Api::finish`] for a thread that may block.
    pub fn finish_blocking(mut self, patience: Duration) {
        self.phase.send_replace(Phase::Ending(patience));
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was reported when it happened.
            let _ = thread.join();
        }
    }

    /// The place of the socket, for another program.
    pub(crate) fn place(&self) -> &ListenAddress {
        self.socket.place()
    }

    /// A descriptor of the socket, for another program.
    pub(crate) fn descriptor(&self) -> std::io::Result<OwnedFd> {
        self.socket.descriptor()
    }

    /// Leaves the socket's path to another program.
    pub(crate) fn leave(&mut self) {
        self.socket.leave();
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Ending(Duration::ZERO));
    }
}
