//! The end of a daemon with which another program goes on, and the beginning of that.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use ubcache_env::{Buf, IoVec, Nanos, Stream};
use ubcache_host::exec::monotonic_now;
use ubcache_host::{HostListener, HostSocket};
use ubcache_nbd::{Parked, Refused};

use super::daemon::Daemon;
use super::listen::{Listeners, Parting};
use super::upgrades::Upgrade;
use super::world::World;
use crate::control::Api;
use crate::control::refusal::{ErrorBody, Kind, Refusal};
use crate::log::STATE;
use crate::upgrade::Heritage;
use crate::upgrade::state::{Client, Listener, State, VolumeState};

/// Time for requests at the control socket that are under way.
const COMMANDS_PATIENCE: Nanos = Nanos::from_millis(300);
/// Time for responses that are under way when the set has stopped.
const LAST_RESPONSES_PATIENCE: Duration = Duration::from_millis(300);

impl<W: World> Daemon<W> {
    /// Lets another program go on; the reason if it does not. It is the program that answers if it
    /// does: this never returns then. Without a path, the program by which this one was started.
    pub(crate) async fn upgrade(&self, program: Option<&Path>, requester: OwnedFd) -> String {
        let program = program.unwrap_or(&self.program).to_owned();
        if self.upgrades.is_under_way() {
            return "an upgrade is under way already".to_owned();
        }
        if let Err(why) = self.may_hand_over() {
            return why;
        }
        tracing::info!(target: STATE, program = %program.display(), "asked for an upgrade");
        let version = match self.ask(&program).await {
            Ok(version) => version,
            Err(why) => {
                tracing::error!(target: STATE, "no upgrade, nothing has changed: {why}");
                return why;
            }
        };
        if self.upgrades.is_under_way() {
            return "an upgrade is under way already".to_owned();
        }
        self.upgrades.carry_out(program, version, requester).await
    }

    /// Asks the program, which may take its time, while clients go on.
    async fn ask(&self, program: &Path) -> Result<String, String> {
        let program = program.to_owned();
        let arguments = std::env::args_os().skip(1).collect::<Vec<_>>();
        let state = self.devices();
        let asking = std::thread::Builder::new()
            .name("upgrade-check".to_owned())
            .spawn(move || crate::upgrade::check::ask(&program, &arguments, state))
            .map_err(|error| format!("can't start a thread: {error}"))?;
        while !asking.is_finished() {
            self.world.sleep(Nanos::from_millis(5)).await;
        }
        asking.join().unwrap_or_else(|_| Err("the question has panicked".to_owned()))
    }

    /// The part of the state that the other program looks at before.
    fn devices(&self) -> State {
        let volumes = self.volumes();
        let volumes = volumes.iter().map(|served| VolumeState {
            name: served.name.clone(),
            path: served.path.as_path().into(),
            ..VolumeState::default()
        });
        let down = self.down.borrow();
        let down = down.iter().map(|down| (down.path.as_path().into(), down.name.clone()));
        let listeners = self.listeners.borrow().clone();
        let listeners = listeners.iter().flat_map(|it| it.listeners());
        State {
            cache: self.cache_path.borrow().as_path().into(),
            volumes: volumes.collect(),
            down: down.collect(),
            listeners: listeners.map(|it| Listener::new(-1, it.place())).collect(),
            ..State::default()
        }
    }

    /// An error if the set is in a state with which another program can't go on.
    fn may_hand_over(&self) -> Result<(), String> {
        if self.shares_process {
            return Err(
                "this daemon may serve several sets (`ubcache daemon`), and is not upgraded while \
                 clients are connected; clients that connect again by themselves go on after a \
                 restart: systemctl restart ubcached"
                    .to_owned(),
            );
        }
        if let Some(why) = self.set().status().failed {
            return Err(format!(
                "the set has failed ({why}), and what its volumes have is only in this process; \
                 give them another cache first: ubcache attach --cache NEW"
            ));
        }
        if self.no_cache.borrow().is_some() {
            return Err(
                "the volumes are served without their cache; give them one first: ubcache \
                        attach --cache NEW"
                    .to_owned(),
            );
        }
        if !self.former.borrow().is_empty() {
            return Err(
                "some volume still needs the former cache; `ubcache status` names it, and \
                        `ubcache attach EXPORT` ends that"
                    .to_owned(),
            );
        }
        if self.is_moving() {
            return Err("a volume is being moved to another disk: wait for that, or end it with \
                 ubcache move EXPORT --cancel"
                .to_owned());
        }
        if self.shrinking.borrow().is_some() {
            return Err("the cache is becoming smaller: wait for that, or end it with \
                 ubcache resize --cache --cancel"
                .to_owned());
        }
        if self.membership.is_locked() {
            return Err("volumes or caches are being changed; wait for that".to_owned());
        }
        match self.commands.borrow().iter().find(|word| !is_short(word)) {
            Some(word) => Err(format!("`{word}` is under way; wait for its end")),
            None => Ok(()),
        }
    }

