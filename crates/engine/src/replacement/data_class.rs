//! Classes of data: what is likely to be given up together shares buckets.

/// Kind of data; data of one kind shares buckets.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// Written by a client, and the backing device has it.
    Clean = 0,
    Dirty = 1,
    MovedClean = 2,
    MovedDirty = 3,
    /// Read by a client; with policies that don't care it is with what was written.
    Filled = 4,
    /// Read by a client soon after it was evicted.
    FilledAgain = 5,
}
pub(crate) const CLASSES: usize = 6;

impl Class {
    pub fn is_moved(self) -> bool {
        matches!(self, Class::MovedClean | Class::MovedDirty)
    }

    /// Returns true if data of the class with this number was used more than once.
    pub fn came_again(class: usize) -> bool {
        [Class::MovedClean, Class::MovedDirty, Class::FilledAgain]
            .iter()
            .any(|&again| again as usize == class)
    }
}
