//! Former owner of a set that a start took over.

/// Former owner of a set.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum FormerRun {
    /// The Linux driver ran it last.
    Driver,
    /// Early ubcache ran it last, or the driver after it: nothing on the device tells them apart.
    Unknown,
    /// `ubcache repair` or `ubcache restore` wrote it.
    Tool,
}

/// Data that a start has dropped of a set that it took over.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct TakenOver {
    /// The former owner.
    pub from: FormerRun,
    /// Bytes of clean data that were dropped; `None` if they were to be kept.
    pub dropped_bytes: Option<u64>,
}
