//! The nouns of a set, shared by all tools: what a walk finds and what a check says of it.
//!
//! | file | holds |
//! |---|---|
//! | `view` | [`View`]: a set as its cache device describes it |
//! | `journal` | [`Journal`], [`FoundEntry`], [`EntryPlace`] |
//! | `extent`, `interval` | [`Extent`]; [`Lost`]: an interval of keys |
//! | `bucket`, `generations` | [`Bucket`], [`Owner`]; the generations of all buckets at one time |
//! | `totals` | totals over extents |
//! | `finding`, `report` | [`Finding`], [`FindingKind`], [`Location`]; [`Report`], [`Stats`] |

mod bucket;
mod extent;
mod finding;
mod generations;
mod interval;
mod journal;
mod report;
mod totals;
mod view;

pub use self::bucket::{Bucket, Owner};
pub use self::extent::Extent;
pub use self::finding::{Finding, FindingKind, Location, Severity, Site};
pub(crate) use self::generations::{GenerationSnapshot, STALE_FATAL, STALE_NOTE};
pub use self::interval::Lost;
pub(crate) use self::interval::{END, Position, START};
pub use self::journal::{EntryPlace, FoundEntry, Journal};
pub(crate) use self::journal::{SEQ_MAX, SEQ_MAX_WITHOUT_THE_LAST};
pub use self::report::{Report, Stats};
pub(crate) use self::totals::{Totals, VolumeTotals, add_volumes};
pub use self::view::View;
