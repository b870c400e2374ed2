//! The daemon's side of the control protocol ([`crate::control`]), on the set's own thread:
//! requests are few and short, and each sees the set at one moment.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use ubcache_env::{Buf, Env, IoVec, Nanos, Priority, Stream};
use ubcache_host::{HostEnv, HostListener, HostSocket, ListenAddress, SocketAccess};

use crate::config::NbdAddress;
use crate::control::{ControlRequest, REQUEST_BYTES_MAX, Response, parse_request};
use crate::failure::Failure;
use crate::served::daemon::Daemon;
use crate::served::gate::Gate;
use crate::served::world::{World, listen};

/// A bound control socket.
pub struct ControlServer {
    listener: HostListener,
}

/// A control socket that answers.
pub struct Running {
    /// Clients that wait for the end of a stop.
    waiting: Rc<Cell<u64>>,
    pub(crate) listener: Rc<HostListener>,
    /// New clients wait there while they are held.
    pub(crate) gate: Rc<Gate>,
    /// Clients that are connected.
    pub(crate) clients: Rc<Cell<u64>>,
}

impl ControlServer {
    /// Binds the socket, for this user only.
    pub async fn bind(host: &HostEnv, path: &Path) -> Result<ControlServer, Failure> {
        let listener = listen(host, &NbdAddress::Unix(path.to_owned()), SocketAccess::default())
            .await
            .map_err(|error| {
                Failure::could_not_run(path, format_args!("can't make the control socket: {error}"))
                    .advice(
                        "stop the daemon that uses it, or choose another path with --control PATH",
                    )
            })?;
        Ok(ControlServer { listener })
    }

    /// Takes up the socket that another program has left.
    pub(crate) fn inherited(host: &HostEnv, fd: OwnedFd, place: ListenAddress) -> ControlServer {
        ControlServer { listener: HostListener::inherited(host, fd, place) }
    }

    /// Answers from now on. `uris` gives the URIs of an export.
    pub fn start<W: World>(
        self,
        world: &W,
        daemon: Rc<Daemon<W>>,
        uris: impl Fn(&str) -> Vec<String> + Clone + 'static,
    ) -> Running {
        let waiting = Rc::new(Cell::new(0));
        let listener = Rc::new(self.listener);
        let (gate, clients) = (Rc::<Gate>::default(), Rc::<Cell<u64>>::default());
        let running = Running {
            waiting: waiting.clone(),
            listener: listener.clone(),
            gate: gate.clone(),
            clients: clients.clone(),
        };
        let env = world.clone();
        world.spawn(Priority::Foreground, async move {
            let mut failing = false;
            loop {
                let accepted = gate.pass(|| listener.accept()).await;
                let failed_before = std::mem::replace(&mut failing, accepted.is_err());
                match accepted {
                    Ok(socket) => {
                        let (socket, daemon) = (Rc::new(socket), daemon.clone());
                        let client = Client { socket, daemon, waiting: waiting.clone() };
                        let (uris, clients) = (uris.clone(), clients.clone());
                        clients.set(clients.get() + 1);
                        env.spawn(Priority::Foreground, async move {
                            client.serve(uris).await;
                            clients.set(clients.get() - 1);
                        });
                    }
                    Err(error) => {
                        if !failed_before {
                            tracing::warn!(%error, "can't accept control clients for now");
                        }
                        env.sleep(Nanos::from_millis(100)).await;
                    }
                }
            }
        });
        running
    }
}

impl Running {
    /// Waits, for a second at most, until the clients that requested the stop have their response.
    pub async fn finish(&self, world: &impl Env) {
        let end = world.now().after(Nanos::from_secs(1));
        while self.waiting.get() > 0 && world.now() < end {
            world.sleep(Nanos::from_millis(1)).await;
        }
    }
}

/// One connection to the control socket.
struct Client<W: World> {
    socket: Rc<HostSocket>,
    daemon: Rc<Daemon<W>>,
    waiting: Rc<Cell<u64>>,
}

