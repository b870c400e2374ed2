//! The mailbox of a set: requests of the control API's thread, on their way to the set's own.
//!
//! A channel between threads that no runtime owns: its wakers are those of the reactor's tasks on
//! one side and of the API's runtime on the other. Each request is carried out by a task of its
//! own, so that one that waits holds up no other, and is answered once. Requests are few and short,
//! and each sees the set at one moment.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use ubcache_env::local::{Either, Event, first};
use ubcache_env::{Nanos, Priority};

use super::names::{Names, SharedNames};
use super::refusal::{Kind, Refusal};
use super::request::ControlRequest;
use crate::served::daemon::Daemon;
use crate::served::move_backing::MoveWishes;
use crate::served::report::Report;
use crate::served::world::World;
use crate::size::parse_size;

/// The attribute by which bcache makes a flash-only volume of the size that is written to it.
const FLASH_VOL_CREATE: &str = "flash_vol_create";
/// Requests that may wait for the set's thread to look at them.
const WAITING_MAX: usize = 256;
/// Requests that may be under way in a set, also those whose client has gone.
const UNDER_WAY_MAX: usize = 256;

/// Result of a request.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    /// It was carried out.
    Done,
    /// A value or words.
    Value(serde_json::Value),
    /// The report of `status`, and the time of the set's thread that it took.
    Report(Box<Report>, Nanos),
}

/// Answer to a request.
pub type Answer = Result<Reply, Refusal>;

/// A request with its way back.
#[derive(Debug)]
pub struct Message {
    request: ControlRequest,
    /// Of an upgrade: the connection that another program answers.
    requester: Option<OwnedFd>,
    answer: oneshot::Sender<Answer>,
}

/// The side of other threads.
#[derive(Clone, Debug)]
pub struct Mailbox(mpsc::Sender<Message>);

/// The side of the set's thread.
#[derive(Debug)]
pub struct Mailroom {
    messages: mpsc::Receiver<Message>,
    names: SharedNames,
}

/// A set of this process.
#[derive(Clone, Debug)]
pub struct SetHandle {
    /// Its name in the configuration; may be empty.
    pub name: String,
    /// The names that its thread publishes.
    pub names: SharedNames,
    /// Its thread takes requests there.
    pub mailbox: Mailbox,
}

/// Makes a mailbox for a set, with its name in the configuration.
pub fn mailbox(name: &str) -> (SetHandle, Mailroom) {
    let (sender, messages) = mpsc::channel(WAITING_MAX);
    let names = SharedNames::default();
    let mailbox = Mailbox(sender);
    (
        SetHandle { name: name.to_owned(), names: names.clone(), mailbox },
        Mailroom { messages, names },
    )
}

impl Mailbox {
    /// Returns true if nobody takes requests any more.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Sends a request; the answer comes when the set's thread gives it. `requester`: see
    /// [`Message`].
    pub fn send(
        &self,
        request: ControlRequest,
        requester: Option<OwnedFd>,
    ) -> impl Future<Output = Answer> + use<> {
        let (answer, answered) = oneshot::channel();
        let sent = self.0.try_send(Message { request, requester, answer });
        async move {
            match sent {
                Ok(()) => answered.await.unwrap_or_else(|_| Err(ended())),
                Err(TrySendError::Full(_)) => Err(Refusal::new(
                    Kind::Busy,
                    format_args!("{WAITING_MAX} requests wait for the set's thread"),
                )
                .advice("try again in a moment; the log says what it is busy with")),
                Err(TrySendError::Closed(_)) => Err(ended()),
            }
        }
    }
}

fn ended() -> Refusal {
    Refusal::new(Kind::Busy, "the set is not served any more")
}

impl Mailroom {
    /// The names by which the set is found.
    pub fn names(&self) -> &SharedNames {
        &self.names
    }
}

/// Requests that the set's thread has taken and not answered.
#[derive(Debug, Default)]
struct UnderWay {
    count: Cell<usize>,
    /// Nobody sends any more, and all are answered.
    none: Event,
    /// No request comes any more.
    closed: Cell<bool>,
}

