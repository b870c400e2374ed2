//! Opening a set for a tool that needs its content to be certain.

use ubcache_env::Device;

use super::run::walk;
use super::visitor::Visitor;
use crate::error::{OfflineError, On};
use crate::io::progress::Watcher;
use crate::set::{Finding, Report, View};

/// A visitor that keeps the findings, and does not need to see leaves.
#[derive(Default)]
pub(crate) struct Findings {
    pub report: Report,
}

impl Visitor for Findings {
    fn sees_leaves(&self) -> bool {
        false
    }
    fn finding(&mut self, finding: Finding) {
        self.report.push(finding);
    }
}

/// Reads a set whose content has to be certain; with `damaged`, damage is only reported.
pub async fn open_set<D: Device>(
    cache: &D,
    damaged: bool,
    watcher: &dyn Watcher,
) -> Result<(View, Report), OfflineError> {
    let mut findings = Findings::default();
    let view = walk(cache, &mut findings, watcher).await;
    let Findings { report } = findings;
    let worst = report.findings.iter().find(|finding| finding.kind.spoils_content());
    match (view, worst) {
        (Some(view), None) => Ok((view, report)),
        (Some(view), Some(_)) if damaged => Ok((view, report)),
        (_, Some(finding)) => Err(OfflineError::Damaged(Box::new(finding.clone()))),
        (None, None) => Err(OfflineError::Io {
            on: On::Cache,
            doing: "reading the set",
            error: "no superblock".to_owned(),
        }),
    }
}
