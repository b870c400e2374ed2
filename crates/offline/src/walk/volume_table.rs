//! The volume table: the slots of volumes.

use ubcache_env::Device;
use ubcache_format::{Key, parse_uuids, parse_uuids_v0};

use super::visitor::Visitor;
use crate::io::prefetched::Prefetched;
use crate::io::read::read_around;
use crate::set::{Finding, FindingKind, Location, Owner, Site, View};

pub(super) async fn read_table<D: Device, V: Visitor + ?Sized>(
    cache: &D,
    prefetched: &Prefetched,
    view: &mut View,
    (key, version): (&Key, u32),
    salvage: bool,
    visitor: &mut V,
) {
    let geometry = view.geometry;
    let place =
        key.pointer().map_or(Location::on(Site::Cache), |p| Location::cache(&geometry, p.offset));
    let pointer = match (key.check_node(&geometry), key.pointer()) {
        (Ok(()), Some(pointer)) => pointer,
        (Ok(()), None) => {
            visitor.finding(Finding::new(
                FindingKind::VolumeTable,
                place,
                "the key of the volume table is an invalid pointer",
            ));
            view.complete = false;
            return;
        }
        (Err(error), _) => {
            visitor.finding(Finding::new(
                FindingKind::VolumeTable,
                place,
                format_args!("key of the volume table: {error}"),
            ));
            view.complete = false;
            return;
        }
    };
    if let Some(owner) = view.assign_bucket(pointer.bucket(geometry.bucket_sectors), Owner::Uuids) {
        let detail = format!("the volume table is in a bucket of the {}", owner.word());
        visitor.finding(Finding::new(FindingKind::BucketTwice, place, detail));
        view.complete = false;
    }
    view.raise(pointer);
    let bytes = match prefetched.read(cache, pointer.offset, u64::from(key.sectors)).await {
        // Unreadable slots count as empty.
        Err(_) if salvage => {
            read_around(cache, pointer.offset, u64::from(key.sectors)).await.map(|read| read.0)
        }
        whole => whole,
    };
    match bytes {
        Ok(bytes) if version == 0 => view.uuids = parse_uuids_v0(bytes.as_slice()),
        Ok(bytes) => view.uuids = parse_uuids(bytes.as_slice()),
        Err(error) => {
            visitor.finding(Finding::new(
                FindingKind::Unreadable,
                place,
                format_args!("volume table: {error}"),
            ));
            view.complete = false;
            return;
        }
    }
    for (slot, entry) in view.uuids.iter().enumerate().filter(|(_, entry)| entry.is_live()) {
        if let Some(first) = view.slot(entry.uuid)
            && (first.0 as usize) < slot
        {
            let detail = format!("slots {first} and {slot} both have {}", entry.uuid);
            visitor.finding(Finding::new(
                FindingKind::VolumeTwice,
                place.plus(128 * slot as u64),
                detail,
            ));
        }
    }
    visitor.uuids(key, &view.uuids);
}
