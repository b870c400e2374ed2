//! The files and what is in effect: differences, and putting them into effect.

use tokio::sync::oneshot;

use super::apply::{Applied, Task, carry_out};
use super::member::{Event, Member};
use super::pending::Pending;
use super::plan::plan;
use super::sets::Supervisor;
use crate::config_file::Lookup;
use crate::config_file::effective;
use crate::config_file::files::{Configuration, Resolved};
use crate::control::Refusal;
use crate::control::process::{ConfigChanges, ProcessAnswer, ProcessRequest, SetChanges};
use crate::control::refusal::Kind;
use crate::log::STATE;

impl Supervisor {
    /// Begins a request: the files are read on a thread of their own, as a device that is looked at
    /// may be slow.
    pub fn begin(
        &mut self,
        request: ProcessRequest,
        answer: Option<oneshot::Sender<ProcessAnswer>>,
    ) {
        let changes = ConfigChanges::default();
        if self.pending.is_some() || self.stopping {
            let why = match self.stopping {
                true => "the daemon is being stopped",
                false => "another request about the configuration is being carried out",
            };
            let refusal = Refusal::new(Kind::Busy, why).advice("try again in a moment");
            return Pending { request, answer, changes }.end(Err(refusal));
        }
        self.pending = Some(Pending { request, answer, changes });
        let paths = self.paths.clone();
        self.on_thread(move || {
            let mut configuration = Configuration::read(&paths);
            let resolved = configuration.resolve(&Lookup::default());
            Event::Read(Box::new((configuration, resolved)))
        });
    }

    /// Does something that may block on a thread of its own.
    fn on_thread(&mut self, work: impl FnOnce() -> Event + Send + 'static) {
        let events = self.sender.clone();
        // The supervisor may be at its end.
        let work = move || drop(events.send(work()));
        if let Err(error) = std::thread::Builder::new().name("config".to_owned()).spawn(work) {
            let why = format_args!("can't start a thread: {error}");
            self.answer(Err(Refusal::new(Kind::Failed, why)));
        }
    }

    /// Ends the request that is being carried out.
    pub fn answer(&mut self, answer: ProcessAnswer) {
        self.pending.take().into_iter().for_each(|pending| pending.end(answer.clone()));
    }

    /// The differences between the files and what is in effect.
    pub fn differences(
        &self,
        configuration: &Configuration,
        resolved: &[Resolved],
    ) -> ConfigChanges {
        let mut all = ConfigChanges {
            faults: configuration.faults.iter().map(ToString::to_string).collect(),
            ..ConfigChanges::default()
        };
        for Resolved { set, serve } in resolved {
            let file = set.file.display().to_string();
            let (name, member) = (set.name.clone(), self.member(&set.name));
            let (state, changes) = match member {
                None => ("new".to_owned(), Vec::new()),
                Some(member) => {
                    let plan = serve
                        .as_ref()
                        .map(|serve| plan(&member.file, set, serve, &member.volumes()).changes);
                    let known = || effective::changes(&member.file, set);
                    (member.state_in_words(), plan.unwrap_or_else(|_| known()))
                }
            };
            let is_served = member.is_some_and(Member::has_thread);
            if !changes.is_empty() || !is_served {
                all.sets.push(SetChanges { name, file, state, changes });
            }
        }
        for member in self.members.iter().filter(|member| member.has_thread()) {
            if self.is_gone(member, configuration) {
                all.sets.push(SetChanges {
                    name: member.name().to_owned(),
                    file: member.file.file.display().to_string(),
                    state: "removed".to_owned(),
                    changes: Vec::new(),
                });
            }
        }
        all
    }

    /// Returns true if there is no file of the set any more.
    fn is_gone(&self, member: &Member, configuration: &Configuration) -> bool {
        let has_set = configuration.sets.iter().any(|set| set.name == member.name());
        // One with a fault goes on, and so do all if a directory can't be read.
        let has_fault = configuration
            .faults
            .iter()
            .any(|fault| fault.file == member.file.file || self.paths.contains(&fault.file));
        !has_set && !has_fault
    }

    fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name() == name)
    }

    /// Puts the files into effect, as far as clients can go on.
    pub fn apply(
        &mut self,
        mut changes: ConfigChanges,
        configuration: &Configuration,
        resolved: Vec<Resolved>,
    ) {
        self.faulty = configuration.first_faults();
        let mut tasks = Vec::new();
        for Resolved { set, serve } in resolved {
            let at = self.members.iter().position(|member| member.name() == set.name);
            let shown = changes.sets.iter_mut().find(|shown| shown.name == set.name);
            match at {
                Some(number) if self.members[number].has_thread() => {
                    let member = &self.members[number];
                    let Some(shown) = shown else { continue };
                    match (serve, &member.handle) {
                        (Ok(serve), Some(handle)) => {
                            let before = member.file.clone();
                            let plan = plan(&before, &set, &serve, &member.volumes());
                            let (after, set) = (set, handle.clone());
                            tasks.push(Task { number, set, before, after, plan });
                        }
                        (Err(why), _) => shown.refuse(&format!("{why:#}")),
                        (Ok(_), None) => shown.refuse("the set is not served any more"),
                    }
                }
                at => {
                    let number = at.unwrap_or(self.members.len());
                    match at {
                        Some(number) => self.members[number].file = set,
                        None => self.members.push(Member::new(set)),
                    }
                    self.start_member(number, serve, Vec::new());
                    let state = self.members[number].state_in_words();
                    shown.into_iter().for_each(|shown| {
                        shown.state.clone_from(&state);
                        shown.changes.clear();
                    });
                }
            }
        }
        for member in &self.members {
            let shown = changes.sets.iter_mut().find(|it| it.name == member.name());
            if let Some(shown) = shown.filter(|shown| shown.state == "removed") {
                tracing::info!(target: STATE, name = member.name(), "its file is gone: it stops");
                shown.state = "stopped".to_owned();
                member.stop();
            }
        }
        self.publish();
        if let Some(pending) = &mut self.pending {
            pending.changes = changes;
        }
        self.on_thread(move || Event::Applied(carry_out(tasks)));
    }

    /// Takes note of changes that were carried out.
    pub fn applied(&mut self, applied: Vec<Applied>) {
        let Some(pending) = &mut self.pending else { return };
        let mut changes = std::mem::take(&mut pending.changes);
        for Applied { number, file, changes: done } in applied {
            let name = file.name.clone();
            self.members[number].file = file;
            if let Some(shown) = changes.sets.iter_mut().find(|shown| shown.name == name) {
                shown.changes = done;
            }
        }
        for set in &changes.sets {
            for change in &set.changes {
                let (name, key) = (&set.name, &change.key);
                let result = change.result.as_deref().unwrap_or_default();
                tracing::info!(target: STATE, name, key, "configuration: {result}");
            }
        }
        for fault in &changes.faults {
            tracing::error!(target: STATE, "configuration: {fault}");
        }
        self.answer(Ok(changes));
    }
}
