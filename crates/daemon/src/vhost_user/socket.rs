//! A socket for virtual machines, and the guest that is connected to it.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;

use ubcache_engine::Exported;
use ubcache_env::local::{Either, first};
use ubcache_env::{Nanos, StreamId, Task};
use ubcache_host::{HostChannel, HostListener, HostSocket};
use ubcache_nbd::Exports;
use ubcache_vhost::{
    Control, Counters, Lineage, Options, Pace, QUEUES_MAX, ServeError, Settings, serve_connection,
};

use crate::served::world::World;

/// Streams of guests; connections count from 1, block devices from 2^48.
pub(crate) const FIRST_STREAM: u64 = 1 << 49;
/// After a failed accept (no descriptors left): time to wait for better times.
const ACCEPT_PAUSE: Nanos = Nanos::from_secs(1);

/// A socket for virtual machines.
pub struct GuestSocket {
    /// Name of the export.
    pub export: String,
    /// Its path.
    pub path: PathBuf,
    pub(crate) control: Rc<Control>,
    pub(crate) counters: Rc<Counters>,
    connected: Rc<Cell<bool>>,
    /// Serves one guest after the other.
    task: Task,
}

impl GuestSocket {
    /// Serves the guests that connect.
    pub(super) fn start<W: World>(
        world: &W,
        (export, path): (String, PathBuf),
        listener: HostListener,
        exports: Rc<Exports<Exported<W>>>,
        streams: Rc<Cell<u64>>,
        lineage: Lineage,
    ) -> GuestSocket {
        let (control, counters) = (Rc::<Control>::default(), Rc::<Counters>::default());
        let connected = Rc::<Cell<bool>>::default();
        let guests = Guests {
            world: world.clone(),
            export: export.clone(),
            control: control.clone(),
            counters: counters.clone(),
            connected: connected.clone(),
            exports,
            streams,
            lineage,
            told: RefCell::default(),
        };
        let task = world.spawn(ubcache_env::Priority::Foreground, async move {
            guests.accept(&listener).await
        });
        GuestSocket { export, path, control, counters, connected, task }
    }

    /// Returns true if a guest is connected.
    pub fn is_connected(&self) -> bool {
        self.connected.get()
    }

    /// Ends it: the requests of a guest that were taken are answered, and the path is removed.
    /// Waits for devices for so long at most; returns true if none is at work any more.
    pub(super) async fn end<W: World>(&self, world: &W, patience: Nanos) -> bool {
        self.control.drain();
        matches!(first(self.task.join(), world.sleep(patience)).await, Either::Left(()))
    }
}

/// Guests of one socket, one after the other.
struct Guests<W: World> {
    world: W,
    export: String,
    control: Rc<Control>,
    counters: Rc<Counters>,
    connected: Rc<Cell<bool>>,
    exports: Rc<Exports<Exported<W>>>,
    /// Number of the next stream.
    streams: Rc<Cell<u64>>,
    lineage: Lineage,
    /// The error of the last connection: a monitor that connects again and again is logged once.
    told: RefCell<Option<ServeError>>,
}

impl<W: World> Guests<W> {
    async fn accept(&self, listener: &HostListener) {
        let mut told = false;
        while !self.control.is_draining() {
            let Either::Left(accepted) = first(listener.accept(), self.control.drained()).await
            else {
                return;
            };
            match accepted {
                Ok(socket) => {
                    told = false;
                    self.connected.set(true);
                    Box::pin(self.serve(socket)).await;
                    self.connected.set(false);
                }
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(export = self.export, %error, "can't accept guests for now");
                    }
                    first(self.control.drained(), self.world.sleep(ACCEPT_PAUSE)).await;
                }
            }
        }
    }

    async fn serve(&self, socket: HostSocket) {
        let export = self.export.clone();
        let Some(volume) = self.exports.get(&export) else {
            tracing::warn!(export, "a guest is sent away: the export is gone");
            return;
        };
        if self.told.borrow().is_none() {
            tracing::info!(export, "a guest is connected");
        }
        let (name, told) = (export.clone(), Cell::new(false));
        let report = move |queue: u16, error: ubcache_vhost::QueueError| {
            // A guest can repeat it as often as it likes.
            if !told.replace(true) {
                tracing::warn!(
                    export = name,
                    queue,
                    %error,
                    "the guest's driver made a mistake: this queue is not served until the guest \
                     resets the disk; further mistakes of this connection are not logged"
                );
            }
        };
        let (report, lineage) = (Rc::new(report), self.lineage);
        let counters = self.counters.clone();
        let pace = self.exports.pace(&export);
        let pace = pace.map(|pace| -> Pace { Rc::new(move |now, bytes| pace.start(now, bytes)) });
        let settings = Settings { report, lineage, counters, pace, ..Settings::default() };
        let options = Options { settings, control: self.control.clone() };
        let host = self.world.host().clone();
        let channel = HostChannel::over(&host, socket);
        let first = self.streams.get();
        self.streams.set(first + u64::from(QUEUES_MAX));
        let mut next = first;
        let stream = || {
            next += 1;
            StreamId(next - 1)
        };
        match Box::pin(serve_connection(host, channel, volume, options, stream)).await {
            Ok(()) => {
                self.told.take();
                tracing::info!(export, "the guest is gone");
            }
            Err(error) => {
                if self.told.replace(Some(error.clone())).as_ref() != Some(&error) {
                    tracing::warn!(export, %error, "the connection of the guest has ended");
                }
            }
        }
    }
}
