//! The offline check on the disks of a run: what is durable, and what might be, has to be a set
//! without damage.
//!
//! With the backing devices given, the check compares every clean extent with its backing device:
//! that is the promise of the cache, asked of the bytes and not of the program that wrote them.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use ubcache_offline::{
    CheckOptions, Checked, Finding, FindingKind, Severity, Source, VolumeMap, check, map_backed,
    map_flash_only,
};

use ubcache_format::{Inode, UuidEntry};

use crate::disk::Snapshot;
use crate::oracle::Violation;
use crate::system::{Holder, Layout, PlacedRange};

/// Findings that a report shows at most.
const FINDINGS_MAX: usize = 5;

/// Age that pointers may reach on a set that ubcache alone ran (G4). On others it is the
/// format's.
const AGE_MAX: u8 = 80;
const AGE_MAX_OF_FORMAT: u8 = 96;

/// The invariant of docs/internals/coherence.md §10 that forbids a finding.
fn invariant(kind: FindingKind) -> &'static str {
    match kind {
        FindingKind::CleanDiffers => "I2, clean equals backing",
        FindingKind::BucketTwice
        | FindingKind::SectorsTwice
        | FindingKind::PromiseBroken
        | FindingKind::NodeStale => "I10, no place is written while something points to it",
        FindingKind::DirtyLost | FindingKind::BackingNoSlot => "I9, dirty data is not lost",
        FindingKind::DirtyUnderClean => {
            "the backing device says dirty before dirty data is durable"
        }
        _ => "the set can be read",
    }
}

/// Checks the disks of a set, and says where each volume is; of a volume that is not known nothing.
/// The volume with the label `flash`, if there is one, has no backing device, and is the last.
/// `own`: nobody but ubcache ran the set.
pub fn check_disks(
    cache: &Snapshot,
    backing: &[Snapshot],
    flash: Option<&str>,
    own: bool,
) -> Result<Vec<Layout>, Violation> {
    finish(async {
        let devices: Vec<&Snapshot> = backing.iter().collect();
        let options = CheckOptions { view: true, ..CheckOptions::default() };
        let Checked { report, view, .. } = check(cache, &devices, None, options).await;
        let is_bad = |finding: &&Finding| {
            finding.severity() == Severity::Error || is_forbidden(finding.kind)
        };
        if let Some(first) = report.findings.iter().find(is_bad) {
            let invariant = invariant(first.kind);
            let findings = report.findings.iter().filter(is_bad).take(FINDINGS_MAX);
            let text = findings
                .fold(format!("{invariant}\n"), |text, finding| text + &format!("{finding}\n"));
            let kind = format!("the disks: {} ({invariant})", first.kind.code());
            return Err(Violation { kind, report: text });
        }
        let most = if own { AGE_MAX } else { AGE_MAX_OF_FORMAT };
        let stats = report.stats;
        let ages = [("a node", stats.oldest_node_pointer), ("data", stats.oldest_data_pointer)];
        if let Some((what, oldest)) = ages.into_iter().find(|&(_, oldest)| oldest > most) {
            let kind = format!("the disks: a pointer to {what} is too old (G4)");
            let report = format!("{kind}: it is behind by {oldest} generations, {most} at most");
            return Err(Violation { kind, report });
        }
        let mut volumes = Vec::new();
        for device in backing {
            let map = match &view {
                Some(view) => map_backed(view, device, false).await.ok(),
                None => None,
            };
            volumes.push(map.map_or_else(Layout::new, |map| layout(&map)));
        }
        if let Some(label) = flash {
            let is_it = |entry: &UuidEntry| {
                entry.flash_only && entry.is_live() && entry.label.starts_with(label.as_bytes())
            };
            let map = view.as_ref().and_then(|view| {
                let slot = view.uuids.iter().position(is_it)?;
                map_flash_only(view, Inode(slot as u32)).ok()
            });
            volumes.push(map.map_or_else(Layout::new, |map| layout(&map)));
        }
        Ok(volumes)
    })
}

fn layout(map: &VolumeMap) -> Layout {
    let piece = |segment: &ubcache_offline::Segment| PlacedRange {
        range: segment.range,
        place: match segment.source {
            Source::Clean(at) | Source::Dirty(at) => Holder::Cache(at),
            Source::Zeroes => Holder::Nobody,
            _ => Holder::Backing(map.data_offset + segment.range.start.0),
        },
    };
    map.segments.iter().map(piece).collect()
}

/// Warnings that may be in order on a set of the driver, or after something was done to the devices
/// by hand.
///
/// `DirtyVoid` and `DirtyOrphan` are not among them: when the cache fails just after data was
/// written back, its keys are dirty still, and the backing device rightly disowns them (A4), before
/// it is attached anew and after.
fn is_forbidden(kind: FindingKind) -> bool {
    matches!(
        kind,
        FindingKind::DirtyUnderClean
            | FindingKind::JournalLastSeq
            | FindingKind::VolumeTwice
            | FindingKind::NodeEqual
            | FindingKind::FarAhead
            | FindingKind::VolumeUnknown
            | FindingKind::DirtyStale
            | FindingKind::BeyondEndClean
            | FindingKind::FlashClean
    )
}

/// A disk that stands still answers at once.
fn finish<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("nothing here waits"),
    }
}
