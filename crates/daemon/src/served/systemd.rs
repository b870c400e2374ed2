//! Messages to systemd (sd_notify): ready, a status line, the watchdog, the end.
//!
//! They are sent by a thread of their own: a service manager that does not read them stops no
//! volume. The watchdog's messages come from the thread of the set, so they end when it hangs.

use std::rc::Rc;
use std::sync::mpsc::sync_channel;

use sd_notify::NotifyState;
use ubcache_env::{Nanos, Priority};

use super::world::World;

/// Messages that may wait.
const QUEUE: usize = 16;
/// Stack of the thread.
const STACK_BYTES: usize = 128 << 10;

/// A message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Clients can connect.
    Ready,
    /// A line for people.
    Status(String),
    /// The sender is alive.
    Watchdog,
    /// A stop has begun.
    Stopping,
}

/// A connection to the service manager; without one, nothing is sent.
#[derive(Clone)]
pub struct Systemd(Option<Rc<dyn Fn(Message)>>);

impl Systemd {
    /// Connects, if the environment says where (`NOTIFY_SOCKET`).
    pub fn connect() -> Systemd {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Systemd(None);
        }
        let (sender, messages) = sync_channel(QUEUE);
        let started = std::thread::Builder::new()
            .name("systemd".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || messages.iter().for_each(|message| send(&message)));
        match started {
            // A manager that does not read gets no more messages than find room.
            Ok(_) => Systemd::by(Rc::new(move |message| drop(sender.try_send(message)))),
            Err(error) => {
                tracing::warn!(%error, "can't start a thread for messages to systemd");
                Systemd(None)
            }
        }
    }

    /// A connection by way of others.
    pub fn by(send: Rc<dyn Fn(Message)>) -> Systemd {
        Systemd(Some(send))
    }

    /// Clients can connect.
    pub fn ready(&self) {
        self.send(Message::Ready);
    }

    /// A line for `systemctl status`.
    pub fn status(&self, text: String) {
        self.send(Message::Status(text));
    }

    /// A stop has begun.
    pub fn stopping(&self) {
        self.send(Message::Stopping);
    }

    /// From now on the watchdog gets its messages (`WATCHDOG_USEC`), twice as often as it asks for.
    pub fn start_watchdog<W: World>(&self, world: &W) {
        let Some(time) = sd_notify::watchdog_enabled().filter(|time| !time.is_zero()) else {
            return;
        };
        let interval = Nanos::from_micros((time.as_micros() as u64 / 2).max(1000));
        let (systemd, env) = (self.clone(), world.clone());
        world.spawn(Priority::Foreground, async move {
            loop {
                systemd.send(Message::Watchdog);
                env.sleep(interval).await;
            }
        });
    }

    /// Sends a message.
    pub fn send(&self, message: Message) {
        if let Some(send) = &self.0 {
            send(message);
        }
    }
}

fn send(message: &Message) {
    let state = match message {
        Message::Ready => NotifyState::Ready,
        Message::Status(text) => NotifyState::Status(text),
        Message::Watchdog => NotifyState::Watchdog,
        Message::Stopping => NotifyState::Stopping,
    };
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "can't send a message to systemd");
    }
}
