//! Errors of a move.

/// Reason why a move stopped. Nothing is lost: the same command goes on with it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MoveError {
    /// A read or a write of the disk failed.
    #[error("{doing}: {error}")]
    Disk {
        /// The action that failed.
        doing: &'static str,
        /// The error of the device.
        error: String,
    },
    /// A read or a write of the work file failed.
    #[error("{doing}: {error}")]
    Work {
        /// The action that failed.
        doing: &'static str,
        /// The error of the device.
        error: String,
    },
    /// The disk is not as the move left it.
    #[error("sector {sector} is neither what was there before the move nor what it wrote")]
    Foreign {
        /// The first such sector.
        sector: u64,
    },
    /// The disk or the work file was changed after it was looked at.
    #[error("{part} is not what it was when the command looked at it")]
    Changed {
        /// The part that is different.
        part: &'static str,
    },
    /// The work file is not as it was written.
    #[error("{part} is not what was written")]
    WorkDamaged {
        /// The part that is damaged.
        part: &'static str,
    },
}

impl MoveError {
    pub(super) fn disk(doing: &'static str) -> impl Fn(String) -> MoveError {
        move |error| MoveError::Disk { doing, error }
    }

    pub(super) fn work(doing: &'static str) -> impl Fn(String) -> MoveError {
        move |error| MoveError::Work { doing, error }
    }
}
