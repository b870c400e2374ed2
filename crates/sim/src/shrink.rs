//! Cuts a failing plan down to what the failure needs.
//!
//! Delta debugging over the lines of the plan: blocks of operations, then controls, then whole
//! features are taken away as long as a violation of the same kind remains. The seed is kept, so
//! that the fine grain stays as similar as it can; where a cut loses the failure, a few other seeds
//! are tried.

use ubcache_env::Nanos;

use crate::plan::{
    AfterStart, CacheShape, ControlAction, Frontend, Pace, Plan, Scarcity, Sums, Zone,
};
use crate::runner::Outcome;

/// Seeds that are tried for a cut.
const SEEDS: u64 = 3;

/// A shrunk plan and how far it came.
#[derive(Debug)]
pub struct Shrunk {
    /// The smallest plan found that still fails.
    pub plan: Plan,
    /// Runs that it took.
    pub runs: u64,
}

/// Shrinks `plan`, which fails with a violation of this kind. No more than `runs_max` runs.
pub fn shrink(plan: &Plan, kind: &str, runs_max: u64, run: impl FnMut(&Plan) -> Outcome) -> Shrunk {
    let mut shrinker = Shrinker { best: plan.clone(), kind, runs: 0, runs_max, run };
    loop {
        let before = size(&shrinker.best);
        // Simplify the world first: then more can be cut.
        shrinker.simplify();
        shrinker.cut_ops();
        shrinker.cut_controls();
        if size(&shrinker.best) == before || shrinker.runs >= runs_max {
            return Shrunk { plan: shrinker.best, runs: shrinker.runs };
        }
    }
}

fn size(plan: &Plan) -> usize {
    plan.ops.len()
        + plan.controls.len()
        + plan.faults.len()
        + plan.lossy.len()
        + plan.remotes.iter().map(|remote| 1 + remote.budget as usize).sum::<usize>()
        + plan.stored.len()
        + plan.hammers.len()
        + plan.hands.len()
        + usize::from(plan.memory.rate > 0)
        + usize::from(plan.pace != Pace::default())
        + usize::from(plan.sums != Sums::default())
}

struct Shrinker<'a, F> {
    best: Plan,
    kind: &'a str,
    runs: u64,
    runs_max: u64,
    run: F,
}