    /// Ends the set and lets go of all sockets, for another program. Clients wait from now on.
    ///
    /// # Errors
    /// The reason why this program goes on, with everything as it was. `Ok(None)`: a stop was
    /// requested meanwhile.
    pub(crate) async fn hand_over(
        &self,
        upgrade: &Upgrade,
        listeners: &Rc<Listeners<W>>,
        control: &mut Api,
    ) -> Result<Option<Heritage>, String> {
        let world = &self.world;
        control.hold();
        control.quiet(world, COMMANDS_PATIENCE).await;
        if let Err(why) = self.may_hand_over() {
            control.release();
            return Err(why);
        }
        let began = monotonic_now();
        tracing::info!(
            target: STATE,
            clients = listeners.active(),
            program = %upgrade.program.display(),
            version = upgrade.version,
            "handing over to another program"
        );
        let partings = match listeners.hand_over(world).await {
            Ok(partings) => partings,
            Err(why) => {
                control.release();
                return Err(why);
            }
        };
        self.hold_block_devices().await;
        self.hold_guest_sockets().await;
        let prepared = self.prepare(upgrade, listeners, control, &partings, began);
        let mut heritage = match prepared {
            Ok(heritage) => heritage,
            Err(error) => {
                listeners.keep_on();
                self.release_block_devices();
                self.add_guest_sockets().await;
                partings.into_iter().for_each(|parting| listeners.go_on(world, parting));
                control.release();
                return Err(format!("can't hand over the sockets: {error}"));
            }
        };
        // There is no way back any more but by opening the set again, here or there.
        listeners.set_cache(None);
        self.leave_block_devices().await;
        if let Err(error) = self.stop_sets().await {
            tracing::error!(
                target: STATE,
                "the set did not stop cleanly, and is handed over all the same: {error}"
            );
        }
        // Clients that asked for the stop get their response from this program.
        if self.stop_wanted.is_set() {
            return Ok(None);
        }
        // The last responses of this program; the other one gives that to the upgrade. A thread
        // would not survive the exec, and its connections would end in the middle of a response.
        control.finish(LAST_RESPONSES_PATIENCE).await;
        // A signal that comes from now on is the other program's; one that has come is seen.
        if let Err(error) = ubcache_host::signal::keep_for_next(true) {
            tracing::debug!(%error, "signals are not kept for the other program");
        }
        world.sleep(Nanos::from_millis(1)).await;
        if self.stop_wanted.is_set() {
            return Ok(None);
        }
        // A flush that failed in the end is owed to clients.
        let volumes = self.volumes();
        let volumes = volumes
            .iter()
            .map(|served| VolumeState::new(&served.name, &served.path, served.now().remembered()));
        heritage.state.volumes = volumes.collect();
        control.leave();
        listeners.listeners().for_each(HostListener::leave);
        partings.iter().for_each(|parting| parting.socket.leave());
        Ok(Some(heritage))
    }

