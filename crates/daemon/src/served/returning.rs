//! Remote disks whose server did not answer at the start: they are served when it does.
//!
//! Nothing says when a server is there, so it is asked, less and less often. A local disk that was
//! missing is added by its operator, who knows when it is back.

use std::rc::Rc;

use ubcache_env::local::first;
use ubcache_env::{Nanos, Priority};

use super::daemon::Daemon;
use super::world::World;
use crate::backing::is_uri;
use crate::failure::Code;
use crate::open::precheck::Down;

/// The first wait between two attempts; it doubles.
const WAIT_MIN: Nanos = Nanos::from_secs(1);
/// The longest wait.
const WAIT_MAX: Nanos = Nanos::from_secs(30);

/// Starts to ask the servers of disks that are down, until none of them is.
pub(crate) fn start<W: World>(daemon: &Rc<Daemon<W>>, world: &W) {
    if waiting(daemon).is_empty() {
        return;
    }
    let (daemon, env) = (daemon.clone(), world.clone());
    world.spawn(Priority::Background, async move {
        let (mut wait, mut said) = (WAIT_MIN, Vec::new());
        while !waiting(&daemon).is_empty() {
            first(env.sleep(wait), daemon.stop_wanted.wait()).await;
            wait = Nanos(wait.0 * 2).min(WAIT_MAX);
            for down in waiting(&daemon) {
                if daemon.stop_wanted.is_set() {
                    return;
                }
                let added = Box::pin(daemon.add(&down.path, down.given.as_deref())).await;
                let Err(why) = added else { continue };
                // Other words than before: the server answers, and something else is wrong.
                if why != down.why.to_string() && !said.contains(&why) {
                    tracing::warn!(export = down.name, "still not served: {why}");
                    said.push(why);
                }
            }
        }
    });
}

fn waiting<W: World>(daemon: &Daemon<W>) -> Vec<Down> {
    let down = daemon.down.borrow();
    down.iter().filter(|it| is_uri(&it.path) && it.why.code == Code::CouldNotRun).cloned().collect()
}
