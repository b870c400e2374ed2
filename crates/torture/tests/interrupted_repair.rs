//! A repair in place that a power cut interrupts, at every write: the next one succeeds, and
//! nothing is lost of the data that was certain before the first one.

use ubcache_offline::{CheckOptions, OfflineError, RepairOptions, check, walk};
use ubcache_sim::Rng;
use ubcache_torture::damage::apply;
use ubcache_torture::device::{MemDevice, power_cuts, run};
use ubcache_torture::judge::{ALL, compare, in_place, lists};
use ubcache_torture::sets::{Base, small};

/// Damages, and whether content can be compared after them (see `damage::Damage`).
const DAMAGES: [(&str, bool); 10] = [
    ("a flipped bit", false),
    ("a lost node", true),
    ("a lost inner node", true),
    ("a lost prio chain", true),
    ("a lost superblock", true),
    ("a lost volume table", true),
    ("an unreadable superblock", true),
    ("unreadable metadata", true),
    ("an unreadable part of the journal", true),
    ("unreadable dirty data", true),
];
/// Outcomes of a power cut that are drawn where there are too many for all.
const DRAWN: usize = 4;

fn interrupted(
    base: &Base,
    kind: &str,
    strict: bool,
    use_uncertain: bool,
    seed: u64,
) -> Option<u64> {
    let options = RepairOptions { use_uncertain, ..ALL };
    let mut rng = Rng::fork(seed, kind);
    let mut damaged = base.cache.clone();
    apply(base, &mut damaged, kind, &mut rng);
    let cache = MemDevice::new(damaged.clone(), base.block);
    let backing = MemDevice::new(base.backing.clone(), base.block);
    let at = format!("{}, {kind}, seed {seed}, use-uncertain {use_uncertain}", base.name);
    let first = match in_place(&cache, &backing, options) {
        Ok(first) => first,
        Err(OfflineError::NoRoom(_)) => return None,
        Err(error) => panic!("{at}: {error}"),
    };
    if !first.without_slot.is_empty() {
        return None;
    }
    let mut cuts = 0;
    power_cuts(&damaged, &cache.log(), base.block as usize, DRAWN, &mut rng, |moment, image| {
        cuts += 1;
        let at = format!("{at}, before operation {moment} of {}", cache.log().len());
        let cache = MemDevice::new(image.clone(), base.block);
        let second =
            in_place(&cache, &backing, options).unwrap_or_else(|error| panic!("{at}: {error}"));
        let report = run(check(&cache, &[&backing], None, CheckOptions::default())).report;
        assert!(report.is_clean(), "{at}: {:?}", report.errors());
        if strict {
            // Data that the first repair was certain of is certain in the second one as well.
            compare(base, &cache, &backing, |key| lists(base, &first, key)).unwrap_or_else(
                |error| panic!("{at}: {error}\nthe second lists {:?}", second.uncertain),
            );
        }
    });
    Some(cuts)
}

#[test]
fn a_repair_in_place_can_be_interrupted_at_every_write() {
    let (mut cuts, mut repairs, mut no_room) = (0, 0, 0);
    for base in &small() {
        for (kind, strict) in DAMAGES {
            for (seed, use_uncertain) in [(1, false), (2, true), (3, false)] {
                match interrupted(base, kind, strict, use_uncertain, seed) {
                    Some(count) => {
                        cuts += count;
                        repairs += u64::from(count > 1);
                    }
                    None => no_room += 1,
                }
            }
        }
    }
    println!("{repairs} repairs, {cuts} power cuts; {no_room} left out");
    assert!(repairs > 60, "{repairs} repairs, {no_room} without room or slot");
}

/// The journals of these sets have gone round: a new entry can't simply go to the first bucket.
#[test]
fn journals_of_the_test_sets_have_wrapped() {
    for base in &small() {
        let cache = MemDevice::new(base.cache.clone(), base.block);
        let view = run(walk(&cache, &mut (), &())).expect("a set");
        let first: Vec<u64> =
            view.journal.places.iter().filter_map(|bucket| Some(bucket.first()?.seq)).collect();
        println!("{}: first entries of the buckets {first:?}", base.name);
        assert!(!first.is_sorted() || base.name == "stopped", "{}: {first:?}", base.name);
    }
}