    /// Everything that the other program gets, but for what the volumes know in the end.
    fn prepare(
        &self,
        upgrade: &Upgrade,
        listeners: &Listeners<W>,
        control: &Api,
        partings: &[Parting],
        began: Nanos,
    ) -> std::io::Result<Heritage> {
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        let mut keep = |fd: OwnedFd| {
            let number = fd.as_raw_fd();
            descriptors.push(fd);
            number
        };
        let mut listen = |listener: &HostListener| -> std::io::Result<Listener> {
            Ok(Listener::new(keep(listener.descriptor()?), listener.place()))
        };
        let sockets = listeners.listeners().map(&mut listen).collect::<Result<Vec<_>, _>>()?;
        let control = Listener::new(keep(control.descriptor()?), control.place());
        let requester = keep(upgrade.requester.try_clone()?);
        let mut clients = Vec::new();
        for Parting { id, from, socket, parked } in partings {
            clients.push(Client {
                fd: keep(socket.descriptor()?),
                id: *id,
                from: from.clone(),
                export: parked.export.clone(),
                structured: parked.structured,
                contexts: parked.contexts.clone(),
                refused: parked
                    .refused
                    .clone()
                    .map(|it| (it.cookie, it.error, it.message, it.left)),
                received: parked.received.clone(),
                unsent: parked.unsent.clone(),
                ..Client::default()
            });
        }
        let state = State {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            program: upgrade.program.as_path().into(),
            before: self.program.as_path().into(),
            began: began.0,
            attributes: self.set().remembered(),
            default_export: self.exports.has_default(),
            control,
            listeners: sockets,
            next_client: listeners.next_client(),
            clients,
            requester,
            ..self.devices()
        };
        Heritage::new(state, descriptors)
    }
}

/// Returns true for a request that is answered at once.
fn is_short(word: &str) -> bool {
    matches!(word, "status" | "get" | "set" | "upgrade")
}

/// This program has taken over: logs it, and tells whoever wanted the upgrade.
pub(crate) async fn report<W: World>(
    world: &W,
    daemon: &Daemon<W>,
    heritage: &mut Heritage,
    clients: usize,
) {
    let state = &heritage.state;
    let pause_ms = monotonic_now().since(Nanos(state.began)).0 / 1_000_000;
    let (version, program) = (env!("CARGO_PKG_VERSION"), daemon.program.display().to_string());
    let (status, response) = match &state.failed {
        None => {
            tracing::info!(
                target: STATE,
                version,
                program,
                before = state.version,
                clients,
                pause_ms,
                "took over from the program before"
            );
            let done = serde_json::json!({
                "version": version,
                "before": state.version,
                "program": program,
                "clients": clients,
                "pause_ms": pause_ms,
            });
            ("200 OK", done.to_string())
        }
        Some(why) => {
            tracing::error!(
                target: STATE,
                version,
                program,
                clients,
                pause_ms,
                "the upgrade has failed, and the program before goes on: {why}"
            );
            let said = format_args!(
                "the new program could not go on: {why}\n{program}, version {version}, goes on; \
                 {clients} clients waited for {pause_ms} ms"
            );
            let error = ErrorBody { error: Refusal::new(Kind::Conflict, said.to_string()) };
            let error = serde_json::to_string(&error).expect("plain data always serializes");
            ("409 Conflict", error)
        }
    };
    let Some(fd) = heritage.take(heritage.state.requester) else { return };
    let socket = HostSocket::inherited(world.host(), fd);
    // The request was read by the program before: this is the end of its connection.
    let whole = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{response}",
        response.len()
    );
    // The administrator may be gone.
    let _ = socket.send(IoVec::from(Buf::from_bytes(whole.as_bytes()))).await;
    socket.close();
}

/// Goes on with the clients of the program before; returns their number.
pub(crate) fn take_up<W: World>(
    world: &W,
    heritage: &mut Heritage,
    listeners: &Rc<Listeners<W>>,
) -> usize {
    listeners.number_from(heritage.state.next_client);
    let clients = std::mem::take(&mut heritage.state.clients);
    let count = clients.len();
    for client in clients {
        let Some(fd) = heritage.take(client.fd) else { continue };
        let parked = Parked {
            export: client.export,
            structured: client.structured,
            contexts: client.contexts,
            received: client.received,
            unsent: client.unsent,
            refused: client.refused.map(|(cookie, error, message, left)| Refused {
                cookie,
                error,
                message,
                left,
            }),
        };
        let socket = Rc::new(HostSocket::inherited(world.host(), fd));
        listeners.go_on(world, Parting { id: client.id, from: client.from, socket, parked });
    }
    count
}