impl UnderWay {
    fn ended(&self) {
        self.count.set(self.count.get() - 1);
        self.set_if_none();
    }

    fn close(&self) {
        self.closed.set(true);
        self.set_if_none();
    }

    fn set_if_none(&self) {
        if self.closed.get() && self.count.get() == 0 {
            self.none.set();
        }
    }
}

/// Answers that a set owes.
#[derive(Debug)]
pub struct Owed(Rc<UnderWay>);

impl Owed {
    /// Waits, when the set has stopped, until the last request is answered.
    pub async fn given(&self) {
        self.0.none.wait().await;
    }
}

/// Takes requests from now on, on the set's own thread, until the set has stopped. `uris` gives the
/// URIs of an export.
pub fn serve_mailbox<W: World>(
    world: &W,
    daemon: &Rc<Daemon<W>>,
    mut mailroom: Mailroom,
    uris: impl Fn(&str) -> Vec<String> + Clone + 'static,
) -> Owed {
    daemon.publish_to(mailroom.names.clone());
    let (env, daemon) = (world.clone(), daemon.clone());
    let under_way = Rc::<UnderWay>::default();
    let owed = Owed(under_way.clone());
    world.spawn(Priority::Foreground, async move {
        loop {
            let next = first(daemon.stopped.wait(), mailroom.messages.recv()).await;
            let message = match next {
                Either::Right(message) => message,
                Either::Left(()) => {
                    // Those that have been sent already are taken.
                    mailroom.messages.close();
                    mailroom.messages.recv().await
                }
            };
            let Some(Message { request, requester, answer }) = message else { break };
            let (daemon, uris) = (daemon.clone(), uris.clone());
            let of_request = under_way.clone();
            under_way.count.set(under_way.count.get() + 1);
            env.spawn(Priority::Foreground, async move {
                // The client may have gone.
                let _ = answer.send(carry_out(&daemon, request, requester, uris).await);
                of_request.ended();
            });
        }
        under_way.close();
    });
    owed
}

/// Carries out one request.
async fn carry_out<W: World>(
    daemon: &Rc<Daemon<W>>,
    request: ControlRequest,
    requester: Option<OwnedFd>,
    uris: impl Fn(&str) -> Vec<String>,
) -> Answer {
    if request == ControlRequest::Stop {
        daemon.stop_wanted.set();
        daemon.stopped.wait().await;
        let failure = daemon.stop_failure.borrow().clone();
        return match failure {
            None => Ok(Reply::Done),
            Some(why) => {
                Err(Refusal::new(Kind::Failed, format_args!("stopped, but not cleanly: {why}")))
            }
        };
    }
    if daemon.stopped.is_set() {
        return Err(ended());
    }
    if daemon.upgrades.is_under_way() && request.changes() {
        return Err(Refusal::new(
            Kind::Busy,
            "an upgrade is under way, and nothing is changed meanwhile: try again when it is over",
        ));
    }
    let word = request.word();
    if daemon.commands.borrow().len() >= UNDER_WAY_MAX {
        return Err(Refusal::new(
            Kind::Busy,
            format_args!("{UNDER_WAY_MAX} requests are under way: wait for the end of some"),
        ));
    }
    daemon.commands.borrow_mut().push(word);
    let answer = dispatch(daemon, request, requester, uris).await;
    let mut commands = daemon.commands.borrow_mut();
    if let Some(at) = commands.iter().position(|other| *other == word) {
        commands.swap_remove(at);
    }
    answer
}

