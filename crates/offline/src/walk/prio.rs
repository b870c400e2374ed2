//! The prio chain: the generation and the priority of each bucket.

use ubcache_env::Device;
use ubcache_format::{BucketNr, Reach, SECTOR_BYTES, parse_prio};

use super::visitor::{PrioElement, Visitor};
use crate::io::prefetched::Prefetched;
use crate::io::progress::{Phase, Watcher};
use crate::set::{Finding, FindingKind, Location, Owner, Site, View};

pub(super) async fn read_prios<D: Device, V: Visitor + ?Sized>(
    cache: &D,
    prefetched: &Prefetched,
    view: &mut View,
    first: BucketNr,
    visitor: &mut V,
    watcher: &dyn Watcher,
) {
    let geometry = view.geometry;
    let sectors = geometry.metadata_bytes() / SECTOR_BYTES;
    let count = geometry.prio_buckets();
    let phase = Phase::new(watcher, "prio chain", u64::from(count) * sectors * SECTOR_BYTES);
    let mut bucket = first;
    let mut chains = 0;
    for element in 0..count {
        if !geometry.is_usable(bucket) {
            let detail = format!(
                "element {} of {count} is in bucket {bucket}, expected {} to {}",
                element + 1,
                geometry.first_bucket,
                geometry.buckets - 1
            );
            visitor.finding(Finding::new(
                FindingKind::PrioDamaged,
                Location::on(Site::Cache),
                detail,
            ));
            view.complete = false;
            return;
        }
        let place = Location::bucket(&geometry, bucket);
        if let Some(owner) = view.assign_bucket(bucket, Owner::Prio) {
            let detail = format!("a prio set is in a bucket of the {}", owner.word());
            visitor.finding(Finding::new(FindingKind::BucketTwice, place, detail));
            view.complete = false;
        }
        let bytes = match prefetched.read(cache, geometry.bucket_start(bucket), sectors).await {
            Ok(bytes) => bytes,
            Err(error) => {
                visitor.finding(Finding::new(
                    FindingKind::Unreadable,
                    place,
                    format_args!("prio set: {error}"),
                ));
                view.complete = false;
                return;
            }
        };
        phase.add(sectors * SECTOR_BYTES);
        match parse_prio(&geometry, bytes.as_slice()) {
            Ok((seq, next, entries)) => {
                let each = geometry.prio_entries_per_bucket() as usize;
                let start = element as usize * each;
                let room = view.buckets.get_mut(start..).unwrap_or_default();
                for (bucket, entry) in room.iter_mut().zip(&entries) {
                    bucket.stored = entry.generation;
                    bucket.generation = entry.generation;
                    bucket.priority = entry.priority;
                    bucket.known = true;
                }
                let used = room.len().min(entries.len());
                let first = BucketNr(start as u32);
                visitor.prio(&PrioElement { bucket, seq, next, first, entries: &entries[..used] });
                chains = seq.max(chains);
                bucket = next;
            }
            Err(error) => {
                visitor.finding(Finding::new(
                    FindingKind::PrioDamaged,
                    place.plus(error.at),
                    &error,
                ));
                view.complete = false;
                return;
            }
        }
    }
    // All of the chain is there: what it says of a bucket can be held against a pointer.
    let own_chain = view.journal.last_run.stamp().is_some_and(|stamp| stamp.own_chain);
    view.reach = Reach::of_set(own_chain, chains);
}
