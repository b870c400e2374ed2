//! Options of a repair.

/// Options of a survey.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct RepairOptions {
    /// Keep data that is not certain, where only one version of it is known. It is listed all the
    /// same.
    pub use_uncertain: bool,
    /// The cache is a pack: it has no data that could be read, and that is no damage.
    pub without_data: bool,
    /// The backing devices that are given are all that the set has: then a slot is given to one of
    /// them where nothing else is left that it could be.
    pub all_disks: bool,
}
