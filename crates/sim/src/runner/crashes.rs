//! The power fails at every write of a run.
//!
//! The run goes on to its end undisturbed. Right before each write is submitted, and right after
//! each is complete, it stands still: what a power failure may leave of the disks at this moment
//! goes, choice by choice, to a world of its own, with a copy of the oracle. There the offline
//! check looks at the disks, an instance starts, everything is read, everything clean evicted,
//! everything read again, and the instance stops. So one run is enough for all its crashes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use ubcache_engine::Rules;

use super::{Run, RunOptions, Step, Workload, make_setup, make_workload, run_world};
use crate::crash::Crash;
use crate::disk::CrashImage;
use crate::executor::{SimWorld, WorldConfig};
use crate::oracle::{Oracle, Violation};
use crate::plan::Plan;
use crate::rng::Rng;
use crate::system::{Setup, System, Word};

/// Number of outcomes of a crash that are tried.
#[derive(Copy, Clone, Debug)]
pub struct CrashOptions {
    /// Crash in the first start as well, not only after it.
    pub first_start: bool,
    /// All outcomes of a crash if there are no more than these.
    pub outcomes_max: usize,
    /// Drawn outcomes otherwise, beside "all of it" and "nothing of it".
    pub samples: usize,
}

/// Report on a crash.
#[derive(Clone, Debug, Default)]
pub struct CrashReport {
    /// Writes of the run, of all disks.
    pub writes: u64,
    /// Moments at which the power failed.
    pub moments: u64,
    /// Moments at which every outcome was tried.
    pub exhausted: u64,
    /// Crashes: outcomes tried.
    pub crashes: u64,
    /// The first violation, with when and what survived; of the run itself or after a crash.
    pub violation: Option<Violation>,
    /// The run itself.
    pub marks: std::collections::BTreeMap<&'static str, u64>,
}

/// Runs the plan; the power fails at every write.
pub fn crash_at_every_write<S: System>(
    plan: &Plan,
    options: CrashOptions,
    rules: Rules,
) -> CrashReport {
    let world = new_world(plan);
    let (setup, initial) =
        make_setup::<S>(&world, plan, RunOptions { rules, ..RunOptions::default() });
    let run = Rc::new(Run::<S>::new(&world, setup, Rc::new(make_workload(plan, initial)), plan));
    let crasher = Rc::new(Crasher {
        setup: run.setup.clone(),
        workload: run.workload.clone(),
        world: world.clone(),
        options,
        armed: Cell::new(options.first_start),
        rng: RefCell::new(Rng::fork(plan.seed, "crashes")),
        last: Cell::new(None),
        report: RefCell::default(),
    });
    let watcher = crasher.clone();
    world.watch_writes(Rc::new(move |completed| watcher.write::<S>(completed)));
    let (whole, arm) = (run.clone(), crasher.clone());
    run_world(&run, async move {
        let steps = async {
            whole.start(None).await?;
            arm.armed.set(true);
            whole.play().await?;
            // After the last reply.
            arm.crash::<S>("at the end");
            arm.armed.set(false);
            whole.stop().await
        };
        let _: Step = steps.await;
    });
    let mut report = crasher.report.take();
    report.marks = world.marks();
    let own = run.workload.oracle.borrow().violations().first().cloned();
    report.violation = report.violation.or(own);
    report
}

fn new_world(plan: &Plan) -> SimWorld {
    SimWorld::new(WorldConfig {
        policy: plan.policy,
        poll_cost: plan.poll_cost,
        timer_slop: plan.timer_slop,
        ..WorldConfig::new(plan.seed)
    })
}

struct Crasher {
    setup: Rc<Setup>,
    workload: Rc<Workload>,
    world: SimWorld,
    options: CrashOptions,
    armed: Cell<bool>,
    rng: RefCell<Rng>,
    /// State at the last moment: without anything new there is nothing to try.
    last: Cell<Option<(u64, u64)>>,
    report: RefCell<CrashReport>,
}

impl Crasher {
    /// A write is about to be submitted, or has completed.
    fn write<S: System>(&self, completed: bool) {
        if !self.armed.get() {
            return;
        }
        let number = {
            let mut report = self.report.borrow_mut();
            report.writes += u64::from(!completed);
            report.writes
        };
        let what = if completed {
            "after a write, of which so many were submitted:"
        } else {
            "before write"
        };
        self.crash::<S>(&format!("{what} {number}"));
    }

