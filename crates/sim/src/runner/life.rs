//! The life of an instance: its start, its stop, and its end in a crash.

use std::cell::RefCell;
use std::rc::Rc;

use ubcache_env::local::{Event, first};
use ubcache_env::{Env, Nanos, Priority};

use super::{Instance, Run, STUCK_AFTER, Step};
use crate::crash::Crash;
use crate::system::System;

impl<S: System> Run<S> {
    /// The instance is gone from one moment to the next.
    pub(super) fn crash(&self, crash: Crash) -> Step {
        let instance = self.instance.take();
        if let Some(instance) = &instance {
            self.hold_requests(instance);
            self.world.kill(&instance.env);
        }
        drop(instance);
        self.after_crash(crash)
    }

    fn after_crash(&self, crash: Crash) -> Step {
        // Some disks lose what was in the memory of their client: the others may lose as much.
        let in_memory = self.setup.servers.values().any(|far| far.is_in_memory());
        let crash = if in_memory { Crash::Power } else { crash };
        self.crashes.set(self.crashes.get() + 1);
        self.world.row(|| format!("--- {}", crash.name()));
        let unplugged = self.unplugged.replace(false);
        self.setup.servers.values().for_each(|server| server.end());
        for disk in self.disks() {
            match crash {
                Crash::Power => disk.power_failure(),
                Crash::Host | Crash::Process => disk.host_restart(),
            }
        }
        let kept = self.setup.kept().filter(|_| S::OUTLIVES_DEATH && !unplugged);
        // Nothing says to a later process that a device has lost its volatile cache meanwhile.
        if crash != Crash::Process || unplugged {
            self.setup.kept.iter().flatten().for_each(|kept| kept.lose());
        }
        self.setup.kept_aside.set(false);
        let promised = match crash {
            // Data that the cache device loses can't be kept for it.
            // The client had copies of what the server has lost.
            Crash::Host if self.setup.servers.values().any(|server| server.is_behind()) => {
                Crash::Power
            }
            Crash::Process if kept.is_none() || self.setup.plan.cache_may_fail() => Crash::Host,
            crash => crash,
        };
        if promised != Crash::Process {
            self.held.take();
        }
        self.workload.crashed(self.world.now(), promised);
        match crash {
            Crash::Power => self.inspect_rest("after a power failure"),
            Crash::Host => self.inspect_rest("after a host restart"),
            Crash::Process => self.inspect_behind("after the death of the process"),
        }
    }

    pub(super) async fn stop(&self) -> Step {
        self.note("stop".to_owned());
        for front in self.fronts() {
            self.patiently("the goodbye of the clients", front.leave()).await?;
        }
        let (_, system) = self.instance();
        self.workload.stopping.set(true);
        let result = self.patiently("the stop", system.stop()).await?;
        // Writes of clients that never stop are refused.
        self.wait_until(|workload| workload.hammering.get() == 0).await?;
        self.workload.stopping.set(false);
        if let Err(error) = result {
            if !self.workload.errors_expected.get() {
                return Err(self.violation("the stop failed", error));
            }
            self.crash(Crash::Host)?;
            return Ok(());
        }
        let instance = self.instance.take().expect("it was there for the stop");
        self.world.kill(&instance.env);
        drop((instance, system));
        self.setup.servers.values().for_each(|server| server.end());
        self.setup.kept_aside.set(false);
        let gone = self.unplugged.replace(false);
        if gone {
            // Writes that the disk had not made durable are gone, as in a crash.
            self.workload.crashed(self.world.now(), Crash::Host);
        } else if S::FLUSHES_AT_STOP {
            self.workload.oracle.borrow_mut().stopped();
        }
        for (index, disk) in self.disks().enumerate() {
            // A server may carry out again what has been flushed.
            let again = index > 0 && self.setup.plan.is_remote(index - 1);
            // A move that has not come to its end leaves a disk that nobody needs.
            let unneeded = self.setup.backing.moving().is_some_and(|volume| {
                self.setup.backing.other(volume).is_some_and(|other| other.name() == disk.name())
            });
            let again = again || unneeded;
            if S::FLUSHES_AT_STOP && !gone && !again && disk.unflushed_sectors() > 0 {
                let what =
                    format!("{} un-flushed sectors of {}", disk.unflushed_sectors(), disk.name());
                return Err(
                    self.violation("a good stop leaves data that a power failure can take", what)
                );
            }
            disk.host_restart();
        }
        self.inspect_rest("after a stop")
    }

