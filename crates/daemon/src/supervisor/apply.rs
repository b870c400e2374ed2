//! Carrying out a plan, on a thread of its own: the supervisor goes on with what its sets say.

use std::collections::BTreeSet;

use super::plan::{Plan, Step, merged};
use crate::config_file::SetFile;
use crate::config_file::effective::Change;
use crate::control::{ControlRequest, SetHandle};

/// A set whose configuration has changed.
pub(super) struct Task {
    pub number: usize,
    pub set: SetHandle,
    pub before: SetFile,
    pub after: SetFile,
    pub plan: Plan,
}

/// The result of a task.
pub(super) struct Applied {
    pub number: usize,
    /// The configuration in effect.
    pub file: SetFile,
    pub changes: Vec<Change>,
}

/// Carries out all steps; blocks until the sets have answered.
pub(super) fn carry_out(tasks: Vec<Task>) -> Vec<Applied> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    tasks
        .into_iter()
        .map(|task| match &runtime {
            Ok(runtime) => runtime.block_on(apply(task)),
            Err(error) => {
                let mut changes = task.plan.changes;
                changes.iter_mut().for_each(|change| change.result = Some(error.to_string()));
                Applied { number: task.number, file: task.before, changes }
            }
        })
        .collect()
}

async fn apply(Task { number, set, before, after, plan }: Task) -> Applied {
    let Plan { mut changes, steps } = plan;
    let mut done = BTreeSet::new();
    for Step { keys, requests } in steps {
        let result = send_all(&set, requests).await;
        for change in changes.iter_mut().filter(|change| keys.contains(&change.key)) {
            change.result = Some(match &result {
                Ok(()) => "done".to_owned(),
                Err(why) => why.clone(),
            });
        }
        if result.is_ok() {
            done.extend(keys);
        }
    }
    for change in changes.iter_mut().filter(|change| change.result.is_none()) {
        change.result = Some(match change.applied.as_str() {
            "restart" => "holds from the next start of the daemon".to_owned(),
            _ => "its device is not there".to_owned(),
        });
    }
    Applied { number, file: merged(&before, &after, &done), changes }
}

async fn send_all(set: &SetHandle, requests: Vec<ControlRequest>) -> Result<(), String> {
    for request in requests {
        set.mailbox.send(request, None).await.map_err(|refusal| refusal.to_string())?;
    }
    Ok(())
}
