//! Bounds of an exploration.

use crate::rules::Rules;
use crate::state::{Budget, OpKind};
use crate::step::Model;

/// Bounds of an exploration.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Sectors, 1 or 2.
    pub sectors: usize,
    /// Requests that clients may make.
    pub kinds: Vec<OpKind>,
    /// Number of events of each kind.
    pub budget: Budget,
    /// Assert I1 and I3 to I8 in every state.
    pub strict: bool,
}

impl Bounds {
    /// The bounds of the table in docs/internals/coherence.md §13: every kind of event that the
    /// model knows, once, except for `ops` operations.
    pub fn usual(sectors: usize, ops: u8) -> Bounds {
        Bounds::new(sectors, ops).with_restart().with_all_errors()
    }

    /// Operations of every kind; one eviction, one writeback, one failed write, one power failure.
    pub fn new(sectors: usize, ops: u8) -> Bounds {
        let budget = Budget {
            ops,
            evictions: 1,
            writebacks: 1,
            errors: 1,
            power_failures: 1,
            ..Budget::default()
        };
        Bounds { sectors, kinds: OpKind::ALL.to_vec(), budget, strict: false }
    }

    /// A host restart, too.
    pub fn with_restart(mut self) -> Bounds {
        self.budget.restarts = 1;
        self
    }

    /// Failures of the journal and of a backing flush, too.
    pub fn with_all_errors(mut self) -> Bounds {
        self.budget.journal_errors = 1;
        self.budget.flush_errors = 1;
        self
    }

    /// Only these operations.
    pub fn with_kinds(mut self, kinds: &[OpKind]) -> Bounds {
        self.kinds = kinds.to_vec();
        self
    }

    /// Asserts the invariants of every state.
    pub fn strictly(mut self) -> Bounds {
        self.strict = true;
        self
    }

    /// A protocol within these bounds.
    pub fn of(&self, rules: Rules) -> Model {
        let Bounds { sectors, kinds, budget, strict } = self.clone();
        Model { rules, sectors, kinds, budget, strict }
    }
}