    fn disks(&self) -> impl Iterator<Item = &crate::SimDisk> {
        std::iter::once(self.setup.cache()).chain(self.setup.backing.all())
    }

    fn crash<S: System>(&self, when: &str) {
        if self.report.borrow().violation.is_some() {
            return;
        }
        let oracle = self.workload.oracle.borrow().clone();
        let present = (self.disks().map(|disk| disk.changes()).sum(), oracle.moment());
        if self.last.replace(Some(present)) == Some(present) {
            return;
        }
        let images: Vec<CrashImage> = self.disks().map(|disk| disk.crash_image()).collect();
        let counts: Vec<usize> = images.iter().flat_map(CrashImage::choices).collect();
        let all = counts.iter().try_fold(1_usize, |product, count| product.checked_mul(*count));
        let exhaustive = all.is_some_and(|all| all <= self.options.outcomes_max);
        let outcomes = if exhaustive { every(&counts) } else { self.sample(&counts) };
        {
            let mut report = self.report.borrow_mut();
            report.moments += 1;
            report.exhausted += u64::from(exhaustive);
            report.crashes += outcomes.len() as u64;
        }
        for choice in outcomes {
            if let Some(mut violation) = self.recover::<S>(&images, &choice, oracle.clone()) {
                violation.report = format!(
                    "the power failed {when}, {}\nof each block that was not certain (of \
                     {counts:?}) survived \
                     {choice:?}\n{}",
                    crate::executor::show_time(self.world.now().0),
                    violation.report
                );
                self.report.borrow_mut().violation = Some(violation);
                return;
            }
        }
    }

    fn sample(&self, counts: &[usize]) -> Vec<Vec<usize>> {
        let rng = &mut *self.rng.borrow_mut();
        let mut outcomes =
            vec![vec![0; counts.len()], counts.iter().map(|count| count - 1).collect()];
        for _ in 0..self.options.samples {
            // Some lose a block or two, some keep one or two, most are mixed.
            let newest = rng.pick(&[1, 4, 8, 12, 15]);
            let draw = |count: &usize| {
                if rng.chance(newest, 16) { count - 1 } else { rng.below(*count as u64) as usize }
            };
            outcomes.push(counts.iter().map(draw).collect());
        }
        outcomes
    }

    /// Judges what a new instance makes of one outcome.
    fn recover<S: System>(
        &self,
        images: &[CrashImage],
        choice: &[usize],
        oracle: Oracle,
    ) -> Option<Violation> {
        let plan = &self.setup.plan;
        let world = new_world(plan);
        let mut rest = choice;
        let mut disks = images.iter().map(|image| {
            let (mine, others) = rest.split_at(image.choices().count());
            rest = others;
            image.disk(&world, mine)
        });
        let cache = disks.next().expect("the cache comes first");
        let setup = Rc::new(Setup {
            rules: self.setup.rules,
            header_rules: self.setup.header_rules,
            plan: plan.clone(),
            first_cache: cache,
            spare: None,
            replaced: Cell::new(false),
            kept: None,
            kept_aside: Cell::new(false),
            backing: self.setup.backing.like(disks.collect()),
            servers: BTreeMap::new(),
            word: Word::default(),
        });
        let workload = Workload {
            oracle: RefCell::new(oracle),
            ..make_workload(&Plan { ops: Vec::new(), ..plan.clone() }, Vec::new())
        };
        workload.crashed(self.world.now(), Crash::Power);
        let run = Rc::new(Run::<S>::new(&world, setup, Rc::new(workload), plan));
        let whole = run.clone();
        run_world(&run, async move {
            let steps = async {
                whole.inspect_rest("after the power failure")?;
                whole.start(None).await?;
                whole.check().await?;
                whole.stop().await
            };
            let _: Step = steps.await;
        });
        run.workload.oracle.borrow().violations().first().cloned()
    }
}

/// Every choice.
fn every(counts: &[usize]) -> Vec<Vec<usize>> {
    counts.iter().fold(vec![Vec::new()], |choices, count| {
        let longer = |choice: &Vec<usize>| {
            (0..*count)
                .map(|next| choice.iter().copied().chain([next]).collect())
                .collect::<Vec<_>>()
        };
        choices.iter().flat_map(longer).collect()
    })
}
