//! One connection of a monitor, from its first message to its end.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use ubcache_env::local::{Either, Notify, first};
use ubcache_env::{Channel, Env, PassedFiles, Priority, StreamError, StreamId, Volume};
use vhost::vhost_user::message::FrontendReq;

use crate::device::{Device, DiskStatus, Settings};
use crate::handler::Handler;
use crate::relay::{Message, Reader, Relay, backend_channel, config_changed};

/// Reasons for an abnormal end of a connection.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ServeError {
    /// The monitor violates the protocol, or asks for what the disk does not have.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// The monitor has gone in the middle of a message.
    #[error("the monitor closed the connection inside a message")]
    Disconnected,
    /// The socket failed.
    #[error(transparent)]
    Stream(StreamError),
    /// This machine has no descriptors or no memory left.
    #[error("a message can't be handled: {0}")]
    Local(String),
}

impl From<StreamError> for ServeError {
    fn from(error: StreamError) -> ServeError {
        match error {
            StreamError::Closed => ServeError::Disconnected,
            error => ServeError::Stream(error),
        }
    }
}

impl From<io::Error> for ServeError {
    fn from(error: io::Error) -> ServeError {
        ServeError::Local(error.to_string())
    }
}

/// Reads the status of a disk; none: its connection has ended.
type ReadStatus = Box<dyn Fn() -> Option<DiskStatus>>;

/// Control of all connections that share it.
#[derive(Default)]
pub struct Control {
    draining: Cell<bool>,
    sizes: Cell<u64>,
    changed: Notify,
    /// Reads the status of the disk of the newest connection.
    disk: RefCell<Option<ReadStatus>>,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("draining", &self.draining).finish_non_exhaustive()
    }
}

impl Control {
    /// Ends the connections in good order: requests that were taken are answered, others stay in
    /// the rings for the next process.
    pub fn drain(&self) {
        self.draining.set(true);
        self.changed.notify_all();
    }

    /// The disk of the connection that is served; none: there is no connection.
    pub fn disk(&self) -> Option<DiskStatus> {
        self.disk.borrow().as_ref().and_then(|status| status())
    }

    /// Lets connections be served again that come from now on.
    pub fn resume(&self) {
        self.draining.set(false);
    }

    /// Returns true if the end has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Waits until the end has begun.
    pub async fn drained(&self) {
        while !self.draining.get() {
            self.changed.notified().await;
        }
    }

    /// The size of a volume has changed: its guests hear of it.
    pub fn resized(&self) {
        self.sizes.set(self.sizes.get() + 1);
        self.changed.notify_all();
    }

    /// Waits for the end, or for a size that was not seen.
    async fn change(&self, seen: u64) {
        while !self.draining.get() && self.sizes.get() == seen {
            self.changed.notified().await;
        }
    }
}

/// Settings of a connection.
#[derive(Clone, Default)]
pub struct Options {
    /// Settings of the disk.
    pub settings: Settings,
    /// The end, and changes of size; a clone shares it.
    pub control: Rc<Control>,
}

/// Serves one monitor until it leaves, or the control ends it. No request is in flight afterwards:
/// only then may the next connection for the same guest begin.
///
/// Each queue of the disk has its own stream.
pub async fn serve_connection<E: Env + PassedFiles, C: Channel, V: Volume>(
    env: E,
    channel: C,
    volume: Rc<V>,
    options: Options,
    stream: impl FnMut() -> StreamId,
) -> Result<(), ServeError> {
    let device = Rc::new(Device::new(env.clone(), volume, &options.settings, stream));
    let connection = Connection {
        handler: Arc::new(Handler::new(env.clone(), device.clone())),
        env,
        channel,
        monitor: RefCell::default(),
    };
    let disk = Rc::downgrade(&device);
    let status = move || disk.upgrade().map(|disk| disk.status());
    *options.control.disk.borrow_mut() = Some(Box::new(status));
    let served = connection.serve(&options.control).await;
    if options.control.is_draining() {
        device.settle().await;
    }
    device.end().await;
    connection.channel.close();
    if let Some(monitor) = connection.monitor.take() {
        monitor.close();
    }
    served
}

struct Connection<E: PassedFiles, C, V> {
    env: E,
    channel: C,
    handler: Arc<Handler<E, V>>,
    /// The channel on which the disk speaks first.
    monitor: RefCell<Option<Rc<E::Channel>>>,
}

impl<E: Env + PassedFiles, C: Channel, V: Volume> Connection<E, C, V> {
    async fn serve(&self, control: &Control) -> Result<(), ServeError> {
        let mut relay = Relay::new(self.handler.clone())?;
        let mut reader = Reader::default();
        let mut seen = control.sizes.get();
        while !control.is_draining() {
            match first(reader.next(&self.channel), control.change(seen)).await {
                Either::Left(Ok(Some(message))) => self.handle(&mut relay, message).await?,
                Either::Left(Ok(None)) => return Ok(()),
                Either::Left(Err(error)) => return Err(error),
                Either::Right(()) => {
                    seen = control.sizes.get();
                    self.look_at_size();
                }
            }
        }
        Ok(())
    }

    async fn handle(
        &self,
        relay: &mut Relay<Handler<E, V>>,
        message: Message,
    ) -> Result<(), ServeError> {
        let kind = message.kind();
        match (kind, message.queue()) {
            (Some(FrontendReq::GET_VRING_BASE), Some(queue)) => self.handler.stop(queue).await,
            (Some(FrontendReq::SET_BACKEND_REQ_FD), _) => {
                let former =
                    self.monitor.replace(backend_channel(&self.env, &message).map(Rc::new));
                if let Some(former) = former {
                    former.close();
                }
            }
            _ => {}
        }
        let answer = relay.exchange(&message)?;
        drop(message);
        let is_answered = !answer.bytes.is_empty();
        if is_answered {
            self.channel.send(answer.bytes, answer.files).await?;
        }
        match (answer.refused, self.handler.take_refusal()) {
            (Some(error), reason) if !is_answered => {
                let name = kind.map_or("of unknown kind".to_owned(), |kind| format!("{kind:?}"));
                let reason = reason.unwrap_or(error);
                Err(ServeError::Protocol(format!("message {name}: {reason}")))
            }
            _ => Ok(()),
        }
    }

    /// Announces the size of the volume to the guest, if it has changed.
    fn look_at_size(&self) {
        if !self.handler.device.look_at_size() {
            return;
        }
        if let Some(monitor) = self.monitor.borrow().clone() {
            // A monitor that does not read waits for itself.
            self.env.spawn(Priority::Foreground, async move {
                // A failure ends the connection in any case.
                let _ = monitor.send(config_changed(), Vec::new()).await;
            });
        }
    }
}
