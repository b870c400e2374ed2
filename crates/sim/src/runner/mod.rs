//! One run, from a plan to a verdict.
//!
//! ```text
//! prepare disks ─► start ─► [check] ─► clients ∥ controls ─► … crash ─► start ─► … ─► last check
//! ```
//!
//! The clients live in the instance and die with it; what they have not begun is carried on by the
//! clients of the next instance. What the driver of a block device had of theirs is carried out by
//! the next process. The last check reads everything, evicts everything clean, reads
//! everything, flushes, stops or lets the power fail, and reads everything twice again: what is
//! left must be what was flushed.

mod again;
mod client;
mod crashes;
mod hands;
mod inspect;
mod life;
mod panics;
mod setup;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use ubcache_engine::Rules;
use ubcache_env::joined::HeaderRules;
use ubcache_env::local::{Either, first};
use ubcache_env::{Env, Nanos, Priority, Sector, SectorRange};
use ubcache_nbd::client::ClientRules;
use ubcache_objects::StoreRules;

use crate::crash::Crash;
use crate::disk::{Counters, Faults, Kept, Outage, SimDisk, ZoneFaults};
use crate::executor::{SimEnv, SimWorld, WorldConfig, show_time};
use crate::front::{Front, HeldRequest};
use crate::oracle::{OpKind, Violation};
use crate::plan::{AfterStart, Control, ControlAction, DriverRun, Plan};
use crate::rng::Rng;
use crate::system::{Command, Setup, System};
pub use crashes::{CrashOptions, CrashReport, crash_at_every_write};

pub(crate) use client::{CHECK_READS, CHECK_SECTORS};
use client::{DRIVER, Workload, flush_everything, read_everything, run_client, run_hammer};
use setup::{make_setup, make_workload};

/// Nothing of a run may take longer than this in virtual time.
const STUCK_AFTER: Nanos = Nanos::from_secs(3600);

/// Shorter limit while clients never stop, on devices that are not slow.
const HAMMERED_STUCK_AFTER: Nanos = Nanos::from_secs(20);

/// The client number of the first client that never stops.
const HAMMERS_FROM: u32 = 50;

/// Tasks of an instance that are no part of a request, at most, however many requests there are.
const BACKGROUND_MAX: usize = 256;

/// Options for running a plan.
#[derive(Copy, Clone, Debug, Default)]
pub struct RunOptions {
    /// Keep the rows of clients and devices.
    pub verbose: bool,
    /// The broken rule of the engine: none, by default.
    pub rules: Rules,
    /// The broken rule of the client of remote disks: none, by default.
    pub client_rules: ClientRules,
    /// The broken rule of volumes on object stores: none, by default.
    pub store_rules: StoreRules,
    /// The broken rule of headers of disks without a superblock: none, by default.
    pub header_rules: HeaderRules,
}

/// Outcome of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Over every decision; the same plan always gives the same.
    pub hash: u64,
    /// Violations of the promise.
    pub violations: Vec<Violation>,
    /// Times that each named point of the code was reached.
    pub marks: BTreeMap<&'static str, u64>,
    /// Counters of the cache device.
    pub cache: Counters,
    /// Counters of each backing device.
    pub backing: Vec<Counters>,
    /// Operations of clients.
    pub operations: u64,
    /// Operations that failed (because a device did).
    pub errors: u64,
    /// Power failures, host restarts and deaths of the process.
    pub crashes: u64,
    /// Virtual time that has passed.
    pub time: Nanos,
    /// Polls of tasks.
    pub steps: u64,
    /// The log, if it was asked for.
    pub rows: Vec<String>,
}

impl Outcome {
    /// Completed I/Os of all disks.
    pub fn ios(&self) -> u64 {
        self.cache.ios() + self.backing.iter().map(Counters::ios).sum::<u64>()
    }