impl<F: FnMut(&Plan) -> Outcome> Shrinker<'_, F> {
    /// Keeps the plan if it fails in the same way.
    fn try_plan(&mut self, mut plan: Plan) -> bool {
        let seed = plan.seed;
        for round in 0..SEEDS {
            if self.runs >= self.runs_max {
                return false;
            }
            self.runs += 1;
            plan.seed = if round == 0 { seed } else { crate::rng::mix(seed ^ round) >> 32 };
            let outcome = (self.run)(&plan);
            if outcome.violations.first().is_some_and(|violation| violation.kind == self.kind) {
                self.best = plan;
                return true;
            }
        }
        false
    }

    fn cut_ops(&mut self) {
        let mut chunk = self.best.ops.len().div_ceil(2);
        while chunk > 0 {
            let mut at = 0;
            while at < self.best.ops.len() {
                let end = (at + chunk).min(self.best.ops.len());
                let mut plan = self.best.clone();
                plan.ops.drain(at..end);
                for control in &mut plan.controls {
                    let gone = control.after_ops.min(end as u64).saturating_sub(at as u64);
                    control.after_ops -= gone;
                }
                if !self.try_plan(plan) {
                    at = end;
                }
            }
            if self.runs >= self.runs_max {
                return;
            }
            chunk /= 2;
        }
    }

    fn cut_controls(&mut self) {
        let mut at = self.best.controls.len();
        while at > 0 {
            at -= 1;
            let mut plan = self.best.clone();
            plan.controls.remove(at);
            self.try_plan(plan);
        }
    }

    fn simplify(&mut self) {
        let mut at = self.best.hammers.len();
        while at > 0 {
            at -= 1;
            let mut plan = self.best.clone();
            plan.hammers.remove(at);
            self.try_plan(plan);
        }
        let mut at = self.best.faults.len();
        while at > 0 {
            at -= 1;
            let mut plan = self.best.clone();
            plan.faults.remove(at);
            self.try_plan(plan);
        }
        for at in (0..self.best.hands.len()).rev() {
            let mut plan = self.best.clone();
            plan.hands.remove(at);
            self.try_plan(plan);
        }
        let mut at = self.best.lossy.len();
        while at > 0 {
            at -= 1;
            let mut plan = self.best.clone();
            plan.lossy.remove(at);
            self.try_plan(plan);
        }
        for at in (0..self.best.remotes.len()).rev() {
            let mut plan = self.best.clone();
            plan.remotes.remove(at);
            if !self.try_plan(plan) && self.best.remotes[at].budget > 1 {
                let mut plan = self.best.clone();
                plan.remotes[at].budget -= 1;
                self.try_plan(plan);
            }
        }
        for at in (0..self.best.stored.len()).rev() {
            let mut plan = self.best.clone();
            plan.stored.remove(at);
            self.try_plan(plan);
        }
        if self.best.memory != Scarcity::default() {
            self.try_plan(Plan { memory: Scarcity::default(), ..self.best.clone() });
        }
        if self.best.pace != Pace::default() {
            self.try_plan(Plan { pace: Pace::default(), ..self.best.clone() });
            self.try_plan(Plan {
                pace: Pace { step_cost: Nanos(0), ..self.best.pace },
                ..self.best.clone()
            });
        }
        let mut rounded = self.best.clone();
        rounded.round_to_blocks();
        if rounded != self.best {
            self.try_plan(rounded);
        }
        if self.best.sums != Sums::default() {
            self.try_plan(Plan { sums: Sums::default(), ..self.best.clone() });
        }
        if self.best.scribble {
            self.try_plan(Plan { scribble: false, ..self.best.clone() });
        }
        for at in 0..self.best.volumes.len() {
            if self.best.volumes[at].noise {
                let mut plan = self.best.clone();
                plan.volumes[at].noise = false;
                self.try_plan(plan);
            }
        }
        for at in 0..self.best.volumes.len() {
            if self.best.volumes[at].head > 0 {
                let mut plan = self.best.clone();
                plan.volumes[at].head = 0;
                self.try_plan(plan);
            }
        }
        if self.best.frontend != Frontend::Direct {
            self.try_plan(Plan { frontend: Frontend::Direct, ..self.best.clone() });
        }
        if self.best.cache.generations != CacheShape::ALL_GENERATIONS {
            let mut plan = self.best.clone();
            plan.cache.generations = CacheShape::ALL_GENERATIONS;
            self.try_plan(plan);
        }
        for at in 0..self.best.faults.len() {
            if self.best.faults[at].zone != Zone::All {
                let mut plan = self.best.clone();
                plan.faults[at].zone = Zone::All;
                self.try_plan(plan);
            }
        }
        for at in 0..self.best.controls.len() {
            let mut plan = self.best.clone();
            let (ControlAction::PowerFailure(after)
            | ControlAction::HostRestart(after)
            | ControlAction::ProcessDeath { after, .. }
            | ControlAction::Driver(_, after)
            | ControlAction::Restart(after)) = &mut plan.controls[at].action
            else {
                continue;
            };
            if *after != AfterStart::default() {
                *after = AfterStart::default();
                self.try_plan(plan);
            }
        }
        let unused = |plan: &Plan, volume: usize| {
            volume > 0 && plan.ops.iter().all(|op| op.volume as usize != volume)
        };
        while unused(&self.best, self.best.volumes.len() - 1) {
            let mut plan = self.best.clone();
            plan.volumes.pop();
            let volumes = plan.volumes.len();
            plan.faults.retain(|faults| faults.disk <= volumes);
            plan.hammers.retain(|hammer| (hammer.volume as usize) < volumes);
            plan.hands.retain(|hand| hand.disk <= volumes);
            plan.lossy.retain(|lossy| lossy.disk <= volumes);
            plan.remotes.retain(|remote| remote.volume < volumes);
            plan.stored.retain(|stored| stored.volume < volumes);
            plan.controls.retain(|control| {
                control.action.volume().is_none_or(|volume| (volume as usize) < volumes)
                    && control.action.broken_disk().is_none_or(|disk| disk <= volumes)
            });
            if !self.try_plan(plan) {
                break;
            }
        }
    }
}
