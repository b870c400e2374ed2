//! A visitor that keeps the findings and passes everything on.

use ubcache_format::{Geometry, Key, Superblock, UuidEntry};

use crate::set::{Finding, Journal, Report};
use crate::walk::{NodeVisit, PrioElement, Visitor};

/// Passes everything on to another visitor and keeps the findings.
pub(super) struct Collector<'a> {
    pub report: Report,
    next: &'a mut dyn Visitor,
}

impl<'a> Collector<'a> {
    pub fn new(next: &'a mut dyn Visitor) -> Collector<'a> {
        Collector { report: Report::default(), next }
    }
}

impl Visitor for Collector<'_> {
    fn superblock(&mut self, superblock: &Superblock) {
        self.next.superblock(superblock);
    }
    fn journal(&mut self, geometry: &Geometry, journal: &Journal) {
        self.next.journal(geometry, journal);
    }
    fn prio(&mut self, element: &PrioElement<'_>) {
        self.next.prio(element);
    }
    fn uuids(&mut self, key: &Key, slots: &[UuidEntry]) {
        self.next.uuids(key, slots);
    }
    fn node(&mut self, node: &NodeVisit<'_>) {
        self.next.node(node);
    }
    fn sees_leaves(&self) -> bool {
        self.next.sees_leaves()
    }
    fn finding(&mut self, finding: Finding) {
        self.next.finding(finding.clone());
        self.report.push(finding);
    }
}