    /// Returns true if nothing was violated.
    pub fn is_good(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Runs a plan against a system.
pub fn run_plan<S: System>(plan: &Plan, options: RunOptions) -> Outcome {
    let world = SimWorld::new(WorldConfig {
        policy: plan.policy,
        poll_cost: plan.poll_cost,
        timer_slop: plan.timer_slop,
        step_cost: plan.pace.step_cost,
        poll_steps_max: plan.pace.poll_steps_max(),
        buffers_max: plan.buffers_max(),
        verbose: options.verbose,
        ..WorldConfig::new(plan.seed)
    });
    let (setup, initial) = make_setup::<S>(&world, plan, options);
    let workload = Rc::new(make_workload(plan, initial));
    {
        let mut oracle = workload.oracle.borrow_mut();
        for (volume, disk) in setup.backing.iter().enumerate() {
            oracle.watch_losses(volume, disk.flush_losses());
        }
        // Connections that are cut and made again are clients of their own to a server.
        if let Some(streams) = plan.frontend.streams() {
            oracle.share_connections(streams);
        }
    }
    let run = Rc::new(Run::<S>::new(&world, setup.clone(), workload.clone(), plan));
    let whole = run.clone();
    let env = world.env();
    run_world(&run, async move {
        env.spawn(Priority::Foreground, whole.clone().watch());
        whole.whole_run().await;
    });
    let mut marks = world.marks();
    for name in workload.reached.get().marks(plan) {
        *marks.entry(name).or_insert(0) += 1;
    }
    let oracle = workload.oracle.borrow();
    let mut rows = world.take_rows();
    if options.verbose {
        rows.extend(oracle.log());
    }
    Outcome {
        hash: world.hash(),
        violations: oracle.violations().to_vec(),
        marks,
        cache: setup.cache().counters(),
        backing: setup.backing.iter().map(SimDisk::counters).collect(),
        operations: oracle.operations() as u64,
        errors: workload.errors.get(),
        crashes: run.crashes.get(),
        time: world.now(),
        steps: world.steps(),
        rows,
    }
}

/// Runs the world to the end of `main`, notes what went wrong on the way, and ends the world.
fn run_world<S: System>(run: &Rc<Run<S>>, main: impl Future<Output = ()> + 'static) {
    let (world, workload) = (&run.world, &run.workload);
    match panics::catch(|| world.run(main)) {
        Ok(Ok(())) => {}
        Ok(Err(stuck)) => {
            let report =
                format!("{stuck}operations under way:\n{}", workload.oracle.borrow().under_way());
            workload.oracle.borrow_mut().violation("stuck", report);
        }
        Err(panic) => {
            let mut oracle = workload.oracle.borrow_mut();
            let report = format!("{}\noperations under way:\n{}", panic.words, oracle.under_way());
            oracle.violation(&format!("panic at {}", panic.place), report);
        }
    }
    workload.oracle.borrow_mut().blame("wrong use of a device", world.take_complaints());
    workload.oracle.borrow_mut().blame("a poll does too much", world.take_long_polls());
    let most = world.most_background();
    if most > BACKGROUND_MAX {
        let report = format!(
            "{most} tasks in the background at a time; no load makes it more than {BACKGROUND_MAX}"
        );
        workload.oracle.borrow_mut().violation("too many tasks", report);
    }
    let (held, most) = (world.buffers_held(), world.config().buffers_max);
    if held > most {
        let report = format!("an instance held {held} bytes of buffers for I/O, {most} at most");
        workload.oracle.borrow_mut().violation("too much memory", report);
    }
    if let Some(report) = world.take_too_much_held() {
        workload.oracle.borrow_mut().violation("too much memory", report);
    }
    let ended = panics::catch(|| {
        run.instance.take();
        world.end();
    });
    if let Err(panic) = ended {
        workload.oracle.borrow_mut().violation(&format!("panic at {}", panic.place), panic.words);
    }
}

struct Run<S: System> {
    world: SimWorld,
    workload: Rc<Workload>,
    setup: Rc<Setup>,
    crashes: Cell<u64>,
    /// Ends of instances that controls brought about, and starts that served.
    ends: Cell<u32>,
    starts: Cell<u64>,
    /// Copies of disks, and how many starts there had been.
    kept: RefCell<BTreeMap<usize, (Kept, u64)>>,
    /// The disks are not what the last instance left.
    foreign: Cell<bool>,
    /// Devices may fail; not while the last check runs.
    faults: Cell<bool>,
    /// True if a disk was pulled out since the instance was started.
    unplugged: Cell<bool>,
    /// The driver had the disks last: what they say is not what the next instance has to show.
    handed_over: Cell<bool>,
    /// Draws what is looked at, so that looking does not change the run.
    judge: RefCell<Rng>,
    /// Requests that a process left to the next one, with their volumes.
    held: RefCell<Vec<(usize, HeldRequest)>>,
    /// The instance that runs, if any.
    instance: RefCell<Option<Instance<S>>>,
}

struct Instance<S: System> {
    env: SimEnv,
    system: Rc<S>,
    fronts: Vec<Rc<Front<S::Volume>>>,
}

/// The run can't go on; the violation has been noted.
struct GiveUp;

type Step<T = ()> = Result<T, GiveUp>;

impl<S: System> Run<S> {
    fn new(world: &SimWorld, setup: Rc<Setup>, workload: Rc<Workload>, plan: &Plan) -> Run<S> {
        Run {
            world: world.clone(),
            workload,
            setup,
            crashes: Cell::new(0),
            ends: Cell::new(0),
            starts: Cell::new(0),
            kept: RefCell::default(),
            foreign: Cell::new(false),
            faults: Cell::new(false),
            unplugged: Cell::new(false),
            handed_over: Cell::new(false),
            judge: RefCell::new(Rng::fork(plan.seed, "judge")),
            held: RefCell::default(),
            instance: RefCell::new(None),
        }
    }

    async fn whole_run(&self) {
        // Whatever stops a run early has been noted as a violation.
        let _ = self.steps().await;
    }

    async fn steps(&self) -> Step {
        self.faults.set(true);
        self.break_devices();
        self.start(None).await?;
        self.play().await?;
        self.last_check().await
    }

    /// Everything that the plan has for clients and for the system.
    async fn play(&self) -> Step {
        self.start_clients();
        for control in &self.setup.plan.controls {
            self.wait_for(control).await?;
            self.inspect_running()?;
            self.control(&control.action).await?;
            if !self.workload.oracle.borrow().violations().is_empty() {
                return Err(GiveUp);
            }
        }
        self.wait_until(|workload| workload.all_done()).await?;
        self.workload.hammered_enough.set(true);
        self.wait_until(|workload| workload.hammering.get() == 0).await
    }

    async fn last_check(&self) -> Step {
        self.faults.set(false);
        if self.unplugged.get() {
            self.crash(Crash::Host)?;
            self.start(None).await?;
        }
        self.repair_devices(false);
        self.check().await?;
        let (env, fronts) = (self.instance().0, self.fronts());
        self.patiently("the last flush", flush_everything(&env, &self.workload, &fronts)).await?;
        drop(fronts);
        if self.setup.plan.last_crash {
            self.crash(Crash::Power)?;
        } else {
            self.stop().await?;
        }
        // Whatever was wrong, on good devices a new instance serves everything.
        self.repair_devices(true);
        self.workload.errors_expected.set(false);
        self.start(None).await?;
        self.check().await?;
        self.stop().await
    }

    fn violation(&self, kind: &str, report: String) -> GiveUp {
        self.workload.oracle.borrow_mut().violation(kind, report);
        GiveUp
    }

    fn note(&self, text: String) {
        self.world.row(|| format!("--- {text}"));
        self.workload.oracle.borrow_mut().note(self.world.now(), text);
    }

    /// Lets the devices fail and memory run out as the plan has it.
    fn break_devices(&self) {
        let plan = &self.setup.plan;
        self.world.make_memory_scarce(plan.memory.rate, plan.memory.budget);
        self.setup.servers.values().for_each(|server| server.set_calm(false));
        for (index, disk) in self.disks().enumerate() {
            let here = plan.faults.iter().filter(|faults| faults.disk == index);
            let zones = here.map(|faults| ZoneFaults {
                zone: plan.zone_range(faults.zone),
                rates: faults.rates,
                budget: faults.budget,
            });
            disk.set_faults(Faults { zones: zones.collect() });
            disk.set_flush_loss(
                plan.lossy.iter().find(|lossy| lossy.disk == index).map(|lossy| lossy.loss),
            );
        }
    }

    /// No device fails any more, and there is memory. What was unreadable can be read again if
    /// `heal` says so.
    fn repair_devices(&self, heal: bool) {
        self.world.make_memory_plenty();
        self.setup.servers.values().for_each(|server| server.set_calm(true));
        for disk in self.disks() {
            disk.set_faults(Faults::default());
            disk.set_flush_loss(None);
            disk.repair();
            if heal {
                disk.heal(SectorRange::from_bounds(Sector(0), Sector(disk.config().sectors)));
            }
        }
    }

    fn disk(&self, index: usize) -> &SimDisk {
        if index == 0 { self.setup.cache() } else { &self.setup.backing[index - 1] }
    }

    fn instance(&self) -> (SimEnv, Rc<S>) {
        let instance = self.instance.borrow();
        let instance = instance.as_ref().expect("only asked between a start and a stop");
        (instance.env.clone(), instance.system.clone())
    }

    fn fronts(&self) -> Vec<Rc<Front<S::Volume>>> {
        let instance = self.instance.borrow();
        instance.as_ref().expect("only asked between a start and a stop").fronts.clone()
    }

    fn front(&self, env: &SimEnv, volume: (Rc<S::Volume>, u64)) -> Front<S::Volume> {
        let workload = self.workload.clone();
        let blame =
            move |text| workload.oracle.borrow_mut().violation("wrong use of a server", text);
        Front::new(&self.setup.plan.frontend, env, volume, Rc::new(blame))
    }

    /// Waits for something that has to come.
    async fn patiently<T>(&self, what: &str, wait: impl Future<Output = T>) -> Step<T> {
        let hammered = !self.setup.plan.hammers.is_empty();
        let stuck_after = if hammered { HAMMERED_STUCK_AFTER } else { STUCK_AFTER };
        match first(wait, self.world.env().sleep(stuck_after)).await {
            Either::Left(value) => Ok(value),
            Either::Right(()) => {
                let under_way = self.workload.oracle.borrow().under_way();
                let tasks = self.world.waiting();
                let report = format!(
                    "{what} does not end\noperations under way:\n{under_way}tasks:\n{tasks}"
                );
                Err(self.violation("stuck", report))
            }
        }
    }

    async fn wait_until(&self, condition: impl Fn(&Workload) -> bool) -> Step {
        self.patiently("waiting for the clients", async {
            loop {
                let changed = self.workload.changed.notified();
                if condition(&self.workload) {
                    return;
                }
                changed.await;
            }
        })
        .await
    }

    async fn wait_for(&self, control: &Control) -> Step {
        self.wait_until(|workload| {
            workload.started.get() >= control.after_ops || workload.all_done()
        })
        .await?;
        self.world.env().sleep(control.delay).await;
        Ok(())
    }

    async fn control(&self, action: &ControlAction) -> Step {
        match action {
            ControlAction::Attribute { volume, name, value } => {
                self.note(format!("v{volume}: {name} = {value}"));
                let (name, value) = (name.clone(), value.clone());
                self.command(Command::Attribute { volume: *volume as usize, name, value });
            }
            ControlAction::CollectGarbage => self.command(Command::CollectGarbage),
            ControlAction::EvictClean => {
                self.note("evict everything clean".to_owned());
                self.command(Command::EvictClean);
            }
            ControlAction::GrowCache(buckets) => {
                let bucket = u64::from(self.setup.plan.cache.bucket_sectors);
                self.note(format!("the cache device has {buckets} buckets more"));
                self.disk(0).lengthen(u64::from(*buckets) * bucket);
                self.command(Command::GrowCache);
            }
            ControlAction::ShrinkCache(fewer, cancel) => {
                self.note(format!("the cache is to have {fewer} buckets less"));
                self.command(Command::ShrinkCache { fewer: *fewer, cancel: *cancel });
            }
            ControlAction::Restart(after) => {
                self.workload.paused.set(true);
                self.wait_until(|workload| workload.busy.get() == 0).await?;
                self.stop().await?;
                self.workload.paused.set(false);
                self.go_on(*after, Crash::Power).await?;
            }
            ControlAction::Driver(run, after) => {
                self.workload.paused.set(true);
                self.wait_until(|workload| workload.busy.get() == 0).await?;
                self.stop().await?;
                self.workload.paused.set(false);
                self.driver_runs(run);
                self.go_on(*after, Crash::Power).await?;
            }
            ControlAction::PowerFailure(after) => {
                self.crash(Crash::Power)?;
                self.go_on(*after, Crash::Power).await?;
            }
            ControlAction::HostRestart(after) => {
                self.crash(Crash::Host)?;
                self.go_on(*after, Crash::Power).await?;
            }
            ControlAction::ProcessDeath { aside, after } => {
                // A process without the kept memory may lose what that has.
                let without = &self.setup.kept_aside;
                without.set(without.get() || *aside);
                self.crash(Crash::Process)?;
                without.set(*aside);
                self.go_on(*after, Crash::Process).await?;
            }
            ControlAction::Bad { disk, range } => {
                self.note(format!("disk {disk}: {range} has become unreadable"));
                self.disk(*disk).make_bad(*range);
            }
            ControlAction::Disconnect { volume } => {
                self.note(format!("v{volume}: the connections are cut"));
                let front = self.fronts()[*volume as usize].clone();
                self.patiently("the change of servers", front.disconnect()).await?;
            }
            ControlAction::Outage { disk, outage, span } => {
                let span_text =
                    span.map_or("until the next start".to_owned(), |span| show_time(span.0));
                self.note(format!("disk {disk}: {outage:?} {span_text}"));
                self.unplugged.set(self.unplugged.get() || *outage == Outage::Gone);
                self.disk(*disk).fail(*outage, *span);
            }
            ControlAction::NoMemory(span) => {
                self.note(format!("no memory for I/O for {}", show_time(span.0)));
                self.world.run_out_of_memory(*span);
            }
        }
        Ok(())
    }

    /// The Linux driver has the disks for a while.
    fn driver_runs(&self, run: &DriverRun) {
        let (now, oracle) = (self.world.now(), &self.workload.oracle);
        let mut write = |volume, range| {
            let mut oracle = oracle.borrow_mut();
            let op = oracle.begin(now, DRIVER, volume, OpKind::Write { fua: true }, range);
            let data = oracle.content(&op);
            oracle.end(now, op, &Ok(()));
            data
        };
        let rng = &mut Rng::fork(self.setup.plan.seed ^ self.workload.started.get(), "driver");
        if let Some(done) = S::driver_runs(&self.setup, run, rng, &mut write) {
            self.note(format!("the driver had the set: {done}"));
            // The one that wrote was no client of ubcache.
            oracle.borrow_mut().stopped();
            self.handed_over.set(true);
        }
    }

    /// Starts a command of the system, concurrently with the clients.
    fn command(&self, command: Command) {
        let (env, system) = self.instance();
        let workload = self.workload.clone();
        workload.busy.set(workload.busy.get() + 1);
        env.clone().spawn(Priority::Background, async move {
            if let Err(error) = system.control(command.clone()).await
                && !workload.errors_expected.get()
            {
                let report = format!("{command:?}: {error}");
                workload.oracle.borrow_mut().violation("a command failed", report);
            }
            workload.busy.set(workload.busy.get() - 1);
            workload.changed.notify_all();
        });
    }

    /// Goes on with another instance. `again`: what ends its start if that is not done in time.
    async fn go_on(&self, after: AfterStart, again: Crash) -> Step {
        self.other_hands().await?;
        self.start(after.again.map(|delay| (delay, again))).await?;
        if after.check {
            self.check().await?;
        }
        self.start_clients();
        Ok(())
    }

    fn start_clients(&self) {
        let (env, volumes) = (self.instance().0, self.fronts());
        for client in 0..self.setup.plan.clients() {
            let task = run_client(env.clone(), self.workload.clone(), volumes.clone(), client);
            env.spawn(Priority::Foreground, task);
        }
        for (client, hammer) in (HAMMERS_FROM..).zip(&self.setup.plan.hammers) {
            let volume = volumes[hammer.volume as usize].clone();
            let task =
                run_hammer(env.clone(), self.workload.clone(), volume, client, hammer.clone());
            env.spawn(Priority::Foreground, task);
        }
    }

    /// Reads everything, from where it is.
    async fn read_all(&self) -> Step {
        let ((env, _), volumes) = (self.instance(), self.fronts());
        self.patiently("the full read", read_everything(&env, &self.workload, &volumes)).await
    }

    /// Reads everything, evicts everything clean, reads everything. The oracle remembers what the
    /// first read returned, so the second has to return the same.
    async fn check(&self) -> Step {
        self.read_all().await?;
        let (_, system) = self.instance();
        let evicted = self.patiently("the eviction", system.control(Command::EvictClean)).await?;
        if let Err(error) = evicted
            && !self.workload.errors_expected.get()
        {
            return Err(self.violation("a command failed", format!("evict: {error}")));
        }
        self.note("everything was read, everything clean evicted".to_owned());
        self.read_all().await?;
        for complaint in system.complaints() {
            self.workload.oracle.borrow_mut().violation("the system complains", complaint);
        }
        if self.workload.oracle.borrow().violations().is_empty() { Ok(()) } else { Err(GiveUp) }
    }
}
