//! All findings of a check, bounded in number, and the totals of the set.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::finding::{Finding, FindingKind, Severity};

/// Findings that are kept of each kind; the others are only counted.
const KEPT_OF_A_KIND: u64 = 200;

/// Findings of a check, and its totals.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// In the order in which they were found; at most 200 of each kind.
    pub findings: Vec<Finding>,
    /// Number of findings of each kind.
    pub counts: BTreeMap<FindingKind, u64>,
    /// Totals of the set.
    pub stats: Stats,
}

/// Totals of a checked set.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Journal entries that replay needs.
    pub journal_entries: u64,
    /// Nodes of the tree.
    pub nodes: u64,
    /// Live extents.
    pub extents: u64,
    /// Sectors that are in the cache.
    pub cached_sectors: u64,
    /// Sectors of which the cache has the only copy.
    pub dirty_sectors: u64,
    /// Sectors that were compared with a backing device.
    pub compared_sectors: u64,
    /// Buckets that nothing points to.
    pub free_buckets: u64,
    /// All buckets.
    pub buckets: u64,
    /// By how many generations the oldest pointer to data is behind its bucket.
    pub oldest_data_pointer: u8,
    /// The same of pointers in interior nodes.
    pub oldest_node_pointer: u8,
}

impl Report {
    /// Adds a finding.
    pub fn push(&mut self, finding: Finding) {
        let count = self.counts.entry(finding.kind).or_default();
        *count += 1;
        if *count <= KEPT_OF_A_KIND {
            self.findings.push(finding);
        }
    }

    /// Counts the findings of a severity.
    pub fn count(&self, severity: Severity) -> u64 {
        self.counts
            .iter()
            .filter(|(kind, _)| kind.severity() == severity)
            .map(|(_, count)| count)
            .sum()
    }

    /// The findings that are damage.
    pub fn errors(&self) -> Vec<&Finding> {
        self.findings.iter().filter(|finding| finding.severity() == Severity::Error).collect()
    }

    /// Returns true if there is no damage.
    pub fn is_clean(&self) -> bool {
        self.count(Severity::Error) == 0
    }

    /// The report for programs.
    pub fn to_json(&self) -> Value {
        let stats = &self.stats;
        json!({
            "clean": self.is_clean(),
            "errors": self.count(Severity::Error),
            "warnings": self.count(Severity::Warning),
            "notes": self.count(Severity::Note),
            "counts": self.counts.iter().map(|(kind, count)| (kind.code().to_owned(), json!(count)))
                .collect::<serde_json::Map<_, _>>(),
            "findings": self.findings.iter().map(Finding::to_json).collect::<Vec<_>>(),
            "stats": {
                "journal_entries": stats.journal_entries,
                "nodes": stats.nodes,
                "extents": stats.extents,
                "cached_sectors": stats.cached_sectors,
                "dirty_sectors": stats.dirty_sectors,
                "compared_sectors": stats.compared_sectors,
                "free_buckets": stats.free_buckets,
                "buckets": stats.buckets,
                "oldest_data_pointer": stats.oldest_data_pointer,
                "oldest_node_pointer": stats.oldest_node_pointer,
            },
        })
    }
}