async fn dispatch<W: World>(
    daemon: &Rc<Daemon<W>>,
    request: ControlRequest,
    requester: Option<OwnedFd>,
    uris: impl Fn(&str) -> Vec<String>,
) -> Answer {
    let words = |words: String| Reply::Value(words.into());
    match request {
        ControlRequest::Status => {
            let began = daemon.world.now();
            let report = Box::new(daemon.report(uris));
            Ok(Reply::Report(report, daemon.world.now().since(began)))
        }
        // bcache's name for it: the volume has no label, and its UUID is the name of its export.
        ControlRequest::Set { name, value, volume: None } if name == FLASH_VOL_CREATE => {
            let bytes = parse_size(&value).map_err(|error| Refusal::new(Kind::Unfit, error))?;
            daemon.create_flash("", bytes).await.map(words)
        }
        ControlRequest::Set { name, value, volume } => {
            daemon.set_attributes(volume.as_deref(), &[(name, value)]).await.map(|()| Reply::Done)
        }
        ControlRequest::SetAll { settings, volume } => {
            daemon.set_attributes(volume.as_deref(), &settings).await.map(|()| Reply::Done)
        }
        ControlRequest::Get { name, volume } => {
            daemon.attribute(volume.as_deref(), &name).map(Reply::Value)
        }
        ControlRequest::GetAll { volume } => daemon.attributes(volume.as_deref()).map(Reply::Value),
        ControlRequest::Map { volume, cells } => {
            Ok(in_json(&daemon.volume_map(volume.as_deref(), cells).await?))
        }
        ControlRequest::Buckets { cells } => Ok(in_json(&daemon.bucket_map(cells).await)),
        ControlRequest::Advice => Ok(in_json(&daemon.advice())),
        ControlRequest::Gc => {
            let done = daemon.set().trigger_gc().await;
            done.map(|()| Reply::Done).map_err(|error| Refusal::new(Kind::Failed, error))
        }
        ControlRequest::Detach { volume } => daemon.detach(volume.as_deref()).await.map(words),
        ControlRequest::Attach { volume } => daemon.attach(volume.as_deref()).await.map(words),
        ControlRequest::ReplaceCache { cache } => {
            Ok(daemon.replace_cache(&cache).await.map(words)?)
        }
        ControlRequest::Add { backing, name } => {
            Ok(daemon.add(&backing, name.as_deref()).await.map(words)?)
        }
        ControlRequest::Remove { volume, keep_dirty } => {
            daemon.remove(volume.as_deref(), keep_dirty).await.map(words)
        }
        ControlRequest::Flush { volume } => {
            daemon.flush(volume.as_deref()).await.map(|()| Reply::Done)
        }
        ControlRequest::Drain { volume, wait } => {
            daemon.drain(volume.as_deref(), wait).await.map(|()| Reply::Done)
        }
        ControlRequest::Scrub { volume, wait } => {
            daemon.scrub(volume.as_deref(), wait).await.map(|scrubs| in_json(&scrubs))
        }
        ControlRequest::StopScrub { volume } => {
            daemon.stop_scrub(volume.as_deref()).await.map(|scrubs| in_json(&scrubs))
        }
        ControlRequest::ForgetDisk { disk, discard_dirty } => {
            Ok(daemon.forget_disk(&disk, discard_dirty).await.map(words)?)
        }
        ControlRequest::FlashCreate { name, bytes } => {
            daemon.create_flash(&name, bytes).await.map(words)
        }
        ControlRequest::FlashResize { volume, bytes, discard_data } => {
            daemon.resize_to(&volume, bytes, discard_data).await.map(words)
        }
        ControlRequest::Resize { volume } => daemon.resize(volume.as_deref()).await.map(words),
        ControlRequest::Move { volume, to, force, wait, rate } => {
            let wishes = MoveWishes { force, wait, rate };
            daemon.move_backing(&volume, &to, wishes).await.map(words)
        }
        ControlRequest::CancelMove { volume } => daemon.cancel_move(&volume).await.map(words),
        ControlRequest::ResizeCache => daemon.resize_cache().await.map(words),
        ControlRequest::ShrinkCache { bytes, wait } => {
            daemon.shrink_cache(bytes, wait).await.map(words)
        }
        ControlRequest::CancelShrink => daemon.cancel_shrink().await.map(words),
        ControlRequest::FlashRemove { volume, discard_data, force } => {
            daemon.remove_flash(&volume, discard_data, force).await.map(words)
        }
        ControlRequest::Limit { exports } => {
            daemon.limit(exports);
            Ok(Reply::Done)
        }
        ControlRequest::Upgrade { program } => match requester {
            Some(requester) => Err(daemon.upgrade(program.as_deref(), requester).await.into()),
            None => Err(Refusal::new(Kind::Conflict, "an upgrade needs a connection to answer")),
        },
        ControlRequest::Stop => unreachable!("a stop is carried out before"),
    }
}

