//! Draws many small extents and requests over all of them at once.
//!
//! The work of a request in the index grows with the extents under it, and so do the records that
//! it makes. The rings of these plans are small: a step that takes more room than it asked for
//! shows. Half of these plans have few extents and many rounds, most of which end with a FLUSH and
//! a power failure: discarded data must not return.

use ubcache_env::{Nanos, Sector, SectorRange};

use super::draw::DrawOptions;
use super::{Action, AfterStart, ClientOp, Control, ControlAction, Frontend, Plan};
use crate::disk::Profile;
use crate::rng::Rng;

/// One plan in this many.
const SHARE: u64 = 32;
/// Extents at most.
const EXTENTS_MAX: u64 = 1500;

/// Makes a plan of fragments, if its seed says so.
pub(super) fn break_up(plan: &mut Plan, rng: &mut Rng, options: DrawOptions) {
    if !rng.chance(1, SHARE) || !plan.hammers.is_empty() {
        return;
    }
    let many = rng.chance(1, 2);
    let extents = if many { rng.scale(100, EXTENTS_MAX) } else { rng.between(4, 16) };
    let sectors = 2 * extents;
    plan.cache.block_sectors = 1;
    plan.cache.bucket_sectors = rng.pick(&[8, 8, 16]);
    plan.cache.buckets = rng.pick(&[513, 600, 700]);
    plan.cache.profile = Profile::Fast;
    plan.frontend = Frontend::Direct;
    plan.volumes.truncate(1);
    let volume = &mut plan.volumes[0];
    volume.sectors = sectors;
    volume.block_sectors = 1;
    volume.mode = "writeback".to_owned();
    volume.profile = Profile::Fast;
    volume.discard = true;
    (plan.faults, plan.memory) = (Vec::new(), Default::default());
    (plan.ops, plan.controls) = (Vec::new(), Vec::new());
    set(plan, "sequential_cutoff", "0");
    set(plan, "writeback_running", rng.pick(&["0", "0", "1"]));
    for _ in 0..if many { rng.between(1, 2) } else { rng.between(4, 12) } {
        let dirty = rng.pick(&[1, 4, 7, 8]);
        for at in 0..extents {
            let range = SectorRange::new(Sector(2 * at), 1);
            let write = rng.chance(dirty, 8);
            let action =
                if write { Action::Write { range, fua: false } } else { Action::Read(range) };
            push(plan, (at % 3) as u32, action);
        }
        if rng.chance(1, 2) {
            push(plan, 0, Action::Flush);
        }
        if options.crashes && rng.chance(1, 4) {
            cut_power(plan, rng);
        }
        for _ in 0..rng.between(1, 4) {
            let range = some_of(rng, sectors);
            let action = match rng.below(8) {
                0 => Action::Write { range, fua: rng.chance(1, 2) },
                1 => Action::Zeroes { range, fua: false, unmap: true },
                _ => Action::Discard { range, fua: rng.chance(1, 4) },
            };
            push(plan, 0, action);
            if rng.chance(1, 2) {
                let range = SectorRange::new(Sector(rng.below(sectors)), 1);
                push(plan, 1, Action::Write { range, fua: rng.chance(1, 4) });
                push(plan, 2, Action::Read(range));
            }
        }
        // A discard may have been ignored; once its zeroes were seen it was not.
        for _ in 0..rng.between(0, 4) {
            push(plan, 0, Action::Read(SectorRange::new(Sector(2 * rng.below(extents)), 1)));
        }
        push(plan, 0, Action::Flush);
        if options.crashes && rng.chance(1, 2) {
            cut_power(plan, rng);
        }
    }
}

/// The power fails soon after the last operation so far has begun.
fn cut_power(plan: &mut Plan, rng: &mut Rng) {
    let after = AfterStart { check: rng.chance(1, 2), again: None };
    let delay = Nanos::from_micros(rng.scale(1, 3_000));
    let after_ops = plan.ops.len() as u64;
    plan.controls.push(Control { after_ops, delay, action: ControlAction::PowerFailure(after) });
}

/// The whole volume more often than not.
fn some_of(rng: &mut Rng, sectors: u64) -> SectorRange {
    let start = if rng.chance(2, 3) { 0 } else { rng.below(sectors) };
    let length = if rng.chance(2, 3) { sectors } else { rng.scale(1, sectors) };
    SectorRange::from_bounds(Sector(start), Sector((start + length).min(sectors)))
}

fn push(plan: &mut Plan, client: u32, action: Action) {
    plan.ops.push(ClientOp { client, volume: 0, action });
}

fn set(plan: &mut Plan, name: &str, value: &str) {
    let action =
        ControlAction::Attribute { volume: 0, name: name.to_owned(), value: value.to_owned() };
    plan.controls.push(Control { after_ops: 0, delay: Nanos::from_micros(1), action });
}
