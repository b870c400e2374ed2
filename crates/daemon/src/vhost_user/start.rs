//! The sockets of all volumes: beginning, end, change of size.

use std::rc::Rc;

use ubcache_env::Nanos;

use super::options::VhostUserExport;
use super::socket::GuestSocket;
use crate::config::NbdAddress;
use crate::control::refusal::{Kind, Refusal};
use crate::failure::Failure;
use crate::log::STATE;
use crate::served::daemon::Daemon;
use crate::served::world::{World, listen};
use crate::ublk::Lineage;

/// Before another program goes on, and before a volume leaves: time for devices.
const DEVICE_PATIENCE: Nanos = Nanos::from_secs(10);

impl<W: World> Daemon<W> {
    /// The sockets for virtual machines.
    pub fn guest_sockets(&self) -> Vec<Rc<GuestSocket>> {
        self.guest_sockets.borrow().clone()
    }

    /// Listens for the guests of all volumes that get a socket and have none. The others go on
    /// where that fails for one.
    ///
    /// # Errors
    /// An export that there is not is named, or no socket could be made.
    pub(crate) async fn start_guest_sockets(&self) -> Result<(), Failure> {
        let exports: Vec<String> = self.exports.list().into_iter().map(|(name, _)| name).collect();
        let mut failures = Vec::new();
        for wanted in &self.config.vhost_user {
            let name = match &wanted.export {
                Some(name) if exports.contains(name) => name,
                // It may come later.
                Some(name) if self.down.borrow().iter().any(|down| down.name == *name) => continue,
                Some(_) => return Err(unknown(wanted, &exports)),
                None => match exports.as_slice() {
                    [only] => only,
                    _ => return Err(unknown(wanted, &exports)),
                },
            };
            let known = self.guest_sockets().iter().any(|known| known.path == wanted.path);
            if !known && let Err(failure) = self.start_guest_socket(wanted, name).await {
                failures.push((name.clone(), failure));
            }
        }
        let none = self.guest_sockets.borrow().is_empty();
        let last = if none { failures.pop() } else { None };
        for (export, failure) in failures {
            tracing::error!(target: STATE, export, "no socket for virtual machines: {failure:#}");
        }
        last.map_or(Ok(()), |(_, failure)| Err(failure))
    }

    async fn start_guest_socket(
        &self,
        wanted: &VhostUserExport,
        name: &str,
    ) -> Result<(), Failure> {
        let address = NbdAddress::Unix(wanted.path.clone());
        let bound = listen(self.world.host(), &address, self.config.socket_access).await;
        let listener =
            bound.map_err(|error| Failure::usage(format_args!("--vhost-user {wanted}"), error))?;
        let entrance = GuestSocket::start(
            &self.world,
            (name.to_owned(), wanted.path.clone()),
            listener,
            self.exports.clone(),
            self.guest_streams.clone(),
            self.guest_lineage(),
        );
        let socket = wanted.path.display();
        tracing::info!(target: STATE, export = name, %socket, "virtual machines can connect");
        self.guest_sockets.borrow_mut().push(Rc::new(entrance));
        Ok(())
    }

    /// Writes of earlier starts, answered and not flushed, that this start has (rule V3).
    fn guest_lineage(&self) -> ubcache_vhost::Lineage {
        match self.lineage() {
            Lineage::Of(number) => ubcache_vhost::Lineage::Of(number),
            Lineage::Unknown => ubcache_vhost::Lineage::Unknown,
            Lineage::Uncached => ubcache_vhost::Lineage::Whole,
        }
    }

    /// Listens for the guests of volumes that have come. They are served without a socket if that
    /// fails.
    pub(crate) async fn add_guest_sockets(&self) {
        if let Err(failure) = self.start_guest_sockets().await {
            tracing::error!("no socket for virtual machines: {failure:#}");
        }
    }

    /// Ends all sockets; guests wait for the next daemon. Waits so long for devices.
    pub(crate) async fn end_guest_sockets(&self, patience: Nanos) {
        let sockets = self.guest_sockets.take();
        sockets.iter().for_each(|socket| socket.control.drain());
        for socket in sockets {
            if !socket.end(&self.world, patience).await {
                tracing::warn!(export = socket.export, "requests of its guest are still under way");
            }
        }
    }

    /// Ends the sockets for another program.
    pub(crate) async fn hold_guest_sockets(&self) {
        self.end_guest_sockets(DEVICE_PATIENCE).await;
    }

    /// Ends the sockets of an export that is about to end. Refused if a guest is connected.
    pub(crate) async fn end_guest_sockets_of(
        &self,
        export: &str,
        force: bool,
    ) -> Result<(), Refusal> {
        let of_export = |socket: &&Rc<GuestSocket>| socket.export == export;
        if !force && self.has_guest(export) {
            return Err(Refusal::new(
                Kind::Conflict,
                format_args!("{export} is the disk of a virtual machine"),
            )
            .advice("shut the virtual machine down, or take the disk from it, first"));
        }
        let sockets = self.guest_sockets();
        for socket in sockets.iter().filter(of_export) {
            socket.end(&self.world, DEVICE_PATIENCE).await;
        }
        self.guest_sockets.borrow_mut().retain(|socket| socket.export != export);
        Ok(())
    }

    /// Returns true if a guest has the export as its disk.
    pub(crate) fn has_guest(&self, export: &str) -> bool {
        self.guest_sockets().iter().any(|socket| socket.export == export && socket.is_connected())
    }

    /// Announces the present size of an export to its guests; returns words about it.
    pub(crate) fn resize_guest_disks(&self, export: &str) -> &'static str {
        let sockets = self.guest_sockets();
        sockets
            .iter()
            .filter(|socket| socket.export == export)
            .for_each(|socket| socket.control.resized());
        if self.has_guest(export) { "; its virtual machine sees it" } else { "" }
    }
}

fn unknown(wanted: &VhostUserExport, exports: &[String]) -> Failure {
    let what = format_args!("--vhost-user {wanted}").to_string();
    let names = exports.join(", ");
    match &wanted.export {
        Some(_) => Failure::usage(what, "no such export").expected(format_args!("one of {names}")),
        None => Failure::usage(what, "several exports").found(names).expected(format_args!(
            "the name of one of them, as in --vhost-user NAME={}",
            wanted.path.display()
        )),
    }
}