fn in_json(value: &impl serde::Serialize) -> Reply {
    Reply::Value(serde_json::to_value(value).expect("plain data always serializes"))
}

impl<W: World> Daemon<W> {
    /// Lets the set be found by its names from now on.
    pub(crate) fn publish_to(&self, names: SharedNames) {
        *self.published.borrow_mut() = Some(names);
        self.publish();
    }

    /// The names have changed.
    pub(crate) fn publish(&self) {
        let Some(published) = self.published.borrow().clone() else { return };
        let names = self.volumes().into_iter().map(|served| served.name.clone());
        let flash = self.flash().into_iter().map(|served| served.name.clone());
        let volumes = names.chain(flash).collect();
        published.publish(Names { uuid: self.uuid_now().to_string(), volumes });
    }
}

#[cfg(test)]
mod tests {
    use ubcache_env::Env;
    use ubcache_host::{Host, IoBackend};

    use super::*;

    /// A set's thread that answers each request with the number of those before it, some of them
    /// after a while.
    fn answer_on(host: &Host, mut mailroom: Mailroom, count: u64) {
        let env = host.env();
        host.block_on(async {
            for number in 0..count {
                let message = mailroom.messages.recv().await.expect("a request");
                let answer = message.answer;
                let late = env.clone();
                env.spawn(Priority::Foreground, async move {
                    if number % 7 == 0 {
                        late.sleep(Nanos::from_millis(1)).await;
                    }
                    let _ = answer.send(Ok(Reply::Value(number.into())));
                });
            }
            // The last answers are given by tasks of their own.
            env.sleep(Nanos::from_millis(20)).await;
        });
    }

    /// The channel is of no runtime: a request wakes a reactor that sleeps in the kernel, and the
    /// answer wakes whoever waits for it on another thread, over both backends.
    #[test]
    fn requests_and_answers_wake_the_other_thread() {
        for backend in [IoBackend::Ring, IoBackend::Pool] {
            let host = match Host::new(backend) {
                Ok(host) => host,
                Err(error) => {
                    println!("skipped: no {backend:?} backend here: {error}");
                    continue;
                }
            };
            let (handle, mailroom) = mailbox("");
            const ONE_BY_ONE: u64 = 300;
            const AT_ONCE: u64 = 200;
            let asking = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build();
                let runtime = runtime.expect("a runtime");
                for _ in 0..ONE_BY_ONE {
                    let answer = runtime.block_on(handle.mailbox.send(ControlRequest::Gc, None));
                    answer.expect("an answer");
                }
                let send = |_| handle.mailbox.send(ControlRequest::Status, None);
                let asked: Vec<_> = (0..AT_ONCE).map(send).collect();
                // Of those who have gone nothing is left.
                for answer in asked.into_iter().skip(AT_ONCE as usize / 2) {
                    runtime.block_on(answer).expect("an answer");
                }
                handle
            });
            answer_on(&host, mailroom, ONE_BY_ONE + AT_ONCE);
            let handle = asking.join().expect("it gets its answers");
            assert!(handle.mailbox.is_closed(), "nobody takes requests any more");
        }
    }

    #[test]
    fn a_mailbox_that_nobody_looks_at_refuses_and_one_that_is_gone_too() {
        let (handle, mailroom) = mailbox("");
        let waiting: Vec<_> =
            (0..WAITING_MAX).map(|_| handle.mailbox.send(ControlRequest::Gc, None)).collect();
        let refused = wait_for(handle.mailbox.send(ControlRequest::Gc, None));
        assert_eq!(refused.map_err(|it| it.kind), Err(Kind::Busy));
        drop(mailroom);
        for answer in waiting {
            assert_eq!(wait_for(answer).map_err(|it| it.kind), Err(Kind::Busy));
        }
        assert!(handle.mailbox.is_closed());
    }

    fn wait_for<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(future)
    }
}
