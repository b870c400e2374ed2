//! Looking at a run from outside, between two of its events: at the disks themselves, and at what
//! is in memory.

use std::rc::Rc;

use ubcache_env::{Env, Nanos};

use super::{GiveUp, Run, Step};
use crate::disk::{SimDisk, Snapshot};
use crate::executor::show_time;
use crate::oracle::{Oracle, Violation};
use crate::system::{Holder, System};

/// Moments of a run that are looked at besides those before a control.
const MOMENTS: u64 = 2;
/// The longest wait from the start of an operation to such a moment.
const MOMENT_DELAY_MAX_US: u64 = 20_000;

impl<S: System> Run<S> {
    /// Nothing is running. The disks hold a set without damage; what the volumes read as by them is
    /// what the next instance has to show.
    pub(super) fn inspect_rest(&self, when: &str) -> Step {
        self.setup.backing.settle(self.setup.cache());
        let when_now = format!("{when}, the disks as they are");
        let now = self.world.now();
        let begun = self.workload.oracle.borrow_mut().look(now);
        self.inspect_disks(&when_now, SimDisk::snapshot, |oracle, volume, sector, bytes| {
            oracle.judge_rest(begun, volume, sector, bytes)
        })?;
        if self.disks().any(|disk| disk.unflushed_sectors() > 0) {
            self.inspect_survivor(when)?;
        }
        Ok(())
    }

    /// [`Run::inspect_rest`] where kept memory may have what the disks do not have yet: they may be
    /// behind as far as after a power failure.
    pub(super) fn inspect_behind(&self, when: &str) -> Step {
        match self.setup.kept() {
            Some(_) => self.inspect_survivor(when),
            None => self.inspect_rest(when),
        }
    }

    /// Inspection of a running instance: its memory, and the disks after a power failure at this
    /// moment.
    pub(super) fn inspect_running(&self) -> Step {
        let when = format!("at {}", show_time(self.world.now().0));
        let instance = self.instance.borrow();
        // Content of a disk that was pulled out does not concern memory any more.
        let system =
            instance.as_ref().map(|instance| &instance.system).filter(|_| !self.unplugged.get());
        if let Some(violation) = system.and_then(|system| system.inspect_memory(&self.setup)) {
            return Err(self.keep(&when, violation));
        }
        self.inspect_survivor(&when)
    }

    /// Draws what a power failure would leave, and looks at it.
    fn inspect_survivor(&self, when: &str) -> Step {
        let when = format!("{when}, had the power failed");
        let rng = &mut *self.judge.borrow_mut();
        self.inspect_disks(
            &when,
            |disk| disk.survivor(rng),
            |oracle, volume, sector, bytes| oracle.judge_survivor(volume, sector, bytes),
        )
    }

    /// Checks the disks, and has the oracle judge every sector of every volume by them.
    fn inspect_disks(
        &self,
        when: &str,
        mut view: impl FnMut(&SimDisk) -> Snapshot,
        mut judge: impl FnMut(&mut Oracle, u32, u64, &[u8; 512]) -> Option<Violation>,
    ) -> Step {
        // The work of other hands is judged when the start has dealt with it.
        if self.handed_over.get() || self.foreign.get() {
            return Ok(());
        }
        let cache = view(self.setup.cache());
        let backing = self.setup.backing.seen(&cache, view);
        let layouts = S::inspect(&self.setup, &cache, &backing)
            .map_err(|violation| self.keep(when, violation))?;
        let mut bytes = [0; 512];
        for ((volume, layout), backing) in (0..).zip(&layouts).zip(&backing) {
            // The sectors before it are unused.
            let head = self.setup.plan.volumes[volume as usize].head;
            for piece in layout {
                for index in head.saturating_sub(piece.range.start.0)..piece.range.sectors() {
                    match piece.place {
                        Holder::Cache(at) => cache.peek(at + index, &mut bytes),
                        Holder::Backing(at) => backing.peek(at + index, &mut bytes),
                        Holder::Nobody => bytes.fill(0),
                    }
                    let sector = piece.range.start.0 + index - head;
                    let judged =
                        judge(&mut self.workload.oracle.borrow_mut(), volume, sector, &bytes);
                    if let Some(violation) = judged {
                        return Err(self.keep(when, violation));
                    }
                }
            }
        }
        Ok(())
    }

    fn keep(&self, when: &str, violation: Violation) -> GiveUp {
        self.violation(&violation.kind, format!("{when}: {}", violation.report))
    }

    pub(super) fn disks(&self) -> impl Iterator<Item = &SimDisk> {
        std::iter::once(self.setup.cache()).chain(self.setup.backing.all())
    }

    /// Inspects a few moments of the run, each some time after a drawn operation has begun.
    pub(super) async fn watch(self: Rc<Self>) {
        let ops = self.setup.plan.ops.len() as u64;
        let mut moments: Vec<(u64, Nanos)> = {
            let mut rng = self.judge.borrow_mut();
            let mut draw =
                |_| (rng.below(ops), Nanos::from_micros(rng.scale(1, MOMENT_DELAY_MAX_US)));
            (0..MOMENTS.min(ops)).map(&mut draw).collect()
        };
        moments.sort_unstable();
        for (after_ops, delay) in moments {
            while self.workload.started.get() <= after_ops {
                self.workload.changed.notified().await;
            }
            self.world.env().sleep(delay).await;
            if self.inspect_running().is_err() {
                return;
            }
        }
    }
}