impl<W: World> Client<W> {
    async fn serve(&self, uris: impl Fn(&str) -> Vec<String>) {
        let mut received = Vec::new();
        loop {
            while let Some(end) = received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = received.drain(..=end).collect();
                if !self.answer(&String::from_utf8_lossy(&line), &uris).await {
                    self.socket.close();
                    return;
                }
            }
            if received.len() > REQUEST_BYTES_MAX {
                self.send(&Response::refused("the request is too long")).await;
                break;
            }
            match self.socket.recv(Buf::zeroed(4096)).await {
                (_, Err(_) | Ok(0)) => break,
                (buf, Ok(count)) => received.extend_from_slice(&buf.as_slice()[..count]),
            }
        }
        self.socket.close();
    }

    /// Carries out one request; `false`: the connection is at its end.
    async fn answer(&self, line: &str, uris: impl Fn(&str) -> Vec<String>) -> bool {
        let response = match parse_request(line) {
            Ok(ControlRequest::Stop) => {
                self.waiting.set(self.waiting.get() + 1);
                self.daemon.stop_wanted.set();
                self.daemon.stopped.wait().await;
                let failure = self.daemon.stop_failure.borrow().clone();
                let response = failure.map_or_else(
                    || Response::done(serde_json::Value::Null),
                    |why| Response::refused(format_args!("stopped, but not cleanly: {why}")),
                );
                self.send(&response).await;
                self.waiting.set(self.waiting.get() - 1);
                return false;
            }
            Ok(request) if self.daemon.upgrades.is_under_way() && request.changes() => {
                Response::refused(
                    "an upgrade is under way, and nothing is changed meanwhile: try again when \
                     it is over",
                )
            }
            Ok(request) => {
                let word = request.word();
                self.daemon.commands.borrow_mut().push(word);
                let response = self.carry_out(request, uris).await;
                let mut commands = self.daemon.commands.borrow_mut();
                if let Some(at) = commands.iter().position(|other| *other == word) {
                    commands.swap_remove(at);
                }
                response
            }
            Err(why) => Response::refused(why),
        };
        self.send(&response).await
    }

    async fn carry_out(
        &self,
        request: ControlRequest,
        uris: impl Fn(&str) -> Vec<String>,
    ) -> Response {
        let nothing = serde_json::Value::Null;
        let result = match request {
            ControlRequest::Status => {
                serde_json::to_value(self.daemon.report(uris)).map_err(|error| error.to_string())
            }
            ControlRequest::Set { name, value, volume } => self
                .daemon
                .set_attributes(volume.as_deref(), &[(name, value)])
                .await
                .map(|()| nothing),
            ControlRequest::SetAll { settings, volume } => {
                self.daemon.set_attributes(volume.as_deref(), &settings).await.map(|()| nothing)
            }
            ControlRequest::Get { name, volume } => self.daemon.attribute(volume.as_deref(), &name),
            ControlRequest::GetAll { volume } => self.daemon.attributes(volume.as_deref()),
            ControlRequest::Gc => self
                .daemon
                .set()
                .trigger_gc()
                .await
                .map(|()| nothing)
                .map_err(|error| error.to_string()),
            ControlRequest::Detach { volume } => {
                self.daemon.detach(volume.as_deref()).await.map(serde_json::Value::from)
            }
            ControlRequest::Attach { volume } => {
                self.daemon.attach(volume.as_deref()).await.map(serde_json::Value::from)
            }
            ControlRequest::ReplaceCache { cache } => {
                self.daemon.replace_cache(&cache).await.map(serde_json::Value::from)
            }
            ControlRequest::Add { backing, name } => {
                self.daemon.add(&backing, name.as_deref()).await.map(serde_json::Value::from)
            }
            ControlRequest::Remove { volume, keep_dirty } => {
                self.daemon.remove(volume.as_deref(), keep_dirty).await.map(serde_json::Value::from)
            }
            ControlRequest::Flush { volume } => {
                self.daemon.flush(volume.as_deref()).await.map(|()| nothing)
            }
            ControlRequest::Drain { volume, wait } => {
                self.daemon.drain(volume.as_deref(), wait).await.map(|()| nothing)
            }
            ControlRequest::ForgetDisk { disk, discard_dirty } => {
                self.daemon.forget_disk(&disk, discard_dirty).await.map(serde_json::Value::from)
            }
            ControlRequest::Upgrade { program } => {
                Err(self.daemon.upgrade(program.as_deref(), self.socket.clone()).await)
            }
            ControlRequest::Stop => unreachable!("stop is answered by the caller"),
        };
        match result {
            Ok(value) => Response::done(value),
            Err(why) => Response::refused(why),
        }
    }

    async fn send(&self, response: &Response) -> bool {
        let line = Buf::from_bytes(response.to_line().as_bytes());
        self.socket.send(IoVec::from(line)).await.is_ok()
    }
}
