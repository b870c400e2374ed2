//! The bypass decision: may this request put data into the cache?
//!
//! Asked once per read, write or discard, in a fixed order in which the first rule that applies
//! decides. The order is bcache's, and it is visible: a request that an earlier rule decides leaves
//! no trace in the I/O history of the sequential detection.
//!
//! | | rule | decision |
//! |---|---|---|
//! | 1 | the volume is being detached | bypass |
//! | 2 | more than 95 % of the buckets are in use | bypass |
//! | 3 | a discard | bypass |
//! | 4 | mode none | bypass |
//! | 5 | mode writearound and a write | bypass |
//! | 6 | not aligned to the block of the cache device | bypass |
//! | 7 | not congested, and the sequential cutoff is 0 | cache; the history stays as it is |
//! | 8 | the history is updated; the run has reached the sequential cutoff | bypass |
//! | 9 | congested, and the run has reached the congestion limit | bypass |
//! | 10 | | cache |
//!
//! bcache has one rule more, for reads that the page cache makes ahead of its client; block
//! protocols do not say which these are.

use ubcache_format::{CacheMode, SECTOR_BYTES};

use crate::stats::requests::BypassReason;

/// Above this share of used buckets, in percent, nothing new is cached.
pub const IN_USE_BYPASS_PERCENT: u64 = 95;

/// Kind of a request.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read,
    Write,
    Discard,
}

/// Input of the decision, apart from the history.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct BypassInput {
    /// The volume is being detached.
    pub detaching: bool,
    /// Buckets that are not available, in percent.
    pub in_use_percent: u64,
    /// The request is a discard.
    pub is_discard: bool,
    /// The request changes the volume.
    pub is_write: bool,
    /// The cache mode of the volume.
    pub mode: CacheMode,
    /// Start (data offset included) and length are multiples of the cache device's block.
    pub aligned: bool,
}

/// Decides; `None`: the request may be cached. `run_sectors` updates the history and returns the
/// length of the run; it is called only where rule 8 is reached. A `congestion_limit` of 0 means
/// not congested.
pub fn decide(
    input: &BypassInput,
    sequential_cutoff_bytes: u64,
    congestion_limit: u64,
    run_sectors: impl FnOnce() -> u64,
) -> Option<BypassReason> {
    if input.detaching {
        return Some(BypassReason::Detaching);
    }
    if input.in_use_percent > IN_USE_BYPASS_PERCENT {
        return Some(BypassReason::CacheFull);
    }
    if input.is_discard {
        return Some(BypassReason::Discard);
    }
    match input.mode {
        CacheMode::None => return Some(BypassReason::ModeNone),
        CacheMode::Writearound if input.is_write => return Some(BypassReason::Writearound),
        _ => {}
    }
    if !input.aligned {
        return Some(BypassReason::Unaligned);
    }
    if congestion_limit == 0 && sequential_cutoff_bytes == 0 {
        return None;
    }
    let run = run_sectors();
    if sequential_cutoff_bytes != 0 && run >= sequential_cutoff_bytes / SECTOR_BYTES {
        return Some(BypassReason::Sequential);
    }
    (congestion_limit != 0 && run >= congestion_limit).then_some(BypassReason::Congested)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CUTOFF: u64 = 4 << 20;

    fn plain() -> BypassInput {
        BypassInput {
            detaching: false,
            in_use_percent: 95,
            is_discard: false,
            is_write: true,
            mode: CacheMode::Writeback,
            aligned: true,
        }
    }

    /// Decides and says whether the history was updated.
    fn ask(input: BypassInput, cutoff: u64, limit: u64, run: u64) -> (Option<BypassReason>, bool) {
        let mut updated = false;
        let reason = decide(&input, cutoff, limit, || {
            updated = true;
            run
        });
        (reason, updated)
    }

    /// Each rule decides alone, and before all that follow it.
    #[test]
    fn the_first_rule_that_applies_decides() {
        let mut input = BypassInput {
            detaching: true,
            in_use_percent: 96,
            is_discard: true,
            is_write: true,
            mode: CacheMode::None,
            aligned: false,
        };
        assert_eq!(ask(input, CUTOFF, 1, u64::MAX), (Some(BypassReason::Detaching), false));
        input.detaching = false;
        assert_eq!(ask(input, CUTOFF, 1, u64::MAX), (Some(BypassReason::CacheFull), false));
        input.in_use_percent = 95;
        assert_eq!(ask(input, CUTOFF, 1, u64::MAX), (Some(BypassReason::Discard), false));
        input.is_discard = false;
        assert_eq!(ask(input, CUTOFF, 1, u64::MAX), (Some(BypassReason::ModeNone), false));
        input.mode = CacheMode::Writearound;
        assert_eq!(ask(input, CUTOFF, 1, u64::MAX), (Some(BypassReason::Writearound), false));
        input.is_write = false;
        assert_eq!(ask(input, CUTOFF, 1, u64::MAX), (Some(BypassReason::Unaligned), false));
        input.aligned = true;
        assert_eq!(ask(input, CUTOFF, 1, u64::MAX), (Some(BypassReason::Sequential), true));
        assert_eq!(ask(input, 0, 1, u64::MAX), (Some(BypassReason::Congested), true));
        assert_eq!(ask(input, 0, 0, u64::MAX), (None, false));
    }

    #[test]
    fn request_that_reaches_a_limit_is_bypassed() {
        assert_eq!(ask(plain(), CUTOFF, 0, 8191), (None, true));
        assert_eq!(ask(plain(), CUTOFF, 0, 8192), (Some(BypassReason::Sequential), true));
        assert_eq!(ask(plain(), CUTOFF, 100, 99), (None, true));
        assert_eq!(ask(plain(), CUTOFF, 100, 100), (Some(BypassReason::Congested), true));
    }

    #[test]
    fn writearound_caches_reads() {
        let read = BypassInput { is_write: false, mode: CacheMode::Writearound, ..plain() };
        assert_eq!(ask(read, CUTOFF, 0, 8), (None, true));
    }

    proptest! {
        /// With all switches off there is no rule that bypasses a request.
        #[test]
        fn plain_request_is_bypassed_only_as_part_of_a_run(cutoff: u64, limit: u64, run: u64) {
            let (reason, updated) = ask(plain(), cutoff, limit, run);
            prop_assert_eq!(updated, cutoff != 0 || limit != 0);
            let sequential = cutoff != 0 && run >= cutoff / 512;
            let congested = limit != 0 && run >= limit;
            prop_assert_eq!(reason.is_some(), sequential || congested);
            prop_assert_eq!(reason == Some(BypassReason::Sequential), sequential);
        }
    }
}
