//! Regular looks at a set that is served: the speed of writeback, the line for
//! systemd, and if there is anything left to serve.

use std::rc::Rc;

use ubcache_env::{Nanos, Priority};

use super::daemon::Daemon;
use super::events::is_all_lost;
use super::systemd::Systemd;
use super::world::World;
use crate::log::STATE;
use crate::size::show_size;

const INTERVAL: Nanos = Nanos::from_secs(5);

/// Starts the periodic check of the set. `clients`: the number of connections.
pub fn start<W: World>(
    daemon: &Rc<Daemon<W>>,
    world: &W,
    systemd: &Systemd,
    clients: impl Fn() -> u64 + 'static,
) {
    let (daemon, env, systemd) = (daemon.clone(), world.clone(), systemd.clone());
    world.spawn(Priority::Background, async move {
        let mut line = String::new();
        while !daemon.stop_wanted.is_set() {
            for served in &daemon.volumes() {
                daemon.paces.measure(env.now(), &served.now().status());
            }
            let now = summary(&daemon, clients());
            if now != line {
                line.clone_from(&now);
                systemd.status(now);
            }
            if is_all_lost(&daemon) && clients() == 0 {
                tracing::error!(
                    target: STATE,
                    "no volume is whole any more, and no client is connected: the daemon ends"
                );
                daemon.nothing_left.set(true);
                daemon.stop_wanted.set();
            }
            env.sleep(INTERVAL).await;
        }
    });
}

/// The set in a line.
fn summary<W: World>(daemon: &Daemon<W>, clients: u64) -> String {
    let status = daemon.set().status();
    let state = if status.failed.is_some() { "failed" } else { "running" };
    let dirty: u64 = status.volumes.iter().map(|volume| volume.dirty_bytes).sum();
    format!(
        "{state}; {} volumes, {clients} clients, {} of {} used, {} dirty",
        daemon.volumes().len(),
        show_size(status.used_bytes),
        show_size(status.size_bytes),
        show_size(dirty)
    )
}
