//! The offline check on the disks of a run: what is durable, and what might be, has to be a set without damage.
//!
//! With the backing devices given, the check compares every clean extent with its backing device: that is the promise
//! of the cache, asked of the bytes and not of the program that wrote them.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use ubcache_offline::{Finding, Kind, check_set};

use crate::disk::Still;
use crate::oracle::Violation;

/// Findings that a report shows at most.
const FINDINGS_MAX: usize = 5;

/// The invariant of docs/coherence.md §10 that forbids a finding.
fn invariant(kind: Kind) -> &'static str {
    match kind {
        Kind::CleanDiffers => "I2, clean equals backing",
        Kind::BucketTwice | Kind::SectorsTwice | Kind::PromiseBroken | Kind::NodeStale => {
            "I10, no place is written while something points to it"
        }
        Kind::DirtyLost | Kind::BackingNoSlot => "I9, dirty data is not lost",
        Kind::DirtyUnderClean => "the backing device says dirty before dirty data is durable",
        _ => "the set can be read",
    }
}

/// Checks the disks of a set. Nothing is returned if all is well.
pub fn check_disks(cache: &Still, backing: &[Still]) -> Option<Violation> {
    let backing: Vec<&Still> = backing.iter().collect();
    let report = finish(check_set(cache, &backing));
    let forbidden = |finding: &&Finding| {
        finding.severity() == ubcache_offline::Severity::Error || is_forbidden(finding.kind)
    };
    let first = report.findings.iter().find(forbidden)?;
    let mut text = format!("{}\n", invariant(first.kind));
    for finding in report.findings.iter().filter(forbidden).take(FINDINGS_MAX) {
        text += &format!("{finding}\n");
    }
    Some(Violation {
        kind: format!("the disks: {} ({})", first.kind.code(), invariant(first.kind)),
        report: text,
    })
}

/// Warnings that may be in order on a set of the driver, or after something was done to the devices by hand.
///
/// `DirtyVoid` and `DirtyOrphan` are not among them: when the cache fails just after data was written back, its keys are
/// dirty still, and the backing device rightly disowns them (A4), before it is attached anew and after.
fn is_forbidden(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::DirtyUnderClean
            | Kind::JournalLastSeq
            | Kind::VolumeTwice
            | Kind::NodeEqual
            | Kind::FarAhead
            | Kind::VolumeUnknown
            | Kind::DirtyStale
            | Kind::BeyondEndClean
            | Kind::FlashClean
    )
}

/// A disk that stands still answers at once.
fn finish<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("nothing here waits"),
    }
}