    /// Starts an instance; `again`: it ends like this after so much time if it has not come up by
    /// then.
    pub(super) async fn start(&self, again: Option<(Nanos, Crash)>) -> Step {
        if let Some((delay, crash)) = again
            && self.start_for(delay).await?.is_none()
        {
            let aside = self.setup.kept_aside.get();
            self.after_crash(crash)?;
            self.setup.kept_aside.set(aside);
        }
        if self.instance.borrow().is_some() {
            return Ok(());
        }
        match self.start_for(STUCK_AFTER).await? {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) if !self.workload.errors_expected.get() => {
                return Err(self.violation("the start failed", error));
            }
            Some(Err(error)) => {
                self.note(format!("the start failed, now without device errors: {error}"))
            }
            None => return Err(self.violation("stuck", "the start does not end".to_owned())),
        }
        self.repair_devices(true);
        match self.start_for(STUCK_AFTER).await? {
            Some(Ok(())) => {
                if self.faults.get() {
                    self.break_devices();
                }
                Ok(())
            }
            Some(Err(error)) => Err(self.violation("the start failed", error)),
            None => Err(self.violation("stuck", "the start does not end".to_owned())),
        }
    }

    fn watch_memory(&self, system: &Rc<S>) {
        let (system, setup) = (Rc::downgrade(system), self.setup.clone());
        let most = setup.plan.held_max();
        self.world.watch_memory(Rc::new(move || {
            let held = system.upgrade()?.held();
            setup.plan.holds_too_much(&held, &most)
        }));
    }

    /// None: killed because it took longer than `delay`.
    pub(super) async fn start_for(&self, delay: Nanos) -> Step<Option<Result<(), String>>> {
        self.note("start".to_owned());
        let env = self.world.new_instance();
        let losses = || self.disks().map(|disk| disk.flush_losses().get()).sum::<u64>();
        let losses_before = losses();
        let result = Rc::new(RefCell::new(None));
        let started = Rc::new(Event::default());
        let (setup, into, done, inside) =
            (self.setup.clone(), result.clone(), started.clone(), env.clone());
        env.spawn(Priority::Foreground, async move {
            let system = S::start(inside, setup).await;
            *into.borrow_mut() = Some(system);
            done.set();
        });
        let in_time = first(started.wait(), self.world.env().sleep(delay)).await;
        let system = result.take();
        match (in_time, system) {
            (_, Some(Ok(system))) => {
                let heads = self.setup.plan.volumes.iter().map(|volume| volume.head);
                let volumes = system.volumes().into_iter().zip(heads);
                let fronts = volumes.map(|volume| Rc::new(self.front(&env, volume)));
                let fronts: Vec<_> = fronts.collect();
                self.carry_out_again(&env, &fronts);
                self.handed_over.set(false);
                self.starts.set(self.starts.get() + 1);
                let system = Rc::new(system);
                self.watch_memory(&system);
                *self.instance.borrow_mut() = Some(Instance { env, system, fronts });
                Ok(Some(Ok(())))
            }
            (_, Some(Err(error))) => {
                self.world.kill(&env);
                self.setup.servers.values().for_each(|server| server.end());
                for disk in self.disks() {
                    disk.host_restart();
                }
                if losses() > losses_before {
                    self.workload.oracle.borrow_mut().start_lost(self.world.now());
                }
                self.inspect_behind("after a start that failed")?;
                Ok(Some(Err(error)))
            }
            (_, None) => {
                self.world.kill(&env);
                Ok(None)
            }
        }
    }
}
