//! Orders to stop and to read certificates again: by signals, or by the thread that has them.

use std::rc::Rc;

use ubcache_env::Priority;
use ubcache_env::local::Event;
use ubcache_host::{Host, signal};

use crate::failure::Failure;
use crate::served::orders::{Order, Orders};
use crate::served::world::World;
use crate::tls::Certificates;

/// SIGTERM and SIGINT stop the set, SIGHUP has the certificates read again.
pub(super) fn follow_signals<W: World>(
    host: &Host,
    world: &W,
    stop: &Rc<Event>,
    certificates: Option<Rc<Certificates>>,
) -> Result<(), Failure> {
    let take_signal = |number| {
        host.signal(number).map_err(|error| {
            Failure::refused_because("signals", format_args!("can't wait for them: {error}"))
        })
    };
    for number in [signal::SIGTERM, signal::SIGINT] {
        let (signal, stop) = (take_signal(number)?, stop.clone());
        world.spawn(Priority::Foreground, async move {
            signal.wait().await;
            stop.set();
        });
    }
    let hang_up = take_signal(signal::SIGHUP)?;
    world.spawn(Priority::Background, async move {
        let Some(certificates) = certificates else {
            hang_up.wait().await;
            return tracing::info!(
                "SIGHUP is ignored, as nothing is configured in a file; `ubcache stop` and SIGTERM \
                 stop"
            );
        };
        loop {
            hang_up.wait().await;
            certificates.reload();
        }
    });
    Ok(())
}

/// Carries out the orders of other threads.
pub(super) fn follow_orders<W: World>(
    world: &W,
    orders: Orders,
    stop: Rc<Event>,
    certificates: Option<Rc<Certificates>>,
) {
    world.spawn(Priority::Foreground, async move {
        loop {
            match orders.next().await {
                Order::Stop => stop.set(),
                Order::ReloadCertificates => {
                    certificates.iter().for_each(|certificates| certificates.reload());
                }
            }
        }
    });
}
